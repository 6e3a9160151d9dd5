"""Lyapunov exponents of a recurrent layer on real input: how many directions survive, and how long.

A small change of the state is carried forward through the exact derivative of every step, with the
inputs that the layer really had. Where the linearised steps come from is said in `linearization`.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from seq2seq.diagnostics.linearization import Linearization

# A direction is counted as remembered while no less than exp(-3) = 5 % of it is left. With this
# constant the count told best which LSTMs learn to recall over a lag.
KEPT_LOGARITHM = 3.0

_TINY = 1e-300  # of a direction that is gone: its logarithm stays finite


@torch.no_grad()
def lyapunov_exponents(
    linearization: Linearization, *, count: int, seed: int = 0, orthonormal_every: int = 1
) -> Tensor:
    """Leading finite-time Lyapunov exponents, in natural logarithms per step, largest first.

    Benettin, Galgani, Giorgilli and Strelcyn 1980: an orthonormal frame ``Q`` is carried through
    the steps and made orthonormal again after each, ``J_t Q_{t-1} = Q_t R_t``, and
    ``lambda_k = mean_t ln |R_t[k, k]|``. Over all directions
    ``T sum_k lambda_k = ln |det(J_T ... J_1)|``. Engelken 2023, "Gradient flossing", section 2, for
    recurrent networks.

    Sequences are short, so that a random frame would spend them on turning to the directions that
    last. It is turned first, by carrying it back through the transposed steps, forth and back
    again: then the leading exponents are close to those of the singular values of the product.

    Args:
        linearization: real timesteps only, of one or more examples of equal length.
        count: number of exponents, at most the size of the state.
        seed: of the random frame.
        orthonormal_every: steps between two times that the frame is made orthonormal. More than one
            is quicker and changes nothing as long as, over so many steps, the directions that are
            followed don't drift apart by more than float64 can hold, about 30 natural logarithms.

    Shape:
        returns ``[batch, count]``.
    """
    time, batch, _ = linearization.hidden.shape
    state = linearization.state_size
    if not 1 <= count <= state:
        raise ValueError(f"count is {count}, but the state has {state} directions")
    generator = torch.Generator().manual_seed(seed)
    frame = torch.randn(state, count, generator=generator, dtype=torch.float64)
    frame = frame.to(linearization.hidden).expand(batch, state, count)
    frame = torch.linalg.qr(frame).Q
    forth, back = range(time), range(time - 1, -1, -1)
    frame, _ = _carry(linearization.carry_back, back, frame, orthonormal_every)
    frame, _ = _carry(linearization.carry_forward, forth, frame, orthonormal_every)
    frame, _ = _carry(linearization.carry_back, back, frame, orthonormal_every)
    _, logarithms = _carry(linearization.carry_forward, forth, frame, orthonormal_every)
    exponents: Tensor = (logarithms / time).sort(dim=1, descending=True).values
    return exponents


def _carry(
    step: Callable[[int, Tensor], Tensor],
    order: Sequence[int],
    frame: Tensor,
    orthonormal_every: int,
) -> tuple[Tensor, Tensor]:
    """An orthonormal frame after all steps, and the logarithm of each direction's stretching."""
    logarithms = torch.zeros_like(frame[:, 0])
    for done, now in enumerate(order, start=1):
        frame = step(now, frame)
        if done % orthonormal_every == 0 or done == len(order):
            frame, stretched = torch.linalg.qr(frame)
            diagonal = stretched.diagonal(dim1=1, dim2=2).abs()
            logarithms += diagonal.clamp_min(_TINY).log()
    return frame, logarithms


def memory_dimension(exponents: Sequence[float], length: int) -> int:
    """Number of directions that are still there after ``length`` steps.

    ``D_3(T) = #{k : T lambda_k > -3}``; at most as many as there are exponents.
    """
    return sum(
        length * exponent > -KEPT_LOGARITHM for exponent in exponents if not math.isnan(exponent)
    )
