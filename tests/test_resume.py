"""A run that is stopped at any moment and resumed ends with the weights of one never stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from seq2seq.data.batch import Batch
from seq2seq.module import TranslationModule
from seq2seq.train import train

# Everything that draws random numbers, looks back at earlier steps, or reads gradients.
THOROUGH = (
    "trainer.max_epochs=3",
    "model.embedding_dropout=0.2",
    "model.output_dropout=0.2",
    "callbacks.gradient_flow.every_n_steps=3",
    "callbacks.throughput.every_n_steps=2",
)

PLATEAU = ("scheduler=plateau", "scheduler.patience=0", "scheduler.threshold=0.5")


class Killed(BaseException):
    """Not an Exception, as nothing that handles errors may see it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """Stop the next run without warning, in its `batch`-th training step."""
    original, seen = TranslationModule.training_step, []

    def training_step(self: TranslationModule, batch_: Batch, batch_idx: int) -> Tensor:
        seen.append(batch_idx)
        if len(seen) == batch:
            raise Killed
        return original(self, batch_, batch_idx)

    monkeypatch.setattr(TranslationModule, "training_step", training_step)


def assert_same(actual: Any, expected: Any, where: str = "checkpoint") -> None:
    """Bitwise equal, whatever is nested in what."""
    assert type(actual) is type(expected), where
    if isinstance(expected, Tensor):
        assert torch.equal(actual, expected), where
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys(), where
        for key in expected:
            assert_same(actual[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected), where
        for index, each in enumerate(expected):
            assert_same(actual[index], each, f"{where}[{index}]")
    else:
        assert actual == expected, where


def assert_same_checkpoint(actual: Path, expected: Path, step: int) -> None:
    """Weights, optimizer, schedule, random numbers, and the position in the epoch."""
    ours, theirs = (torch.load(path, weights_only=True) for path in (actual, expected))
    assert theirs["global_step"] == step
    same = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")
    if "current_model_state" in theirs:  # beside the averaged ones
        same = (*same, "current_model_state", "averaging_state")
    for key in same:
        assert_same(ours[key], theirs[key], key)
    if "AverageCheckpoint" in theirs["callbacks"]:
        assert_same(*(each["callbacks"]["AverageCheckpoint"] for each in (ours, theirs)))
    random = ours["callbacks"]["RandomState"]["cpu"]
    assert torch.equal(random, theirs["callbacks"]["RandomState"]["cpu"])
    loaders = [
        each["loops"]["fit_loop"]["state_dict"]["combined_loader"] for each in (ours, theirs)
    ]
    assert loaders[1]
    assert_same(*loaders)


@pytest.mark.parametrize(
    ("every", "killed", "options"),
    [
        # 6 batches an epoch: written after batch 2 of the second epoch
        (
            4,
            11,
            (
                *("scheduler=halving", "scheduler.start_epoch=1.5"),
                *("scheduled_sampling.schedule=linear", "scheduled_sampling.c=0.05"),
            ),
        ),
        # written at the end of an epoch, killed in the next; what looks at each validation
        (6, 8, (*PLATEAU, "optimizer=sgd", "callbacks=early_stopping")),
        # two batches to a step
        (
            2,
            8,
            (
                "trainer.accumulate_grad_batches=2",
                "trainer.max_epochs=4",
                "scheduler=inverse_square_root",
                "scheduler.warmup_steps=5",
            ),
        ),
        # batches by tokens, validation within the epoch and right after a checkpoint
        (
            3,
            5,
            (
                *(*PLATEAU, "batch.unit=target_tokens", "batch.size=80", "batch.curriculum=sqrt"),
                *("batch.curriculum_epochs=1.5", "trainer.val_check_interval=3"),
            ),
        ),
        # whatever else draws random numbers
        (
            4,
            11,
            (
                *("model.input_feeding=true", "model.cell=gru", "optimizer=adamw"),
                *("model.variational_dropout=true", "model.word_dropout=0.1"),
                *("model.weight_dropout=0.2", "model.zoneout_hidden=0.1", "model.truncation=3"),
                *("gradient_noise=0.01", "callbacks.weight_average.decay=0.8"),
                "callbacks.average_checkpoint.validations=2",
            ),
        ),
        # weights of 64 bits, and their average
        (
            4,
            8,
            (
                *("trainer.precision=64-true", "callbacks.weight_average.decay=0.8"),
                "trainer.max_epochs=2",
            ),
        ),
    ],
    ids=["mid-epoch", "epoch-end", "accumulation", "target-tokens", "input-feeding", "double"],
)
def test_a_run_resumed_from_its_last_checkpoint_ends_bitwise_the_same(
    compose: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    every: int,
    killed: int,
    options: tuple[str, ...],
) -> None:
    options = (*THOROUGH, f"callbacks.last_checkpoint.every_n_train_steps={every}", *options)
    whole = train(compose(*options, folder="whole"))
    with monkeypatch.context() as patched:
        kill_at(patched, killed)
        with pytest.raises(Killed):
            train(compose(*options, folder="resumed"))
    last = tmp_path / "resumed" / "checkpoints" / "last.ckpt"
    stopped_at = torch.load(last, weights_only=True)["global_step"]
    assert 0 < stopped_at < killed
    resumed = train(compose(*options, f"ckpt_path={last}", folder="resumed"))

    final = tmp_path / "whole" / "checkpoints" / "last.ckpt"
    step = torch.load(final, weights_only=True)["global_step"]
    assert step > stopped_at
    assert_same_checkpoint(last, final, step)
    tested = {name: value for name, value in whole.items() if name.startswith("test")}
    assert tested == {name: value for name, value in resumed.items() if name.startswith("test")}


def test_a_run_resumed_with_more_epochs_trains_on(
    compose: Callable[..., DictConfig], tmp_path: Path
) -> None:
    options = (*THOROUGH, "callbacks.last_checkpoint.every_n_train_steps=6")
    train(compose(*options, folder="whole"))
    train(compose(*options, "trainer.max_epochs=1", folder="longer"))
    last = tmp_path / "longer" / "checkpoints" / "last.ckpt"
    train(compose(*options, f"ckpt_path={last}", folder="longer"))
    assert_same_checkpoint(last, tmp_path / "whole" / "checkpoints" / "last.ckpt", 18)


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "seq2seq.train", *overrides],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_a_process_killed_in_the_middle_of_an_epoch_resumes_to_bitwise_the_same_weights(
    compose: Callable[..., DictConfig], tmp_path: Path
) -> None:
    every, per_epoch, epochs = 20, 50, 2
    options = [
        "data=copy",
        "data.train_size=400",
        "data.validation_size=8",
        "data.test_size=8",
        "data.longer_size=0",
        "model.embedding_size=16",
        "model.hidden_size=16",
        "model.embedding_dropout=0.2",
        "model.output_dropout=0.2",
        "batch.size=8",
        f"trainer.max_epochs={epochs}",
        "trainer.accelerator=cpu",
        "trainer.enable_progress_bar=false",
        "callbacks.gradient_flow.every_n_steps=30",
        f"callbacks.last_checkpoint.every_n_train_steps={every}",
        f"hydra.run.dir={tmp_path / 'killed'}",
    ]
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    process = start(tmp_path, *options)
    while not last.is_file() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output
    assert not (tmp_path / "killed" / "metrics.json").exists()
    stopped_at = torch.load(last, weights_only=True)["global_step"]
    assert stopped_at % per_epoch

    process = start(tmp_path, *options, f"ckpt_path={last}")
    train(compose(*options[:-1], folder="whole", tiny_task=False))
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert_same_checkpoint(
        last,
        tmp_path / "whole" / "checkpoints" / "last.ckpt",
        every * (per_epoch * epochs // every),
    )
