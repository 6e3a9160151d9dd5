"""Evaluation of a run on any parallel text: figures, files, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import DictConfig

from seq2seq.assembly import build_datamodule
from seq2seq.config import config_folder, register
from seq2seq.evaluate import evaluate
from seq2seq.train import train

Compose = Callable[..., DictConfig]


def evaluation(*overrides: str) -> DictConfig:
    register()
    with hydra.initialize_config_dir(config_folder(), version_base="1.3"):
        return hydra.compose("evaluate", list(overrides))


@pytest.fixture
def run(compose: Compose, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A trained run, the figures of its test, and its test split in test.src and test.tgt."""
    config = compose("data.longer_size=0")
    figures = train(config)
    pairs = build_datamodule(config).pairs("test")
    for name, side in (("test.src", "source"), ("test.tgt", "target")):
        lines = [getattr(pair, side) + "\n" for pair in pairs]
        (tmp_path / name).write_text("".join(lines), encoding="utf-8")
    return Path(config.run_folder), figures


def test_the_test_split_as_files_scores_as_at_the_end_of_training(
    run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, trained = run
    files = (f"source={tmp_path / 'test.src'}", f"target={tmp_path / 'test.tgt'}")
    outputs = (f"output={tmp_path / 'out.txt'}", f"metrics={tmp_path / 'figures.json'}")
    figures = evaluate(evaluation(f"run={folder}", *files, *outputs, "batch_size=3"))
    for name in ("loss", "perplexity", "token_accuracy", "bleu", "chrf", "exact_match"):
        assert figures[name] == pytest.approx(trained[f"test/{name}"], rel=1e-4), name
    assert "version" in str(figures["bleu_signature"])
    assert json.loads((tmp_path / "figures.json").read_text()) == figures
    lines = (tmp_path / "out.txt").read_text().splitlines()
    assert len(lines) == figures["pairs"]


def test_one_file_with_both_sides_scores_as_two_files(
    run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    source, target = ((tmp_path / f"test.{s}").read_text().splitlines() for s in ("src", "tgt"))
    both = "".join(f"{t}\t{s}\n" for s, t in zip(source, target, strict=True))
    (tmp_path / "both.tsv").write_text(both)
    columns = ("source_column=2", "target_column=1")
    one = evaluate(evaluation(f"run={run[0]}", f"file={tmp_path / 'both.tsv'}", *columns))
    files = (f"source={tmp_path / 'test.src'}", f"target={tmp_path / 'test.tgt'}")
    assert one == evaluate(evaluation(f"run={run[0]}", *files))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["source=a", "target=b"], "give either run=FOLDER"),
        (["run=nowhere", "file=both.tsv"], "run=nowhere is not a folder"),
        (["run=nowhere", "source=a"], "give either source=FILE and target=FILE"),
        (["run=nowhere", "file=missing.tsv"], "missing.tsv doesn't exist"),
        (["run=nowhere", "file=both.tsv", "output=no/where"], "output=no/where: there is no such"),
    ],
)
def test_a_mistake_is_answered_with_a_sentence(
    overrides: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).write_text("x\n")
    (tmp_path / "both.tsv").write_text("x\tx\n")
    with pytest.raises((ValueError, OSError), match=message):
        evaluate(evaluation(*overrides))


def test_an_ensemble_is_scored_as_one_network(
    run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    files = (f"source={tmp_path / 'test.src'}", f"target={tmp_path / 'test.tgt'}")
    alone = evaluate(evaluation(f"run={run[0]}", *files))
    twice = evaluate(evaluation(f"run=[{run[0]},{run[0]}]", *files))
    for name in ("loss", "perplexity", "bleu", "chrf", "exact_match"):
        assert twice[name] == pytest.approx(alone[name], rel=1e-5), name
    assert str(twice["checkpoint"]).count("best.ckpt") == 2
