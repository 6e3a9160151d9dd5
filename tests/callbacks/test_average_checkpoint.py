"""The mean over the last validations: by a plain loop, and that it can be used and resumed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig
from torch import Tensor

from seq2seq.assembly import build_callbacks
from seq2seq.bundle import read_bundle, write_bundle
from seq2seq.callbacks.average_checkpoint import AverageCheckpoint
from seq2seq.callbacks.random_state import RandomState
from seq2seq.checkpoint import load_trained
from seq2seq.config_checks import check_training
from seq2seq.train import train

Compose = Callable[..., DictConfig]
OPTIONS = (
    "trainer.max_epochs=2",
    "trainer.val_check_interval=2",  # of 6 batches an epoch
    *(f"callbacks.{name}=null" for name in ("gradient_flow", "spectrum", "attention_pictures")),
)
AVERAGE = "callbacks.average_checkpoint.validations=4"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[str, Tensor]]:
    """Weights after each optimizer step, by its number."""
    weights: dict[int, dict[str, Tensor]] = {}

    def on_train_batch_end(
        self: Callback, trainer: Trainer, pl_module: LightningModule, *args: object
    ) -> None:
        state = {name: value.clone() for name, value in pl_module.state_dict().items()}
        weights[trainer.global_step] = state

    monkeypatch.setattr(RandomState, "on_train_batch_end", on_train_batch_end)
    return weights


def checkpoint(folder: Path, name: str) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = torch.load(
        folder / "checkpoints" / f"{name}.ckpt", weights_only=True
    )["state_dict"]
    return weights


def test_it_is_the_mean_of_the_weights_at_the_last_validations_by_a_plain_loop(
    compose: Compose, tmp_path: Path, seen: dict[int, dict[str, Tensor]]
) -> None:
    averaged = train(compose(*OPTIONS, AVERAGE, folder="averaged"))
    steps = [6, 8, 10, 12]  # the last 4 of 6 validations
    for name, value in checkpoint(tmp_path / "averaged", "average").items():
        expected = sum((seen[step][name].double() for step in steps), torch.zeros(()).double()) / 4
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-9)
        assert not torch.equal(value, seen[12][name])
    plain = train(compose(*OPTIONS, folder="plain"))
    tested = {name: value for name, value in averaged.items() if name.startswith(("test", "val"))}
    assert tested == {name: plain[name] for name in tested}
    last = checkpoint(tmp_path / "plain", "last")
    for name, value in checkpoint(tmp_path / "averaged", "last").items():
        assert torch.equal(value, last[name])


def test_before_enough_validations_it_is_of_those_there_were_and_can_be_bundled(
    compose: Compose, tmp_path: Path, seen: dict[int, dict[str, Tensor]]
) -> None:
    train(
        compose(*OPTIONS, AVERAGE, "trainer.max_epochs=1", "model.input_feeding=true", folder="run")
    )
    averaged = checkpoint(tmp_path / "run", "average")
    for name, value in averaged.items():
        torch.testing.assert_close(value, (seen[2][name] + seen[4][name] + seen[6][name]) / 3)
    path = tmp_path / "run" / "checkpoints" / "average.ckpt"
    write_bundle(path, tmp_path / "bundle")
    for model in (load_trained(path).model, read_bundle(tmp_path / "bundle").model):
        for name, value in model.state_dict().items():
            assert torch.equal(value, averaged[f"model.{name}"])


def test_beside_an_average_over_the_steps_it_is_still_of_the_weights_that_are_trained(
    compose: Compose, tmp_path: Path, seen: dict[int, dict[str, Tensor]]
) -> None:
    train(compose(*OPTIONS, AVERAGE, "trainer.max_epochs=1", "callbacks.weight_average.decay=0.9"))
    last = checkpoint(tmp_path / "run", "last")
    for name, value in checkpoint(tmp_path / "run", "average").items():
        torch.testing.assert_close(value, (seen[2][name] + seen[4][name] + seen[6][name]) / 3)
        assert not torch.equal(last[name], seen[6][name])  # which is of the average


def test_without_validation_there_is_nothing_to_average(compose: Compose) -> None:
    with pytest.raises(ValueError, match="average_checkpoint.validations=4 .*limit_val_batches=0"):
        check_training(compose(AVERAGE, "trainer.limit_val_batches=0"))


def test_nothing_goes_on_from_an_average(compose: Compose, tmp_path: Path) -> None:
    train(compose(AVERAGE, "trainer.max_epochs=1", folder="first"))
    path = tmp_path / "first" / "checkpoints" / "average.ckpt"
    with pytest.raises(ValueError, match="average.ckpt holds weights to translate with, and"):
        train(compose(AVERAGE, f"ckpt_path={path}", folder="second"))


@pytest.mark.parametrize("name", ["last", pytest.param("best", marks=pytest.mark.slow)])
def test_a_resumed_run_writes_bitwise_the_same(compose: Compose, tmp_path: Path, name: str) -> None:
    train(compose(*OPTIONS, AVERAGE, folder="whole"))
    train(compose(*OPTIONS, AVERAGE, "trainer.max_epochs=1", folder="first"))
    former = tmp_path / "first" / "checkpoints" / f"{name}.ckpt"
    train(compose(*OPTIONS, AVERAGE, f"ckpt_path={former}", folder="second"))
    theirs = checkpoint(tmp_path / "whole", "average")
    for key, value in checkpoint(tmp_path / "second", "average").items():
        assert torch.equal(value, theirs[key])


def test_fewer_may_be_kept_when_a_run_goes_on() -> None:
    callback = AverageCheckpoint(folder="nowhere", validations=2)
    callback.load_state_dict({"recent": {step: {} for step in (30, 10, 20)}})
    assert sorted(callback.recent) == [20, 30]


def test_a_mean_of_a_single_one_is_refused(compose: Compose, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="callbacks.average_checkpoint.validations=1 must be at"):
        build_callbacks(compose("callbacks.average_checkpoint.validations=1"), tmp_path)
