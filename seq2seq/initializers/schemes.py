"""Initialization schemes: pure functions that draw one gate block.

Each takes the block's description and a `torch.Generator` of the CPU, and returns a new float64
tensor, so that a seed means the same weights on every device and in every precision. These are the
ones for any matrix; see `recurrent_schemes.py` for square ones, `gate_biases.py` for biases that
depend on each other, `catalogue.py` for all by name. Which parameter gets which scheme, and writing
it there, belongs to the rules.

Notation: H hidden units, fan_in and fan_out of one gate block, U(a, b) uniform, N(m, s^2) normal.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor

from seq2seq.initializers.blocks import Block


def zeros(block: Block, *, generator: Generator) -> Tensor:
    """All zeros."""
    return torch.zeros(block.shape, dtype=torch.float64)


def constant(block: Block, *, generator: Generator, value: float) -> Tensor:
    """All ``value``. For the biases of a recurrent layer it means the sum of its two vectors.

    Gers, Schmidhuber and Cummins 2000, "Learning to forget", and Jozefowicz, Zaremba and Sutskever
    2015, section 2.2, for the forget gate at 1.
    """
    check_argument("value", value)
    return torch.full(block.shape, float(value), dtype=torch.float64)


def uniform(block: Block, *, generator: Generator, scale: float) -> Tensor:
    """U(-scale, scale). A square block has spectral radius near scale * sqrt(H / 3).

    0.08: Sutskever, Vinyals and Le 2014, section 3.4; 0.1: Luong, Pham and Manning 2015, section
    4.1. The same scale is a different spectral radius at every width.
    """
    check_argument("scale", scale)
    drawn = torch.rand(block.shape, generator=generator, dtype=torch.float64)
    return (2 * drawn - 1) * scale


def normal(block: Block, *, generator: Generator, scale: float) -> Tensor:
    """N(0, scale^2). A square block has spectral radius near scale * sqrt(H).

    0.01: Bahdanau, Cho and Bengio 2015, appendix B.1.
    """
    check_argument("scale", scale)
    return torch.randn(block.shape, generator=generator, dtype=torch.float64) * scale


def truncated_normal(block: Block, *, generator: Generator, scale: float) -> Tensor:
    """N(0, s^2) cut at 2 s, with s chosen so that the standard deviation is ``scale``.

    Drawn by inverting the distribution function. Cutting at two standard deviations leaves 0.8796
    of the standard deviation, hence s = scale / 0.8796.
    """
    check_argument("scale", scale)
    inside = math.erf(math.sqrt(2.0))  # the probability of |x| < 2
    drawn = torch.rand(block.shape, generator=generator, dtype=torch.float64)
    cut = math.sqrt(2.0) * torch.erfinv((2 * drawn - 1) * inside)
    return cut * (scale / 0.87962566103423978)


def xavier_uniform(block: Block, *, generator: Generator, gain: float = 1.0) -> Tensor:
    """U(-a, a), a = gain * sqrt(6 / (fan_in + fan_out)), fans of the one gate block.

    Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward neural
    networks", eq. 16. A square block has variance gain^2 / H and spectral radius near gain.
    """
    check_argument("gain", gain)
    require_matrix(block)
    a = gain * math.sqrt(6.0 / (block.fan_in + block.fan_out))
    return uniform(block, generator=generator, scale=a)


def xavier_normal(block: Block, *, generator: Generator, gain: float = 1.0) -> Tensor:
    """N(0, s^2), s = gain * sqrt(2 / (fan_in + fan_out)); the normal form of `xavier_uniform`."""
    check_argument("gain", gain)
    require_matrix(block)
    s = gain * math.sqrt(2.0 / (block.fan_in + block.fan_out))
    return normal(block, generator=generator, scale=s)


def lecun_uniform(block: Block, *, generator: Generator, gain: float = 1.0) -> Tensor:
    """U(-a, a), a = gain * sqrt(3 / fan_in): the variance of `lecun_normal`."""
    check_argument("gain", gain)
    require_matrix(block)
    return uniform(block, generator=generator, scale=gain * math.sqrt(3.0 / block.fan_in))


def lecun_normal(block: Block, *, generator: Generator, gain: float = 1.0) -> Tensor:
    """N(0, gain^2 / fan_in).

    LeCun, Bottou, Orr and Mueller 1998, "Efficient BackProp", section 4.6. As a recurrent matrix
    it has spectral radius near gain, and a tanh network without input turns chaotic at gain 1
    (Sompolinsky, Crisanti and Sommers 1988).
    """
    check_argument("gain", gain)
    require_matrix(block)
    return normal(block, generator=generator, scale=gain / math.sqrt(block.fan_in))


def he_uniform(block: Block, *, generator: Generator, gain: float = 1.0) -> Tensor:
    """U(-a, a), a = gain * sqrt(6 / fan_in): the variance of `he_normal`."""
    check_argument("gain", gain)
    require_matrix(block)
    return uniform(block, generator=generator, scale=gain * math.sqrt(6.0 / block.fan_in))


def he_normal(block: Block, *, generator: Generator, gain: float = 1.0) -> Tensor:
    """N(0, 2 gain^2 / fan_in), for layers followed by a ReLU.

    He, Zhang, Ren and Sun 2015, "Delving deep into rectifiers", section 2.2. As a recurrent matrix
    it has spectral radius near sqrt(2) * gain.
    """
    check_argument("gain", gain)
    require_matrix(block)
    return normal(block, generator=generator, scale=gain * math.sqrt(2.0 / block.fan_in))


def orthogonal(block: Block, *, generator: Generator, gain: float = 1.0) -> Tensor:
    """A random orthogonal matrix times gain: every singular value is gain.

    QR of a Gaussian matrix, with the signs of R's diagonal moved into Q, which makes Q uniform
    over orthogonal matrices (Mezzadri 2007). Saxe, McClelland and Ganguli 2014, "Exact solutions to
    the nonlinear dynamics of learning in deep linear neural networks". A block that isn't square
    has orthonormal rows or columns, whichever are fewer. Taken over all gates at once it would be
    only 1/2 of this in an LSTM, 1/sqrt(3) in a GRU: a rule's ``fused`` does so.
    """
    check_argument("gain", gain)
    rows, columns = require_matrix(block)
    tall = (max(rows, columns), min(rows, columns))
    drawn = torch.randn(tall, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(drawn)
    q = q * torch.where(r.diagonal() < 0, -1.0, 1.0)
    return torch.mul(q if rows >= columns else q.T, gain)


def sparse(
    block: Block, *, generator: Generator, connections: int | None = None, scale: float = 1.0
) -> Tensor:
    """Each unit has ``connections`` inputs with weights N(0, scale^2), all others are zero.

    None means 15, or all inputs where there are fewer. Martens 2010, "Deep learning via
    Hessian-free optimization", section 5; Sutskever, Martens, Dahl and Hinton 2013, section 3.1.
    `torch.nn.init.sparse_` counts per input instead of per unit.
    """
    _, columns = require_matrix(block)
    if connections is None:
        connections = min(15, columns)
    check_argument("connections", connections)
    if connections > columns:
        raise ValueError(f"connections={connections}, but its units have only {columns} inputs")
    weights = normal(block, generator=generator, scale=scale)
    order = torch.rand(block.shape, generator=generator, dtype=torch.float64).argsort(dim=1)
    return torch.where(order.argsort(dim=1) < connections, weights, 0.0)


def random_walk(block: Block, *, generator: Generator, gain: float = 1.0) -> Tensor:
    """N(0, s^2), s = gain * sqrt(2) * exp(1.2 / (max(H, 6) - 2.4)) / H, H units in the block.

    The input matrix of the np-RNN (Talathi and Vartak 2015, "Improving performance of recurrent
    neural network with ReLU nonlinearity"), with the constant that keeps the length of a ReLU
    network's signal from Sussillo and Abbott 2014, "Random walk initialization for training very
    deep feedforward networks".
    """
    check_argument("gain", gain)
    require_matrix(block)
    units = block.fan_out
    walk = math.sqrt(2.0) * math.exp(1.2 / (max(units, 6) - 2.4))
    return normal(block, generator=generator, scale=gain * walk / units)


def pytorch(block: Block, *, generator: Generator) -> Tensor:
    """What the library draws itself: torch.nn's `reset_parameters`, by the kind of the module.

    Recurrent layers U(-1/sqrt(H), 1/sqrt(H)) for weights and both biases; embeddings N(0, 1);
    linear layers U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weight and bias.
    """
    match block.kind:
        case "recurrent":
            return uniform(block, generator=generator, scale=1 / math.sqrt(block.fan_out))
        case "linear":
            return uniform(block, generator=generator, scale=1 / math.sqrt(block.fan_in))
        case "embedding":
            return normal(block, generator=generator, scale=1.0)
        case _:
            raise ValueError("PyTorch's default is known for recurrent, linear and embedding only")


def nematus(block: Block, *, generator: Generator) -> Tensor:
    """Orthogonal if square, else N(0, 0.01^2): `norm_weight` in Nematus' initializers.py."""
    rows, columns = require_matrix(block)
    if rows == columns:
        return orthogonal(block, generator=generator)
    return normal(block, generator=generator, scale=0.01)


_ARGUMENTS: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "scale": (lambda value: value >= 0, "a finite number, not negative"),
    "gain": (lambda value: value >= 0, "a finite number, not negative"),
    "value": (lambda value: True, "a finite number"),
    "spectral_radius": (lambda value: value >= 0, "a finite number, not negative"),
    "connections": (lambda value: value >= 1 and value == int(value), "a whole number from 1 on"),
    "angle": (lambda value: 0 <= value <= math.pi, "radians from 0 to pi"),
    "step": (lambda value: value >= 0, "a finite number, not negative"),
    "damping": (lambda value: value >= 0, "a finite number, not negative"),
    "feedback": (lambda value: True, "a finite number"),
    "longest": (lambda value: value > 2, "a finite number of timesteps, more than 2"),
}


def check_argument(name: str, value: float, shown_as: str | None = None) -> None:
    """Refuse a value that no scheme could use.

    Args:
        name: the argument of a scheme.
        value: what the user gave for it.
        shown_as: what the message calls it; the name if None.

    Raises:
        ValueError: with the name, the value and what is allowed.
    """
    allowed, description = _ARGUMENTS[name]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and allowed(value)):
        raise ValueError(f"{shown_as or name}={value} must be {description}")


def require_matrix(block: Block) -> tuple[int, int]:
    """Rows and columns, or a ValueError for a bias."""
    if len(block.shape) != 2:
        raise ValueError(f"it needs a matrix, but the shape is {tuple(block.shape)}")
    return block.shape[0], block.shape[1]
