import math

import pytest
import torch
from torch import Generator, Tensor

from seq2seq.initializers.blocks import Block
from seq2seq.initializers.catalogue import BLOCK_SCHEMES
from seq2seq.initializers.gate_biases import chrono, recommended_bias, uniform_gate

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
        ("positive_definite", {"gain": 0.9}, 0.9, 1e-9),
        ("rotations", {"gain": 1.1}, 1.1, 1e-9),
        ("nonnormal_chain", {}, 0.0, 1e-9),
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


UNDRAWN = {"zeros", "constant", "identity", "nonnormal_chain"}


@pytest.mark.parametrize("name", sorted(set(BLOCK_SCHEMES) - UNDRAWN))
def test_the_generator_alone_decides_the_draw(name: str) -> None:
    required = {
        "scale": 0.1 if name in ("uniform", "normal", "truncated_normal") else None,
        "spectral_radius": 1.0 if name == "uniform_radius" else None,
        "longest": 10.0 if name == "recommended_recurrent" else None,
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
        draw("sparse", Block((8, 4), 4, 8), connections=15)


def test_small_layers_are_sparse_with_all_the_inputs_they_have() -> None:
    assert ((draw("sparse", Block((8, 4), 4, 8)) != 0).sum(dim=1) == 4).all()
    assert ((draw("sparse", WIDE) != 0).sum(dim=1) == 15).all()
    assert radius(draw("echo_state", Block((6, 6), 6, 6))) == pytest.approx(1.1)


def test_the_positive_definite_matrix_keeps_one_direction_and_shrinks_the_others() -> None:
    drawn = draw("positive_definite", SQUARE)
    torch.testing.assert_close(drawn, drawn.T)
    values = torch.linalg.eigvalsh(drawn)
    # A = R^T R / H has its eigenvalues in 0 .. 4 with mean 1 (Marchenko and Pastur).
    assert values[-1] == pytest.approx(1.0)
    assert values[0] == pytest.approx(1 / 5, abs=0.01)
    assert values.mean() == pytest.approx(2 / 5, abs=0.02)


def test_the_random_walk_scales_by_the_units_and_not_by_the_inputs() -> None:
    expected = math.sqrt(2) * math.exp(1.2 / (200 - 2.4)) / 200
    assert draw("random_walk", WIDE).std() == pytest.approx(expected, rel=0.02)
    narrow = Block((3, 4000), 4000, 3)  # the formula stops at 6 units
    expected = math.sqrt(2) * math.exp(1.2 / 3.6) / 3
    assert draw("random_walk", narrow).std() == pytest.approx(expected, rel=0.03)


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
        ("h", 10, 1.1),
        ("h", 100, 1.1),
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


def test_the_recommended_bias_is_one_number_when_short_and_spread_when_long() -> None:
    def biases(gates: str, longest: float) -> dict[str, Tensor]:
        return recommended_bias(gates, 50, generator=Generator().manual_seed(0), longest=longest)

    for gates in ("ifgo", "rzn", "h"):
        short = biases(gates, 20)
        assert list(short) == list(gates)
        for gate, bias in short.items():
            assert (bias == (1.0 if gate in "fz" else 0.0)).all()
    long = biases("ifgo", 60)
    expected = chrono("ifgo", 50, generator=Generator().manual_seed(0), longest=60)
    assert all(torch.equal(long[gate], expected[gate]) for gate in "ifgo")
    assert biases("rzn", 60)["z"].unique().numel() == 50
    assert not biases("h", 60)["h"].any()


def test_nematus_draws_square_matrices_orthogonal_and_others_small() -> None:
    values = torch.linalg.svdvals(draw("nematus", SQUARE))
    assert torch.allclose(values, torch.ones_like(values))
    assert draw("nematus", WIDE).std() == pytest.approx(0.01, rel=0.02)


def test_chrono_needs_gates() -> None:
    with pytest.raises(ValueError, match="needs an LSTM or a GRU"):
        chrono("h", 8, generator=Generator(), longest=10)
