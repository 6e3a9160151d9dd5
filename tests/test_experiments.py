"""Every sweep of the interview: it composes, runs when made tiny, and draws what it promises.

The experiments that are single runs are run in `test_train.py`.
"""

import copy
import csv
import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from seq2seq import inspection
from seq2seq.config import config_folder, register
from seq2seq.config_checks import check_sizes, check_training
from seq2seq.sweep.figure import FIGURE
from seq2seq.sweep.table import TABLE

FOLDER = Path(config_folder()) / "experiment"
EXPERIMENTS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
INTERVIEW = [name for name in EXPERIMENTS if name.startswith("interview_")]

# The entry of each; all others are trained.
INSPECTED = ("interview_defaults",)

TINY = (
    *("data.train_size=48", "data.validation_size=4", "data.test_size=4", "trainer.max_steps=2"),
    *("threads=1", "hydra.sweep.dir=sweep"),
)

DOCS = Path(__file__).resolve().parents[1] / "docs"


@functools.cache
def composed(name: str, *overrides: str) -> DictConfig:
    """The config with Hydra's own part, not to be changed: composing takes a while."""
    register()
    with hydra.initialize_config_dir(config_folder(), version_base="1.3"):
        return hydra.compose("train", [f"experiment={name}", *overrides], return_hydra_config=True)


def swept(name: str) -> dict[str, list[str]]:
    """Values of every key that the experiment sweeps, as they would be typed."""
    params = composed(name).hydra.sweeper.params
    return {str(key): str(values).split(",") for key, values in params.items()}


def heading(name: str) -> str:
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# @package _global_"
    return "\n".join(line for line in lines[1:] if line.startswith("#"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_heading_gives_the_command(name: str) -> None:
    entry = "scripts/inspect -m" if name in INSPECTED else "scripts/train"
    entry = "scripts/train -m" if name in INTERVIEW and name not in INSPECTED else entry
    assert heading(name).startswith(f"# {entry} experiment={name}")
    if name in INTERVIEW:
        assert "\n# Claim: " in heading(name)
        assert "\n# Expect: " in heading(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", INTERVIEW)
def test_every_value_that_is_swept_makes_a_valid_run(name: str) -> None:
    for key, values in swept(name).items():
        for value in values:
            if "." in key:
                config = copy.deepcopy(composed(name))
                OmegaConf.update(config, key, value)  # as a text, which the schema reads
            else:
                config = composed(name, f"{key}={value}")
            check_sizes(config)
            check_training(config)


@pytest.mark.parametrize("name", INTERVIEW)
def test_one_command_runs_a_sweep_over_seeds_in_one_process(name: str) -> None:
    config = composed(name)
    assert str(config.hydra.mode) == "RunMode.MULTIRUN"
    runs = math.prod(len(values) for values in swept(name).values())
    assert len(swept(name)["seed"]) >= 2 or name in INSPECTED
    assert 6 <= runs <= 64


@pytest.mark.slow
@pytest.mark.parametrize("name", INTERVIEW)
def test_a_tiny_sweep_draws_the_promised_figure(
    command_line: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
) -> None:
    figure, params = composed(name).figure, swept(name)
    assert figure.title
    drawn = [key for key in params if key in (figure.x, figure.lines, figure.panels)]
    # Both ends of the first key that is drawn, and one value of every other: two runs.
    ends = {
        key: [values[0], values[-1]][: 2 if key == drawn[0] else 1]
        for key, values in params.items()
    }
    overrides = [f"experiment={name}", *TINY, *(f"{key}={','.join(ends[key])}" for key in ends)]
    overrides += [] if drawn[0] == "model.hidden_size" else ["model.hidden_size=8"]
    if name in INSPECTED:
        overrides += ["data.min_length=6", "data.max_length=6"]
        monkeypatch.setattr(sys, "argv", ["seq2seq-inspect", *overrides])
        inspection.main()
    else:
        finished = command_line(*overrides, tiny_task=False)
        assert finished.status == 0, finished.output
    with (tmp_path / "sweep" / TABLE).open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["status"] for row in table] == ["finished", "finished"]
    with Image.open(tmp_path / "sweep" / FIGURE) as picture:
        assert picture.format == "PNG"


def test_every_interview_experiment_is_in_the_docs() -> None:
    text = (DOCS / "interview.md").read_text(encoding="utf-8")
    for name in INTERVIEW:
        entry = "scripts/inspect" if name in INSPECTED else "scripts/train"
        assert f"{entry} -m experiment={name}" in text
        assert f"({name}.png)" in text
