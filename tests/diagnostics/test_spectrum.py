import math

import pytest
import torch

from seq2seq.diagnostics.spectrum import (
    gate_blocks,
    gate_spectra,
    largest_singular_value,
    spectral_radius,
)


def test_spectral_radius_of_a_rotation_is_its_scale() -> None:
    angle = 0.7
    rotation = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )
    assert spectral_radius(1.3 * rotation) == pytest.approx(1.3, rel=1e-6)


def test_spectral_radius_and_singular_value_differ_for_a_shear() -> None:
    shear = torch.tensor([[0.5, 10.0], [0.0, -0.8]])
    assert spectral_radius(shear) == pytest.approx(0.8, rel=1e-6)
    assert largest_singular_value(shear) > 10


def test_spectral_radius_is_the_growth_of_high_powers() -> None:
    matrix = torch.randn(30, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    power = torch.linalg.matrix_power(matrix / 6, 400)
    growth = 6 * float(torch.linalg.matrix_norm(power)) ** (1 / 400)
    assert spectral_radius(matrix) == pytest.approx(growth, rel=0.01)


def test_largest_singular_value_bounds_every_stretch_and_is_reached() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(20, 12, generator=generator)
    vector = torch.randn(12, generator=generator)
    for _ in range(500):  # power iteration on the Gram matrix
        vector = matrix.T @ (matrix @ vector)
        vector /= vector.norm()
    assert largest_singular_value(matrix) == pytest.approx(
        float((matrix @ vector).norm()), rel=1e-4
    )


def test_gates_are_measured_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(16, 16, generator=generator))
    spectra = gate_spectra(torch.cat([q, 2 * q, 3 * q]), "rzn")
    assert list(spectra) == ["r", "z", "n"]
    for factor, spectrum in enumerate(spectra.values(), start=1):
        assert spectrum.spectral_radius == pytest.approx(factor, rel=1e-4)
        assert spectrum.largest_singular_value == pytest.approx(factor, rel=1e-4)


def test_gate_blocks_are_views_in_the_order_of_the_rows() -> None:
    bias = torch.arange(12.0)
    blocks = gate_blocks(bias, "ifgo")
    assert blocks["f"].tolist() == [3.0, 4.0, 5.0]
    blocks["f"].zero_()
    assert bias[3:6].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_matrix_gives_nan_instead_of_an_error(value: float) -> None:
    matrix = torch.eye(4)
    matrix[1, 2] = value
    assert math.isnan(spectral_radius(matrix))
    assert math.isnan(largest_singular_value(matrix))


def test_half_precision_is_measured_in_single() -> None:
    assert spectral_radius(0.5 * torch.eye(4, dtype=torch.bfloat16)) == pytest.approx(0.5)
