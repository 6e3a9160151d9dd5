"""Powers of whole matrices against all eigenvalues and singular values."""

import math

import pytest
import torch
from torch import Tensor

from seq2seq.diagnostics.spectrum import gate_spectra
from seq2seq.diagnostics.spectrum_by_squaring import (
    largest_singular_values,
    quick_gate_spectra,
    spectral_radii,
)


def matrices(size: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(size, size, generator=generator) / math.sqrt(size)
    sparse = gaussian * (torch.rand(size, size, generator=generator) < 0.2) * 2
    return {
        "gaussian": gaussian,
        "orthogonal": 1.3 * torch.linalg.qr(gaussian).Q,
        "sparse": sparse,
        "rotations": gaussian - gaussian.T,
        "near the identity": torch.eye(size) + 0.01 * gaussian,
        "tiny": 1e-4 * gaussian,
        "huge": 1e4 * gaussian,
        "sides": gaussian.triu() + 0.9 * torch.eye(size),
    }


@pytest.mark.parametrize("size", [1, 2, 8, 64, 200])
def test_both_numbers_agree_with_the_decompositions(size: int) -> None:
    for name, matrix in matrices(size, seed=size).items():
        radius = float(torch.linalg.eigvals(matrix.double()).abs().max())
        value = float(torch.linalg.svdvals(matrix.double())[0])
        # Strongly non-normal, as triangular matrices are: less exact.
        tolerance = 1e-2 if name == "sides" else 3e-3
        assert float(spectral_radii(matrix[None])) == pytest.approx(radius, rel=tolerance), name
        assert float(largest_singular_values(matrix[None])) == pytest.approx(value, rel=1e-3), name


def test_a_nilpotent_matrix_has_radius_zero_and_an_infinite_one_nan() -> None:
    shift = torch.diag(torch.ones(7), 1)
    bad = torch.full((8, 8), math.inf)
    radii = spectral_radii(torch.stack([shift, torch.zeros(8, 8), bad, 2 * torch.eye(8)]))
    assert radii[:2].tolist() == [0.0, 0.0]
    assert radii[2].isnan()
    assert float(radii[3]) == pytest.approx(2.0, rel=1e-5)
    assert float(largest_singular_values(shift[None])) == pytest.approx(1.0, rel=1e-5)


def test_on_a_cpu_every_eigenvalue_is_computed() -> None:
    weight = torch.randn(4 * 6, 6)
    assert quick_gate_spectra(weight, "ifgo") == gate_spectra(weight, "ifgo")


@pytest.mark.gpu
def test_on_a_gpu_both_numbers_are_nearly_the_same() -> None:
    weight = torch.randn(3 * 64, 64) / 8
    found = quick_gate_spectra(weight.cuda(), "rzn")
    for gate, expected in gate_spectra(weight, "rzn").items():
        assert tuple(found[gate]) == pytest.approx(tuple(expected), rel=5e-3)
