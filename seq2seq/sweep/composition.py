"""Composes the configs of a sweep's runs from one another: what they share is put together once.

Hydra composes the config of each run from its files, twice: once to see all mistakes before the
first run, and once to run it. Most runs differ in single values only, which are set in a copy here.
"""

import pickle
import uuid
from typing import Any

from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigSource
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

# Pickled configs by sweep and by the overrides that choose among files. Here and not in the loader,
# of which each job of a process pool gets a new copy.
_composed: dict[tuple[str, ...], bytes] = {}

# By sweep and key: whether the key names a group of files.
_is_group: dict[tuple[str, str], bool] = {}

# A sweep over groups has few combinations that are worth keeping.
_MOST_COMPOSED = 64


class SweepConfigLoader(ConfigLoader):
    """Answer as the loader within does, but compose each choice of files only once.

    A config that can't be made by setting values in another is left to the loader within, and so is
    every one with a mistake, for its message.

    Args:
        within: Hydra's own.
    """

    def __init__(self, within: ConfigLoader) -> None:
        self._within = within
        self._sweep = uuid.uuid4().hex

    def load_sweep_config(
        self, master_config: DictConfig, sweep_overrides: list[str]
    ) -> DictConfig:
        """The config of one run."""
        try:
            config = self._from_composed(master_config, sweep_overrides)
        except Exception:  # whatever it is, the loader within has the words for it
            config = None
        if config is None:
            return self._within.load_sweep_config(master_config, sweep_overrides)
        return config

    def _from_composed(
        self, master_config: DictConfig, sweep_overrides: list[str]
    ) -> DictConfig | None:
        parsed = OverridesParser.create().parse_overrides(sweep_overrides)
        if not all(map(_is_plain, parsed)):
            return None
        choices = [one for one in parsed if self._chooses_a_file(one)]
        config = self._composed(master_config, [str(one.input_line) for one in choices])
        for one in parsed:
            if one not in choices:
                OmegaConf.update(config, one.key_or_group, one.value(), merge=True)
        config.hydra.overrides.task = list(sweep_overrides)
        naming = config.hydra.job.config.override_dirname
        config.hydra.job.override_dirname = get_overrides_dirname(
            parsed, naming.exclude_keys, naming.item_sep, naming.kv_sep
        )
        # Such as the time of the sweep's start.
        OmegaConf.copy_cache(from_config=master_config, to_config=config)
        return config

    def _composed(self, master_config: DictConfig, choices: list[str]) -> DictConfig:
        """The config of these files, without any value of a run's own."""
        name = master_config.hydra.job.config_name
        overrides = [*map(str, master_config.hydra.overrides.hydra), *choices]
        key = (self._sweep, *overrides)
        if key not in _composed:
            config = self._within.load_configuration(name, overrides, RunMode.RUN)
            if len(_composed) == _MOST_COMPOSED:
                _composed.clear()
            # Unpickled in a seventh of the time that a deep copy takes.
            _composed[key] = pickle.dumps(config)
        copied: DictConfig = pickle.loads(_composed[key])
        return copied

    def _chooses_a_file(self, override: Override) -> bool:
        key = (self._sweep, override.key_or_group)
        if key not in _is_group:
            options = self._within.get_group_options(override.key_or_group, results_filter=None)
            _is_group[key] = bool(options)
        return _is_group[key]

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        return self._within.load_configuration(
            config_name, overrides, run_mode, from_shell, validate_sweep_overrides
        )

    def get_search_path(self) -> ConfigSearchPath:
        return self._within.get_search_path()

    def get_sources(self) -> list[ConfigSource]:
        return self._within.get_sources()

    def list_groups(self, parent_name: str) -> list[str]:
        return self._within.list_groups(parent_name)

    def get_group_options(
        self,
        group_name: str,
        results_filter: ObjectType | None = ObjectType.CONFIG,
        config_name: str | None = None,
        overrides: list[str] | None = None,
    ) -> list[str]:
        return self._within.get_group_options(group_name, results_filter, config_name, overrides)

    def compute_defaults_list(
        self, config_name: str | None, overrides: list[str], run_mode: RunMode
    ) -> Any:
        return self._within.compute_defaults_list(config_name, overrides, run_mode)


def share_composition() -> None:
    """Let the sweep that Hydra is about to start compose its runs from one another."""
    hydra = GlobalHydra.instance().hydra
    if hydra is not None and not isinstance(hydra.config_loader, SweepConfigLoader):
        hydra.config_loader = SweepConfigLoader(hydra.config_loader)


def _is_plain(override: Override) -> bool:
    """Whether it is ``key=value`` or ``group=option``, which may come in any order."""
    special = override.is_add() or override.is_force_add() or override.is_delete()
    special = special or override.is_sweep_override() or override.is_hydra_override()
    return not special and override.package is None and not isinstance(override.value(), dict)
