"""Cells that are written out, against the equations of their papers as plain loops over units."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from seq2seq.models.cells import STEP_CELLS
from seq2seq.models.recurrent import RecurrentLayer, RecurrentState

INPUT, HIDDEN, TIME = 3, 5, 7
LENGTHS = [4, 1, 7]

State = tuple[Tensor, Tensor]
every_cell = pytest.mark.parametrize("cell", STEP_CELLS)


def normalized(a: Tensor) -> Tensor:
    """The definition, one vector at a time."""
    mean = sum(a) / len(a)
    variance = sum((one - mean) ** 2 for one in a) / len(a)
    return torch.stack([(one - mean) / torch.sqrt(variance + 1e-5) for one in a])


def rows(rnn: nn.Module, name: str, gate: int) -> Tensor:
    return rnn.get_parameter(name)[gate * HIDDEN : (gate + 1) * HIDDEN]


def normalized_input(rnn: nn.Module, x: Tensor, gate: int) -> Tensor:
    projected = normalized(rows(rnn, "weight_ih_l0", gate) @ x)
    return rows(rnn, "norm_gain_ih_l0", gate) * projected + rows(rnn, "bias_ih_l0", gate)


def normalized_state(rnn: nn.Module, h: Tensor, gate: int) -> Tensor:
    projected = normalized(rows(rnn, "weight_hh_l0", gate) @ h)
    return rows(rnn, "norm_gain_hh_l0", gate) * projected + rows(rnn, "bias_hh_l0", gate)


def layer_norm_lstm(rnn: nn.Module, x: Tensor, h: Tensor, c: Tensor) -> State:
    i, f, g, o = (normalized_input(rnn, x, k) + normalized_state(rnn, h, k) for k in range(4))
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    shown = rnn.norm_gain_cell * normalized(c) + rnn.norm_bias_cell
    return torch.sigmoid(o) * torch.tanh(shown), c


def layer_norm_gru(rnn: nn.Module, x: Tensor, h: Tensor, c: Tensor) -> State:
    r, z = (
        torch.sigmoid(normalized_input(rnn, x, k) + normalized_state(rnn, h, k)) for k in range(2)
    )
    n = torch.tanh(normalized_input(rnn, x, 2) + r * normalized_state(rnn, h, 2))
    return (1 - z) * n + z * h, c


def mgu(rnn: nn.Module, x: Tensor, h: Tensor, c: Tensor) -> State:
    """With the paper's forget gate, which is 1 - z."""

    def affine(gate: int, h: Tensor) -> Tensor:
        driven = rows(rnn, "weight_ih_l0", gate) @ x + rows(rnn, "bias_ih_l0", gate)
        return driven + rows(rnn, "weight_hh_l0", gate) @ h + rows(rnn, "bias_hh_l0", gate)

    f = torch.sigmoid(-affine(0, h))
    n = torch.tanh(affine(1, f * h))
    return (1 - f) * h + f * n, c


REFERENCES: dict[str, Callable[[nn.Module, Tensor, Tensor, Tensor], State]] = {
    "layer_norm_lstm": layer_norm_lstm,
    "layer_norm_gru": layer_norm_gru,
    "mgu": mgu,
}


def make_layer(cell: str, *, reverse: bool = False) -> RecurrentLayer:
    torch.manual_seed(0)
    layer = RecurrentLayer(cell=cell, input_size=INPUT, hidden_size=HIDDEN, reverse=reverse)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.6)
    return layer.double()


def test_every_cell_has_a_reference() -> None:
    assert REFERENCES.keys() == STEP_CELLS.keys()


@every_cell
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_a_layer_equals_its_equations_on_each_example_alone(cell: str, reverse: bool) -> None:
    layer = make_layer(cell, reverse=reverse)
    x = torch.randn(len(LENGTHS), TIME, INPUT, dtype=torch.float64)
    h, c = torch.randn(2, len(LENGTHS), HIDDEN, dtype=torch.float64)
    state = RecurrentState(h.unsqueeze(0), c.unsqueeze(0) if layer.has_cell else None)
    output, final = layer(x, torch.tensor(LENGTHS), state)
    for row, length in enumerate(LENGTHS):
        now = h[row], c[row]
        for time in reversed(range(length)) if reverse else range(length):
            now = REFERENCES[cell](layer.rnn, x[row, time], *now)
            torch.testing.assert_close(output[row, time], now[0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(final.hidden[0, row], now[0], rtol=1e-10, atol=1e-10)
        if layer.has_cell:
            torch.testing.assert_close(final.cell[0, row], now[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cell", ["layer_norm_lstm", "layer_norm_gru"])
def test_layer_norm_takes_the_size_of_input_and_matrices_away(cell: str) -> None:
    layer = make_layer(cell)
    x = torch.randn(2, TIME, INPUT, dtype=torch.float64)
    before = layer(x).output
    with torch.no_grad():
        layer.rnn.weight_hh_l0.mul_(100)
        layer.rnn.weight_ih_l0[:HIDDEN].mul_(30)  # one gate alone
    torch.testing.assert_close(layer(100 * x).output, before, rtol=0, atol=1e-3)


@pytest.mark.parametrize("cell", ["layer_norm_lstm", "layer_norm_gru"])
def test_layer_norm_of_a_single_unit_is_refused(cell: str) -> None:
    with pytest.raises(ValueError, match=f"hidden_size is 1, but cell={cell} normalises"):
        RecurrentLayer(cell=cell, input_size=2, hidden_size=1)


@pytest.mark.parametrize("cell", ["layer_norm_lstm", "layer_norm_gru"])
def test_layer_norm_holds_activations_that_overflow_float16(cell: str) -> None:
    layer = make_layer(cell)
    x = 1e4 * torch.randn(2, TIME, INPUT, dtype=torch.float64)
    exact = layer(x).output
    output = layer.half()(x.half()).output
    assert output.dtype == torch.float16
    torch.testing.assert_close(output.double(), exact, rtol=0, atol=0.02)


@every_cell
def test_a_cell_without_initializer_begins_as_pytorchs_own(cell: str) -> None:
    torch.manual_seed(0)
    rnn = STEP_CELLS[cell](INPUT, 64)
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        values = rnn.get_parameter(name)
        assert len(values) == 64 * len(rnn.gates)
        assert 0.9 / math.sqrt(64) < float(values.detach().abs().max()) <= 1 / math.sqrt(64)
