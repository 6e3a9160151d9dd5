"""Biases of a whole recurrent layer, whose gates depend on each other.

A scheme takes the cell's gate letters and its size, and returns each gate's bias: the sum of the
two vectors that a layer adds. One number for a gate is `constant` in `schemes.py`.
"""

import torch
from torch import Generator, Tensor

from seq2seq.initializers.blocks import KEEP_GATES
from seq2seq.initializers.schemes import check_argument

# Dependencies of at most so many timesteps are short: a forget bias of 1 carries them (measured on
# copying; beyond, spread time scales and small recurrent weights learn what a bias of 1 can't).
SHORT = 20


def chrono(gates: str, size: int, *, generator: Generator, longest: float) -> dict[str, Tensor]:
    """Keep-gate biases ln(u), u ~ U(1, longest - 1), so that memories last 1 to ``longest`` steps.

    LSTM: b_f = ln(u) and b_i = -b_f; GRU: b_z = ln(u) in PyTorch's sign; all others zero. Tallec
    and Ollivier 2018, "Can recurrent neural networks warp time?", eq. 16.

    Args:
        gates: gate letters of the cell.
        size: hidden units.
        generator: source of the draws.
        longest: longest dependency in timesteps, more than 2.
    """
    check_argument("longest", longest)
    u = torch.rand(size, generator=generator, dtype=torch.float64)
    return _keep_biases(gates, torch.log(1 + u * (longest - 2)))


def uniform_gate(gates: str, size: int, *, generator: Generator) -> dict[str, Tensor]:
    """Biases that make the keep gate u ~ U(1/H, 1 - 1/H) where its input is zero.

    LSTM: b_f = -ln(1/u - 1) and b_i = -b_f; GRU: b_z alone; all others zero. Gu, Gulcehre, Paine,
    Hoffman and Pascanu 2020, "Improving the gating mechanism of recurrent neural networks",
    section 3.1.
    """
    u = torch.rand(size, generator=generator, dtype=torch.float64)
    u = 1 / size + u * (1 - 2 / size)
    return _keep_biases(gates, torch.logit(u))


def recommended_bias(
    gates: str, size: int, *, generator: Generator, longest: float
) -> dict[str, Tensor]:
    """Keep gates at 1 up to 20 timesteps, `chrono` beyond; all others zero, and all of a plain RNN.

    Args:
        gates: gate letters of the cell.
        size: hidden units.
        generator: source of the draws.
        longest: longest dependency in timesteps, more than 2.
    """
    check_argument("longest", longest)
    if longest > SHORT and set(gates) & set(KEEP_GATES):
        return chrono(gates, size, generator=generator, longest=longest)
    values = {gate: float(gate in KEEP_GATES) for gate in gates}
    return {gate: torch.full((size,), value, dtype=torch.float64) for gate, value in values.items()}


def _keep_biases(gates: str, bias: Tensor) -> dict[str, Tensor]:
    if not set(gates) & set(KEEP_GATES):
        raise ValueError("it needs an LSTM or a GRU, this layer has no gates")
    values = {"f": bias, "z": bias, "i": -bias}
    return {gate: values.get(gate, torch.zeros_like(bias)) for gate in gates}
