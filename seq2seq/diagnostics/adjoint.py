"""Exact backpropagation through one recurrent layer, with the gradient kept at every timestep.

A fused kernel returns its outputs and swallows what flows between its timesteps. Here the
recurrence is linearised once around the states that it went through, and the gradient is carried
back through it step by step. What is carried, and what is read off, belongs to `gradient_flow`.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from seq2seq.diagnostics.linearization import Linearization, Zoneout
from seq2seq.diagnostics.step_adjoint import linearize_steps
from seq2seq.models.dropout import masked
from seq2seq.models.recurrent import RecurrentLayer


@dataclass(frozen=True)
class KernelLinearization(Linearization):
    """Derivatives in closed form of the cells that have a kernel.

    With ``dh`` and ``dc`` the total derivatives of a loss with respect to ``h_t`` and ``c_t``, the
    gradient of the pre-activations is ``d = local * dh`` (``local * dc`` for the gates ``i f g`` of
    the LSTM) and what reaches the step before is

    ========= ======================================= =======================
    cell      to ``h_{t-1}``                          to ``c_{t-1}``
    ========= ======================================= =======================
    LSTM      ``U^T d``                               ``f * dc``
    GRU       ``U^T d + z * dh``
    RNN       ``U^T d``
    ========= ======================================= =======================

    where in the LSTM ``dc`` includes the way through the output, ``o * (1 - tanh(c)^2) * dh``.

    Zoneout, with the masks ``d`` of the hidden state and ``e`` of the cell, scales GRU and RNN by
    ``1 - d`` and adds ``d`` to what is kept. In the LSTM the gates ``i f g`` get ``dc~``, the
    derivative with respect to the cell state that was proposed, and the step before
    ``U^T d + d * dh`` and ``f * dc~ + e * dc``, where ``dc~ = (1 - e) * dc + (1 - d) * o * (1 -
    tanh(c~)^2) * dh`` and ``dc`` itself has no way through the output.

    Shape:
        hidden, previous_hidden: ``[time, batch, hidden]``.
        recurrent_weight: ``U``, ``[gates * hidden, hidden]``.
        local: ``[time, batch, gates, hidden]``.
        keep: ``[time, batch, hidden]``: ``f`` or ``z``; None for the RNN.
        cell_to_hidden: ``[time, batch, hidden]``: ``o * (1 - tanh(c)^2)``, under zoneout times
            ``1 - d``; None without a cell.
        zoneout: ``d`` and ``e`` of an LSTM, each ``[time, batch, hidden]``; None without.
    """

    hidden: Tensor
    previous_hidden: Tensor
    recurrent_weight: Tensor
    local: Tensor
    keep: Tensor | None = None
    cell_to_hidden: Tensor | None = None
    zoneout: Zoneout | None = None

    def to_gates(self, hidden: Tensor, cell: Tensor) -> Tensor:
        """What the LSTM's gates ``i f g`` get, from the total derivatives."""
        if self.zoneout is None:
            return cell
        assert self.cell_to_hidden is not None
        return (1 - self.zoneout.cell) * cell + self.cell_to_hidden * hidden

    @property
    def has_cell(self) -> bool:
        """Only the LSTM has a cell state."""
        return self.cell_to_hidden is not None

    def part(self, length: int, row: int) -> "KernelLinearization":
        """The first ``length`` timesteps of one example, as a batch of one."""
        here = (slice(length), slice(row, row + 1))
        zoneout = self.zoneout
        return KernelLinearization(
            hidden=self.hidden[here],
            previous_hidden=self.previous_hidden[here],
            recurrent_weight=self.recurrent_weight,
            local=self.local[here],
            keep=None if self.keep is None else self.keep[here],
            cell_to_hidden=None if self.cell_to_hidden is None else self.cell_to_hidden[here],
            zoneout=None if zoneout is None else Zoneout(*(one[here] for one in zoneout)),
        )

    @torch.no_grad()
    def backpropagate(
        self, hidden: Tensor, cell: Tensor | None = None, *, truncation: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """In one pass back over the timesteps."""
        u = self.recurrent_weight
        time, losses, batch, size = hidden.shape
        # Each step completes its own derivative in place and adds its share to the step before.
        hidden = hidden.clone()
        if self.cell_to_hidden is None:
            cell = None
        else:
            cell = torch.zeros_like(hidden) if cell is None else cell.clone()
        gates, zoneout = self.local.size(2), self.zoneout
        activations = hidden.new_empty(losses, batch, gates, size)
        for now in reversed(range(time)):
            before = now - 1
            local, dh = self.local[now], hidden[now]
            if self.cell_to_hidden is not None:
                assert cell is not None
                if zoneout is None:
                    dc = cell[now].addcmul_(self.cell_to_hidden[now], dh)
                else:
                    dc = (1 - zoneout.cell[now]) * cell[now] + self.cell_to_hidden[now] * dh
                torch.mul(local[:, :3], dc.unsqueeze(2), out=activations[:, :, :3])
                torch.mul(local[:, 3], dh, out=activations[:, :, 3])
            else:
                torch.mul(local, dh.unsqueeze(2), out=activations)
            if now % (truncation or time) == 0:
                continue
            if self.keep is not None:
                carried, state = (hidden, dh) if cell is None else (cell, dc)
                carried[before].addcmul_(self.keep[now], state)
                if zoneout is not None and cell is not None:
                    cell[before].addcmul_(zoneout.cell[now], cell[now])
                    hidden[before].addcmul_(zoneout.hidden[now], dh)
            hidden[before].view(losses * batch, size).addmm_(
                activations.view(losses * batch, gates * size), u
            )
        return hidden, cell

    def carried_cell(
        self, hidden: Tensor, cell: Tensor, direct: Tensor, *, truncation: int | None = None
    ) -> Tensor:
        """What came by the step after, and directly."""
        assert self.keep is not None
        if self.zoneout is not None:  # nothing of it passes h_t
            return cell
        keep = self.keep[1:]
        if truncation is not None:
            keep = keep.clone()
            keep[truncation - 1 :: truncation] = 0
        carried = direct.clone()
        carried[:-1].addcmul_(keep, cell[1:])
        return carried

    def total_cell(self, hidden: Tensor, carried: Tensor) -> Tensor | None:
        """The way through ``h_t`` is added."""
        if self.cell_to_hidden is None:
            return None
        return carried if self.zoneout is not None else carried + self.cell_to_hidden * hidden

    def carry_forward(self, now: int, change: Tensor) -> Tensor:
        """The state is ``h``, in the LSTM ``(h, c)``.

        With ``d = U dh_{t-1}``, gate by gate::

            LSTM  dc_t = f * dc_{t-1} + local_i * d_i + local_f * d_f + local_g * d_g
                  dh_t = cell_to_hidden * dc_t + local_o * d_o
            GRU   dh_t = z * dh_{t-1} + local_r * d_r + local_z * d_z + local_n * d_n
            RNN   dh_t = local * d

        Under zoneout the LSTM's ``dc_t`` is that of the proposed cell state, of which ``1 - e``
        goes on beside ``e * dc_{t-1}``, and ``d * dh_{t-1}`` is added to ``dh_t``.
        """
        local, keep, out = self._factors(now)
        gates, size = local.shape[1:3]
        activations = self.recurrent_weight @ change[:, :size]
        parts = local * activations.view(len(change), gates, size, -1)
        if keep is None:
            return parts[:, 0]
        if out is None:
            return parts.sum(1) + keep * change
        cell = parts[:, :3].sum(1) + keep * change[:, size:]
        hidden = out * cell + parts[:, 3]
        if self.zoneout is not None:
            kept_hidden, kept_cell = (kept[now].unsqueeze(2) for kept in self.zoneout)
            hidden = hidden + kept_hidden * change[:, :size]
            cell = (1 - kept_cell) * cell + kept_cell * change[:, size:]
        return torch.cat([hidden, cell], dim=1)

    def carry_back(self, now: int, derivative: Tensor) -> Tensor:
        """The same equations, transposed."""
        local, keep, out = self._factors(now)
        size = local.size(2)
        if out is None:
            activations = local * derivative.unsqueeze(1)
            kept = None if keep is None else keep * derivative
        else:
            assert keep is not None
            hidden = derivative[:, :size]
            cell = derivative[:, size:]
            if self.zoneout is not None:
                cell = (1 - self.zoneout.cell[now].unsqueeze(2)) * cell
            cell = cell + out * hidden
            to_cell = local[:, :3] * cell.unsqueeze(1)
            activations = torch.cat([to_cell, (local[:, 3] * hidden).unsqueeze(1)], dim=1)
            kept = keep * cell
        carried = self.recurrent_weight.mT @ activations.flatten(1, 2)
        if kept is None:
            return carried
        if self.zoneout is not None:
            kept_hidden, kept_cell = (kept[now].unsqueeze(2) for kept in self.zoneout)
            carried = carried + kept_hidden * derivative[:, :size]
            kept = kept + kept_cell * derivative[:, size:]
        return carried + kept if out is None else torch.cat([carried, kept], dim=1)

    def _factors(self, now: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Of one step, with an axis for the directions: local, keep, cell_to_hidden."""
        keep, out = self.keep, self.cell_to_hidden
        return (
            self.local[now].unsqueeze(3),
            None if keep is None else keep[now].unsqueeze(2),
            None if out is None else out[now].unsqueeze(2),
        )

    def recurrent_gradients(self, hidden: Tensor, cell: Tensor | None, parts: Tensor) -> Tensor:
        """``sum_t d_t h_{t-1}^T``, with ``d_t`` the gradient of the activations."""
        activations = self._activation_gradients(hidden, cell).flatten(2)
        return torch.stack([activations[part].T @ self.previous_hidden[part] for part in parts])

    def _activation_gradients(self, hidden: Tensor, cell: Tensor | None) -> Tensor:
        """Gradient of what the recurrent matrix adds, ``[time, batch, gates, hidden]``.

        Of the GRU's candidate it is the gradient inside the reset gate, that of ``U_n h + b``.
        """
        if cell is None:
            return self.local * hidden.unsqueeze(2)
        to_cell = self.local[:, :, :3] * self.to_gates(hidden, cell).unsqueeze(2)
        return torch.cat([to_cell, self.local[:, :, 3:] * hidden.unsqueeze(2)], dim=2)


@torch.no_grad()
def linearize(
    layer: RecurrentLayer,
    inputs: Tensor,
    previous_hidden: Tensor,
    initial_cell: Tensor | None = None,
    recurrent_mask: Tensor | None = None,
    zoneout: Zoneout | None = None,
) -> Linearization:
    """Linearise a layer around the inputs and hidden states that it went through.

    All timesteps at once, because the hidden states are known; only a cell state is scanned again.
    Everything is computed in the type and on the device of ``inputs``.

    Shape:
        inputs: ``[time, batch, input]`` in the order of the scan; previous_hidden:
        ``[time, batch, hidden]``, the state before each step; initial_cell: ``[batch, hidden]``,
        only with a cell state; recurrent_mask: as in
        :class:`~seq2seq.models.recurrent.RecurrentNoise`; zoneout: of a layer that has it.
    """
    if (equations := layer.equations) is not None:
        return linearize_steps(
            equations, inputs, previous_hidden, initial_cell, recurrent_mask, zoneout
        )
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    w, u, b_w, b_u = (getattr(layer.rnn, name).detach().to(inputs) for name in names)
    u = masked(u, recurrent_mask)
    by_gate = (*inputs.shape[:2], -1, layer.hidden_size)  # [time, batch, gates, hidden]
    from_input = (inputs @ w.T + b_w).view(by_gate)
    from_hidden = (previous_hidden @ u.T + b_u).view(by_gate)
    if initial_cell is not None:
        return _linearize_lstm(from_input + from_hidden, previous_hidden, initial_cell, u, zoneout)
    if layer.cell == "gru":
        plain = _linearize_gru(from_input, from_hidden, previous_hidden, u)
    else:
        plain = _linearize_rnn(layer, from_input + from_hidden, previous_hidden, u)
    if zoneout is None:
        return plain
    kept, changed = zoneout.hidden, 1 - zoneout.hidden
    return replace(
        plain,
        hidden=kept * previous_hidden + changed * plain.hidden,
        local=changed.unsqueeze(2) * plain.local,
        keep=kept if plain.keep is None else kept + changed * plain.keep,
    )


def _linearize_rnn(
    layer: RecurrentLayer, activations: Tensor, previous_hidden: Tensor, u: Tensor
) -> KernelLinearization:
    activation = activations.squeeze(2)
    if layer.cell == "rnn_relu":
        hidden = activation.relu()
        slope = (activation > 0).to(hidden)
    else:
        hidden = activation.tanh()
        slope = 1 - hidden.square()
    return KernelLinearization(hidden, previous_hidden, u, slope.unsqueeze(2))


def _linearize_lstm(
    activations: Tensor,
    previous_hidden: Tensor,
    initial_cell: Tensor,
    u: Tensor,
    zoneout: Zoneout | None,
) -> KernelLinearization:
    i, f, o = (activations[:, :, gate].sigmoid() for gate in (0, 1, 3))
    g = activations[:, :, 2].tanh()
    write = i * g
    cells = torch.empty(len(i) + 1, *initial_cell.shape, dtype=u.dtype, device=u.device)
    cells[0] = initial_cell
    proposed = cells[1:] if zoneout is None else torch.empty_like(cells[1:])
    for time in range(len(i)):
        torch.addcmul(write[time], f[time], cells[time], out=proposed[time])
        if zoneout is not None:
            torch.lerp(proposed[time], cells[time], zoneout.cell[time], out=cells[time + 1])
    squashed = proposed.tanh()
    local = torch.stack(
        [
            g * i * (1 - i),
            cells[:-1] * f * (1 - f),
            i * (1 - g.square()),
            squashed * o * (1 - o),
        ],
        dim=2,
    )
    hidden, through = o * squashed, o * (1 - squashed.square())
    if zoneout is not None:
        changed = 1 - zoneout.hidden
        hidden = zoneout.hidden * previous_hidden + changed * hidden
        through = changed * through
        local[:, :, 3] *= changed
    return KernelLinearization(hidden, previous_hidden, u, local, f, through, zoneout)


def _linearize_gru(
    from_input: Tensor, from_hidden: Tensor, previous_hidden: Tensor, u: Tensor
) -> KernelLinearization:
    r, z = ((from_input[:, :, gate] + from_hidden[:, :, gate]).sigmoid() for gate in (0, 1))
    inner = from_hidden[:, :, 2]
    n = (from_input[:, :, 2] + r * inner).tanh()
    candidate = (1 - z) * (1 - n.square())
    local = torch.stack(
        [candidate * inner * r * (1 - r), (previous_hidden - n) * z * (1 - z), candidate * r], dim=2
    )
    hidden = (1 - z) * n + z * previous_hidden
    return KernelLinearization(hidden, previous_hidden, u, local, z)
