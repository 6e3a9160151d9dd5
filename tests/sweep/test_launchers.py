"""Launchers and sweepers of the extras: the same runs wherever they run, and none left behind."""

import contextlib
import csv
import functools
import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from seq2seq import assembly
from seq2seq.status import held, is_held, read_status
from seq2seq.sweep import launchers
from seq2seq.sweep.launchers import check_extras, cores, led, prepare, runs_at_once
from seq2seq.sweep.table import TABLE

# Three runs of it take a few seconds.
SWEEP = (
    *("data=copy", "data.train_size=96", "data.validation_size=12", "data.test_size=12"),
    *("data.longer_size=0", "data.max_length=6", "batch.size=16", "threads=1"),
    *("model=rnn", "model.embedding_size=8", "model.hidden_size=8"),
    *("trainer=short", "trainer.max_steps=3", "callbacks=none"),
)
PACKAGE = "hydra_plugins"

# As scripts/train starts it: what a launcher sends to its processes is then from `__main__`.
MODULE = (sys.executable, "-P", "-m", "seq2seq.train")
COMMAND = (str(Path(sysconfig.get_path("scripts"), "seq2seq-train")),)


def node(launcher: str, sweeper: str = "BasicSweeper", **values: Any) -> DictConfig:
    """Hydra's node of a config with this launcher and sweeper, as far as it is looked at."""
    return OmegaConf.create(
        {
            "launcher": {"_target_": f"{PACKAGE}.some.{launcher}", **values.pop("launch", {})},
            "sweeper": {"_target_": f"{PACKAGE}.some.{sweeper}", **values.pop("sweep", {})},
            **values,
        }
    )


def figures(sweep: Path) -> list[dict[str, float]]:
    """Test figures of each run, by its number."""
    runs = sorted(sweep.glob("*/metrics.json"), key=lambda path: int(path.parent.name))
    read = [json.loads(path.read_text()) for path in runs]
    return [{k: v for k, v in one.items() if k.startswith("test/")} for one in read]


def table(sweep: Path) -> list[dict[str, str]]:
    with (sweep / TABLE).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("argument", "extra"),
    [
        ("hydra/launcher=joblib", "joblib"),
        ("hydra/launcher=submitit_slurm", "submitit"),
        ("hydra/sweeper=optuna", "optuna"),
    ],
)
def test_without_its_extra_a_plugin_is_refused_with_what_to_install(
    command_line: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, argument: str, extra: str
) -> None:
    monkeypatch.setattr(launchers.importlib.util, "find_spec", lambda name: None)
    refused = command_line(argument, "seed=1,2", "--multirun")
    assert refused.status == (
        f"error: {argument} needs an extra that isn't installed: pip install 'seq2seq[{extra}]'"
    )
    check_extras(["hydra/launcher=basic", "model=gru"])


@pytest.mark.parametrize(
    ("hydra_node", "at_once"),
    [
        (node("BasicLauncher"), 1),
        (node("SlurmLauncher"), 1),
        (node("JoblibLauncher", launch={"n_jobs": 3}), 3),
        (node("JoblibLauncher", launch={"n_jobs": -1}), 8),
        (node("JoblibLauncher", launch={"n_jobs": -2}), 7),
        (node("LocalLauncher", sweep={"max_batch_size": 4}), 4),
        (node("LocalLauncher", sweep={"max_batch_size": None}), 8),
        (node("LocalLauncher", "OptunaSweeper", sweep={"n_jobs": 2}), 2),
    ],
)
def test_runs_that_share_the_cores_divide_the_threads(
    monkeypatch: pytest.MonkeyPatch, hydra_node: DictConfig, at_once: int
) -> None:
    for module in (launchers, assembly):
        monkeypatch.setattr(module, "cores", lambda: 8)
    assert runs_at_once(hydra_node) == at_once
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(assembly, "_first_threads", [8])
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: swept)
    swept = OmegaConf.merge(hydra_node, {"mode": RunMode.MULTIRUN})
    assembly.use_threads(None)
    assembly.use_threads(5)
    assert threads == [8 // at_once, 5]


def multirun(sweeper: DictConfig, *, objective: str = "test/loss") -> DictConfig:
    return OmegaConf.create({"hydra": sweeper, "seed": 7, "sweep": {"objective": objective}})


def test_a_search_draws_from_the_seed_and_looks_for_the_best() -> None:
    pytest.importorskip("optuna")
    values = {"direction": "minimize", "sampler": {"seed": None}}
    config = multirun(node("BasicLauncher", "OptunaSweeper", sweep=values))
    prepare(config)
    assert config.hydra.sweeper.sampler.seed == 7
    config.hydra.sweeper.sampler.seed = 3
    prepare(config)
    assert config.hydra.sweeper.sampler.seed == 3
    config.sweep.objective = "val/bleu"
    with pytest.raises(ValueError, match=r"worst val/bleu: use hydra.sweeper.direction=maximize"):
        prepare(config)
    config.hydra.sweeper.direction = "maximize"
    prepare(config)


def test_submitit_starts_no_more_runs_on_this_machine_than_it_has_cores() -> None:
    config = multirun(node("LocalLauncher", sweep={"max_batch_size": None}))
    prepare(config)
    assert config.hydra.sweeper.max_batch_size == cores()
    config.hydra.sweeper.max_batch_size = 50
    prepare(config)
    assert config.hydra.sweeper.max_batch_size == 50


def test_a_process_ends_when_its_leader_has_let_go_of_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    hydra_node = node("JoblibLauncher")
    hydra_node.sweep = {"dir": str(tmp_path)}
    with held(tmp_path), led(hydra_node, seconds=0.01):
        time.sleep(0.1)
    assert not ended
    with led(hydra_node, seconds=0.01):
        time.sleep(0.1)
    assert ended
    hydra_node.launcher._target_ = f"{PACKAGE}.some.SlurmLauncher"
    ended.clear()
    with led(hydra_node, seconds=0.01):
        time.sleep(0.1)
    assert not ended


# --- with the plugins -----------------------------------------------------------------------------


def train(folder: Path, *overrides: str, entry: tuple[str, ...] = MODULE) -> str:
    """A sweep in its own process; what it printed."""
    answer = subprocess.run(
        [*entry, "-m", *SWEEP, *overrides],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert answer.returncode == 0, answer.stdout
    return answer.stdout


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """Figures of the sweep over three seeds, one after the other in one process."""
    folder = tmp_path_factory.mktemp("basic")
    train(folder, "hydra.sweep.dir=sweep", "seed=1,2,3")
    found = figures(folder / "sweep")
    assert len(found) == 3
    assert len({one["test/loss"] for one in found}) == 3
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "entry"),
    [("joblib", MODULE), ("joblib", COMMAND), ("submitit_local", COMMAND)],
    ids=["joblib, module", "joblib, command", "submitit_local, command"],
)
def test_every_launcher_gives_the_same_figures(
    tmp_path: Path, alone: list[dict[str, float]], launcher: str, entry: tuple[str, ...]
) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
    overrides = ("hydra.sweep.dir=sweep", f"hydra/launcher={launcher}", "seed=1,2,3")
    said = train(tmp_path, *overrides, entry=entry)
    assert figures(tmp_path / "sweep") == alone
    assert [row["status"] for row in table(tmp_path / "sweep")] == ["finished"] * 3
    assert "3 runs: 3 finished" in said
    assert "Warning" not in said and "Traceback" not in said


@pytest.mark.slow
def test_a_search_finds_the_same_runs_again_wherever_they_run(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    space = ("optimizer.lr=tag(log,interval(0.0001,0.1))", "model.cell=choice(rnn_tanh,gru)")
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=3")
    for launcher in ("basic", "joblib"):
        where = (f"hydra/launcher={launcher}", f"hydra.sweep.dir={launcher}")
        assert "3 runs: 3 finished" in train(tmp_path, *search, *space, *where)
    found = figures(tmp_path / "basic")
    assert figures(tmp_path / "joblib") == found
    assert len({row["optimizer.lr"] for row in table(tmp_path / "basic")}) == 3
    best = OmegaConf.load(tmp_path / "basic" / "optimization_results.yaml")
    assert best.best_value == pytest.approx(min(one["test/loss"] for one in found))
    assert (tmp_path / "basic" / "sweep.png").is_file()


@pytest.mark.slow
def test_a_search_goes_on_after_a_run_that_diverged(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweep.dir=sweep")
    explosive = ("optimizer=sgd", "trainer.gradient_clip_val=null", "model.cell=rnn_relu")
    said = train(tmp_path, *search, *explosive, "optimizer.lr=choice(1e38,0.1)")
    statuses = [row["status"] for row in table(tmp_path / "sweep")]
    assert set(statuses) == {"finished", "diverged"}, said
    best = OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml")
    assert float(best.best_params["optimizer.lr"]) == 0.1


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_nothing_runs_on_when_a_sweep_is_stopped(
    tmp_path: Path, launcher: str, ending: signal.Signals
) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
    long = ("trainer.max_steps=1000000", "seed=1,2", "hydra.sweep.dir=sweep")
    leader = subprocess.Popen(
        [*MODULE, "-m", *SWEEP, *long, f"hydra/launcher={launcher}"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        # A shell starts what runs in its background with Ctrl-C ignored, and that is inherited.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    runs = [tmp_path / "sweep" / number for number in ("0", "1")]
    try:
        wait(lambda: all((run / "curves.jsonl").is_file() for run in runs))
        leader.send_signal(ending)
        leader.wait(timeout=30)
        wait(lambda: not any(map(is_held, runs)))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader.pid, signal.SIGKILL)
    assert [read_status(run)["status"] for run in runs] == ["interrupted", "interrupted"]


def wait(condition: Callable[[], bool], *, seconds: float = 90) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "nothing of the kind happened"
        time.sleep(0.1)
