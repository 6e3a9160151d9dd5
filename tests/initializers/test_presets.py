"""Each shipped preset, on every cell, against what its heading promises."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seq2seq.initializers.report import describe
from seq2seq.initializers.rules import initialize, rules_from_config
from seq2seq.models.encoder_decoder import encoder_decoder
from seq2seq.models.recurrent import CELLS as MODEL_CELLS

Toy = Callable[..., nn.Module]
Preset = Callable[..., dict[str, Any]]
NAMES = sorted(
    path.stem for path in (Path(__file__).parents[2] / "conf" / "initializer").glob("*.yaml")
)
CELLS = ("lstm", "gru", "rnn")


def build(toy: Toy, config: dict[str, Any], **sizes: Any) -> nn.Module:
    model = toy(**sizes)
    initialize(model, rules_from_config(config), seed=0, pad_id=0)
    return model


def recurrent_radii(model: nn.Module, config: dict[str, Any]) -> Iterator[float]:
    done = initialize(model, rules_from_config(config), seed=0, pad_id=0)
    for row in describe(done):
        yield from row.spectral_radius.values()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", NAMES)
def test_every_preset_sets_every_cell(toy: Toy, preset: Preset, name: str, cell: str) -> None:
    model = toy(cell)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    done = initialize(model, rules_from_config(preset(name)), seed=0, pad_id=0)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert not [note for note in done.notes if "no parameters" in note]


@pytest.mark.parametrize("attention", ["none", "additive", "general", "dot"])
@pytest.mark.parametrize("cell", MODEL_CELLS)
@pytest.mark.parametrize("name", NAMES)
def test_every_preset_sets_the_real_encoder_decoder_role_by_role(
    preset: Preset, name: str, cell: str, attention: str
) -> None:
    model = encoder_decoder(
        source_vocabulary_size=11,
        target_vocabulary_size=13,
        pad_id=0,
        cell=cell,
        embedding_size=8,
        hidden_size=8,
        encoder_layers=2,
        decoder_hidden_size=16,
        attention=attention,
        bridge="linear",
    )
    done = initialize(model, rules_from_config(preset(name)), seed=0, pad_id=0)
    for assignment in done.assignments:
        full, (*_, owner, local) = assignment.layout.name, assignment.layout.name.split(".")
        expected = {
            "rnn": {"weight_hh_l0": "recurrent", "weight_ih_l0": "input"}.get(local, "bias"),
            "embedding": "embedding",
            "output": "output",
        }.get(owner, "bridge" if full.startswith("bridge") else "attention")
        if local == "bias":
            expected = "linear_bias"
        assert {rule.name for rule in assignment.rules} - {"forget_bias"} == {expected}, full
    absent = [note for note in done.notes if note.startswith("no parameters")]
    expected_note = "no parameters in this model for: attention"
    assert absent == ([expected_note] if attention == "none" else [])


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_begins_with_its_command(name: str) -> None:
    path = Path(__file__).parents[2] / "conf" / "initializer" / f"{name}.yaml"
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(f"# scripts/train initializer={name}")


# The heading's formula, times the excess of about 3 % that a random matrix has at this width.
@pytest.mark.parametrize(
    ("name", "overrides", "promised"),
    [
        ("pytorch", [], 0.58),
        ("uniform", [], 0.74),
        ("uniform", ["scale=0.04"], 0.37),
        ("normal", [], 0.16),
        ("normal", ["scale=0.0625"], 1.0),
        ("xavier", [], 1.0),
        ("xavier", ["recurrent.gain=0.5"], 0.5),
    ],
)
def test_spectral_radius_per_gate_at_256_units_is_near_the_promised_one(
    toy: Toy, preset: Preset, name: str, overrides: list[str], promised: float
) -> None:
    radii = list(recurrent_radii(toy("lstm", hidden=256), preset(name, *overrides)))
    assert len(radii) == 12
    assert sum(radii) / 12 == pytest.approx(1.03 * promised, rel=0.03)
    assert all(radius == pytest.approx(promised, rel=0.15) for radius in radii)


@pytest.mark.parametrize("gain", [0.5, 1.0, 1.1])
def test_the_orthogonal_preset_has_exactly_the_gain_as_spectral_radius(
    toy: Toy, preset: Preset, gain: float
) -> None:
    radii = list(recurrent_radii(toy("lstm"), preset("orthogonal", f"recurrent.gain={gain}")))
    assert radii == pytest.approx([gain] * 12, abs=1e-5)


def similar(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two samples have the same moments and extremes (uniforms fill their interval)."""
    ours, theirs = ours.detach().double(), theirs.detach().double()
    n = min(ours.numel(), theirs.numel())
    deviation = theirs.std()
    means = abs(ours.mean() - theirs.mean()) < 6 * deviation / math.sqrt(n)
    deviations = abs(ours.std() / deviation - 1) < 6 / math.sqrt(n)
    largest = abs(ours.abs().max() / theirs.abs().max() - 1) < max(0.25, 6 / math.sqrt(n))
    return bool(means and deviations and largest)


@pytest.mark.parametrize("cell", CELLS)
def test_the_pytorch_preset_draws_from_the_law_of_a_fresh_module(
    toy: Toy, preset: Preset, cell: str
) -> None:
    sizes = {"cell": cell, "hidden": 160, "embedding": 120, "vocabulary": 400}
    fresh = dict(toy(**sizes).named_parameters())
    for name, parameter in build(toy, preset("pytorch"), **sizes).named_parameters():
        assert similar(parameter, fresh[name]), name
        if "rnn" in name:
            assert parameter.abs().max() <= 1 / math.sqrt(160)
        elif "embedding" in name:
            assert not parameter[0].any()
        elif name == "bridge.hidden.0.bias":
            assert parameter.abs().max() <= 1 / math.sqrt(320)


def test_the_pytorch_preset_leaves_both_biases_random_so_that_their_sum_is_triangular(
    toy: Toy, preset: Preset
) -> None:
    rnn = build(toy, preset("pytorch"), hidden=1000).decoder.layers[0]["rnn"]
    total = (rnn.bias_ih_l0 + rnn.bias_hh_l0).detach()
    assert total.var() == pytest.approx(2 / 3 / 1000, rel=0.08)


@pytest.mark.parametrize("cell", CELLS)
def test_the_uniform_preset_is_one_interval_everywhere(toy: Toy, preset: Preset, cell: str) -> None:
    model = build(toy, preset("uniform", "scale=0.1"), cell=cell)
    for name, parameter in model.named_parameters():
        assert parameter.abs().max() <= 0.1, name
        assert parameter.std() > 0.03, name


def test_the_orthogonal_preset_opens_the_gate_that_remembers(toy: Toy, preset: Preset) -> None:
    for cell, gates in (("lstm", 4), ("gru", 3)):
        rnn = build(toy, preset("orthogonal"), cell=cell).decoder.layers[0]["rnn"]
        total = (rnn.bias_ih_l0 + rnn.bias_hh_l0).detach().chunk(gates)
        assert [float(block.mean()) for block in total] == [0.0, 1.0, *[0.0] * (gates - 2)]
        assert torch.sigmoid(total[1]).mean() == pytest.approx(0.731, abs=1e-3)
