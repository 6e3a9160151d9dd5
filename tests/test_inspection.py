"""The inspection before training: its verdicts, advice that helps, and what it leaves behind."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from PIL import Image

from seq2seq import inspection
from seq2seq.assembly import build_datamodule
from seq2seq.inspection import Inspection, inspect, measure, text
from seq2seq.measurement import data_lengths, long_batch
from seq2seq.train import train

Compose = Callable[..., DictConfig]

# Sequences of 4 to 12 symbols, wide enough for what is known of large random matrices.
COPY = (
    *("data=copy", "data.alphabet_size=8", "data.train_size=400", "data.validation_size=8"),
    *("data.test_size=8", "data.longer_size=0", "data.min_length=4", "data.max_length=12"),
    *("model.embedding_size=32", "model.hidden_size=64"),
)
LONG = ("data.min_length=30", "data.max_length=40")


@pytest.fixture
def measured(compose: Compose) -> Callable[..., Inspection]:
    def run(*overrides: str) -> Inspection:
        return measure(compose(*COPY, *overrides, tiny_task=False))

    return run


def kinds(found: Inspection) -> set[str]:
    return {verdict.kind for verdict in found.verdicts}


STARTS_BAD = {
    "tanh RNN, gain 0.3": ("vanishing", ("model=rnn", "initializer.recurrent.gain=0.3")),
    "tanh RNN, gain 2": ("exploding", ("model=rnn", "initializer.recurrent.gain=2")),
    "tanh RNN, PyTorch's": ("vanishing", ("model=rnn", "initializer=pytorch")),
    "tanh RNN, echo state": (
        "vanishing",
        ("model=rnn", "initializer=echo_state", "initializer.recurrent.spectral_radius=0.5"),
    ),
    "tanh RNN, large embeddings": (
        "vanishing",
        ("model=rnn", "initializer.recurrent.gain=1.5", "initializer.embedding.scale=10"),
    ),
    "ReLU RNN, gain 2.5": (
        "exploding",
        ("model=rnn", "model.cell=rnn_relu", "initializer.recurrent.gain=2.5"),
    ),
    "LSTM, N(0, 0.01)": ("vanishing", ("model=lstm", "initializer=normal")),
    "LSTM, PyTorch's, long": ("vanishing", ("model=lstm", "initializer=pytorch", *LONG)),
    "LSTM, chrono too short": (
        "vanishing",
        ("model=lstm", "initializer=chrono", "initializer.longest=3", *LONG),
    ),
    "LSTM, open gates and gain 4": (
        "exploding",
        (
            *("model=lstm", "initializer.forget_bias=4", "initializer.recurrent.gain=4"),
            *LONG,
        ),
    ),
    "GRU, U(0.02)": ("vanishing", ("model=gru", "initializer=uniform", "initializer.scale=0.02")),
    "two GRUs with attention, Keras's, long": (
        "vanishing",
        ("model=luong2015", "model.cell=gru", "initializer=keras", *LONG),
    ),
}


# Each kind of cell, verdict and advice is looked at always, the others with --slow.
MORE = ("tanh RNN, PyTorch's", "tanh RNN, echo state", "LSTM, PyTorch's, long", "GRU, U(0.02)")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in MORE)) for name in STARTS_BAD],
)
def test_the_override_that_is_printed_makes_a_bad_start_carry(
    measured: Callable[..., Inspection], name: str
) -> None:
    kind, overrides = STARTS_BAD[name]
    before = measured(*overrides, "model.hidden_size=64")
    assert kind in kinds(before)
    assert before.advice is not None and before.advice.suffices
    (line,) = [line for line in text(before).splitlines() if line.startswith("To type: ")]
    typed = line.removeprefix("To type: ").split()
    after = measured(*overrides, "model.hidden_size=64", *typed)
    assert kinds(after) == {"carries"}
    assert after.advice is None
    # What was promised is what is found.
    assert [str(verdict) for verdict in after.verdicts] == list(map(str, before.advice.verdicts))


def test_the_default_carries_and_needs_no_advice(measured: Callable[..., Inspection]) -> None:
    found = measured("data.max_length=8")
    assert kinds(found) == {"carries"}
    assert text(found).endswith("Every layer carries: nothing to change.")


def test_weights_that_only_own_rules_set_get_no_advice_that_could_not_be_typed(
    measured: Callable[..., Inspection],
) -> None:
    own = "initializer.rules=[{pattern: '*weight_hh_l*', scheme: orthogonal, gain: 0.2}]"
    found = measured("model=rnn", own)
    assert kinds(found) == {"vanishing"}
    assert found.advice is None
    assert "initializer.rules of your own" in text(found)


def test_the_verdict_names_half_life_and_length(measured: Callable[..., Inspection]) -> None:
    found = measured("model=lstm", "initializer=normal", *LONG)
    # Forget gates at 0.5 and nearly no recurrence: half a step back is lost at each.
    assert str(found.verdicts[0]) == "vanishing: half-life 1.0 steps, sources are 41 long"
    assert str(found.verdicts[-1]) == "vanishing: half-life 1.0 steps, targets are 41 long"


@pytest.mark.parametrize("model", ["lstm_attention", "luong2015", "bahdanau2015", "sutskever2014"])
def test_every_layer_of_every_kind_of_model_is_judged(
    measured: Callable[..., Inspection], model: str
) -> None:
    found = measured(f"model={model}", "model.hidden_size=16", "model.embedding_size=16")
    layers = [report.layer for report in found.reports]
    assert len(layers) == len(set(layers)) == len(found.verdicts) >= 2
    for report in found.reports:
        assert len(report.signal.hidden_rms) == max(13, len(report.transport.from_end))
        assert report.exponents == tuple(sorted(report.exponents, reverse=True))


def test_what_was_printed_is_in_the_json_beside_a_picture(
    compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = inspect(compose(*COPY, "model=rnn", "initializer.recurrent.gain=0.3", tiny_task=False))
    printed = capsys.readouterr().out
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {
        *("inspection.json", "inspection.png", "status.json"),
    }
    content = json.loads((folder / "inspection.json").read_text())
    for layer, report, verdict in zip(
        content["layers"], found.reports, found.verdicts, strict=True
    ):
        assert layer["layer"] == report.layer
        assert report.layer in printed
        assert layer["verdict"]["kind"] == verdict.kind
        assert layer["attenuation"] == pytest.approx(report.attenuation, rel=1e-5)
        assert layer["memory_dimension"]["long"] == report.memory_dimension(report.lengths.long)
        assert layer["spectra"]["h"]["spectral_radius"] == pytest.approx(0.3, rel=1e-4)
        assert layer["signal"]["keep_horizon"] is None
    assert found.advice is not None
    assert content["advice"]["overrides"] == list(found.advice.overrides)
    assert str(folder / "inspection.png") in printed
    with Image.open(folder / "inspection.png") as picture:
        assert picture.width > 1000
        assert len(picture.convert("RGB").getcolors(2**20)) > 50


def test_an_inspection_is_repeatable_and_dropout_is_off(
    measured: Callable[..., Inspection],
) -> None:
    options = ("model=rnn", "initializer.recurrent.gain=0.3")
    first = measured(*options)
    assert str(measured(*options)) == str(first)
    assert str(measured(*options, "model.output_dropout=0.3")) == str(first)


def test_a_folder_with_an_inspection_is_refused_in_a_sentence(
    compose: Compose, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "inspection.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a run already: choose another hydra.run.dir"):
        inspect(compose())
    assert (tmp_path / "run" / "inspection.json").read_text() == "{}"


def test_a_network_that_overflows_is_refused_in_a_sentence(compose: Compose) -> None:
    exploding = ("model=rnn", "model.cell=rnn_relu", "initializer.recurrent.gain=1e150")
    with pytest.raises(ValueError, match="overflows on its first batch.*initializer=orthogonal"):
        inspect(compose(*exploding))


def test_the_batch_is_as_long_as_95_of_100_pairs(compose: Compose) -> None:
    datamodule = build_datamodule(compose(*COPY, tiny_task=False))
    split = datamodule.split("train")
    lengths = data_lengths(split)
    batch = long_batch(split, lengths)
    assert len(batch.index) == len(batch.index.unique()) == 64
    for side, given, whole in (
        ("encoder", batch.source_lengths, split.source_lengths),
        ("decoder", batch.target_lengths, split.target_lengths),
    ):
        long = lengths[side].long
        assert (whole <= long).double().mean() >= 0.95 > (whole < long).double().mean()
        assert (whole <= lengths[side].median).double().mean() >= 0.5
        assert int(given.min()) >= long - 1
    assert torch.equal(batch.index, long_batch(split, lengths).index)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model=nonsense"], "lstm_attention"),
        (["ckpt_path=last.ckpt"], "ckpt_path=last.ckpt is for training"),
        (["initializer.recurrent.gian=1"], "gian"),
        (["initializer=pytorch", "initializer.recurrent.gain=1"], "means nothing to the scheme"),
        (["model.attention=none", "model.bridge=zero"], "bridge=zero with attention=none"),
    ],
)
def test_a_wrong_override_is_answered_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    overrides: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["seq2seq-inspect", *overrides])
    with pytest.raises(SystemExit) as stopped:
        inspection.main()
    said = f"{stopped.value.code} {capsys.readouterr().err}"
    assert sentence in said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "best"),
    [
        (("model=rnn", "initializer.recurrent.gain=0.3", "optimizer.lr=0.001"), 0.6),
        (("model=lstm", "initializer=normal", "optimizer.lr=0.003"), 0.5),
    ],
)
def test_a_network_that_learns_nothing_learns_to_copy_with_the_change_that_is_advised(
    measured: Callable[..., Inspection], compose: Compose, overrides: tuple[str, ...], best: float
) -> None:
    task = (
        *(*overrides, "model.hidden_size=128", "data.train_size=32000", "batch.size=64"),
        *("data.min_length=12", "data.max_length=12", "trainer.max_steps=500"),
        *("trainer.max_epochs=null", "trainer.gradient_clip_val=1"),
    )
    found = measured(*task)
    assert found.advice is not None
    before = train(compose(*COPY, *task, folder="before", tiny_task=False))
    after = train(compose(*COPY, *task, *found.advice.overrides, folder="after", tiny_task=False))
    chance = math.log(8) * 12 / 13  # the end of 13 tokens is always known
    assert float(before["test/loss"]) > 0.95 * chance
    assert float(after["test/loss"]) < best * chance
