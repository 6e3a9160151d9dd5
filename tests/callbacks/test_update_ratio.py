"""Ratios that are those of the weights before and after the very step."""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from toy_training import Module, fit, make_batch, read_events

from seq2seq.callbacks.update_ratio import UpdateRatio


class Shrinking(Module):
    """Weight decay alone moves the weights: every one shrinks by the same share."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch, batch_idx) * 0.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, weight_decay=0.05)


def test_weights_that_shrink_by_half_a_percent_show_it_in_every_group(tmp_path: Path) -> None:
    module = Shrinking()
    callback = UpdateRatio(every_n_steps=3)
    fit(module, tmp_path, [callback], batches=[make_batch(s) for s in range(5)], tensorboard=True)
    events = read_events(tmp_path)
    for tag in callback.tags(module):
        found = events.Scalars(tag)
        assert [event.step for event in found] == [0, 3]
        assert [event.value for event in found] == pytest.approx([0.005] * 2, rel=1e-3)


class Remember(lightning.Callback):
    """The recurrent weights before every batch, and after the last."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, index: int) -> None:
        recurrent = [p.flatten() for n, p in pl_module.named_parameters() if "weight_hh" in n]
        self.weights.append(torch.cat(recurrent).detach().clone())


def test_with_accumulation_a_ratio_is_that_of_the_whole_step(tmp_path: Path) -> None:
    remember = Remember()
    fit(
        Module(),
        tmp_path,
        [remember, UpdateRatio(every_n_steps=1)],
        batches=[make_batch(seed) for seed in range(7)],
        accumulate_grad_batches=2,
        tensorboard=True,
    )
    found = read_events(tmp_path).Scalars("update_ratio/recurrent")
    assert [event.step for event in found] == [0, 1, 2, 3]  # the last step has one batch
    for step in range(3):
        before, after = remember.weights[2 * step], remember.weights[2 * step + 2]
        expected = float((after - before).norm() / before.norm())
        assert found[step].value == pytest.approx(expected, rel=1e-4)
