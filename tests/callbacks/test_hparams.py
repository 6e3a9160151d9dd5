"""The HParams tab: one row for each run, whatever became of it, and no figure that isn't one."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, metadata
from toy_training import Module, fit, make_batch, read_events

from seq2seq import figures, scoring
from seq2seq.callbacks.hparams import FIGURES, HParams
from seq2seq.status import Diverged
from seq2seq.train import train

Compose = Callable[..., DictConfig]


def content(events: EventAccumulator, tag: str) -> bytes:
    return events.SummaryMetadata(tag).plugin_data.content


def row(events: EventAccumulator) -> dict[str, Any]:
    """Values of the hyperparameters as they stand in the table."""
    start = metadata.parse_session_start_info_plugin_data(
        content(events, metadata.SESSION_START_INFO_TAG)
    )
    return {name: getattr(v, v.WhichOneof("kind")) for name, v in start.hparams.items()}


def columns(events: EventAccumulator) -> list[str]:
    experiment = metadata.parse_experiment_plugin_data(content(events, metadata.EXPERIMENT_TAG))
    return [info.name.tag for info in experiment.metric_infos]


def status(events: EventAccumulator) -> int:
    end = metadata.parse_session_end_info_plugin_data(
        content(events, metadata.SESSION_END_INFO_TAG)
    )
    return end.status


def test_a_tested_run_shows_its_values_and_its_test_figures(
    compose: Compose, tmp_path: Path
) -> None:
    figures = train(compose("seed=3", "initializer=orthogonal", "optimizer.lr=0.02"))
    events = read_events(tmp_path / "run" / "tensorboard")
    shown = row(events)
    assert (shown["seed"], shown["optimizer.lr"], shown["model.cell"]) == (3, 0.02, "lstm")
    assert columns(events) == [f"hp/{figure}" for figure in FIGURES]
    for figure in FIGURES:
        (event,) = events.Scalars(f"hp/{figure}")
        assert event.value == pytest.approx(figures[f"test/{figure}"], rel=1e-6)
    assert status(events) == api_pb2.STATUS_SUCCESS
    assert "hp_metric" not in events.Tags()["scalars"]


def test_a_diverged_run_has_a_row_without_figures(compose: Compose, tmp_path: Path) -> None:
    with pytest.raises(Diverged):
        train(
            compose(
                *("model=rnn", "model.cell=rnn_relu", "optimizer=sgd", "optimizer.lr=1e38"),
                "trainer.gradient_clip_val=null",
            )
        )
    events = read_events(tmp_path / "run" / "tensorboard")
    assert row(events)["optimizer.lr"] == pytest.approx(1e38)
    assert columns(events) == [f"hp/{figure}" for figure in FIGURES]
    assert status(events) == api_pb2.STATUS_FAILURE
    assert not [tag for tag in events.Tags()["scalars"] if tag.startswith("hp")]
    (text,) = events.Tensors("diverged/text_summary")
    assert b"training diverged" in text.tensor_proto.string_val[0]


def test_figures_that_are_not_finite_are_left_out(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = scoring.SplitScores.figures
    monkeypatch.setattr(
        scoring.SplitScores, "figures", lambda self: computed(self) | {"perplexity": math.inf}
    )
    train(compose("trainer.max_steps=1"))
    shown = read_events(tmp_path / "run" / "tensorboard").Tags()["scalars"]
    assert "hp/loss" in shown
    assert "hp/perplexity" not in shown


def test_a_run_that_is_under_way_has_a_row_that_has_not_ended(tmp_path: Path) -> None:
    values = {"gain": 0.5, "cell": "gru", "tied": True, "clip": None}
    fit(Module(), tmp_path, [HParams(values=values)], batches=[make_batch(0)], tensorboard=True)
    events = read_events(tmp_path)
    assert row(events) == {"gain": 0.5, "cell": "gru", "tied": True}
    assert metadata.SESSION_END_INFO_TAG not in events.Tags()["tensors"]


def test_every_figure_has_a_column() -> None:
    assert sorted(FIGURES) == sorted(figures.FIGURES)
