import math

import pytest
import torch
from torch import Generator, Tensor

from seq2seq.initializers.blocks import Block
from seq2seq.initializers.schemes import BLOCK_SCHEMES, chrono, uniform_gate

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


# The numbers of the literature at 256 units; the radius of one draw varies by a few per cent.
@pytest.mark.parametrize(
    ("name", "arguments", "expected", "tolerance"),
    [
        ("uniform", {"scale": 0.08}, 0.74, 0.06),
        ("uniform", {"scale": 0.04}, 0.37, 0.03),
        ("normal", {"scale": 0.01}, 0.16, 0.015),
        ("xavier_uniform", {}, 1.0, 0.08),
        ("lecun_normal", {"gain": 0.5}, 0.5, 0.04),
        ("he_normal", {}, math.sqrt(2), 0.11),
        ("orthogonal", {"gain": 1.1}, 1.1, 1e-9),
        ("identity", {"gain": 0.9}, 0.9, 1e-12),
        ("uniform_radius", {"spectral_radius": 0.9}, 0.9, 0.07),
        ("echo_state", {"spectral_radius": 1.1}, 1.1, 1e-9),
    ],
)
def test_spectral_radius_of_a_square_block(
    name: str, arguments: dict[str, float], expected: float, tolerance: float
) -> None:
    assert radius(draw(name, SQUARE, **arguments)) == pytest.approx(expected, abs=tolerance)


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


@pytest.mark.parametrize("name", sorted(set(BLOCK_SCHEMES) - {"zeros", "constant", "identity"}))
def test_the_generator_alone_decides_the_draw(name: str) -> None:
    required = {
        "scale": 0.1 if name in ("uniform", "normal", "truncated_normal") else None,
        "spectral_radius": 1.0 if name == "uniform_radius" else None,
    }
    arguments = {key: value for key, value in required.items() if value is not None}
    block = Block((32, 32), 32, 32, "recurrent")
    torch.manual_seed(1)
    first = draw(name, block, **arguments)
    torch.manual_seed(2)
    assert torch.equal(first, draw(name, block, **arguments))
    assert not torch.equal(first, draw(name, block, seed=1, **arguments))
    assert torch.initial_seed() == 2


def test_chrono_spreads_keep_times_up_to_the_longest() -> None:
    biases = chrono("ifgo", 4000, generator=Generator().manual_seed(0), longest=50)
    # f / (1 - f) = e^b is the time scale minus one: uniform over 1 .. longest - 1.
    scales = biases["f"].exp()
    assert scales.min() >= 1 and scales.max() <= 49
    assert scales.mean() == pytest.approx(25, rel=0.03)
    assert scales.std() == pytest.approx(48 / math.sqrt(12), rel=0.03)
    assert torch.equal(biases["i"], -biases["f"])
    assert not biases["g"].any() and not biases["o"].any()


def test_chrono_in_a_gru_opens_the_update_gate() -> None:
    biases = chrono("rzn", 100, generator=Generator().manual_seed(0), longest=50)
    assert (biases["z"] >= 0).all() and biases["z"].mean() > 2
    assert not biases["r"].any() and not biases["n"].any()


def test_uniform_gate_makes_the_forget_gate_uniform() -> None:
    biases = uniform_gate("ifgo", 4000, generator=Generator().manual_seed(0))
    gate = torch.sigmoid(biases["f"])
    assert gate.mean() == pytest.approx(0.5, abs=0.02)
    assert gate.std() == pytest.approx(1 / math.sqrt(12), rel=0.03)
    assert gate.min() >= 1 / 4000 - 1e-12 and gate.max() <= 1 - 1 / 4000 + 1e-12
    assert torch.equal(biases["i"], -biases["f"])


@pytest.mark.parametrize("scheme", ["xavier_uniform", "orthogonal", "he_normal", "sparse"])
def test_a_scheme_for_matrices_refuses_a_bias(scheme: str) -> None:
    with pytest.raises(ValueError, match=r"needs a matrix, but the shape is \(8,\)"):
        draw(scheme, Block((8,), 4, 8))


def test_schemes_for_recurrent_matrices_refuse_what_is_not_square() -> None:
    with pytest.raises(ValueError, match="needs a square matrix, but the shape is 200 x 300"):
        draw("identity", WIDE)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_a_scale_that_is_no_width_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="scale=.* must be a finite number, not negative"):
        draw("uniform", SQUARE, scale=value)


def test_more_connections_than_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="connections=15, but its units have only 4 inputs"):
        draw("sparse", Block((8, 4), 4, 8))


def test_chrono_needs_gates() -> None:
    with pytest.raises(ValueError, match="needs an LSTM or a GRU"):
        chrono("h", 8, generator=Generator(), longest=10)
