"""Jacobians of a step against `torch.func.jacrev`, and exponents against what is known of them."""

import math

import pytest
import torch
from torch import Tensor

from seq2seq.diagnostics.adjoint import KernelLinearization, linearize
from seq2seq.diagnostics.linearization import Linearization, Zoneout
from seq2seq.diagnostics.lyapunov import (
    lyapunov_exponents,
    memory_dimension,
)
from seq2seq.models.recurrent import CELLS, RecurrentLayer, RecurrentState

TIME, BATCH, INPUT, HIDDEN = 7, 3, 4, 5


def cell_step(layer: RecurrentLayer, x: Tensor, state: Tensor) -> Tensor:
    """One step of PyTorch's own cell function on the state as one vector."""
    weights = tuple(layer.rnn.parameters())
    x, state = x.unsqueeze(0), state.unsqueeze(0)
    match layer.cell:
        case "lstm":
            after = torch.cat(torch.lstm_cell(x, state.chunk(2, dim=1), *weights), dim=1)
        case "gru":
            after = torch.gru_cell(x, state, *weights)
        case "rnn_tanh":
            after = torch.rnn_tanh_cell(x, state, *weights)
        case "rnn_relu":
            after = torch.rnn_relu_cell(x, state, *weights)
        case _:
            hidden, *memory = state.unsqueeze(0).chunk(1 + layer.has_cell, dim=2)
            found = layer(x.unsqueeze(1), None, RecurrentState(hidden, *memory)).state
            after = torch.cat([one[0] for one in found if one is not None], dim=1)
    return after[0]


def trajectory(cell: str, *, zoneout: bool = False) -> tuple[Linearization, Tensor]:
    """A linearised scan of random input, and its Jacobians by automatic differentiation."""
    torch.manual_seed(5)
    layer = RecurrentLayer(cell=cell, input_size=INPUT, hidden_size=HIDDEN).double()
    if cell == "rnn_relu":  # no unit dies, so that the determinant is not zero
        layer.rnn.bias_ih_l0.data.fill_(3.0)
        layer.rnn.weight_hh_l0.data.abs_()
    x = torch.randn(TIME, BATCH, INPUT, dtype=torch.float64)
    state = torch.rand(BATCH, HIDDEN * (1 + layer.has_cell), dtype=torch.float64)
    initial_cell = state[:, HIDDEN:] if layer.has_cell else None
    kept = torch.rand(TIME, *state.shape, dtype=torch.float64) * zoneout
    before, jacobians = [], []

    def step(x: Tensor, state: Tensor, kept: Tensor) -> Tensor:
        return kept * state + (1 - kept) * cell_step(layer, x, state)

    for now in range(TIME):
        before.append(state[:, :HIDDEN])
        rows = [
            torch.func.jacrev(lambda s, one=one, keep=keep: step(one, s, keep))(s)
            for one, s, keep in zip(x[now], state, kept[now], strict=True)
        ]
        jacobians.append(torch.stack(rows).detach())
        steps = zip(x[now], state, kept[now], strict=True)
        state = torch.stack([step(*each) for each in steps]).detach()
    masks = Zoneout(kept[..., :HIDDEN], kept[..., HIDDEN:]) if zoneout else None
    linearization = linearize(layer, x, torch.stack(before), initial_cell, zoneout=masks)
    return linearization, torch.stack(jacobians)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("zoneout", [False, True])
def test_both_ways_through_a_step_are_the_jacobian_of_automatic_differentiation(
    cell: str, zoneout: bool
) -> None:
    linearization, jacobians = trajectory(cell, zoneout=zoneout)
    identity = torch.eye(jacobians.size(-1), dtype=torch.float64).expand(BATCH, -1, -1)
    for now, expected in enumerate(jacobians):
        forward = linearization.carry_forward(now, identity)
        torch.testing.assert_close(forward, expected, rtol=1e-12, atol=1e-13)
        back = linearization.carry_back(now, identity)
        torch.testing.assert_close(back, expected.mT, rtol=1e-12, atol=1e-13)


# Normalising the cell state forgets its mean and its size: the determinant is zero.
@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell != "layer_norm_lstm"])
def test_the_sum_of_all_exponents_times_the_length_is_the_log_determinant(cell: str) -> None:
    linearization, jacobians = trajectory(cell)
    exponents = lyapunov_exponents(linearization, count=jacobians.size(-1))
    expected = torch.linalg.slogdet(jacobians).logabsdet.sum(0)
    torch.testing.assert_close(exponents.sum(1) * TIME, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("cell", CELLS)
def test_leading_exponents_are_near_the_singular_values_of_the_whole_way(cell: str) -> None:
    linearization, jacobians = trajectory(cell)
    exponents = lyapunov_exponents(linearization, count=HIDDEN)
    for row in range(BATCH):
        whole = torch.linalg.multi_dot(list(jacobians[:, row].flip(0)))
        expected = torch.linalg.svdvals(whole)[:2].log() / TIME
        torch.testing.assert_close(exponents[row, :2], expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("cell", CELLS)
def test_a_frame_made_orthonormal_less_often_gives_the_same_exponents(cell: str) -> None:
    linearization, _ = trajectory(cell)
    often = lyapunov_exponents(linearization, count=HIDDEN)
    seldom = lyapunov_exponents(linearization, count=HIDDEN, orthonormal_every=4)
    torch.testing.assert_close(seldom, often, rtol=0, atol=1e-6)


def linear(matrix: Tensor, time: int) -> Linearization:
    """A network without nonlinearity: every step is the same matrix."""
    size = len(matrix)
    ones = torch.ones(time, 1, 1, size, dtype=torch.float64)
    return KernelLinearization(ones[:, :, 0], ones[:, :, 0], matrix, ones)


def test_a_diagonal_matrix_has_the_logarithms_of_its_entries() -> None:
    entries = torch.tensor([0.5, 1.2, 0.9, 0.1], dtype=torch.float64)
    found = lyapunov_exponents(linear(entries.diag(), 40), count=4)[0]
    torch.testing.assert_close(found, entries.log().sort(descending=True).values, atol=1e-6, rtol=0)


def test_a_direction_that_is_gone_has_a_very_small_exponent_and_no_nan() -> None:
    entries = torch.tensor([1.0, 0.0], dtype=torch.float64)
    found = lyapunov_exponents(linear(entries.diag(), 5), count=2)[0]
    assert found[0].item() == pytest.approx(0.0, abs=1e-12)
    assert found[1] < -30


def test_as_many_exponents_as_directions_can_be_asked_for_and_no_more() -> None:
    linearization, _ = trajectory("lstm")
    with pytest.raises(ValueError, match=f"count is 11, but the state has {2 * HIDDEN} directions"):
        lyapunov_exponents(linearization, count=11)


def test_the_memory_dimension_counts_directions_of_which_a_twentieth_is_left() -> None:
    exponents = [0.2, 0.0, -0.29, -0.31, -2.0, math.nan]
    assert memory_dimension(exponents, 10) == 3
    assert memory_dimension(exponents, 1) == 5
    assert memory_dimension(exponents, 1000) == 2
