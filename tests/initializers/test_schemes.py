import math

import pytest
import torch
from torch import Generator, Tensor

from seq2seq.initializers.blocks import Block
from seq2seq.initializers.catalogue import BLOCK_SCHEMES

SQUARE = Block((256, 256), 256, 256)
WIDE = Block((200, 300), 300, 200)
TALL = Block((300, 200), 200, 300)


def draw(name: str, block: Block, seed: int = 0, **arguments: float) -> Tensor:
    return BLOCK_SCHEMES[name](block, generator=Generator().manual_seed(seed), **arguments)


def radius(matrix: Tensor) -> float:
    return float(torch.linalg.eigvals(matrix).abs().max())


# Every expected standard deviation is the formula of the paper with its numbers put in, and
# kurtosis tells the distributions apart: 1.8 uniform, 3 normal.
@pytest.mark.parametrize(
    ("name", "arguments", "deviation", "kurtosis"),
    [
        ("uniform", {"scale": 0.08}, 0.08 / math.sqrt(3), 1.8),
        ("normal", {"scale": 0.01}, 0.01, 3.0),
        ("truncated_normal", {"scale": 0.05}, 0.05, 2.365),
        ("xavier_uniform", {}, math.sqrt(2 / 500), 1.8),
        ("xavier_uniform", {"gain": 0.5}, 0.5 * math.sqrt(2 / 500), 1.8),
        ("xavier_normal", {"gain": 2.0}, 2 * math.sqrt(2 / 500), 3.0),
        ("lecun_uniform", {}, math.sqrt(1 / 300), 1.8),
        ("lecun_normal", {"gain": 0.3}, 0.3 * math.sqrt(1 / 300), 3.0),
        ("he_uniform", {}, math.sqrt(2 / 300), 1.8),
        ("he_normal", {}, math.sqrt(2 / 300), 3.0),
    ],
)
def test_moments_are_those_of_the_formula(
    name: str, arguments: dict[str, float], deviation: float, kurtosis: float
) -> None:
    drawn = draw(name, WIDE, **arguments)
    assert drawn.shape == WIDE.shape
    assert abs(drawn.mean()) < 5 * deviation / math.sqrt(drawn.numel())
    assert drawn.std() == pytest.approx(deviation, rel=0.015)
    assert (drawn / deviation).pow(4).mean() == pytest.approx(kurtosis, rel=0.04)


def test_uniform_stays_within_its_scale_and_fills_it() -> None:
    drawn = draw("uniform", SQUARE, scale=0.08)
    assert drawn.abs().max() <= 0.08
    assert drawn.max() > 0.0799 and drawn.min() < -0.0799


def test_truncated_normal_has_nothing_beyond_two_standard_deviations() -> None:
    cut = 2 * 0.05 / 0.8796256610
    assert draw("truncated_normal", SQUARE, scale=0.05).abs().max() <= cut
    assert (draw("truncated_normal", SQUARE, scale=0.05).abs() > 0.95 * cut).any()


@pytest.mark.parametrize("block", [SQUARE, WIDE, TALL], ids=["square", "wide", "tall"])
def test_orthogonal_has_every_singular_value_at_the_gain(block: Block) -> None:
    drawn = draw("orthogonal", block, gain=1.1)
    values = torch.linalg.svdvals(drawn)
    assert torch.allclose(values, torch.full_like(values, 1.1), atol=1e-10)


def test_orthogonal_is_uniform_over_rotations_and_reflections() -> None:
    # Without the sign fix the diagonal of Q is biased and the determinant's sign is nearly fixed.
    drawn = [draw("orthogonal", Block((3, 3), 3, 3), seed=seed) for seed in range(400)]
    diagonal = torch.stack([matrix.diagonal() for matrix in drawn])
    assert abs(diagonal.mean()) < 0.07
    positive = sum(bool(torch.linalg.det(matrix) > 0) for matrix in drawn)
    assert 150 < positive < 250


def test_pytorch_recurrent_block_has_spectral_radius_one_over_root_three() -> None:
    drawn = draw("pytorch", SQUARE._replace(kind="recurrent"))
    assert radius(drawn) == pytest.approx(1 / math.sqrt(3), abs=0.05)


def test_sparse_gives_every_unit_exactly_so_many_inputs() -> None:
    drawn = draw("sparse", WIDE, connections=15, scale=0.5)
    assert ((drawn != 0).sum(dim=1) == 15).all()
    assert drawn[drawn != 0].std() == pytest.approx(0.5, rel=0.05)
    used = (drawn != 0).sum(dim=0).double()
    assert used.mean() == pytest.approx(10.0) and used.std() > 1  # inputs are chosen at random


def test_constant_and_zeros_need_no_draw() -> None:
    assert (draw("zeros", WIDE) == 0).all()
    assert (draw("constant", Block((7,), 3, 7), value=1.5) == 1.5).all()


@pytest.mark.parametrize("scheme", ["xavier_uniform", "orthogonal", "he_normal", "sparse"])
def test_a_scheme_for_matrices_refuses_a_bias(scheme: str) -> None:
    with pytest.raises(ValueError, match=r"needs a matrix, but the shape is \(8,\)"):
        draw(scheme, Block((8,), 4, 8))


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_a_scale_that_is_no_width_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="scale=.* must be a finite number, not negative"):
        draw("uniform", SQUARE, scale=value)


def test_more_connections_than_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="connections=15, but its units have only 4 inputs"):
        draw("sparse", Block((8, 4), 4, 8), connections=15)


def test_small_layers_are_sparse_with_all_the_inputs_they_have() -> None:
    assert ((draw("sparse", Block((8, 4), 4, 8)) != 0).sum(dim=1) == 4).all()
    assert ((draw("sparse", WIDE) != 0).sum(dim=1) == 15).all()
    assert radius(draw("echo_state", Block((6, 6), 6, 6))) == pytest.approx(1.1)


def test_the_random_walk_scales_by_the_units_and_not_by_the_inputs() -> None:
    expected = math.sqrt(2) * math.exp(1.2 / (200 - 2.4)) / 200
    assert draw("random_walk", WIDE).std() == pytest.approx(expected, rel=0.02)
    narrow = Block((3, 4000), 4000, 3)  # the formula stops at 6 units
    expected = math.sqrt(2) * math.exp(1.2 / 3.6) / 3
    assert draw("random_walk", narrow).std() == pytest.approx(expected, rel=0.03)


def test_nematus_draws_square_matrices_orthogonal_and_others_small() -> None:
    values = torch.linalg.svdvals(draw("nematus", SQUARE))
    assert torch.allclose(values, torch.ones_like(values))
    assert draw("nematus", WIDE).std() == pytest.approx(0.01, rel=0.02)
