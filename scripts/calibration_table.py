"""Trains small networks from several initializers, as the result table of docs/calibration.md.

    .venv/bin/python scripts/calibration_table.py             all settings: 20 minutes on one core
    .venv/bin/python scripts/calibration_table.py gru recall  those whose names hold all the words
    .venv/bin/python scripts/calibration_table.py --cost      what calibration costs, as a table

A setting is a cell, a task, its length and a width. Every fixed scheme that takes a length is told
the task's own. Loss is the mean over the last 50 steps, in nats a target token, by seed. A row ends
with the fixed scheme of the lowest mean, and whether calibration is below it, above, or within the
noise: the ranges over the seeds overlap.
"""

import itertools
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import hydra
import torch
from omegaconf import DictConfig

from seq2seq.assembly import build_datamodule, build_module, initialize_weights
from seq2seq.config import config_folder, plain, register
from seq2seq.data.tokenizer import PAD_ID
from seq2seq.initializers.calibration import calibration_from_config
from seq2seq.initializers.rules import initialize, rules_from_config
from seq2seq.measurement import calibrate_layers
from seq2seq.scoring import batch_loss

SEEDS = (1, 2)
SYMBOLS = 8
LAST = 50  # steps that the loss is averaged over
COST_STEPS = 20  # training steps that are timed
CLIP = 1.0  # largest global gradient norm
CALIBRATED = "calibrated"


class Setting(NamedTuple):
    """What is learned by what; ``length`` is that of a source to copy, or the lag of a recall."""

    cell: str
    task: str
    length: int
    width: int
    steps: int

    def __str__(self) -> str:
        return f"{self.cell} {self.task} {self.length}, {self.width} units"

    @property
    def longest(self) -> int:
        """Timesteps of a source, its end symbol included."""
        return self.length + (6 if self.task == "recall" else 1)


SETTINGS = (
    Setting("rnn_tanh", "copy", 8, 64, 500),
    Setting("rnn_tanh", "copy", 12, 128, 500),
    Setting("rnn_tanh", "recall", 10, 64, 500),
    Setting("rnn_tanh", "recall", 20, 128, 500),
    Setting("lstm", "copy", 12, 64, 500),
    Setting("lstm", "copy", 12, 128, 400),
    Setting("lstm", "recall", 40, 64, 300),
    Setting("lstm", "recall", 40, 128, 200),
    Setting("gru", "copy", 12, 64, 500),
    Setting("gru", "copy", 12, 128, 400),
    Setting("gru", "recall", 40, 64, 300),
    Setting("gru", "recall", 40, 128, 200),
)


def schemes(setting: Setting) -> dict[str, list[str]]:
    """Overrides of each initializer, by the name of its column."""
    found = {name: [f"initializer={name}"] for name in ("pytorch", "sutskever2014", "orthogonal")}
    longest = f"initializer.longest={setting.longest}"
    if setting.cell.startswith("rnn"):
        for gain in (1.1, 1.3):  # 1.3 is that of initializer=recommended
            gained = f"initializer.recurrent.gain={gain}"
            found[f"orthogonal x {gain}"] = ["initializer=orthogonal", gained]
    else:
        for name in ("chrono", "recommended"):
            found[name] = [f"initializer={name}", longest]
    return {**found, CALIBRATED: [f"initializer={CALIBRATED}"]}


def composed(setting: Setting, overrides: list[str], seed: int) -> DictConfig:
    """The config of one run."""
    length = {
        "copy": [f"data.min_length={setting.length}", f"data.max_length={setting.length}"],
        "recall": [f"data.lag={setting.length}"],
    }[setting.task]
    return hydra.compose(
        "train",
        [
            *(f"data={setting.task}", *length, f"data.alphabet_size={SYMBOLS}"),
            *("data.train_size=20000", "data.longer_size=0"),
            *("data.validation_size=8", "data.test_size=8", "batch.size=64"),
            *("model=rnn", f"model.cell={setting.cell}", f"model.hidden_size={setting.width}"),
            f"optimizer.lr={0.001 if setting.cell.startswith('rnn') else 0.003}",
            *("model.embedding_size=32", f"seed={seed}", *overrides),
        ],
    )


def final_loss(config: DictConfig, steps: int, datamodule: Any) -> float:
    """Train and return the mean loss of the last steps."""
    torch.manual_seed(config.seed)
    module = build_module(config, datamodule)
    initialize_weights(config, module, datamodule.split("train"))
    model = module.model.train()
    optimizer = module.make_optimizer(model.parameters())
    loader = datamodule.train_dataloader()
    batches = itertools.chain.from_iterable(loader for _ in itertools.count())
    losses = []
    for batch in itertools.islice(batches, steps):
        loss, _ = batch_loss(model, batch)
        mean = loss.sum / loss.tokens
        optimizer.zero_grad()
        mean.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        losses.append(mean.detach())
    return float(torch.stack(losses[-LAST:]).mean())


def rows(settings: list[Setting]) -> Iterator[str]:
    """The lines of the table, with a heading wherever the schemes change."""
    register()
    columns: list[str] = []
    for setting in settings:
        if columns != list(schemes(setting)):
            columns = list(schemes(setting))
            yield heading("setting", "steps", *columns, "calibrated is")
        results: dict[str, list[float]] = {}
        datamodule = None
        for name, overrides in schemes(setting).items():
            for seed in SEEDS:
                config = composed(setting, overrides, seed)
                datamodule = datamodule or build_datamodule(config)
                loss = final_loss(config, setting.steps, datamodule)
                results.setdefault(name, []).append(loss)
        yield row(setting, results)


def cost_rows(settings: list[Setting]) -> Iterator[str]:
    """Trials of all layers, and their CPU time in training steps on ordinary batches."""
    register()
    yield heading("setting", "trials", "CPU time", "training steps")
    for setting in settings:
        config = composed(setting, schemes(setting)[CALIBRATED], seed=1)
        datamodule = build_datamodule(config)
        split = datamodule.split("train")
        model = build_module(config, datamodule).model
        group = plain(config.initializer)
        done = initialize(model, rules_from_config(group), seed=1, pad_id=PAD_ID)
        calibration = calibration_from_config(group)
        assert calibration is not None
        start = time.process_time()
        results = calibrate_layers(model, split, calibration, done)
        calibrated = time.process_time() - start
        start = time.process_time()
        final_loss(config, COST_STEPS, datamodule)
        first = time.process_time() - start
        start = time.process_time()
        final_loss(config, 2 * COST_STEPS, datamodule)
        step = (time.process_time() - start - first) / COST_STEPS
        trials = sum(len(result.trials) for result in results)
        yield f"| {setting} | {trials} | {calibrated:.2f} s | {calibrated / step:.1f} |"


def row(setting: Setting, results: dict[str, list[float]]) -> str:
    """Losses by initializer, and how calibration compares with the best of the others."""
    means = {name: sum(losses) / len(losses) for name, losses in results.items()}
    best = min((name for name in means if name != CALIBRATED), key=lambda name: means[name])
    ours, theirs = results[CALIBRATED], results[best]
    overlap = min(ours) <= max(theirs) and min(theirs) <= max(ours)
    below = means[CALIBRATED] < means[best]
    verdict = "within the noise of" if overlap else "below" if below else "above"
    losses = [" ".join(f"{loss:.3f}" for loss in several) for several in results.values()]
    return (
        "| " + " | ".join([str(setting), str(setting.steps), *losses, f"{verdict} {best}"]) + " |"
    )


def heading(*columns: str) -> str:
    """First two lines of a table."""
    return f"\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}"


def main(words: list[str]) -> None:
    """Print the table of the settings whose names hold all the words."""
    torch.set_num_threads(1)
    cost = "--cost" in words
    words = [word for word in words if word != "--cost"]
    chosen = [one for one in SETTINGS if all(word in str(one) for word in words)]
    if not chosen:
        names = "; ".join(map(str, SETTINGS))
        sys.exit(f"error: no setting holds {' and '.join(words)}: the settings are {names}")
    start = time.perf_counter()
    with hydra.initialize_config_dir(config_folder(), version_base="1.3"):
        for line in cost_rows(chosen) if cost else rows(chosen):
            print(line, flush=True)
    print(f"\n{time.perf_counter() - start:.0f} seconds", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
