"""Sweeps: every run is told of, whatever became of it, in one table and one figure."""

import csv
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from seq2seq import inspection
from seq2seq.config import FigureConfig, plain
from seq2seq.data.batch import EncodedSplit
from seq2seq.sweep.figure import FIGURE, figure_of
from seq2seq.sweep.runs import Run, read_runs, swept, typed
from seq2seq.sweep.table import TABLE, outcome

QUIET = (
    *("hydra.sweep.dir=sweep", "trainer.max_steps=3", "model=rnn"),
    *("callbacks=none", "data.longer_size=0"),
)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / TABLE).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def made(**values: Any) -> Run:
    """A run with these overrides, their dots written `__`, and columns."""
    overrides = {key.replace("__", "."): value for key, value in values.items() if "__" in key}
    columns = {key: value for key, value in values.items() if "__" not in key}
    return Run(Path("0"), overrides, {"status": "finished", **columns}, ())


def test_the_table_has_what_was_swept_measured_and_reached(
    command_line: Callable[..., Any], tmp_path: Path
) -> None:
    finished = command_line(
        *(*QUIET, "initializer.recurrent.gain=0.5,1.5", "seed=1,2", "inspect=true"),
        *("callbacks.target.loss=100", "callbacks.target.every_n_steps=2"),
        *("sweep.report=true", "--multirun"),
    )
    assert finished.status == 0, finished.output
    table = rows(tmp_path / "sweep")
    assert [(row["initializer.recurrent.gain"], row["seed"]) for row in table] == [
        *(("0.5", "1"), ("0.5", "2"), ("1.5", "1"), ("1.5", "2")),
    ]
    for row in table:
        folder = tmp_path / "sweep" / row["run"]
        metrics = json.loads((folder / "metrics.json").read_text())
        layer = json.loads((folder / "inspection.json").read_text())["layers"][0]
        assert float(row["test/loss"]) == pytest.approx(metrics["test/loss"], rel=1e-5)
        assert float(row["slope"]) == pytest.approx(layer["slope"], rel=1e-5)
        assert float(row["reach"]) == pytest.approx(-3 / layer["slope"], rel=1e-5)
        assert (row["status"], row["initializer"]) == ("finished", "recommended")
        assert (row["cell"], row["width"]) == ("rnn_tanh", "8")
        assert float(row["train/steps_to_target"]) == 2
    assert "4 runs: 4 finished" in finished.output
    assert "sweep/report/index.html" in finished.output
    assert "initializer.recurrent.gain" in (tmp_path / "sweep/report/index.html").read_text()
    assert "tensorboard.main --logdir sweep/tensorboard" in finished.output
    with Image.open(tmp_path / "sweep" / FIGURE) as picture:
        assert picture.format == "PNG"


def test_a_sweep_outlives_runs_that_diverge_or_fail(
    command_line: Callable[..., Any], tmp_path: Path
) -> None:
    finished = command_line(
        *(*QUIET, "optimizer=sgd", "trainer.gradient_clip_val=null"),
        *("model.cell=rnn_relu", "optimizer.lr=-1,1e38,0.1", "--multirun"),
    )
    assert finished.status == 1
    assert "lr=-1  failed: optimizer.lr=-1" in finished.output
    assert "lr=1e+38  diverged: training diverged: the loss is" in finished.output
    assert "3 runs: 1 failed, 1 diverged, 1 finished" in finished.output
    failed, diverged, ended = rows(tmp_path / "sweep")
    assert [failed["status"], diverged["status"], ended["status"]] == [
        *("failed", "diverged", "finished"),
    ]
    assert not failed["test/loss"]
    assert not diverged["test/loss"]
    assert math.isfinite(float(ended["test/loss"]))
    record = json.loads((tmp_path / "sweep" / "1" / "status.json").read_text())
    assert record["step"] >= 1
    assert record["tensor"]
    record = json.loads((tmp_path / "sweep" / "0" / "status.json").read_text())
    assert "optimizer.lr=-1" in record["traceback"]


@pytest.mark.slow
def test_a_figure_of_the_config_is_drawn_or_its_mistake_named(
    command_line: Callable[..., Any], tmp_path: Path
) -> None:
    figure = ("figure.kind=matrix", "figure.x=seed", "figure.lines=model.hidden_size")
    sweep = ("seed=1,2", "model.hidden_size=4,8", "--multirun")
    finished = command_line(*QUIET, *figure, "figure.y=[test/los]", *sweep)
    assert "figure.y=test/los is known of no run; choose one of" in finished.output
    assert not (tmp_path / "sweep" / FIGURE).exists()


@pytest.mark.usefixtures("command_line")  # runs in the test's folder, and puts logging back
def test_inspections_are_swept_without_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = (
        *("data=copy", "data.train_size=64", "data.max_length=8", "model=lstm"),
        *("model.hidden_size=16", "model.embedding_size=16", "sweep.report=false"),
        *("hydra.sweep.dir=sweep", "initializer=pytorch,orthogonal"),
        *("figure.kind=profile", "figure.lines=initializer", "--multirun"),
    )
    monkeypatch.setattr(sys, "argv", ["seq2seq-inspect", *overrides])
    inspection.main()
    first, second = rows(tmp_path / "sweep")
    assert (first["initializer"], second["initializer"]) == ("pytorch", "orthogonal")
    assert float(first["slope"]) < float(second["slope"])
    assert (tmp_path / "sweep" / FIGURE).is_file()


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no runs of a sweep"):
        read_runs(tmp_path)


def test_seeds_come_last_and_what_all_share_is_not_swept() -> None:
    runs = [
        Run(Path(str(i)), {"seed": i, "data": "copy", "model.hidden_size": 2**i}, {}, ())
        for i in range(3)
    ]
    assert swept(runs) == ["model.hidden_size", "seed"]


def test_without_a_config_the_first_number_is_the_axis() -> None:
    wanted = plain(OmegaConf.structured(FigureConfig))
    runs = [
        made(initializer__scheme=scheme, initializer__gain=gain, slope=0.0)
        for scheme in ("normal", "orthogonal")
        for gain in (0.5, 1)
    ]
    figure = figure_of(runs, wanted)
    assert (figure["x"], figure["lines"]) == ("initializer.gain", "initializer.scheme")
    assert figure["y"] == ["slope"]
    with pytest.raises(ValueError, match="differ in nothing"):
        figure_of(runs[:1], wanted)


def test_the_outcome_names_the_lowest_loss() -> None:
    runs = [made(a__b=b, **{"test/loss": loss}) for b, loss in ((1, 0.5), (2, 0.25), (3, None))]
    assert outcome(runs) == "3 runs: 3 finished\nlowest test/loss 0.2500 a.b=2"


@pytest.mark.slow
def test_runs_of_a_sweep_are_those_that_each_would_be_alone(
    command_line: Callable[..., Any], tmp_path: Path
) -> None:
    task = (*QUIET, "batch.size=4", "data.train_size=40,64")
    assert command_line(*task, "--multirun").status == 0
    for number, size in ((0, 40), (1, 64)):
        # The order of the data is drawn from the seed alone, whoever encoded it first.
        alone = (*QUIET, "batch.size=4", f"data.train_size={size}", f"hydra.run.dir=alone{size}")
        assert command_line(*alone).status == 0
        figures = [
            json.loads((tmp_path / folder / "metrics.json").read_text())
            for folder in (f"sweep/{number}", f"alone{size}")
        ]
        assert figures[0]["test/loss"] == figures[1]["test/loss"]


@pytest.mark.slow
def test_a_shared_corpus_is_encoded_once(
    command_line: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    encode = EncodedSplit.encode.__func__

    def count(cls: type[EncodedSplit], *args: Any, **kwargs: Any) -> EncodedSplit:
        encoded.append(kwargs["origin"])
        return encode(cls, *args, **kwargs)

    monkeypatch.setattr(EncodedSplit, "encode", classmethod(count))
    finished = command_line(*QUIET, "data.seed=77", "seed=1,2,3", "--multirun")
    assert finished.status == 0, finished.output
    assert len(encoded) == 3  # train, validation, test
    command_line(*QUIET, "data.seed=77", "hydra.run.dir=alone")
    assert len(encoded) == 6
    # Also where runs take turns with two of them.
    two = ("seed=1,2", "data.seed=78,79", "hydra.sweep.dir=another", "--multirun")
    assert command_line(*QUIET, *two).status == 0
    assert len(encoded) == 12


def test_a_sweep_that_is_refused_before_its_first_run_leaves_its_folder_free(
    command_line: Callable[..., Any], tmp_path: Path
) -> None:
    refused = command_line(*QUIET, "seed=1,abc", "--multirun")
    assert refused.status == (
        "error: Error merging override seed=abc; Value 'abc' of type 'str' could not be converted "
        "to Integer"
    )
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_whose_end_can_not_be_told_is_no_success(
    command_line: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(runs: Any) -> str:
        raise RuntimeError("no words")

    monkeypatch.setattr("seq2seq.sweep.record.outcome", broken)
    finished = command_line(*QUIET, "seed=1", "--multirun")
    assert finished.status == 1
    assert "the sweep could not be summed up" in finished.output


def test_a_folder_that_holds_a_sweep_or_a_run_keeps_its_configs(
    command_line: Callable[..., Any], tmp_path: Path
) -> None:
    assert command_line(*QUIET, "seed=1,2", "--multirun").status == 0
    again = command_line(*QUIET, "seed=7,8", "--multirun")
    assert again.status == (
        "error: sweep holds a sweep already: choose another hydra.sweep.dir, or go on with "
        "sweep.resume=sweep"
    )
    assert [row["seed"] for row in rows(tmp_path / "sweep")] == ["1", "2"]
    assert command_line(*QUIET, "seed=3", "hydra.run.dir=one").status == 0
    config = (tmp_path / "one" / ".hydra" / "config.yaml").read_text()
    again = command_line(*QUIET, "seed=4", "hydra.run.dir=one")
    assert str(again.status).startswith("error: one holds a run already")
    assert (tmp_path / "one" / ".hydra" / "config.yaml").read_text() == config


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("figure.kind=pie",), "figure.kind=pie must be one of"),
        (("figure.kind=profile",), "inspect=true"),
        (("figure.x=model.hiden_size",), "figure.x=model.hiden_size is neither a key"),
        (("figure.y=slop",), "figure.y=slop is neither a key"),
        (("experiment=interview_scale,interview_depth",), "run one at a time"),
        (("hydra.job.chdir=true",), "hydra.job.chdir=true would make"),
        (("hydra.sweep.subdir=x",), "hydra.sweep.subdir=x would be the folder of every run"),
        (("sweep.objective=loss",), "sweep.objective=loss is no figure"),
        (("hydra.output_subdir=null",), "hydra.output_subdir=null leaves out"),
    ],
)
def test_what_would_spoil_a_sweep_is_refused_before_its_first_run(
    command_line: Callable[..., Any], tmp_path: Path, overrides: tuple[str, ...], sentence: str
) -> None:
    finished = command_line(*QUIET, "seed=1,2", *overrides, "--multirun")
    assert sentence in str(finished.status)
    assert not list(tmp_path.rglob("train.log"))


def test_what_the_figure_averages_over_is_said(command_line: Callable[..., Any]) -> None:
    swept_over = ("model.hidden_size=4,8", "batch.size=8,16")
    figure = ("figure.x=model.hidden_size", "figure.y=test/loss")
    finished = command_line(*QUIET, *swept_over, *figure, "--multirun")
    assert finished.status == 0, finished.output
    assert "the figure averages over batch.size" in finished.output


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (True, "true"), (0.5, "0.5"), ("a b", "'a b'"), ("x_1", "x_1")],
)
def test_a_value_is_shown_as_it_is_typed(value: Any, text: str) -> None:
    assert typed(value) == text
