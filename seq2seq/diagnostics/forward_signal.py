"""What a recurrent layer's signal does on its way: size of the states, saturation, open gates.

All figures are over real timesteps only. What they mean for a gradient is left to `gradient_flow`
and `verdict`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from seq2seq.diagnostics.gradient_flow import RecordedScan
from seq2seq.diagnostics.step_adjoint import cell_like
from seq2seq.initializers.blocks import KEEP_GATES
from seq2seq.models.dropout import masked
from seq2seq.models.recurrent import RecurrentLayer

# Beyond these a squashing unit hardly moves any more: less than 10 % of its largest slope is left
# to a tanh at 0.95, less than 20 % to a sigmoid at 0.05 or 0.95.
_SATURATED = 0.95


@dataclass(frozen=True)
class ForwardSignal:
    """The signal of one layer on one batch, masked.

    Args:
        hidden_rms: root mean square of ``h_t`` over examples and units, by timestep of the scan.
        cell_rms: the same of ``c_t``; empty without a cell state.
        cell_max: largest modulus of any ``c_t``; NaN without a cell state.
        drive_rms: root mean square of what the input adds to the activations, ``W x_t``.
        gate_means: mean of each gate's value; of an RNN's ``h``, the state itself.
        saturated: share of each gate's values that hardly move: a sigmoid below 0.05 or above
            0.95, a tanh beyond 0.95 in modulus; for ReLU the share of units that are never
            active on this batch.
        keep_horizon: steps in which the gate that remembers (LSTM ``f``, GRU ``z``) alone lets a
            state fall to 1/e, ``1 / -mean(ln f)``, over all units; NaN without such a gate.
        keep_horizon_quantiles: of 10 %, half and 90 % of the units it is at most this.
    """

    hidden_rms: tuple[float, ...]
    cell_rms: tuple[float, ...]
    cell_max: float
    drive_rms: float
    gate_means: dict[str, float]
    saturated: dict[str, float]
    keep_horizon: float
    keep_horizon_quantiles: tuple[float, float, float]

    @property
    def most_saturated(self) -> float:
        """The largest of the shares of saturated values."""
        return max(self.saturated.values())


@torch.no_grad()
def forward_signal(
    layer: RecurrentLayer, scan: RecordedScan, *, lengths: Tensor | None = None
) -> ForwardSignal:
    """Measure the signal of one recorded pass through a layer.

    Args:
        layer: the layer, its weights as they were then.
        scan: the record.
        lengths: number of real timesteps of each example; by default those of the record.
    """
    lengths = scan.lengths if lengths is None else lengths.to(scan.lengths)
    steps = torch.arange(len(scan.outputs), device=lengths.device)
    real = steps.unsqueeze(1) < lengths  # [time, rows]
    gates = gate_values(layer, scan)
    cells = cell_states(layer, gates, scan) if layer.has_cell else None
    keep = next((gates[gate] for gate in KEEP_GATES if gate in gates), None)
    horizons = (math.nan,) * 4 if keep is None else _keep_horizons(keep[real])
    drive = _drive(layer, scan.inputs[real])
    return ForwardSignal(
        hidden_rms=_rms_by_time(scan.outputs, real),
        cell_rms=() if cells is None else _rms_by_time(cells, real),
        cell_max=math.nan if cells is None else float(cells[real].abs().max()),
        drive_rms=float(drive.square().mean().sqrt()),
        gate_means={gate: float(values[real].mean()) for gate, values in gates.items()},
        saturated={
            gate: _saturated(values[real], _squashing(layer.cell, gate))
            for gate, values in gates.items()
        },
        keep_horizon=horizons[0],
        keep_horizon_quantiles=horizons[1:],
    )


def gate_values(layer: RecurrentLayer, scan: RecordedScan) -> dict[str, Tensor]:
    """Value of each gate at every timestep, by its letter; of an RNN the new state, as ``h``.

    Shape:
        each ``[time, rows, hidden]``.
    """
    if (equations := layer.equations) is not None:
        rnn = cell_like(equations, scan.inputs)
        weight = masked(rnn.weight_hh_l0, scan.recurrent_mask)
        return rnn.gate_values(rnn.drive(scan.inputs), scan.previous_hidden, weight)
    parameters = (parameter.detach().to(scan.inputs) for parameter in layer.rnn.parameters())
    weight_ih, weight_hh, bias_ih, bias_hh = parameters
    weight_hh = masked(weight_hh, scan.recurrent_mask)
    letters = layer.gates
    from_input = (scan.inputs @ weight_ih.T + bias_ih).chunk(len(letters), dim=2)
    from_hidden = (scan.previous_hidden @ weight_hh.T + bias_hh).chunk(len(letters), dim=2)
    values: dict[str, Tensor] = {}
    for gate, driven, recurrent in zip(letters, from_input, from_hidden, strict=True):
        if gate == "n":  # the reset gate comes before it in the order of the rows
            recurrent = values["r"] * recurrent
        values[gate] = _SQUASHED[_squashing(layer.cell, gate)](driven + recurrent)
    return values


def cell_states(layer: RecurrentLayer, gates: Mapping[str, Tensor], scan: RecordedScan) -> Tensor:
    """The cell state after every timestep, ``[time, rows, hidden]``, from the gates' values.

    ``c_t = f * c_{t-1} + i * g`` in the LSTM; under zoneout mixed with ``c_{t-1}``.
    """
    assert scan.initial_cell is not None
    equations = layer.equations
    rnn = None if equations is None else cell_like(equations, scan.inputs)
    cells = [scan.initial_cell]
    for now, hidden in enumerate(scan.previous_hidden):
        here = {letter: values[now] for letter, values in gates.items()}
        if rnn is None:
            proposed = torch.addcmul(here["i"] * here["g"], here["f"], cells[-1])
        else:
            _, after = rnn.next_state(here, hidden, cells[-1])
            assert after is not None
            proposed = after
        kept = None if scan.zoneout is None else scan.zoneout.cell[now]
        cells.append(proposed if kept is None else torch.lerp(proposed, cells[-1], kept))
    return torch.stack(cells[1:])


def _drive(layer: RecurrentLayer, inputs: Tensor) -> Tensor:
    """What the input adds to the activations without the bias, ``[timesteps, gates * hidden]``."""
    if (equations := layer.equations) is not None:
        rnn = cell_like(equations, inputs)
        return rnn.drive(inputs) - rnn.bias_ih_l0
    return inputs @ layer.rnn.get_parameter("weight_ih_l0").to(inputs).T


_SQUASHED = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}


def _squashing(cell: str, gate: str) -> str:
    if cell == "rnn_relu":
        return "relu"
    return "tanh" if gate in "gnh" else "sigmoid"


def _saturated(values: Tensor, squashing: str) -> float:
    """Share of values ``[real, hidden]`` that hardly move; of ReLU units, of those never active."""
    match squashing:
        case "sigmoid":
            still = (values > _SATURATED) | (values < 1 - _SATURATED)
        case "tanh":
            still = values.abs() > _SATURATED
        case _:
            still = (values == 0).all(0)
    return float(still.double().mean())


def _rms_by_time(states: Tensor, real: Tensor) -> tuple[float, ...]:
    """Over examples that are real at each timestep, and units; as long as the longest example."""
    count = real.sum(1)
    squares = (states.square().mean(2) * real).sum(1)
    return tuple((squares / count).sqrt()[count > 0].tolist())


def _keep_horizons(keep: Tensor) -> tuple[float, float, float, float]:
    """``1 / -mean(ln f)`` of all units together, then quantiles 0.1, 0.5 and 0.9 over units."""
    leak = -keep.clamp_min(torch.finfo(keep.dtype).tiny).log().mean(0)  # [hidden]
    quantiles = torch.tensor([0.1, 0.5, 0.9], dtype=leak.dtype, device=leak.device)
    low, middle, high = (1 / leak).quantile(quantiles).tolist()
    return float(1 / leak.mean()), low, middle, high
