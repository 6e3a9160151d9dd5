"""Counting the steps to a target loss."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from seq2seq.callbacks.steps_to_target import StepsToTarget
from seq2seq.train import train


def steps(callback: StepsToTarget, losses: list[float], *, accumulate: int = 1) -> int | None:
    module: Any = SimpleNamespace(log=lambda *args, **kwargs: None)
    for batch, loss in enumerate(losses, start=1):
        trainer: Any = SimpleNamespace(global_step=batch // accumulate)
        outputs = {"negative_log_likelihood": torch.tensor(loss)}
        callback.on_train_batch_end(trainer, module, outputs, None, batch - 1)  # type: ignore[arg-type]
    return callback.steps


def test_the_first_stretch_whose_mean_is_low_enough_counts() -> None:
    losses = [4.0, 1.0, 3.0, 1.0, 2.0, 0.0, 9.0, 9.0]
    assert steps(StepsToTarget(loss=2.0, every_n_steps=2), losses) == 4
    assert steps(StepsToTarget(loss=1.0, every_n_steps=2), losses) == 6
    assert steps(StepsToTarget(loss=0.5, every_n_steps=2), losses) is None


def test_accumulated_batches_are_one_step() -> None:
    losses = [4.0, 4.0, 1.0, 1.0]
    assert steps(StepsToTarget(loss=1.0, every_n_steps=1), losses, accumulate=2) == 2


def test_a_resumed_count_goes_on(tmp_path: Path) -> None:
    whole = StepsToTarget(loss=2.0, every_n_steps=4)
    first, second = (StepsToTarget(loss=2.0, every_n_steps=4) for _ in range(2))
    losses = [3.0, 3.0, 1.0, 1.0]
    assert steps(whole, losses) == 4
    steps(first, losses[:3])
    second.load_state_dict(first.state_dict())
    module: Any = SimpleNamespace(log=lambda *args, **kwargs: None)
    trainer: Any = SimpleNamespace(global_step=4)
    outputs = {"negative_log_likelihood": torch.tensor(1.0)}
    second.on_train_batch_end(trainer, module, outputs, None, 3)  # type: ignore[arg-type]
    assert second.steps == 4
    assert second.state_dict()["steps"] == 4


@pytest.mark.parametrize("wrong", [{"loss": 0.0}, {"loss": 1.0, "every_n_steps": 0}])
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"callbacks\.target\."):
        StepsToTarget(**wrong)


@pytest.mark.parametrize(("target", "reached"), [(100.0, 2), (1e-6, None)])
def test_a_run_keeps_the_figure(
    compose: Callable[..., DictConfig], tmp_path: Path, target: float, reached: int | None
) -> None:
    train(compose(f"callbacks.target.loss={target}", "callbacks.target.every_n_steps=2"))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["train/steps_to_target"] == reached
