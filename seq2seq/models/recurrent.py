"""One recurrent layer in one direction, and the state that it carries.

Every layer is a module of its own, so that its outputs, its weights and its gradient at each
timestep can be read alone. Stacking layers, joining directions and dropout between layers
belong to the encoder and the decoder.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._higher_order_ops import scan
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from seq2seq.models.cells import STEP_CELLS, ProjectedLSTM, StepCell
from seq2seq.models.dropout import draw_mask, masked

# Of the cells with a kernel, one letter a gate in the order in which the blocks lie in memory.
KERNEL_GATES = {"lstm": "ifgo", "gru": "rzn", "rnn_tanh": "h", "rnn_relu": "h"}
CELLS = (*KERNEL_GATES, *STEP_CELLS)

_KERNELS: dict[str, Any] = {
    "lstm": torch.lstm,
    "gru": torch.gru,
    "rnn_tanh": torch.rnn_tanh,
    "rnn_relu": torch.rnn_relu,
}


class RecurrentState(NamedTuple):
    """What a stack of recurrent layers carries from one timestep to the next.

    Shape:
        hidden: ``[layers, batch, hidden]``.
        cell: ``[layers, batch, hidden]`` for a cell that :func:`has_cell_state`, otherwise None.
            Where the hidden state is projected, the cell state is wider than that.
    """

    hidden: Tensor
    cell: Tensor | None = None

    def layers(self) -> list["RecurrentState"]:
        """The state of each layer, still with a leading axis of length 1."""
        hidden = [one.unsqueeze(0) for one in self.hidden.unbind()]
        if self.cell is None:
            return [RecurrentState(one) for one in hidden]
        cells = [one.unsqueeze(0) for one in self.cell.unbind()]
        return [RecurrentState(*pair) for pair in zip(hidden, cells, strict=True)]

    def detach(self) -> "RecurrentState":
        """The same values, through which no gradient goes back."""
        return RecurrentState(
            self.hidden.detach(), None if self.cell is None else self.cell.detach()
        )

    def select(self, rows: Tensor) -> "RecurrentState":
        """The examples ``rows`` (int64 ``[rows]``) in that order; repeats are allowed."""
        cell = None if self.cell is None else self.cell.index_select(1, rows)
        return RecurrentState(self.hidden.index_select(1, rows), cell)


def stack_states(states: Sequence[RecurrentState]) -> RecurrentState:
    """One state of all layers from the states of single layers, in the order given."""
    cells = [state.cell for state in states if state.cell is not None]
    hidden = torch.cat([state.hidden for state in states])
    return RecurrentState(hidden, torch.cat(cells) if cells else None)


def has_cell_state(cell: str) -> bool:
    """Whether the cell of this name carries a cell state beside the hidden state."""
    return cell == "lstm" or (cell in STEP_CELLS and STEP_CELLS[cell].has_cell)


def gates_of(module: nn.Module) -> str:
    """One letter a gate of a recurrent module, in the order of the rows; ``""`` of any other."""
    if isinstance(module, StepCell):
        return module.gates
    return KERNEL_GATES[module.mode.lower()] if isinstance(module, nn.RNNBase) else ""


def recurrent_map(module: nn.Module) -> Tensor:
    """What a step does to the units of the step before, ``[gates * hidden, hidden]``, detached.

    The hidden-to-hidden weights ``U``; with a projection ``U W_r``, since it is neither alone that
    turns the units of one step into those of the next.
    """
    weight = module.get_parameter("weight_hh_l0").detach()
    if isinstance(module, nn.LSTM) and module.proj_size:
        return weight @ module.get_parameter("weight_hr_l0").detach()
    return weight


class RecurrentNoise(NamedTuple):
    """What is drawn at random for a pass through a layer.

    Shape:
        recurrent_mask: as the hidden-to-hidden weights, which it multiplies at all timesteps of a
            sequence.
        keep_hidden, keep_cell: ``[batch, time, hidden]`` in the order of the scan, 1 where the
            state stays what it was; each as wide as its state.
    """

    recurrent_mask: Tensor | None = None
    keep_hidden: Tensor | None = None
    keep_cell: Tensor | None = None

    def during(self, steps: slice) -> "RecurrentNoise":
        """That of some timesteps of the scan."""
        hidden, cell = self.keep_hidden, self.keep_cell
        return RecurrentNoise(
            self.recurrent_mask,
            None if hidden is None else hidden[:, steps],
            None if cell is None else cell[:, steps],
        )


class RecurrentOutput(NamedTuple):
    """What a recurrent layer returns.

    Shape:
        output: ``[batch, time, hidden]``, the hidden state at every timestep, in the order of the
            input. Undefined where the input is padding.
        state: the state at the end of each sequence's own scan, with ``layers = 1``.
    """

    output: Tensor
    state: RecurrentState


def reverse_by_length(x: Tensor, lengths: Tensor) -> Tensor:
    """Reverse the first ``lengths[b]`` timesteps of each sequence and leave the rest in place.

    Its own inverse, and a permutation, so that forward and backward are exact.

    Shape:
        x: ``[batch, time]`` or ``[batch, time, feature]``; lengths: int64 ``[batch]``.
    """
    batch, time = x.shape[:2]
    steps = torch.arange(time, device=x.device)
    ends = lengths.to(x.device).unsqueeze(1)
    order = torch.where(steps < ends, ends - 1 - steps, steps)
    rows = order + time * torch.arange(batch, device=x.device).unsqueeze(1)
    return x.flatten(0, 1).index_select(0, rows.flatten()).view_as(x)


class RecurrentLayer(nn.Module):
    """A single recurrent layer that scans in one direction.

    LSTM (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000)::

        i, f, o = sigmoid(W x_t + U h_{t-1} + b)    g = tanh(W x_t + U h_{t-1} + b)
        c_t = f * c_{t-1} + i * g                   h_t = o * tanh(c_t)

    GRU (Cho et al. 2014, in the variant that applies the reset gate after the product)::

        r, z = sigmoid(W x_t + U h_{t-1} + b)
        n = tanh(W_n x_t + b_n + r * (U_n h_{t-1} + b'_n))
        h_t = (1 - z) * n + z * h_{t-1}

    RNN (Elman 1990): ``h_t = tanh(W x_t + U h_{t-1} + b)``, or ``relu`` in place of ``tanh``.

    These have a kernel that runs over all timesteps; those of `seq2seq.models.cells` walk step by
    step, after one product of all inputs with ``W``.

    LSTM with projection (Sak, Senior and Beaufays 2014, "Long short-term memory recurrent neural
    network architectures for large scale acoustic modeling", the recurrent projection), whose
    hidden state ``h`` is narrower than the cell state::

        h_t = W_r (o * tanh(c_t))

    Weights lie gate by gate as ``[gates * hidden, in]``, in PyTorch's order: LSTM ``i f g o``,
    GRU ``r z n``. A large ``z`` remembers, whereas papers often write it the other way round.

    Args:
        cell: one of :data:`CELLS`.
        input_size: width of the input.
        hidden_size: number of units: width of the cell state and, but for a projection, of the
            hidden state.
        projection_size: width of the LSTM's hidden state after a projection; without one if None.
        reverse: scan each sequence from its last real timestep to its first.
        weight_dropout: share of the hidden-to-hidden weights dropped by :meth:`draw_noise`:
            DropConnect within the recurrence, the same weights at every timestep, which stays fused
            (Merity, Keskar and Socher 2018, "Regularizing and optimizing LSTM language models",
            section 2).
        zoneout_hidden, zoneout_cell: share of the units of ``h`` and of the LSTM's ``c`` that stay
            what they were, drawn at every timestep (Krueger et al. 2017, "Zoneout: regularizing
            RNNs by randomly preserving hidden activations", section 3)::

                c_t = e * c_{t-1} + (1 - e) * c~_t      h_t = d * h_{t-1} + (1 - d) * h~_t

            with what the cell proposes, ``c~_t`` and ``h~_t``, of which the LSTM's is
            ``o * tanh(c~_t)``. Without draws, as in evaluation, both masks are the shares. It walks
            step by step.
        truncation: timesteps of a chunk, counted in the order of the scan, within which gradients
            go back through time in training. The state is carried from chunk to chunk, the gradient
            is not, and each chunk's own counts (Williams and Peng 1990; Sutskever 2013, "Training
            recurrent neural networks", section 2.8.6). All of them if None.

    Attributes:
        output_size: width of the hidden state, which is the layer's output.

    Raises:
        ValueError: if ``cell`` is not one of :data:`CELLS`, for ``zoneout_cell`` without a cell
            state, or for a projection that can't be.
    """

    def __init__(
        self,
        *,
        cell: str,
        input_size: int,
        hidden_size: int,
        projection_size: int | None = None,
        reverse: bool = False,
        weight_dropout: float = 0.0,
        zoneout_hidden: float = 0.0,
        zoneout_cell: float = 0.0,
        truncation: int | None = None,
    ) -> None:
        super().__init__()
        self.cell = cell
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.output_size = hidden_size if projection_size is None else projection_size
        self.reverse = reverse
        self.weight_dropout = weight_dropout
        self.zoneout_hidden = zoneout_hidden
        self.zoneout_cell = zoneout_cell
        self.truncation = truncation
        self.has_cell = has_cell_state(cell)
        if zoneout_cell and not self.has_cell:
            raise ValueError(
                f"zoneout_cell is {zoneout_cell}, but cell={cell} has no cell state: set it to 0, "
                "or use zoneout_hidden"
            )
        self.projects = projection_size is not None
        if self.projects and cell != "lstm":
            raise ValueError(
                f"projection_size is {projection_size}, but cell={cell} has no projection: set it "
                "to null, or use cell=lstm"
            )
        if self.projects and self.output_size >= hidden_size:
            raise ValueError(
                f"projection_size is {projection_size}, but it must be below the number of units, "
                f"and a layer has {hidden_size}: choose a smaller one, or null for no projection"
            )
        self.rnn: nn.LSTM | nn.GRU | nn.RNN | StepCell
        match cell:
            case "lstm":
                if projection_size:  # nothing can be done about it, and results are the same
                    warnings.filterwarnings("ignore", "LSTM with projections is not supported with")
                projected = projection_size or 0
                self.rnn = nn.LSTM(input_size, hidden_size, batch_first=True, proj_size=projected)
            case "gru":
                self.rnn = nn.GRU(input_size, hidden_size, batch_first=True)
            case "rnn_tanh":
                self.rnn = nn.RNN(input_size, hidden_size, nonlinearity="tanh", batch_first=True)
            case "rnn_relu":
                self.rnn = nn.RNN(input_size, hidden_size, nonlinearity="relu", batch_first=True)
            case _ if cell in STEP_CELLS:
                self.rnn = STEP_CELLS[cell](input_size, hidden_size)
            case _:
                names = ", ".join([*KERNEL_GATES, *STEP_CELLS])
                raise ValueError(f"cell is {cell!r}, but it must be one of {names}")

    @property
    def gates(self) -> str:
        """One letter a gate, in the order of the rows of the weights."""
        return gates_of(self.rnn)

    @property
    def equations(self) -> StepCell | None:
        """The cell as equations of one timestep, sharing its weights; None where none are written.

        Diagnostics differentiate these; the kernels' other cells have closed forms there.
        """
        if isinstance(self.rnn, StepCell):
            return self.rnn
        return ProjectedLSTM(self.rnn) if isinstance(self.rnn, nn.LSTM) and self.projects else None

    def draw_noise(self) -> RecurrentNoise | None:
        """What is drawn once a sequence in training; None in evaluation, and if nothing is."""
        if not self.training or not self.weight_dropout:
            return None
        weight = self.rnn.get_parameter("weight_hh_l0")
        return RecurrentNoise(draw_mask(weight, tuple(weight.shape), self.weight_dropout))

    def draw_steps(self, x: Tensor, noise: RecurrentNoise | None) -> RecurrentNoise | None:
        """Add to ``noise`` what is drawn at every timestep of the input ``x`` in training."""
        if not self.training or not self.zones_out:
            return noise
        exact = torch.promote_types(x.dtype, torch.float32)

        def drawn(share: float, size: int) -> Tensor:
            shape = (x.size(0), x.size(1), size)
            return torch.empty(shape, dtype=exact, device=x.device).bernoulli_(share)

        cell = drawn(self.zoneout_cell, self.hidden_size) if self.has_cell else None
        mask = None if noise is None else noise.recurrent_mask
        return RecurrentNoise(mask, drawn(self.zoneout_hidden, self.output_size), cell)

    @property
    def zones_out(self) -> bool:
        """Whether units of the state may stay what they were."""
        return self.zoneout_hidden > 0 or self.zoneout_cell > 0

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        state: RecurrentState | None = None,
        noise: RecurrentNoise | None = None,
    ) -> RecurrentOutput:
        """Run over all timesteps, in one fused call if nothing forces step by step.

        Args:
            x: input.
            lengths: number of real timesteps of each sequence; None if all are real, or if what
                follows the real ones doesn't matter (a teacher-forced decoder).
            state: state before the first timestep; zeros by default.
            noise: from :meth:`draw_noise`, the same for every timestep of a sequence, and
                :meth:`draw_steps`; drawn by the caller, so that this call depends on its arguments
                alone.

        Shape:
            x: ``[batch, time, input]``, padded at the end; lengths: int64 ``[batch]``.
        """
        if torch.compiler.is_exporting() and lengths is not None:
            return self._walk_in_graph(x, lengths)
        if x.size(1) == 1 or not self.reverse:
            return self._run(x, lengths, state, noise)
        if lengths is None:
            lengths = torch.full((x.size(0),), x.size(1), device=x.device)
        output, final = self._run(reverse_by_length(x, lengths), lengths, state, noise)
        return RecurrentOutput(reverse_by_length(output, lengths), final)

    @property
    def truncation_now(self) -> int | None:
        """Timesteps within which gradients go back; None in evaluation."""
        return self.truncation if self.training else None

    def _run(
        self,
        x: Tensor,
        lengths: Tensor | None,
        state: RecurrentState | None,
        noise: RecurrentNoise | None,
    ) -> RecurrentOutput:
        """All timesteps in the order of the scan, or chunk by chunk."""
        size = self.truncation_now
        if size is None or x.size(1) <= size:
            return self._run_chunk(x, lengths, state, noise)
        outputs: list[Tensor] = []
        for begin in range(0, x.size(1), size):
            steps = slice(begin, begin + size)
            output, after = self._run_chunk(
                x[:, steps],
                # A sequence that has ended scans one timestep of its padding, for nothing.
                None if lengths is None else (lengths - begin).clamp(1, size),
                state.detach() if begin and state is not None else state,
                None if noise is None else noise.during(steps),
            )
            if lengths is not None and state is not None:
                # With its gradient, the state of a sequence that ended in an earlier chunk.
                after = _held(after, state, (lengths.to(x.device) > begin).unsqueeze(1))
            state = after
            outputs.append(output)
        assert state is not None
        return RecurrentOutput(torch.cat(outputs, dim=1), state)

    def _run_chunk(
        self,
        x: Tensor,
        lengths: Tensor | None,
        state: RecurrentState | None,
        noise: RecurrentNoise | None,
    ) -> RecurrentOutput:
        if self.zones_out or isinstance(self.rnn, StepCell):
            return self._walk(x, lengths, state, noise)
        if x.size(1) == 1:
            return self._step(x, state, noise)
        if lengths is None:
            return RecurrentOutput(*self._scan(x, state, noise))
        if self.cell in ("lstm", "rnn_relu"):
            return self._scan_packed(x, lengths, state, noise)
        # Without a cell state, the state at the end of each sequence is among the outputs.
        output, _ = self._scan(x, state, noise)
        last = (lengths - 1).view(-1, 1, 1).expand(-1, 1, self.hidden_size)
        final = RecurrentState(output.gather(1, last.to(x.device)).transpose(0, 1))
        return RecurrentOutput(output, final)

    def _walk(
        self,
        x: Tensor,
        lengths: Tensor | None,
        state: RecurrentState | None,
        noise: RecurrentNoise | None,
    ) -> RecurrentOutput:
        """Step by step: without a kernel, or where units of the state stay what they were."""
        time = x.size(1)
        if lengths is not None:
            lengths = lengths.to(x.device)
        state = state or self._zeros(x)
        noise = noise or RecurrentNoise()
        propose = self._proposals(x, noise)
        outputs = []
        for now in range(time):
            after = propose(now, state)
            if self.zones_out:
                after = self._zoned_out(after, state, noise, now)
            if time > 1 and lengths is not None:
                after = _held(after, state, (now < lengths).unsqueeze(1))
            state = after
            outputs.append(state.hidden.transpose(0, 1))
        # Of a single step a view of the state, so that the gradient of the state is the total one.
        output = torch.cat(outputs, dim=1) if time > 1 else outputs[0]
        return RecurrentOutput(output, state)

    def _proposals(
        self, x: Tensor, noise: RecurrentNoise
    ) -> Callable[[int, RecurrentState], RecurrentState]:
        """The cell's state after a timestep of ``x``, from the timestep and the state before."""
        if not isinstance(self.rnn, StepCell):
            return lambda now, state: self._step(x[:, now : now + 1], state, noise).state
        rnn = self.rnn
        driven = rnn.drive(x).unbind(1)
        weight = masked(rnn.weight_hh_l0, noise.recurrent_mask)

        def propose(now: int, state: RecurrentState) -> RecurrentState:
            gates = rnn.gate_values(driven[now], state.hidden[0], weight)
            before = None if state.cell is None else state.cell[0]
            hidden, cell = rnn.next_state(gates, state.hidden[0], before)
            return RecurrentState(hidden.unsqueeze(0), None if cell is None else cell.unsqueeze(0))

        return propose

    def _zoned_out(
        self, proposed: RecurrentState, before: RecurrentState, noise: RecurrentNoise, now: int
    ) -> RecurrentState:
        keep = None if noise.keep_hidden is None else noise.keep_hidden[:, now]
        hidden = _kept(proposed.hidden, before.hidden, keep, self.zoneout_hidden)
        if proposed.cell is None or before.cell is None:
            return RecurrentState(hidden)
        keep = None if noise.keep_cell is None else noise.keep_cell[:, now]
        return RecurrentState(hidden, _kept(proposed.cell, before.cell, keep, self.zoneout_cell))

    def _zeros(self, x: Tensor) -> RecurrentState:
        """The state before the first timestep of ``x``, ``[batch, ...]``, if none is given."""
        zeros = x.new_zeros(1, x.size(0), self.hidden_size)
        hidden = x.new_zeros(1, x.size(0), self.output_size) if self.projects else zeros
        return RecurrentState(hidden, zeros if self.has_cell else None)

    def _walk_in_graph(self, x: Tensor, lengths: Tensor) -> RecurrentOutput:
        """Step by step from zeros, as one operator of an exported graph, for any number of steps.

        A fused kernel becomes as many nodes as the example has timesteps.
        """
        if self.reverse:
            x = reverse_by_length(x, lengths)
        steps = torch.arange(x.size(1), device=x.device)
        real = (steps.unsqueeze(1) < lengths).unsqueeze(2)  # [time, batch, 1]

        def step(
            before: tuple[Tensor, ...], now: tuple[Tensor, Tensor]
        ) -> tuple[tuple[Tensor, ...], Tensor]:
            state = RecurrentState(*before)
            after = _held(self(now[0].unsqueeze(1), None, state).state, state, now[1])
            held = tuple(one for one in after if one is not None)
            return held, held[0].clone()  # what an operator gives must not be one tensor twice

        zeros = tuple(one.clone() for one in self._zeros(x) if one is not None)
        final, output = scan(step, zeros, (x.transpose(0, 1), real))
        output = output.squeeze(1).transpose(0, 1)
        if self.reverse:
            output = reverse_by_length(output, lengths)
        return RecurrentOutput(output, RecurrentState(*final))

    def _weights(self, noise: RecurrentNoise | None) -> list[Tensor]:
        """Input-hidden, hidden-hidden, their biases, and the projection if there is one."""
        weights: list[Tensor] = list(self.rnn.parameters())
        if noise is not None:
            weights[1] = masked(weights[1], noise.recurrent_mask)
        return weights

    def _scan(
        self,
        x: Tensor | PackedSequence,
        state: RecurrentState | None,
        noise: RecurrentNoise | None,
    ) -> tuple[Any, RecurrentState]:
        if noise is not None:
            return self._scan_with(self._weights(noise), x, state)
        if isinstance(self.rnn, nn.LSTM):
            pair = None if state is None or state.cell is None else (state.hidden, state.cell)
            output, (hidden, cell) = self.rnn(x, pair)
            return output, RecurrentState(hidden, cell)
        output, hidden = self.rnn(x, None if state is None else state.hidden)
        return output, RecurrentState(hidden)

    def _scan_with(
        self, weights: list[Tensor], x: Tensor | PackedSequence, state: RecurrentState | None
    ) -> tuple[Any, RecurrentState]:
        """What `nn.RNNBase.forward` does, with other weights than the module's own."""
        data = x.data if isinstance(x, PackedSequence) else x
        if state is None:
            first = int(x.batch_sizes[0]) if isinstance(x, PackedSequence) else len(data)
            state = self._zeros(data[:first])
        elif isinstance(x, PackedSequence) and x.sorted_indices is not None:
            state = state.select(x.sorted_indices)
        kernel = _KERNELS[self.cell]
        before = state.hidden if state.cell is None else [state.hidden, state.cell]
        how = (weights, True, 1, 0.0, self.training, False)  # biases, layers, dropout, ..., both
        if isinstance(x, PackedSequence):
            output, *after = kernel(data, x.batch_sizes, before, *how)
        else:
            output, *after = kernel(data, before, *how, True)  # batch first
        final = RecurrentState(*after)
        if isinstance(x, PackedSequence):
            output = PackedSequence(output, x.batch_sizes, x.sorted_indices, x.unsorted_indices)
            if x.unsorted_indices is not None:
                final = final.select(x.unsorted_indices)
        return output, final

    def _scan_packed(
        self,
        x: Tensor,
        lengths: Tensor,
        state: RecurrentState | None,
        noise: RecurrentNoise | None,
    ) -> RecurrentOutput:
        # Only the kernel sees the cell state at the end of each sequence, so it must know lengths.
        # A ReLU network could overflow in a scan of padding, and 0 * inf is a NaN gradient.
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        packed_output, final = self._scan(packed, state, noise)
        output, _ = pad_packed_sequence(packed_output, batch_first=True, total_length=x.size(1))
        return RecurrentOutput(output, final)

    def _step(
        self, x: Tensor, state: RecurrentState | None, noise: RecurrentNoise | None
    ) -> RecurrentOutput:
        if self.projects:
            # PyTorch has no single step with a projection; a scan of one is the same kernel.
            # Not by the module, which can't be traced within a graph's loop.
            _, final = self._scan_with(self._weights(noise), x, state)
            return RecurrentOutput(final.hidden.transpose(0, 1), final)
        weights = self._weights(noise)
        x = x.squeeze(1)
        state = state or self._zeros(x)
        before = state.hidden[0]
        cell = None
        if state.cell is not None:
            hidden, cell = torch.lstm_cell(x, (before, state.cell[0]), *weights)
        elif self.cell == "gru":
            hidden = torch.gru_cell(x, before, *weights)
        elif self.cell == "rnn_tanh":
            hidden = torch.rnn_tanh_cell(x, before, *weights)
        else:
            hidden = torch.rnn_relu_cell(x, before, *weights)
        # The output is a view of the state, so that the gradient of the state is the total one.
        after = RecurrentState(hidden.unsqueeze(0), None if cell is None else cell.unsqueeze(0))
        return RecurrentOutput(after.hidden.transpose(0, 1), after)

    def extra_repr(self) -> str:
        """What `print(layer)` adds to the wrapped module."""
        return "reverse=True" if self.reverse else ""


def _held(after: RecurrentState, before: RecurrentState, real: Tensor) -> RecurrentState:
    """The state before where a sequence has ended, so that nothing can overflow in the padding."""
    hidden = torch.where(real, after.hidden, before.hidden)
    if after.cell is None or before.cell is None:
        return RecurrentState(hidden)
    return RecurrentState(hidden, torch.where(real, after.cell, before.cell))


def _kept(proposed: Tensor, before: Tensor, keep: Tensor | None, share: float) -> Tensor:
    if keep is None:
        return share * before.to(proposed.dtype) + (1 - share) * proposed
    return torch.where(keep > 0, before.to(proposed.dtype), proposed)
