"""What is kept of a sweep's start, and what its runs are called."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import DictConfig

from seq2seq.config import config_folder, register
from seq2seq.records import SWEEP_PLAN
from seq2seq.sweep.plan import plan_of, read_plan, run_name, short_key, write_plan


def composed(*overrides: str) -> DictConfig:
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    register()
    with hydra.initialize_config_dir(config_folder(), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        return loader.load_configuration("train", list(overrides), run_mode=RunMode.MULTIRUN)


@pytest.mark.parametrize(
    ("overrides", "swept", "jobs"),
    [
        (["seed=1,2,3", "model=gru,lstm", "threads=1"], {"seed", "model"}, 6),
        (["optimizer.lr=range(1,4)"], {"optimizer.lr"}, 3),
        (["optimizer.lr=choice(0.1,0.2)", "seed=1,1"], {"optimizer.lr", "seed"}, 4),
        (["initializer=glob(*)"], {"initializer"}, None),
        (["experiment=interview_scale", "seed=1,2,3"], None, 48),
        (["model=gru"], set(), 1),
        (
            ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=7", "optimizer.lr=interval(0.1,1)"],
            {"optimizer.lr"},
            7,
        ),
    ],
)
def test_what_is_swept_and_how_many_runs_there_will_be(
    overrides: list[str], swept: set[str] | None, jobs: int | None
) -> None:
    plan = plan_of(composed(*overrides))
    assert plan.jobs == jobs
    if swept is not None:
        assert set(plan.swept) == swept
    assert plan.app == "seq2seq-train"


def test_the_command_is_kept_without_where_it_ran(tmp_path: Path) -> None:
    plan = plan_of(composed("hydra.sweep.dir=here", "seed=1,2", "hydra/launcher=basic"))
    assert plan.command == ("hydra/launcher=basic", "seed=1,2")
    write_plan(tmp_path / "sweep", plan)
    assert read_plan(tmp_path / "sweep") == plan


@pytest.mark.parametrize("content", ["[]", "{}", '{"app": "a", "command": 1}'])
def test_a_damaged_plan_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / SWEEP_PLAN).write_text(content)
    with pytest.raises(ValueError, match=SWEEP_PLAN):
        read_plan(tmp_path)


@pytest.mark.parametrize(
    ("swept", "name"),
    [
        ({"initializer.recurrent.gain": 0.5, "seed": 1}, "3_gain=0.5,seed=1"),
        ({"a.gain": 1e-05, "b.gain": 2}, "3_a.gain=1e-05,b.gain=2"),
        ({"data.root": "my data/é"}, "3_root=my_data_é"),
        ({"model": "gru", "trainer.gradient_clip_val": None}, "3_model=gru,gradient_clip_val=null"),
        ({}, "3"),
    ],
)
def test_a_run_is_named_by_what_is_swept(swept: dict[str, Any], name: str) -> None:
    assert run_name(3, swept) == name


def test_names_are_short_enough_for_a_folder_and_still_differ() -> None:
    swept = {f"group.key_{number}": "value" * 10 for number in range(9)}
    assert len(run_name(1, swept)) <= 100
    assert run_name(1, swept) != run_name(2, swept)


def test_a_key_is_shortened_as_far_as_it_stays_alone() -> None:
    keys = ["initializer.recurrent.gain", "initializer.input.gain", "seed", "model"]
    assert [short_key(key, keys) for key in keys] == [
        *("recurrent.gain", "input.gain", "seed", "model"),
    ]


def test_events_of_all_runs_lie_in_one_place_and_curves_with_each(
    command_line: Callable[..., Any], tmp_path: Path
) -> None:
    finished = command_line(
        *("model=rnn", "trainer.max_steps=4", "trainer.log_every_n_steps=2", "data.longer_size=0"),
        *("callbacks=none", "seed=1,2", "hydra.sweep.dir=sweep", "--multirun"),
    )
    assert finished.status == 0, finished.output
    events = tmp_path / "sweep" / "tensorboard"
    assert {path.name for path in events.iterdir()} == {"0_seed=1", "1_seed=2"}
    assert not list(tmp_path.glob("sweep/*/tensorboard"))
    assert not list(tmp_path.rglob("*.ckpt")), "callbacks=none keeps no checkpoint"
    lines = (tmp_path / "sweep" / "1" / "curves.jsonl").read_text().splitlines()
    train = [line for line in map(json.loads, lines) if "train/loss" in line]
    assert [line["step"] for line in train] == [1, 3]
