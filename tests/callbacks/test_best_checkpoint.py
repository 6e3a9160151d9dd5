"""The best checkpoint, and what its validation found."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from seq2seq.callbacks.best_checkpoint import BestCheckpoint


def test_validation_figures_at_the_end_are_those_of_the_best_checkpoint(
    command_line: Callable[..., Any], tmp_path: Path
) -> None:
    finished = command_line(
        *("model=rnn", "trainer.max_epochs=5", "optimizer.lr=0.3", "seed=1"),
        *("callbacks.gradient_flow=null", "callbacks.sample_translations=null"),
        "hydra.run.dir=run",
    )
    assert finished.status == 0, finished.output
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "curves.jsonl").read_text().splitlines()
    ]
    validations = [line for line in lines if "val/loss" in line]
    losses = [line["val/loss"] for line in validations]
    assert len(losses) == 5
    assert losses.index(min(losses)) < 4, "the best must not be the last, or this shows nothing"
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    best = validations[losses.index(min(losses))]
    assert {name: metrics[name] for name in best if name.startswith("val/")} == {
        name: value for name, value in best.items() if name.startswith("val/")
    }


def test_a_run_whose_folder_was_moved_keeps_its_best_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "best.ckpt").write_text("the best")
    callback = BestCheckpoint(folder=tmp_path / "moved", monitor="val/loss", mode="min")
    before = BestCheckpoint(folder=tmp_path / "before", monitor="val/loss", mode="min")
    state = {
        **before.state_dict(),
        "best_model_path": str(tmp_path / "before" / "best.ckpt"),
        "best_model_score": torch.tensor(0.5),
        "figures": {"val/loss": 0.5},
    }
    callback.load_state_dict(state)
    assert callback.best_model_path == str(tmp_path / "moved" / "best.ckpt")
    assert callback.best_model_score == 0.5
    assert callback.figures == {"val/loss": 0.5}
