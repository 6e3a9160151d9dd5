from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from seq2seq.initializers.report import (
    COLUMNS,
    ParameterReport,
    describe,
    markdown_table,
    text_table,
)
from seq2seq.initializers.rules import initialize, rules_from_config

Toy = Callable[..., nn.Module]
Preset = Callable[..., dict[str, Any]]


def report(model: nn.Module, config: dict[str, Any]) -> dict[str, ParameterReport]:
    done = initialize(model, rules_from_config(config), seed=0, pad_id=0)
    return {row.parameter: row for row in describe(done)}


def test_every_parameter_has_a_row_with_its_statistics(toy: Toy, preset: Preset) -> None:
    model = toy()
    rows = report(model, preset("xavier"))
    assert list(rows) == [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        assert rows[name].shape == tuple(parameter.shape)
        assert rows[name].mean == pytest.approx(float(parameter.detach().mean()), abs=1e-6)
        expected = float(parameter.detach().std(unbiased=False))
        assert rows[name].standard_deviation == pytest.approx(expected, rel=1e-4)


def test_spectral_radius_is_given_by_gate_for_recurrent_matrices_only(
    toy: Toy, preset: Preset
) -> None:
    model = toy("gru")
    rows = report(model, preset("normal", "scale=0.1"))
    row = rows["decoder.layers.0.rnn.weight_hh_l0"]
    assert list(row.spectral_radius) == ["r", "z", "n"]
    blocks = model.decoder.layers[0]["rnn"].weight_hh_l0.detach().chunk(3)
    for block, radius in zip(blocks, row.spectral_radius.values(), strict=True):
        assert radius == pytest.approx(float(torch.linalg.eigvals(block).abs().max()), rel=1e-4)
    for name, row in rows.items():
        assert bool(row.spectral_radius) == ("weight_hh" in name)


def test_rules_that_differ_by_gate_are_shown_by_gate(toy: Toy, preset: Preset) -> None:
    rows = report(toy(), preset("orthogonal"))
    row = rows["decoder.layers.0.rnn.bias_ih_l0"]
    assert row.rule == "igo: bias, f: forget_bias"
    assert row.scheme == "igo: zeros, f: constant(value=1)"
    assert row.bias_sum == {"i": 0.0, "f": 1.0, "g": 0.0, "o": 0.0}
    assert rows["decoder.layers.0.rnn.weight_hh_l0"].scheme == "orthogonal(gain=1)"


def test_tied_parameters_are_one_row_with_both_names(toy: Toy, preset: Preset) -> None:
    rows = report(toy(tied=True, hidden=16, embedding=16), preset("uniform"))
    assert "decoder.embedding.weight = decoder.output.weight" in rows
    assert "decoder.output.weight" not in rows


def test_blocks_too_large_for_eigenvalues_are_left_out(
    toy: Toy, preset: Preset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seq2seq.initializers.report.LARGEST_EXACT_SIZE", 10)
    rows = report(toy(), preset("uniform"))
    assert not any(row.spectral_radius for row in rows.values())


def test_the_text_table_is_aligned_and_ends_with_the_notes(toy: Toy, preset: Preset) -> None:
    done = initialize(toy("rnn"), rules_from_config(preset("orthogonal")), seed=0, pad_id=0)
    lines = text_table(describe(done), done.notes).splitlines()
    header, *rows, note = lines
    assert len(rows) == len(done.assignments)
    assert note.startswith("initializer.forget_bias=1 sets nothing")
    for column in ("rule", "scheme", "shape", "by gate"):
        start = header.index(column)
        assert all(row[start - 2 : start] in ("  ", "") for row in rows)
    assert any("spectral radius h 1.00" in row for row in rows)


def test_the_markdown_table_has_a_cell_for_every_column(toy: Toy, preset: Preset) -> None:
    done = initialize(toy(), rules_from_config(preset("orthogonal")), seed=0, pad_id=0)
    lines = markdown_table(describe(done)).splitlines()
    assert len(lines) == len(done.assignments) + 2
    assert all(line.count("|") == len(COLUMNS) + 1 for line in lines)
