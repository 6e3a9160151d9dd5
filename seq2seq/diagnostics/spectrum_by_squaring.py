"""Spectral radius and largest singular value by repeated squaring, for weights on a GPU.

`spectrum` computes every eigenvalue on the CPU, and a GPU would wait for it: a second and more for
each layer of 1000 units. A few products of the matrix with itself stay on the device and give the
largest modulus alone. On a CPU all eigenvalues are the cheaper way.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from seq2seq.diagnostics.spectrum import GateSpectrum, gate_spectra

_DOUBLINGS = 10  # up to the power 1024


def quick_gate_spectra(weight: Tensor, gates: Iterable[str]) -> dict[str, GateSpectrum]:
    """Both numbers of each gate's block, the quick way for the device that holds it.

    Args:
        weight: a recurrent layer's matrix.
        gates: gate names in the order of the rows.

    Shape:
        weight: ``[gates * hidden, hidden]``.
    """
    names = tuple(gates)
    if weight.device.type == "cpu":
        return gate_spectra(weight, names)
    blocks = torch.stack(weight.detach().chunk(len(names)))
    both = torch.stack([spectral_radii(blocks), largest_singular_values(blocks)], dim=1)
    return {gate: GateSpectrum(*pair) for gate, pair in zip(names, both.tolist(), strict=True)}


@torch.no_grad()
def spectral_radii(matrices: Tensor) -> Tensor:
    """Largest modulus of an eigenvalue of each matrix, to about 0.1 %; NaN if one isn't finite.

    Gelfand's formula ``rho = lim ||W^k||^(1/k)`` in the form ``rho^k = ||W^2k|| / ||W^k||``, where
    constant factors cancel. The leading eigenvalues of a random matrix are complex and close
    together, which a power iteration of one vector handles badly, and powers of the whole matrix
    well. Of strongly non-normal matrices the result is up to 1 % too large.

    Shape:
        matrices: ``[matrices, size, size]``; returns ``[matrices]``, at least float32.
    """
    power, norm = _normalised(_wide(matrices))
    logarithm = gained = norm.log()  # of ||W^k||, and of ||W^2k|| / ||W^k||
    for _ in range(_DOUBLINGS):
        power, norm = _normalised(power @ power)
        gained = logarithm + norm.log()
        logarithm = logarithm + gained
    radii = (gained / 2 ** (_DOUBLINGS - 1)).exp()
    return torch.where(norm == 0, 0.0, radii)  # if a power is zero, so are all eigenvalues


@torch.no_grad()
def largest_singular_values(matrices: Tensor) -> Tensor:
    """Largest factor by which each matrix stretches a vector: the root of ``rho(W^T W)``.

    Shape:
        matrices: ``[matrices, rows, columns]``; returns ``[matrices]``, at least float32.
    """
    matrices = _wide(matrices)
    return spectral_radii(matrices.mT @ matrices).sqrt()


def _wide(matrices: Tensor) -> Tensor:
    return matrices.detach().to(torch.promote_types(matrices.dtype, torch.float32))


def _normalised(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices of norm 1, so that no power overflows, and the norms."""
    norm = torch.linalg.matrix_norm(matrices)
    return matrices / torch.where(norm == 0, 1.0, norm).view(-1, 1, 1), norm
