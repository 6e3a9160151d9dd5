"""Where the thresholds lie, on layers whose figures are made up."""

import math

import pytest
import torch

from seq2seq.diagnostics.forward_signal import ForwardSignal
from seq2seq.diagnostics.gradient_profile import GradientProfile
from seq2seq.diagnostics.layer_report import DataLengths, LayerReport, attenuation_over
from seq2seq.diagnostics.verdict import judge

LONG = 21


def make_report(
    *,
    cell: str = "lstm",
    slope: float = -0.05,
    exponents: tuple[float, ...] = (0.0,) * 64,
    drive: float = 1.0,
    known: int = LONG,
) -> LayerReport:
    """A layer of 64 units whose transport decays evenly over the first `known` timesteps."""
    norms = tuple(math.exp(slope * distance) for distance in range(known))
    nan = math.nan
    return LayerReport(
        layer="encoder/layer0/forward",
        cell=cell,
        hidden_size=64,
        directions=64 * (2 if cell == "lstm" else 1),
        lengths=DataLengths("sources", 10, LONG),
        spectra={},
        signal=ForwardSignal((0.5,), (), nan, drive, {}, {"h": 0.0}, nan, (nan, nan, nan)),
        gradient={},
        transport=GradientProfile(0, "encoder/layer0/forward", "transport", norms),
        exponents=exponents,
    )


@pytest.mark.parametrize(
    ("cell", "attenuation", "kind"),
    [
        ("lstm", -3.1, "vanishing"),
        ("lstm", -2.9, "carries"),
        ("lstm", 2.9, "carries"),
        ("gru", 3.1, "exploding"),
        ("rnn_tanh", -3.1, "vanishing"),
        ("rnn_tanh", 2.2, "carries"),
        ("rnn_relu", 2.4, "exploding"),
    ],
)
def test_the_attenuation_over_the_long_sequences_decides(
    cell: str, attenuation: float, kind: str
) -> None:
    report = make_report(cell=cell, slope=attenuation / (LONG - 1))
    assert report.attenuation == pytest.approx(attenuation)
    assert judge(report).kind == kind


def test_the_numbers_behind_a_verdict_are_in_it() -> None:
    assert str(judge(make_report(slope=-math.log(2) / 1.5))) == (
        "vanishing: half-life 1.5 steps, sources are 21 long"
    )
    assert str(judge(make_report(slope=math.log(2) / 3))) == (
        "exploding: doubles every 3.0 steps, sources are 21 long"
    )
    assert str(judge(make_report(slope=math.log(0.5) / 20))) == (
        "carries: 50% of a gradient is left and 64+ of 128 directions, sources are 21 long"
    )


def test_a_vanilla_rnn_explodes_if_its_fastest_direction_grows_tenfold() -> None:
    for grown, kind in ((9, "carries"), (11, "exploding")):
        exponents = (math.log(grown) / LONG, *[-1.0] * 63)
        assert judge(make_report(cell="rnn_tanh", exponents=exponents)).kind == kind
        assert judge(make_report(cell="gru", exponents=exponents)).kind == "vanishing"


def test_a_gated_layer_needs_a_quarter_of_its_units_as_directions() -> None:
    for kept, kind in ((15, "vanishing"), (16, "carries")):
        exponents = (*[-2.9 / LONG] * kept, *[-3.1 / LONG] * (64 - kept))
        verdict = judge(make_report(exponents=exponents))
        assert verdict.kind == kind
        assert f"{kept} of 128 directions" in verdict.reason


def test_a_layer_that_nothing_enters_does_not_carry() -> None:
    verdict = judge(make_report(drive=0.001))
    assert str(verdict).startswith("vanishing: the input hardly gets in")
    assert verdict.distance == pytest.approx(math.log(10))
    assert judge(make_report(drive=0.0)).distance == math.inf


def test_the_distance_grows_with_the_distance_from_the_bounds() -> None:
    distances = [judge(make_report(slope=slope)).distance for slope in (-0.1, -0.2, -0.5, -2.0)]
    assert distances == sorted(distances)
    assert distances[0] == 0 < distances[1]


def test_a_profile_that_ends_early_goes_on_with_its_slope() -> None:
    report = make_report(slope=-0.1, known=12)
    assert report.attenuation == pytest.approx(-2.0)
    assert attenuation_over(report.transport, 5) == pytest.approx(-0.4)
    assert attenuation_over(report.transport, 1) == 0.0


def test_lengths_are_the_smallest_that_cover_half_and_95_of_100() -> None:
    lengths = torch.arange(1, 101)[torch.randperm(100)]
    assert DataLengths.of("sources", lengths) == DataLengths("sources", 50, 95)
    assert DataLengths.of("targets", torch.tensor([7])) == DataLengths("targets", 7, 7)
