"""When `last.ckpt` is written: never between the last batch of an epoch and its validation."""

from collections.abc import Callable
from pathlib import Path

import pytest
from lightning import Trainer
from omegaconf import DictConfig

from seq2seq.callbacks.last_checkpoint import LastCheckpoint
from seq2seq.module import TranslationModule
from seq2seq.train import train


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Checkpoints written and validations begun, each with its optimizer step."""
    seen: list[str] = []
    save, begin = Trainer.save_checkpoint, TranslationModule.on_validation_epoch_start

    def save_checkpoint(self: Trainer, path: str | Path, *rest: object, **named: bool) -> None:
        seen.append(f"{Path(path).stem} {self.global_step}")
        save(self, path, *rest, **named)  # type: ignore[arg-type]

    def on_validation_epoch_start(self: TranslationModule) -> None:
        seen.append(f"validation {self.trainer.global_step}")
        begin(self)

    monkeypatch.setattr(Trainer, "save_checkpoint", save_checkpoint)
    monkeypatch.setattr(TranslationModule, "on_validation_epoch_start", on_validation_epoch_start)
    return seen


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ("every_n_train_steps=4", "trainer.max_epochs=2"),
            ["last 4", "validation 6", "last 6", "last 8", "validation 12", "last 12"],
        ),
        (("every_n_train_steps=6",), ["validation 6", "last 6"]),
        (("every_n_train_steps=100",), ["validation 6", "last 6"]),
        (
            ("every_n_train_steps=3", "trainer.val_check_interval=3"),
            ["validation 3", "last 3", "validation 6", "last 6"],
        ),
        (
            ("every_n_train_steps=2", "trainer.accumulate_grad_batches=2"),
            ["last 2", "validation 3", "last 3"],
        ),
    ],
    ids=["steps", "at the end", "short run", "within an epoch", "accumulation"],
)
def test_it_is_written_after_the_steps_and_epochs_that_are_due(
    compose: Callable[..., DictConfig],
    events: list[str],
    options: tuple[str, ...],
    expected: list[str],
) -> None:
    every, *others = options
    train(
        compose(
            *(f"callbacks.last_checkpoint.{every}", "callbacks.best_checkpoint=null"),
            *("callbacks.gradient_flow=null", "trainer.num_sanity_val_steps=0", *others),
        )
    )
    assert events == expected


def test_an_interval_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every_n_train_steps=0 must be at least 1"):
        LastCheckpoint(folder=tmp_path, every_n_train_steps=0)
