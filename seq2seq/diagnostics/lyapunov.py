"""Lyapunov exponents of a recurrent layer on real input: how many directions survive, and how long.

A small change of the state is carried forward through the exact derivative of every step, with the
inputs that the layer really had. Where the linearised steps come from is the business of `adjoint`.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from seq2seq.diagnostics.adjoint import Linearization

# A direction is counted as remembered while no less than exp(-3) = 5 % of it is left. With this
# constant the count told best which LSTMs learn to recall over a lag.
KEPT_LOGARITHM = 3.0

_TINY = 1e-300  # of a direction that is gone: its logarithm stays finite


def carry_forward(linearization: Linearization, now: int, change: Tensor) -> Tensor:
    """What small changes of the state before step ``now`` are after it: ``J dS``.

    The state is ``h``, in the LSTM ``(h, c)``. With ``d = U dh_{t-1}``, gate by gate, and the
    factors of :class:`~seq2seq.diagnostics.adjoint.Linearization`::

        LSTM  dc_t = f * dc_{t-1} + local_i * d_i + local_f * d_f + local_g * d_g
              dh_t = cell_to_hidden * dc_t + local_o * d_o
        GRU   dh_t = z * dh_{t-1} + local_r * d_r + local_z * d_z + local_n * d_n
        RNN   dh_t = local * d

    Under zoneout the LSTM's ``dc_t`` is that of the proposed cell state, of which ``1 - e`` goes on
    beside ``e * dc_{t-1}``, and ``d * dh_{t-1}`` is added to ``dh_t``.

    Shape:
        change: ``[batch, state, directions]``, and so is the result.
    """
    local, keep, out = _factors(linearization, now)
    gates, size = local.shape[1:3]
    activations = linearization.recurrent_weight @ change[:, :size]
    parts = local * activations.view(len(change), gates, size, -1)
    if keep is None:
        return parts[:, 0]
    if out is None:
        return parts.sum(1) + keep * change
    cell = parts[:, :3].sum(1) + keep * change[:, size:]
    hidden = out * cell + parts[:, 3]
    if linearization.zoneout is not None:
        kept_hidden, kept_cell = (kept[now].unsqueeze(2) for kept in linearization.zoneout)
        hidden = hidden + kept_hidden * change[:, :size]
        cell = (1 - kept_cell) * cell + kept_cell * change[:, size:]
    return torch.cat([hidden, cell], dim=1)


def carry_back(linearization: Linearization, now: int, derivative: Tensor) -> Tensor:
    """Derivatives with respect to the state before step ``now`` from those after it: ``J^T dS``.

    Shape:
        derivative: ``[batch, state, directions]``, and so is the result.
    """
    local, keep, out = _factors(linearization, now)
    size = local.size(2)
    if out is None:
        activations = local * derivative.unsqueeze(1)
        kept = None if keep is None else keep * derivative
    else:
        assert keep is not None
        hidden = derivative[:, :size]
        cell = derivative[:, size:]
        if linearization.zoneout is not None:
            cell = (1 - linearization.zoneout.cell[now].unsqueeze(2)) * cell
        cell = cell + out * hidden
        to_cell = local[:, :3] * cell.unsqueeze(1)
        activations = torch.cat([to_cell, (local[:, 3] * hidden).unsqueeze(1)], dim=1)
        kept = keep * cell
    carried = linearization.recurrent_weight.mT @ activations.flatten(1, 2)
    if kept is None:
        return carried
    if linearization.zoneout is not None:
        kept_hidden, kept_cell = (kept[now].unsqueeze(2) for kept in linearization.zoneout)
        carried = carried + kept_hidden * derivative[:, :size]
        kept = kept + kept_cell * derivative[:, size:]
    return carried + kept if out is None else torch.cat([carried, kept], dim=1)


def _factors(linearization: Linearization, now: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Of one step, with an axis for the directions: local, keep, cell_to_hidden."""
    keep, out = linearization.keep, linearization.cell_to_hidden
    return (
        linearization.local[now].unsqueeze(3),
        None if keep is None else keep[now].unsqueeze(2),
        None if out is None else out[now].unsqueeze(2),
    )


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
    time, batch, _, size = linearization.local.shape
    state = size if linearization.cell_to_hidden is None else 2 * size
    if not 1 <= count <= state:
        raise ValueError(f"count is {count}, but the state has {state} directions")
    generator = torch.Generator().manual_seed(seed)
    frame = torch.randn(state, count, generator=generator, dtype=torch.float64)
    frame = frame.to(linearization.local).expand(batch, state, count)
    frame = torch.linalg.qr(frame).Q
    forth, back = range(time), range(time - 1, -1, -1)
    frame, _ = _carry(linearization, carry_back, back, frame, orthonormal_every)
    frame, _ = _carry(linearization, carry_forward, forth, frame, orthonormal_every)
    frame, _ = _carry(linearization, carry_back, back, frame, orthonormal_every)
    _, logarithms = _carry(linearization, carry_forward, forth, frame, orthonormal_every)
    exponents: Tensor = (logarithms / time).sort(dim=1, descending=True).values
    return exponents


def _carry(
    linearization: Linearization,
    step: Callable[[Linearization, int, Tensor], Tensor],
    order: Sequence[int],
    frame: Tensor,
    orthonormal_every: int,
) -> tuple[Tensor, Tensor]:
    """An orthonormal frame after all steps, and the logarithm of each direction's stretching."""
    logarithms = torch.zeros_like(frame[:, 0])
    for done, now in enumerate(order, start=1):
        frame = step(linearization, now, frame)
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
