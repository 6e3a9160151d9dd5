"""Set-up shared by all tests: one thread per test process, the real corpora, and what is skipped.

Tests marked `slow` run only with `--slow`; tests marked `gpu` are skipped where no GPU is found,
those marked `browser` where there is no Playwright or no Chromium for it.
"""

import functools
import json
import logging
import math
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import hydra
import pytest
import torch
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override

from seq2seq.diagnostics.gradient_profile import GradientProfile, append_gradient_flow
from seq2seq.records import write_json

ROOT = Path(__file__).resolve().parents[1]

# A whole run within two seconds: overrides of a synthetic task, and of any model and trainer.
TINY_TASK = (
    "data=copy",
    "data.train_size=96",
    "data.validation_size=12",
    "data.test_size=12",
    "data.longer_size=12",
    "data.max_length=6",
)
TINY_RUN = (
    "model.embedding_size=8",
    "model.hidden_size=8",
    "batch.size=16",
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "sweep.report=false",
)

DIAGNOSTICS = (
    "gradient_flow",
    "input_gradient",
    "forward_signal",
    "weight_gradient",
    "spectrum",
    "update_ratio",
)

# Tests are small: one thread is faster than several, and keeps the order of additions fixed.
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skip_slow = pytest.mark.skip(reason="slow: run with --slow")
    skip_gpu = pytest.mark.skip(reason="no GPU on this machine")
    skip_browser = pytest.mark.skip(reason="no Chromium, or no Playwright to drive it")
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(skip_slow)
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(skip_gpu)
        if "browser" in item.keywords and find_chromium() is None:
            item.add_marker(skip_browser)


@functools.cache
def find_chromium() -> str | None:
    """Path of a Chromium that Playwright can drive: the system's, or Playwright's own."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).is_file() else None


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the browser that tests marked `browser` look with."""
    found = find_chromium()
    assert found is not None, "the test needs the mark browser"
    return found


@pytest.fixture(scope="session")
def corpora_root() -> Path:
    """Folder of the real corpora: `SEQ2SEQ_DATA`, or `../shared/data` from the repository."""
    root = Path(os.environ.get("SEQ2SEQ_DATA") or ROOT.parent / "shared" / "data")
    if not root.is_dir():
        pytest.skip(f"no corpora at {root}: set SEQ2SEQ_DATA to their folder")
    return root


@pytest.fixture(scope="session", autouse=True)
def _each_config_file_is_parsed_once() -> Iterator[None]:
    """By all commands that are tried without a new process; a quarter of Hydra's time is YAML."""
    load, known = FileConfigSource.load_config, {}

    def load_config(source: FileConfigSource, config_path: str) -> ConfigResult:
        file = Path(source.path, config_path).with_suffix(".yaml")
        if not file.is_file():
            return load(source, config_path)
        key = (source.scheme(), source.provider, file, file.stat().st_mtime_ns)
        if key not in known:
            known[key] = pickle.dumps(load(source, config_path))
        return pickle.loads(known[key])

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FileConfigSource, "load_config", load_config)
        yield


@functools.cache
def composer(name: str) -> tuple[ConfigLoader, DictConfig]:
    """What composes configs of this name from one another, and the config to begin with."""
    from seq2seq.config import config_folder, register
    from seq2seq.sweep.composition import SweepConfigLoader

    register()
    with hydra.initialize_config_dir(config_folder(), version_base="1.3"):
        found = GlobalHydra.instance().hydra
        assert found is not None
        within = found.config_loader
    return SweepConfigLoader(within), within.load_configuration(name, [], RunMode.RUN)


def composed(name: str, overrides: Sequence[str]) -> DictConfig:
    """What `hydra.compose` gives, in a fraction of its time (`sweep/test_composition.py`)."""
    loader, master = composer(name)
    config = loader.load_sweep_config(master, list(overrides))
    with flag_override(config, ["struct", "readonly"], [False, False]):
        config.pop("hydra")
    return config


@pytest.fixture(scope="session")
def compose_config() -> Callable[[str, Sequence[str]], DictConfig]:
    """The config of a name in `conf/`, such as train or inspect, with overrides."""
    return composed


Compose = Callable[..., DictConfig]


@pytest.fixture
def compose(tmp_path: Path) -> Compose:
    """Config of a tiny run in a folder of this test, from overrides.

    `tiny_task=False` leaves the data to the overrides. The diagnostics, which would take half the
    time of a tiny run, are there if an override speaks of the gradient flow.
    """

    def tiny_config(*overrides: str, folder: str = "run", tiny_task: bool = True) -> DictConfig:
        tiny = [f"run_folder={tmp_path / folder}", *TINY_RUN, *(TINY_TASK if tiny_task else ())]
        if not any("gradient_flow" in override for override in overrides):
            tiny += [f"callbacks.{group}=null" for group in DIAGNOSTICS]
        return composed("train", [*tiny, *overrides])

    return tiny_config


MakeRun = Callable[..., Path]


@pytest.fixture(scope="session")
def make_run() -> MakeRun:
    """The folder of a run as training leaves it, from what is known of it, without training."""
    return _make_run


def _make_run(
    folder: Path,
    overrides: dict[str, object],
    *,
    loss: float | None = None,
    status: dict[str, object] | None = None,
    curve: dict[int, float] | None = None,
    slope: float | None = None,
    objective: str = "test/loss",
) -> Path:
    """Write a run.

    Args:
        folder: of the run.
        overrides: that it was started with.
        loss: `test/loss`; None for a run without figures.
        status: None for finished after 2 s.
        curve: training loss by step.
        slope: of the gradient's logarithm per timestep, at steps 0 and 10.
        objective: of its sweep.
    """
    texts = [f"{key}={'null' if value is None else value}" for key, value in overrides.items()]
    config = {
        "model": {"cell": "gru", "hidden_size": 64},
        "initializer": {"recurrent": {"gain": 1.0}},
        "optimizer": {"lr": 0.002},
        "seed": 1,
        "sweep": {"objective": objective},
    }
    choices = {"initializer": "orthogonal", "model": "gru", "data": "copy"}
    hydra = {"runtime": {"choices": choices}, "help": {"app_name": "seq2seq-train"}}
    (folder / ".hydra").mkdir(parents=True)
    for name, content in (("overrides", texts), ("config", config), ("hydra", {"hydra": hydra})):
        OmegaConf.save(OmegaConf.create(content), folder / ".hydra" / f"{name}.yaml")
    write_json(folder / "status.json", status or {"status": "finished", "seconds": 2.0})
    if loss is not None:
        figures = {"test/loss": loss, "test/exact_match": 1 / (1 + loss), "run": str(folder)}
        write_json(folder / "metrics.json", figures)
    if curve is not None:
        rows = [json.dumps({"step": step, "train/loss": value}) for step, value in curve.items()]
        (folder / "curves.jsonl").write_text("".join(f"{row}\n" for row in rows))
    if slope is not None:
        norms = tuple(math.exp(slope * distance) for distance in range(12))
        append_gradient_flow(
            folder / "gradient_flow.jsonl",
            [
                GradientProfile(step, "encoder/layer0/forward", quantity, norms)
                for step in (0, 10)
                for quantity in ("hidden", "transport")
            ],
        )
    return folder


class Finished(NamedTuple):
    """What a command line answered: the exit status, and all that it printed."""

    status: int | str | None
    output: str


@pytest.fixture
def command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Finished]]:
    """`python -m seq2seq.train OVERRIDES` in an empty folder, tiny and without a new process."""
    from seq2seq.train import main

    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    monkeypatch.chdir(tmp_path)

    def run(*overrides: str, tiny_task: bool = True, tiny: bool = True) -> Finished:
        given = [*(TINY_RUN if tiny else ()), *(TINY_TASK if tiny and tiny_task else ())]
        monkeypatch.setattr(sys, "argv", ["seq2seq-train", *given, *overrides])
        capsys.readouterr()
        status: int | str | None = 0
        try:
            main()
        except SystemExit as stopped:  # a text as status is what Python prints at the end
            status = stopped.code
        printed = capsys.readouterr()
        said = status if isinstance(status, str) else ""
        return Finished(status, "\n".join([printed.out, printed.err, said]))

    yield run
    # Hydra's handlers write to the captured streams of a test that is over.
    for handler in [one for one in root.handlers if one not in handlers]:
        root.removeHandler(handler)
        handler.close()
    root.handlers[:], root.level = handlers, level
