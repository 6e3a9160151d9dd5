"""Schemes for the recurrent matrix of one gate, which is square: H x H.

What such a matrix does to a signal over many steps is its spectrum, so these choose it. Schemes for
any matrix, which serve here too, stand in `schemes.py`.
"""

import math

import torch
from torch import Generator, Tensor

from seq2seq.diagnostics.spectrum import spectral_radius as radius_of
from seq2seq.initializers.blocks import Block
from seq2seq.initializers.gate_biases import SHORT
from seq2seq.initializers.schemes import (
    check_argument,
    lecun_normal,
    lecun_uniform,
    normal,
    orthogonal,
    require_matrix,
    sparse,
)
from seq2seq.models.recurrent import KERNEL_GATES


def identity(block: Block, *, generator: Generator, gain: float = 1.0) -> Tensor:
    """The identity times gain, for recurrent matrices of ReLU networks.

    Le, Jaitly and Hinton 2015, "A simple way to initialize recurrent networks of rectified linear
    units", section 3 (there with gain 1, biases zero, input weights N(0, 0.001^2)).
    """
    check_argument("gain", gain)
    rows, _ = _require_square(block)
    return gain * torch.eye(rows, dtype=torch.float64)


def uniform_radius(block: Block, *, generator: Generator, spectral_radius: float) -> Tensor:
    """U(-a, a), a = spectral_radius * sqrt(3 / fan_in): `uniform` with the width taken out.

    By the circular law a square block has about this spectral radius; `echo_state` makes it exact.
    """
    check_argument("spectral_radius", spectral_radius)
    _require_square(block)
    return lecun_uniform(block, generator=generator, gain=spectral_radius)


def echo_state(
    block: Block,
    *,
    generator: Generator,
    spectral_radius: float = 1.1,
    connections: int | None = None,
) -> Tensor:
    """`sparse`, rescaled to exactly this spectral radius.

    Jaeger 2001, "The echo state approach"; 1.1 and 15 from Sutskever, Martens, Dahl and Hinton
    2013, "On the importance of initialization and momentum in deep learning", section 3.2.
    """
    check_argument("spectral_radius", spectral_radius)
    _require_square(block)
    drawn = sparse(block, generator=generator, connections=connections)
    radius = radius_of(drawn)
    if radius == 0:
        raise ValueError(f"connections={connections} drew a matrix without a cycle: use more")
    return drawn * (spectral_radius / radius)


def positive_definite(block: Block, *, generator: Generator, gain: float = 1.0) -> Tensor:
    """gain * (A + I) / e with A = R^T R / H, R ~ N(0, 1), and e the largest eigenvalue of A + I.

    The recurrent matrix of the np-RNN, for ReLU networks: one eigenvalue is gain, all others lie
    between 0.2 gain and gain, so that one direction is kept and all others decay. Talathi and
    Vartak 2015, "Improving performance of recurrent neural network with ReLU nonlinearity".
    """
    check_argument("gain", gain)
    size, _ = _require_square(block)
    drawn = torch.randn(size, size, generator=generator, dtype=torch.float64)
    shifted = drawn.T @ drawn / size + torch.eye(size, dtype=torch.float64)
    return torch.mul(shifted, gain / torch.linalg.eigvalsh(shifted)[-1])


def rotations(
    block: Block, *, generator: Generator, gain: float = 1.0, angle: float = math.pi
) -> Tensor:
    """Pairs of units rotate into each other, each pair by its own angle u ~ U(-angle, angle).

    It is the matrix exponential of the skew matrix with blocks [[0, u], [-u, 0]], so orthogonal
    times gain, with eigenvalues gain * exp(+-i u); a last odd unit stays as it is. angle = pi:
    Henaff, Szlam and LeCun 2016, "Recurrent orthogonal networks and long-memory tasks";
    pi / 2: the Cayley form of Helfrich, Willmott and Ye 2018, "Orthogonal recurrent neural networks
    with scaled Cayley transform" (there 0 to pi / 2: the sign is the order of the two units).
    """
    check_argument("gain", gain)
    check_argument("angle", angle)
    size, _ = _require_square(block)
    pairs = size // 2
    u = (2 * torch.rand(pairs, generator=generator, dtype=torch.float64) - 1) * angle
    matrix = torch.eye(size, dtype=torch.float64)
    one, other = torch.arange(0, 2 * pairs, 2), torch.arange(1, 2 * pairs, 2)
    matrix[one, one] = matrix[other, other] = u.cos()
    matrix[one, other] = u.sin()
    matrix[other, one] = -u.sin()
    return gain * matrix


def antisymmetric(
    block: Block,
    *,
    generator: Generator,
    gain: float = 1.0,
    step: float = 0.1,
    damping: float = 0.01,
) -> Tensor:
    """(1 - step * damping) I + step * (M - M^T), M ~ N(0, gain^2 / H).

    Where tanh is linear, one step of this recurrent matrix is one Euler step of the antisymmetric
    network of Chang, Chen, Haber and Chi 2019, "AntisymmetricRNN: a dynamical system view on
    recurrent neural networks", section 3; the network itself, which keeps this form in training, is
    another architecture. Every singular value lies between 1 - step * damping and about
    1 + 4 (gain * step)^2.
    """
    check_argument("gain", gain)
    check_argument("step", step)
    check_argument("damping", damping)
    size, _ = _require_square(block)
    drawn = lecun_normal(block, generator=generator, gain=gain)
    keep = (1 - step * damping) * torch.eye(size, dtype=torch.float64)
    return keep + step * (drawn - drawn.T)


def nonnormal_chain(
    block: Block, *, generator: Generator, gain: float = 1.02, feedback: float = 0.0
) -> Tensor:
    """Each unit hands its value, times gain, to the next one, and ``feedback`` of it back.

    A shift by one place: what enters at the first unit moves down a chain of H units, and all
    eigenvalues are zero unless there is feedback. Orhan and Pitkow 2020, "Improved memory in
    recurrent neural networks with sequential non-normal dynamics": chain 1.02; feedback chain 0.99
    with feedback 0.04.
    """
    check_argument("gain", gain)
    check_argument("feedback", feedback)
    size, _ = _require_square(block)
    onward = torch.full((size - 1,), float(gain), dtype=torch.float64)
    backward = torch.full((size - 1,), float(feedback), dtype=torch.float64)
    return torch.diag(onward, -1) + torch.diag(backward, 1)


def mean_field(
    block: Block, *, generator: Generator, gain: float = 1.0, scale: float = 0.00316
) -> Tensor:
    """Recurrent matrices at the edge where mean-field theory carries a gradient through time.

    A gate of an LSTM or GRU: N(0, scale^2), nearly nothing, so that the forget gate alone carries
    it, with a forget bias that opens that gate (Gilboa et al. 2019, "Dynamical isometry and a mean
    field theory of LSTMs and GRUs"). A plain tanh network: orthogonal times gain, critical at gain
    1 for weak inputs, sigma_w^2 E[tanh'^2] = 1 (Chen, Pennington and Schoenholz 2018, "Dynamical
    isometry and a mean field theory of RNNs").
    """
    if block.gate == "h":
        return orthogonal(block, generator=generator, gain=gain)
    return normal(block, generator=generator, scale=scale)


def recommended_recurrent(
    block: Block, *, generator: Generator, longest: float, gain: float | None = None
) -> Tensor:
    """`orthogonal` with the gain that was measured best for the cell and the length.

    Plain RNN 1.3; GRU 1; LSTM 1 up to 20 timesteps, 0.3 beyond, where the forget gate should carry
    the memory alone. A gain that is given replaces these.

    Args:
        block: one gate of a recurrent matrix.
        generator: source of the draws.
        longest: longest dependency in timesteps.
        gain: of every cell, instead of its own.
    """
    check_argument("longest", longest)
    if gain is None:
        long_lstm = block.gate in KERNEL_GATES["lstm"] and longest > SHORT
        gain = 1.3 if block.gate in KERNEL_GATES["rnn_tanh"] else 0.3 if long_lstm else 1.0
    return orthogonal(block, generator=generator, gain=gain)


def _require_square(block: Block) -> tuple[int, int]:
    rows, columns = require_matrix(block)
    if rows != columns:
        raise ValueError(
            f"it needs a square matrix, but the shape is {rows} x {columns}: choose another scheme"
        )
    return rows, columns
