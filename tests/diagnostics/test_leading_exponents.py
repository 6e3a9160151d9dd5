"""The longest example is followed, and it alone."""

import pytest
import torch

from seq2seq.diagnostics.gradient_flow import GradientRecorder, LayerFlow, layer_flow
from seq2seq.diagnostics.leading_exponents import LeadingExponents, leading_exponents
from seq2seq.diagnostics.lyapunov import lyapunov_exponents
from seq2seq.models.recurrent import CELLS, RecurrentLayer

LENGTHS = torch.tensor([3, 11, 6])


def flow_of(layer: RecurrentLayer, x: torch.Tensor, lengths: torch.Tensor) -> LayerFlow:
    with GradientRecorder({"layer": layer}, rows=torch.arange(len(x))) as recorder:
        layer(x, lengths)
    return layer_flow(layer, recorder.calls["layer"])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_exponents_are_those_of_the_longest_example_by_itself(cell: str, reverse: bool) -> None:
    torch.manual_seed(3)
    layer = RecurrentLayer(cell=cell, input_size=4, hidden_size=6, reverse=reverse).double()
    x = torch.randn(3, 14, 4, dtype=torch.float64)
    found = leading_exponents(flow_of(layer, x, LENGTHS), count=3)
    alone = flow_of(layer, x[1:2, :11], LENGTHS[1:2])
    expected = lyapunov_exponents(alone.linearization, count=3)[0]
    # Directions of units that are never active are gone at once, and by how much is rounding.
    kept = [exponent for exponent in expected.tolist() if exponent > -10]
    assert found.exponents[: len(kept)] == pytest.approx(kept, abs=1e-6)
    assert all(exponent < -4 for exponent in found.exponents[len(kept) :])
    assert found.length == 11


def test_no_more_directions_are_followed_than_the_state_has() -> None:
    torch.manual_seed(3)
    for cell, directions in (("lstm", 4), ("gru", 2)):
        layer = RecurrentLayer(cell=cell, input_size=4, hidden_size=2).double()
        x = torch.randn(3, 11, 4, dtype=torch.float64)
        assert len(leading_exponents(flow_of(layer, x, LENGTHS), count=32).exponents) == directions


def test_the_memory_dimension_is_that_of_the_sequence_that_was_followed() -> None:
    assert LeadingExponents((0.1, -0.2, -0.4), 10).memory_dimension == 2
    assert LeadingExponents((0.1, -0.2, -0.4), 20).memory_dimension == 1
