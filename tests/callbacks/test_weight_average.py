"""The average of the weights: by a plain loop, and which weights are judged, kept and resumed."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig
from torch import Tensor
from toy_training import Module, fit

from seq2seq.assembly import build_callbacks, build_datamodule, build_module
from seq2seq.callbacks.weight_average import WeightAverage
from seq2seq.checkpoint import check_resumable, load_trained
from seq2seq.scoring import batch_loss
from seq2seq.train import train

Compose = Callable[..., DictConfig]
DECAY = 0.8


class Weights(Callback):
    """The weights after every step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: object
    ) -> None:
        state = pl_module.state_dict()
        self.seen.append({name: value.clone() for name, value in state.items()})


def averaged(seen: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    average = seen[0]
    for step, weights in enumerate(seen[1:], start=2):
        kept = min(DECAY, 1 - 1 / step)
        average = {name: kept * average[name] + (1 - kept) * weights[name] for name in weights}
    return average


def test_the_average_is_that_of_a_plain_loop_and_training_does_not_see_it(tmp_path: Path) -> None:
    with_average, without = Weights(), Weights()
    module = Module()
    fit(module, tmp_path, [with_average, WeightAverage(decay=DECAY)])
    fit(Module(), tmp_path, [without])
    assert len(with_average.seen) == 20
    for ours, theirs in zip(with_average.seen, without.seen, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for name, expected in averaged(with_average.seen).items():
        torch.testing.assert_close(module.state_dict()[name], expected)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_the_average_has_the_precision_of_the_weights(
    compose: Compose, tmp_path: Path, precision: str
) -> None:
    average = f"callbacks.weight_average.decay={DECAY}"
    train(compose(f"trainer.precision={precision}", "trainer.max_steps=2", average))
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    for name, value in last["current_model_state"].items():
        assert last["state_dict"][name].dtype == value.dtype
        assert not torch.equal(last["state_dict"][name], value) or not value.any()


def test_no_step_waits_for_the_device() -> None:
    module, callback = Module(), WeightAverage(decay=DECAY)
    trainer: Any = SimpleNamespace(global_step=0)
    callback.setup(trainer, module, "fit")
    module.to("meta")  # reading a number there is an error, as it would be a wait on a GPU
    callback.on_fit_start(trainer, module)
    for _ in range(3):
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, module, None, None, 0)
        callback.on_train_batch_end(trainer, module, None, None, 1)  # no optimizer step
    checkpoint: dict[str, Any] = {"state_dict": {}}
    callback.on_save_checkpoint(trainer, module, checkpoint)
    assert int(checkpoint["averaging_state"]["n_averaged"]) == 3


def test_validation_test_and_the_best_checkpoint_are_of_the_averaged_weights(
    compose: Compose, tmp_path: Path
) -> None:
    options = ("trainer.max_epochs=2", "callbacks.attention_pictures=null")
    figures = train(compose(*options, f"callbacks.weight_average.decay={DECAY}"))
    raw = train(compose(*options, folder="raw"))
    assert figures["test/loss"] != raw["test/loss"]
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(best, weights_only=True)
    # Seen so far, and trained on: bitwise what training without an average had.
    own = torch.load(tmp_path / "raw" / "checkpoints" / "best.ckpt", weights_only=True)
    for name, value in own["state_dict"].items():
        assert torch.equal(checkpoint["current_model_state"][name], value)
    datamodule = build_datamodule(compose(*options))
    model = load_trained(best).model
    for split, loader in (
        ("val", datamodule.val_dataloader()),
        ("test", datamodule.test_dataloader()[0]),
    ):
        with torch.no_grad():
            losses = [batch_loss(model, batch)[0] for batch in loader]
        loss = sum(float(one.sum) for one in losses) / sum(one.tokens for one in losses)
        assert loss == pytest.approx(figures[f"{split}/loss"], rel=1e-5)


def test_a_run_with_an_average_is_not_resumed_without_it(compose: Compose, tmp_path: Path) -> None:
    train(compose(f"callbacks.weight_average.decay={DECAY}"))
    config = compose()
    plain = build_module(config, build_datamodule(config))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match=r"callbacks.weight_average.decay is 0.8 there and None"):
        check_resumable(last, plain.description)


def test_a_decay_out_of_range_is_refused(compose: Compose, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="callbacks.weight_average.decay=1.0 must be above 0"):
        build_callbacks(compose("callbacks.weight_average.decay=1"), tmp_path)
