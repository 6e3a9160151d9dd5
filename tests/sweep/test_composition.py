"""Configs of a sweep's runs that are made from one another are those that Hydra would compose."""

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from seq2seq.config import config_folder, register
from seq2seq.sweep.composition import SweepConfigLoader, share_composition

EXPERIMENTS = sorted(path.stem for path in Path(config_folder(), "experiment").glob("*.yaml"))


@pytest.fixture(scope="module")
def within() -> Iterator[ConfigLoader]:
    """Hydra's own loader."""
    register()
    with hydra.initialize_config_dir(config_folder(), version_base="1.3"):
        found = GlobalHydra.instance().hydra
        assert found is not None
        yield found.config_loader


@pytest.fixture(scope="module")
def master(within: ConfigLoader) -> DictConfig:
    """The config of a sweep itself."""
    overrides = ["hydra.sweep.dir=somewhere"]
    config = within.load_configuration("train", overrides, RunMode.MULTIRUN)
    config.hydra.mode = RunMode.MULTIRUN
    return config


def answer(loader: ConfigLoader, master: DictConfig, overrides: list[str]) -> Any:
    """The config in full, with the types of its nodes, or the error."""
    try:
        config = loader.load_sweep_config(master, list(overrides))
    except Exception as error:
        causes = [error]
        while causes[-1].__cause__ is not None:
            causes.append(causes[-1].__cause__)
        return [(type(one), str(one)) for one in causes]

    def described(node: Any) -> Any:
        if not OmegaConf.is_config(node):
            return type(node), node._metadata, str(node)
        inner = node._content
        if isinstance(inner, dict):
            return node._metadata, {key: described(value) for key, value in inner.items()}
        if isinstance(inner, list):
            return node._metadata, [described(value) for value in inner]
        return node._metadata, inner

    return OmegaConf.to_yaml(config), described(config)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_is_composed_as_hydra_does(
    within: ConfigLoader,
    master: DictConfig,
    experiment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    overrides = [f"experiment={experiment}", "seed=2", "optimizer.lr=0.5"]
    expected = answer(within, master, overrides)
    monkeypatch.delattr(type(within), "load_sweep_config")  # the answer is not simply passed on
    assert answer(SweepConfigLoader(within), master, overrides) == expected


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=gru", "model.hidden_size=8", "data=reverse", "threads=1"],
        ["initializer.recurrent.gain=0.1", "initializer=orthogonal", "seed=2"],
        ["initializer.rules=[{pattern:'*',scheme:zeros}]", "figure.y=[test/loss,slope]"],
        ["initializer.recurrent={gain:0.5}", "initializer.recurrent.gain=2"],
        ["callbacks.gradient_flow=null", "trainer.limit_val_batches=0.5", "run_folder=a b"],
        ["callbacks.spectrum.examples=2", "callbacks=none", "data.root='a=b'"],
        ["+initializer.rules=[]", "seed=2"],
        ["~callbacks.spectrum", "seed=2"],
        pytest.param(["++model.hidden_size=3"], marks=pytest.mark.slow),
        pytest.param(["data@other=copy"], marks=pytest.mark.slow),
        pytest.param(["hydra.job.name=another"], marks=pytest.mark.slow),
        ["model.hidden_sise=8"],
        ["model.hidden_size=wide"],
        pytest.param(["model=transformer"], marks=pytest.mark.slow),
        pytest.param(["nothing=1"], marks=pytest.mark.slow),
        ["seed=1,2"],
        pytest.param(["seed=(1"], marks=pytest.mark.slow),
        pytest.param(["hydra=1"], marks=pytest.mark.slow),
        pytest.param([], marks=pytest.mark.slow),
    ],
)
def test_any_override_gives_what_hydra_gives(
    within: ConfigLoader, master: DictConfig, overrides: list[str]
) -> None:
    assert answer(SweepConfigLoader(within), master, overrides) == answer(within, master, overrides)


def test_runs_that_differ_in_values_are_composed_once(
    within: ConfigLoader, master: DictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed = []
    load = type(within).load_configuration

    def count(self: ConfigLoader, *args: Any, **kwargs: Any) -> DictConfig:
        composed.append(args)
        return load(self, *args, **kwargs)

    monkeypatch.setattr(type(within), "load_configuration", count)
    ours: ConfigLoader = SweepConfigLoader(within)
    for seed in (1, 2):
        for cell in ("gru", "lstm"):
            # As a job of a process pool gets it.
            ours = pickle.loads(pickle.dumps(copy.deepcopy(ours)))
            config = ours.load_sweep_config(master, [f"model={cell}", f"seed={seed}"])
            assert (config.model.cell, config.seed) == (cell, seed)
            config.model.cell = "changed"
    assert len(composed) == 2


def test_a_sweep_gets_its_loader_once(within: ConfigLoader) -> None:
    share_composition()
    found = GlobalHydra.instance().hydra
    assert found is not None
    first = found.config_loader
    assert isinstance(first, SweepConfigLoader)
    share_composition()
    assert found.config_loader is first
    assert first.get_group_options("scheduler") == within.get_group_options("scheduler")
    assert first.list_groups("") == within.list_groups("")
    assert repr(first.get_sources()) == repr(within.get_sources())
    assert first.get_search_path() is within.get_search_path()
