"""Gates and states against PyTorch's own cells, and figures that padding must not change."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from seq2seq.diagnostics.forward_signal import (
    ForwardSignal,
    cell_states,
    forward_signal,
    gate_values,
)
from seq2seq.diagnostics.gradient_flow import GradientRecorder, RecordedScan, recorded_scan
from seq2seq.models.recurrent import CELLS, RecurrentLayer, RecurrentState

ROWS, TIME, INPUT, HIDDEN = 4, 6, 3, 5
LENGTHS = torch.tensor([6, 2, 5, 3])


def make_layer(cell: str, **options: Any) -> RecurrentLayer:
    torch.manual_seed(1)
    return RecurrentLayer(cell=cell, input_size=INPUT, hidden_size=HIDDEN, **options).double()


def make_inputs(*, padding: float = 0.0, extra: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(ROWS, TIME, INPUT, generator=generator, dtype=torch.float64)
    x = torch.nn.functional.pad(x, (0, 0, 0, extra))
    unreal = torch.arange(TIME + extra) >= LENGTHS.unsqueeze(1)
    return x.masked_fill(unreal.unsqueeze(2), padding)


def record(layer: RecurrentLayer, x: Tensor, lengths: Tensor | None = LENGTHS) -> RecordedScan:
    with GradientRecorder({"layer": layer}, rows=torch.arange(ROWS)) as recorder:
        layer(x, lengths)
    return recorded_scan(layer, recorder.calls["layer"])


def measure(layer: RecurrentLayer, x: Tensor, lengths: Tensor | None = LENGTHS) -> ForwardSignal:
    return forward_signal(layer, record(layer, x, lengths))


@pytest.mark.parametrize("cell", CELLS)
def test_the_gates_make_the_states_of_the_layer(cell: str) -> None:
    layer, x = make_layer(cell), make_inputs()
    scan = record(layer, x, lengths=None)
    gates = gate_values(layer, scan)
    match cell:
        case "lstm":
            cells = cell_states(layer, gates, scan)
            hidden = gates["o"] * cells.tanh()
            torch.testing.assert_close(cells[-1], layer(x).state.cell[0])
        case "layer_norm_lstm":
            cells = cell_states(layer, gates, scan)
            hidden = gates["o"] * torch.nn.functional.layer_norm(cells, [HIDDEN]).tanh()
            torch.testing.assert_close(cells[-1], layer(x).state.cell[0])
        case "gru" | "layer_norm_gru" | "mgu":
            hidden = (1 - gates["z"]) * gates["n"] + gates["z"] * scan.previous_hidden
        case _:
            hidden = gates["h"]
    torch.testing.assert_close(hidden.transpose(0, 1), layer(x).output, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("reverse", [False, True])
def test_padding_changes_no_figure(cell: str, reverse: bool) -> None:
    layer = make_layer(cell, reverse=reverse)
    found = measure(layer, make_inputs(padding=9.0, extra=3))
    assert found.hidden_rms == pytest.approx(measure(layer, make_inputs()).hidden_rms)
    assert len(found.hidden_rms) == TIME
    assert str(found) == str(measure(layer, make_inputs(padding=-50.0, extra=3)))


@pytest.mark.parametrize("cell", CELLS)
def test_lengths_given_beside_the_record_mask_like_those_within(cell: str) -> None:
    layer, x = make_layer(cell), make_inputs()
    found = forward_signal(layer, record(layer, x, lengths=None), lengths=LENGTHS)
    expected = measure(layer, x)
    assert found.gate_means == pytest.approx(expected.gate_means)
    assert found.hidden_rms == pytest.approx(expected.hidden_rms)
    assert found.drive_rms == pytest.approx(expected.drive_rms)


@torch.no_grad()
@pytest.mark.parametrize("projection", [None, 2])
def test_the_size_of_the_states_is_that_of_a_plain_loop_over_examples(
    projection: int | None,
) -> None:
    layer, x = make_layer("lstm", projection_size=projection), make_inputs()
    with torch.enable_grad():
        found = measure(layer, x)
    hiddens: list[list[Tensor]] = [[] for _ in range(TIME)]
    cells: list[list[Tensor]] = [[] for _ in range(TIME)]
    for row, length in enumerate(LENGTHS.tolist()):
        zeros = torch.zeros(1, 1, HIDDEN, dtype=torch.float64)
        state = RecurrentState(zeros[..., : layer.output_size], zeros)
        for now in range(length):
            state = layer(x[row : row + 1, now : now + 1], None, state).state
            hiddens[now].append(state.hidden.flatten())
            cells[now].append(state.cell.flatten())
    for now in range(TIME):
        for rms, states in ((found.hidden_rms, hiddens), (found.cell_rms, cells)):
            assert rms[now] == pytest.approx(float(torch.cat(states[now]).square().mean().sqrt()))
    assert found.cell_max == pytest.approx(
        max(float(c.abs().max()) for step in cells for c in step)
    )


def test_a_forget_gate_held_at_a_value_has_the_horizon_of_that_value() -> None:
    layer = make_layer("lstm")
    for parameter in layer.rnn.parameters():
        parameter.data.zero_()
    # Two units forget to 0.8 a step, three to 0.99.
    keep = torch.tensor([0.8, 0.8, 0.99, 0.99, 0.99], dtype=torch.float64)
    layer.rnn.bias_ih_l0.data[HIDDEN : 2 * HIDDEN] = keep.logit()
    found = measure(layer, make_inputs())
    assert found.gate_means == pytest.approx({"i": 0.5, "f": keep.mean().item(), "g": 0, "o": 0.5})
    assert found.keep_horizon == pytest.approx(1 / -keep.log().mean().item())
    low, middle, high = found.keep_horizon_quantiles
    assert low == pytest.approx(1 / -math.log(0.8))
    assert middle == high == pytest.approx(1 / -math.log(0.99))
    assert found.saturated == pytest.approx({"i": 0, "f": 0.6, "g": 0, "o": 0})
    assert found.drive_rms == 0


def test_an_rnn_has_no_horizon_and_its_saturation_is_that_of_its_state() -> None:
    layer = make_layer("rnn_tanh")
    for parameter in layer.rnn.parameters():
        parameter.data.zero_()
    layer.rnn.bias_ih_l0.data[:2] = 10.0
    found = measure(layer, make_inputs())
    assert math.isnan(found.keep_horizon)
    assert found.cell_rms == ()
    assert found.saturated == pytest.approx({"h": 0.4})


def test_a_relu_unit_counts_as_saturated_if_no_example_ever_wakes_it() -> None:
    layer = make_layer("rnn_relu")
    layer.rnn.bias_ih_l0.data[:] = torch.tensor([50.0, 50.0, -500.0, 50.0, 50.0])
    assert measure(layer, make_inputs()).saturated == pytest.approx({"h": 0.2})


def test_the_drive_is_what_the_input_alone_adds() -> None:
    layer, x = make_layer("gru"), make_inputs()
    real = torch.cat([x[row, :length] for row, length in enumerate(LENGTHS.tolist())])
    expected = (real @ layer.rnn.weight_ih_l0.T).square().mean().sqrt().item()
    assert measure(layer, x).drive_rms == pytest.approx(expected)
