"""Gradient norm per timestep: what each recurrent layer computed and received, and what follows.

`GradientRecorder` watches the layers during one ordinary forward and backward pass, on a few
examples of the batch; `layer_flow` turns a record into total derivatives at every timestep and
into the transport of a random vector. Averages over examples belong to `gradient_profile`, the
cadence and the pictures to the callback.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from seq2seq.diagnostics.adjoint import linearize
from seq2seq.diagnostics.linearization import Linearization, Zoneout
from seq2seq.models.recurrent import (
    RecurrentLayer,
    RecurrentNoise,
    RecurrentOutput,
    RecurrentState,
    reverse_by_length,
)

# Largest error of the recomputed hidden state, relative to the largest hidden state. A layer that
# computes something else is wrong by about 1; what is allowed is rounding along the scan, and on
# a GPU the 10-bit products (TF32) that cuDNN uses for float32.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_TOLERANCE_TF32 = 2e-2


class RecomputationError(ArithmeticError):
    """The recomputed hidden states are not the ones that the layer returned."""


@dataclass
class Call:
    """One call of a layer: what went in, what came out, and the gradients that arrived after it.

    Args:
        precision: type in which the layer multiplied, which autocast may have changed.
        noise: what was drawn at random for it.
        truncation: timesteps of a chunk out of which it let no gradient back; None for all.

    Shape:
        inputs: ``[rows, time, input]``; lengths: ``[rows]`` or None; hidden, cell: the state
        before, ``[rows, hidden]`` or None for zeros; outputs: ``[rows, time, hidden]``;
        gradients: ``output`` as outputs, ``hidden`` and ``cell`` of the state after; absent where
        nothing downstream used it.
    """

    inputs: Tensor
    lengths: Tensor | None
    hidden: Tensor | None
    cell: Tensor | None
    outputs: Tensor
    precision: torch.dtype
    noise: RecurrentNoise | None = None
    truncation: int | None = None
    gradients: dict[str, Tensor] = field(default_factory=dict)


class GradientRecorder:
    """Record every call of recurrent layers, and the gradients that come back to them.

    Each result of a layer is handed on as a fresh view of itself, so that everything downstream
    uses exactly these views and the gradient of a view is the direct derivative, whatever the
    kernel does inside. Neither values nor gradients change. Used as a context around the forward
    pass; gradients arrive with the backward pass, inside or after it.

    Args:
        layers: the layers to watch, by name.
        rows: int64 ``[rows]``, the examples of the batch to keep.
    """

    def __init__(self, layers: Mapping[str, RecurrentLayer], *, rows: Tensor) -> None:
        self.calls: dict[str, list[Call]] = {name: [] for name in layers}
        self._layers = dict(layers)
        self._rows = rows
        self._handles: list[RemovableHandle] = []

    def start(self) -> "GradientRecorder":
        """Watch every forward pass from now on."""
        for name, layer in self._layers.items():
            hook = self._recording_hook(self.calls[name])
            self._handles.append(layer.register_forward_hook(hook, with_kwargs=True))
        return self

    def __enter__(self) -> "GradientRecorder":
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Watch no further forward pass."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _recording_hook(
        self, calls: list[Call]
    ) -> Callable[
        [RecurrentLayer, tuple[Any, ...], dict[str, Any], RecurrentOutput], RecurrentOutput | None
    ]:
        def hook(
            layer: RecurrentLayer,
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
            result: RecurrentOutput,
        ) -> RecurrentOutput | None:
            # Never compiled into a graph, where it would outlive this recorder.
            if torch.compiler.is_compiling() or not result.output.requires_grad:
                return None
            x, lengths, state, noise = _arguments(*args, **kwargs)
            call = Call(
                inputs=self._keep(x),
                lengths=None if lengths is None else self._keep(lengths),
                hidden=None if state is None else self._keep(state.hidden[0]),
                cell=None if state is None or state.cell is None else self._keep(state.cell[0]),
                outputs=self._keep(result.output),
                precision=_precision(result.output),
                noise=None if noise is None else self._keep_noise(noise),
                truncation=layer.truncation_now,
            )
            calls.append(call)
            cell = result.state.cell
            return RecurrentOutput(
                self._watch(result.output, call, "output"),
                RecurrentState(
                    self._watch(result.state.hidden, call, "hidden"),
                    None if cell is None else self._watch(cell, call, "cell"),
                ),
            )

        return hook

    def _keep(self, tensor: Tensor) -> Tensor:
        return tensor.detach().index_select(0, self._rows.to(tensor.device))

    def _keep_noise(self, noise: RecurrentNoise) -> RecurrentNoise:
        hidden, cell = noise.keep_hidden, noise.keep_cell
        return RecurrentNoise(
            noise.recurrent_mask,
            None if hidden is None else self._keep(hidden),
            None if cell is None else self._keep(cell),
        )

    def _watch(self, tensor: Tensor, call: Call, name: str) -> Tensor:
        def keep_gradient(gradient: Tensor) -> None:
            call.gradients[name] = self._keep(gradient if name == "output" else gradient[0])

        view = tensor.view_as(tensor)
        view.register_hook(keep_gradient)  # type: ignore[no-untyped-call]
        return view


def _precision(output: Tensor) -> torch.dtype:
    device = output.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return output.dtype


def _arguments(
    x: Tensor,
    lengths: Tensor | None = None,
    state: RecurrentState | None = None,
    noise: RecurrentNoise | None = None,
) -> tuple[Tensor, Tensor | None, RecurrentState | None, RecurrentNoise | None]:
    return x, lengths, state, noise


@dataclass(frozen=True)
class LayerFlow:
    """Derivatives at every timestep of one layer, in the order of its own scan.

    Shape:
        hidden: total derivative of each example's loss with respect to ``h_t``,
            ``[time, rows, hidden]``; zero where the scan has no real timestep.
        cell: the same for ``c_t``, or None.
        transport: what is left of a random unit vector, put on the state at the last real
            timestep, after the way back to timestep ``t``: ``[time, rows, state]``, where the
            state is ``h`` and, if there is one, ``c`` beside it.
        lengths: number of real timesteps, ``[rows]``.

    Beside them stands what they were made of: the record as ``scan``, and ``linearization``.
    """

    hidden: Tensor
    cell: Tensor | None
    transport: Tensor
    lengths: Tensor
    scan: "RecordedScan"
    linearization: Linearization

    @property
    def transported(self) -> Tensor:
        """Timesteps from the end to which the transport is carried back, int64 ``[rows]``.

        All real ones, or those of the chunk in which the sequence ends.
        """
        size = self.scan.truncation
        return self.lengths if size is None else (self.lengths - 1) % size + 1

    def norms(self) -> dict[str, Tensor]:
        """Euclidean norms ``[rows, time]`` on the CPU, by quantity."""
        derivatives = {"hidden": self.hidden, "cell": self.cell, "transport": self.transport}
        norms = {
            quantity: torch.linalg.vector_norm(derivative, dim=2).T
            for quantity, derivative in derivatives.items()
            if derivative is not None
        }
        together = torch.stack(list(norms.values())).cpu()  # one transfer from a GPU
        return dict(zip(norms, together, strict=True))


@torch.no_grad()
def layer_flow(
    layer: RecurrentLayer,
    calls: Sequence[Call],
    *,
    lengths: Tensor | None = None,
    scale: float = 1.0,
    seed: int = 0,
) -> LayerFlow:
    """Total derivatives and transport of one layer from its record.

    Either the layer was called once for all timesteps, and what arrived is carried back here; or it
    was called once a timestep, and what arrived is total already, because the step after is
    downstream like everything else. All in float64: the gradient of a decaying net at a distance
    of 100 steps is smaller than anything that float32 can hold.

    Args:
        layer: the layer, its weights as they were during the recorded pass.
        calls: its record, after the backward pass.
        lengths: number of real timesteps of each recorded example; by default those that the
            layer was given, and otherwise all timesteps.
        scale: factor on the recorded gradients that makes them those of each example's own loss.
        seed: of the random unit vectors, the same at every probe so that probes compare.

    Raises:
        ValueError: for a record that is neither one call nor one call a timestep.
        FloatingPointError: if a recorded gradient is not finite.
        RecomputationError: if the recurrence, recomputed, gives other hidden states.
    """
    scan = recorded_scan(layer, calls, scale)
    if not (scan.hidden_gradient.isfinite().all() and scan.cell_gradient.isfinite().all()):
        raise FloatingPointError("a gradient that reached a recurrent layer is not finite")
    linearization = linearize(
        layer,
        scan.inputs,
        scan.previous_hidden,
        scan.initial_cell,
        scan.recurrent_mask,
        scan.zoneout,
    )
    _check_recomputation(linearization.hidden * scan.real, scan.outputs, calls[0])

    lengths = scan.lengths if lengths is None else lengths.to(scan.lengths)
    hidden, cell = _unit_vectors(scan, lengths, seed, with_cell=layer.has_cell)
    injected = [(hidden, cell)]
    if not scan.stepwise:
        # The loss goes back in the same pass as the random vectors.
        injected.append((scan.hidden_gradient, scan.cell_gradient))
    carried_hidden, carried_cells = linearization.backpropagate(
        torch.stack([state[0] for state in injected], dim=1),
        torch.stack([state[1] for state in injected], dim=1),
        truncation=scan.truncation,
    )
    transport = carried_hidden[:, 0]
    if carried_cells is not None:
        carried = linearization.carried_cell(
            transport, carried_cells[:, 0], cell, truncation=scan.truncation
        )
        transport = torch.cat([transport, carried], dim=2)
    if not scan.stepwise:
        total_hidden = carried_hidden[:, 1]
        total_cell = None if carried_cells is None else carried_cells[:, 1]
    else:
        # What arrived at c_t came by the step after; the way through h_t is still to be added.
        total_hidden = scan.hidden_gradient
        total_cell = linearization.total_cell(total_hidden, scan.cell_gradient)
    return LayerFlow(total_hidden, total_cell, transport, lengths, scan, linearization)


@dataclass(frozen=True)
class RecordedScan:
    """A record in float64, time first and in the order of the scan; padding is zero.

    ``hidden_gradient`` and ``cell_gradient`` are what arrived at ``h_t`` and ``c_t``: of a fused
    call by everything but the layer's own next step, of stepwise calls by that as well.

    Shape:
        inputs: ``[time, rows, input]``; outputs, previous_hidden, and both gradients:
        ``[time, rows, hidden]``, of which that of the cell, as wide as the cell state, may be the
        wider one; initial_cell: ``[rows, hidden]``, None without a cell state;
        lengths: int64 ``[rows]``; real: bool ``[time, rows, 1]``; recurrent_mask:
        ``[gates * hidden, hidden]``, the share of the recurrent weights that was used, or None;
        zoneout: ``[time, rows, hidden]`` of a layer that has it.
    """

    inputs: Tensor
    outputs: Tensor
    previous_hidden: Tensor
    initial_cell: Tensor | None
    hidden_gradient: Tensor
    cell_gradient: Tensor
    lengths: Tensor
    real: Tensor
    stepwise: bool
    recurrent_mask: Tensor | None = None
    zoneout: Zoneout | None = None
    truncation: int | None = None


def recorded_scan(layer: RecurrentLayer, calls: Sequence[Call], scale: float = 1.0) -> RecordedScan:
    """A layer's record, one call or one a timestep, brought into the order of its scan.

    Args:
        layer: the layer.
        calls: its record; gradients that never arrived count as zero.
        scale: factor on the recorded gradients.

    Raises:
        ValueError: for a record that is neither one call nor one call a timestep.
    """
    stepwise = len(calls) > 1
    steps = [call.inputs.size(1) for call in calls]
    if not calls or (stepwise and max(steps) > 1):
        raise ValueError(
            f"a recurrent layer was called for {steps} timesteps in turn, but gradient flow needs "
            "one call for all timesteps, or one call a timestep"
        )
    first, last = calls[0], calls[-1]
    rows, time = first.inputs.size(0), sum(steps)
    lengths = torch.full((rows,), time) if first.lengths is None else first.lengths
    lengths = lengths.to(_exact(first.outputs[:, 0]).device)
    real = torch.arange(time, device=lengths.device) < lengths.unsqueeze(1)

    def in_scan_order(parts: list[Tensor]) -> Tensor:
        x = _exact(torch.cat(parts, dim=1))
        x = reverse_by_length(x, lengths) if layer.reverse else x
        # What a kernel leaves in the padding is undefined, and must not meet a derivative.
        return x.masked_fill(~real.unsqueeze(2), 0.0).transpose(0, 1).contiguous()

    outputs = in_scan_order([call.outputs for call in calls])
    hidden_gradient = scale * in_scan_order([_gradient(call, "output") for call in calls])
    cell_gradient = hidden_gradient.new_zeros(*outputs.shape[:-1], layer.hidden_size)
    if stepwise:
        hidden_gradient += scale * _exact(torch.stack([_gradient(c, "hidden") for c in calls]))
        arrived = [_gradient(call, "cell", layer.hidden_size) for call in calls]
        cell_gradient += scale * _exact(torch.stack(arrived))
    else:
        end = (lengths - 1, torch.arange(rows, device=lengths.device))
        hidden_gradient[end] += scale * _exact(_gradient(last, "hidden"))
        cell_gradient[end] += scale * _exact(_gradient(last, "cell", layer.hidden_size))
    initial_hidden = torch.zeros_like(outputs[0]) if first.hidden is None else _exact(first.hidden)
    initial_cell = None
    if layer.has_cell:
        zeros = torch.zeros_like(cell_gradient[0])
        initial_cell = zeros if first.cell is None else _exact(first.cell)
    # Drawn once a sequence, so that every call has the same.
    mask = None if first.noise is None else first.noise.recurrent_mask
    return RecordedScan(
        inputs=in_scan_order([call.inputs for call in calls]),
        outputs=outputs,
        previous_hidden=torch.cat([initial_hidden.unsqueeze(0), outputs[:-1]]),
        initial_cell=initial_cell,
        hidden_gradient=hidden_gradient,
        cell_gradient=cell_gradient,
        lengths=lengths,
        real=real.T.unsqueeze(2),
        stepwise=stepwise,
        recurrent_mask=None if mask is None else _exact(mask),
        zoneout=_zoneout(layer, calls, outputs, cell_gradient),
        truncation=first.truncation,
    )


def _zoneout(
    layer: RecurrentLayer, calls: Sequence[Call], hidden: Tensor, cell: Tensor
) -> Zoneout | None:
    """The masks that were drawn, in the order of the scan; the shares where none were.

    Shape:
        as ``hidden`` and ``cell``.
    """
    if not layer.zones_out:
        return None

    def joined(masks: list[Tensor | None], share: float, like: Tensor) -> Tensor:
        drawn = [mask for mask in masks if mask is not None]
        if not drawn:
            return torch.full_like(like, share)
        return _exact(torch.cat(drawn, dim=1)).transpose(0, 1).contiguous()

    noises = [RecurrentNoise() if call.noise is None else call.noise for call in calls]
    return Zoneout(
        joined([noise.keep_hidden for noise in noises], layer.zoneout_hidden, hidden),
        joined([noise.keep_cell for noise in noises], layer.zoneout_cell, cell),
    )


def _exact(x: Tensor) -> Tensor:
    # Apple's GPUs have no float64.
    return x.to("cpu" if x.device.type == "mps" else x.device, torch.float64)


def _gradient(call: Call, name: str, width: int | None = None) -> Tensor:
    """What arrived, or zeros: autograd sends nothing where nothing downstream was used."""
    like = call.outputs if name == "output" else call.outputs[:, 0]
    width = like.size(-1) if width is None else width
    return call.gradients.get(name, like.new_zeros(*like.shape[:-1], width))


def _unit_vectors(
    scan: RecordedScan, lengths: Tensor, seed: int, *, with_cell: bool
) -> tuple[Tensor, Tensor]:
    """A random unit vector in the state ``(h, c)`` of each example's last real timestep."""
    hidden, cell = torch.zeros_like(scan.outputs), torch.zeros_like(scan.cell_gradient)
    rows, sizes = hidden.size(1), [hidden[0].numel(), cell[0].numel()]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(sum(sizes), generator=generator, dtype=torch.float64)
    of_hidden, of_cell = (part.view(rows, -1) for part in torch.split(drawn, sizes))
    of_cell = of_cell * with_cell
    norm = torch.linalg.vector_norm(torch.cat([of_hidden, of_cell], dim=1), dim=1, keepdim=True)
    end = (lengths - 1, torch.arange(rows, device=lengths.device))
    hidden[end], cell[end] = (of_hidden / norm).to(hidden), (of_cell / norm).to(cell)
    return hidden, cell


def _check_recomputation(recomputed: Tensor, outputs: Tensor, call: Call) -> None:
    tolerance = _TOLERANCE[call.precision]
    if call.outputs.is_cuda and call.precision == torch.float32:
        tolerance = _TOLERANCE_TF32
    largest = outputs.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    error = float((recomputed - outputs).abs().max() / largest)
    if error > tolerance:
        raise RecomputationError(
            f"the hidden states of a recurrent layer, recomputed from its inputs and weights, are "
            f"off by {error:.1e} of the largest one ({tolerance:.0e} is allowed in "
            f"{call.precision}): the layer computes something else than its weights say, so its "
            "gradient per timestep is unknown"
        )
