import math

import pytest
import torch
from torch import Generator, Tensor

from seq2seq.initializers.blocks import Block
from seq2seq.initializers.catalogue import BLOCK_SCHEMES

SQUARE = Block((256, 256), 256, 256)


def draw(name: str, block: Block, seed: int = 0, **arguments: float) -> Tensor:
    return BLOCK_SCHEMES[name](block, generator=Generator().manual_seed(seed), **arguments)


def radius(matrix: Tensor) -> float:
    return float(torch.linalg.eigvals(matrix).abs().max())


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
        ("positive_definite", {"gain": 0.9}, 0.9, 1e-9),
        ("rotations", {"gain": 1.1}, 1.1, 1e-9),
        ("nonnormal_chain", {}, 0.0, 1e-9),
    ],
)
def test_spectral_radius_of_a_square_block(
    name: str, arguments: dict[str, float], expected: float, tolerance: float
) -> None:
    assert radius(draw(name, SQUARE, **arguments)) == pytest.approx(expected, abs=tolerance)


def test_schemes_for_recurrent_matrices_refuse_what_is_not_square() -> None:
    with pytest.raises(ValueError, match="needs a square matrix, but the shape is 200 x 300"):
        draw("identity", Block((200, 300), 300, 200))


def test_the_positive_definite_matrix_keeps_one_direction_and_shrinks_the_others() -> None:
    drawn = draw("positive_definite", SQUARE)
    torch.testing.assert_close(drawn, drawn.T)
    values = torch.linalg.eigvalsh(drawn)
    # A = R^T R / H has its eigenvalues in 0 .. 4 with mean 1 (Marchenko and Pastur).
    assert values[-1] == pytest.approx(1.0)
    assert values[0] == pytest.approx(1 / 5, abs=0.01)
    assert values.mean() == pytest.approx(2 / 5, abs=0.02)


@pytest.mark.parametrize("size", [64, 65])
def test_rotations_are_the_exponential_of_a_skew_matrix(size: int) -> None:
    drawn = draw("rotations", Block((size, size), size, size))
    skew = torch.zeros_like(drawn)
    for one in range(0, size - 1, 2):
        skew[one, one + 1] = torch.atan2(drawn[one, one + 1], drawn[one, one])
        skew[one + 1, one] = -skew[one, one + 1]
    torch.testing.assert_close(torch.linalg.matrix_exp(skew), drawn)
    torch.testing.assert_close(drawn @ drawn.T, torch.eye(size, dtype=torch.float64))
    assert (drawn == draw("rotations", Block((size, size), size, size), angle=math.pi)).all()


@pytest.mark.parametrize("angle", [math.pi, math.pi / 2, 0.1])
def test_rotations_turn_by_every_angle_up_to_the_largest(angle: float) -> None:
    turned = torch.linalg.eigvals(draw("rotations", SQUARE, angle=angle)).angle().abs()
    assert turned.max() <= angle + 1e-9
    assert turned.max() > 0.95 * angle
    assert turned.mean() == pytest.approx(angle / 2, rel=0.15)


def test_the_cayley_transform_of_its_skew_matrix_is_the_rotation() -> None:
    drawn = draw("rotations", Block((2, 2), 2, 2), angle=math.pi / 2)
    cosine = float(drawn[0, 0])
    s = math.copysign(math.sqrt((1 - cosine) / (1 + cosine)), float(drawn[0, 1]))
    skew = torch.tensor([[0.0, s], [-s, 0.0]], dtype=torch.float64)
    identity = torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(torch.linalg.inv(identity - skew) @ (identity + skew), drawn)


def test_antisymmetric_is_one_euler_step_that_neither_grows_nor_decays_much() -> None:
    drawn = draw("antisymmetric", SQUARE, step=0.1, damping=0.01)
    kept = 0.999 * torch.eye(256, dtype=torch.float64)
    torch.testing.assert_close(drawn - kept, -(drawn - kept).T)
    # M - M^T has imaginary eigenvalues up to 2 sqrt(2).
    values = torch.linalg.svdvals(drawn)
    assert values.min() >= 0.999 - 1e-9
    assert values.max() == pytest.approx(math.hypot(0.999, 0.2 * math.sqrt(2)), rel=0.005)
    assert torch.equal(draw("antisymmetric", SQUARE, step=0.0), torch.eye(256, dtype=torch.float64))


def test_the_chain_moves_a_signal_along_and_out_at_its_end() -> None:
    chain = draw("nonnormal_chain", Block((5, 5), 5, 5), gain=2.0)
    signal = torch.tensor([1.0, 0, 0, 0, 0], dtype=torch.float64)
    for place in range(1, 5):
        signal = chain @ signal
        assert signal.tolist() == [2.0**place if unit == place else 0.0 for unit in range(5)]
    assert not (chain @ signal).any()


def test_feedback_gives_the_chain_the_spectrum_of_its_tridiagonal_matrix() -> None:
    drawn = draw("nonnormal_chain", Block((8, 8), 8, 8), gain=0.99, feedback=0.04)
    expected = [2 * math.sqrt(0.99 * 0.04) * math.cos(k * math.pi / 9) for k in range(1, 9)]
    found = sorted(torch.linalg.eigvals(drawn).real.tolist(), reverse=True)
    assert found == pytest.approx(expected, abs=1e-9)


def test_mean_field_is_nearly_nothing_in_a_gate_and_critical_in_a_plain_network() -> None:
    gate, plain = SQUARE._replace(gate="f"), SQUARE._replace(gate="h")
    assert draw("mean_field", gate).var() == pytest.approx(1e-5, rel=0.03)
    values = torch.linalg.svdvals(draw("mean_field", plain))
    assert torch.allclose(values, torch.ones_like(values))


@pytest.mark.parametrize(
    ("gate", "longest", "gain"),
    [
        ("h", 10, 1.3),
        ("h", 100, 1.3),
        ("z", 10, 1.0),
        ("z", 100, 1.0),
        ("i", 20, 1.0),
        ("f", 21, 0.3),
    ],
)
def test_the_recommended_gain_depends_on_cell_and_length(
    gate: str, longest: float, gain: float
) -> None:
    block = Block((16, 16), 16, 16, "recurrent", gate)
    values = torch.linalg.svdvals(draw("recommended_recurrent", block, longest=longest))
    assert torch.allclose(values, torch.full_like(values, gain))
    given = draw("recommended_recurrent", block, longest=longest, gain=0.7)
    assert torch.allclose(torch.linalg.svdvals(given), torch.full_like(values, 0.7))
