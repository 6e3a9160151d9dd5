"""What a sweep was started with, kept in its folder: its command, what it sweeps, how many runs.

From it the same sweep can be started again, and each of its runs knows its place in it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from seq2seq.records import SWEEP_PLAN, finite, read_json, write_json
from seq2seq.sweep.runs import Value, overrides_of, typed

# Longer names of runs make TensorBoard's list of them unreadable, and folders impossible.
_LONGEST_NAME = 100


@dataclass(frozen=True)
class SweepPlan:
    """A sweep as it was started.

    Args:
        app: the command, such as ``seq2seq-train``.
        command: its overrides as they were typed, without the folder of the sweep.
        swept: keys of which it takes several values.
        jobs: how many runs there will be; None where that can't be known before.
        started_in: folder in which relative paths of the command begin.
        settings: every other key of its config with the value that all runs have, as JSON has it.
    """

    app: str
    command: tuple[str, ...]
    swept: tuple[str, ...]
    jobs: int | None
    started_in: str
    settings: Mapping[str, Any]


def plan_of(config: DictConfig) -> SweepPlan:
    """What Hydra was asked for.

    Args:
        config: composed for a multirun, Hydra's own node included.
    """
    typed = [*config.hydra.overrides.hydra, *config.hydra.overrides.task]
    own = ("hydra.sweep.dir", "hydra.mode", "hydra.output_subdir", "hydra.callbacks.sweep.resume")
    command = tuple(text for text in map(str, typed) if text.partition("=")[0] not in own)
    found = _parsed(config)
    swept = tuple(key for key, override in found.items() if override.is_sweep_override())
    target = config.hydra.sweeper._target_
    if target.endswith("OptunaSweeper"):
        # Every key of its search space is sampled, however the distribution is written.
        space = [str(key) for key in config.hydra.sweeper.params or ()]
        swept = tuple(dict.fromkeys((*space, *swept)))
        return SweepPlan(
            _app(config), command, swept, config.hydra.sweeper.n_trials, *_where(config)
        )
    jobs: int | None = 1
    for override in found.values():
        if jobs is None or not override.is_sweep_override():
            continue
        # Which options a glob finds is known to Hydra alone, and an interval has no count.
        glob = override.value_type == ValueType.GLOB_CHOICE_SWEEP
        countable = override.is_discrete_sweep() and not glob
        jobs = jobs * sum(1 for _ in override.sweep_iterator()) if countable else None
    return SweepPlan(_app(config), command, swept, jobs, *_where(config))


def write_plan(folder: Path, plan: SweepPlan) -> None:
    """Keep it in the sweep's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SWEEP_PLAN, asdict(plan))


def read_plan(folder: Path) -> SweepPlan:
    """What was kept there.

    Raises:
        ValueError: if the file is damaged.
        FileNotFoundError: if there is none.
    """
    path = folder / SWEEP_PLAN
    content = read_json(path)
    known = {field.name for field in fields(SweepPlan)}
    lists = [content.get("command"), content.get("swept")]
    if (
        set(content) != known
        or not all(isinstance(one, list) and all(isinstance(x, str) for x in one) for one in lists)
        or not isinstance(content["jobs"], int | None)
        or not all(isinstance(content[name], str) for name in ("app", "started_in"))
        or not isinstance(content["settings"], dict)
    ):
        raise ValueError(f"{path} is damaged: it is no plan of a sweep")
    return SweepPlan(
        **{**content, "command": tuple(content["command"]), "swept": tuple(content["swept"])}
    )


@dataclass(frozen=True)
class Place:
    """Where in a sweep a run is.

    Args:
        sweep: folder of the sweep.
        number: of the run, from 0.
        overrides: it was started with, by key.
        swept: those of its keys of which the sweep takes several values.
    """

    sweep: Path
    number: int
    overrides: Mapping[str, Value]
    swept: Sequence[str]

    @property
    def name(self) -> str:
        """Its name in TensorBoard; see :func:`run_name`."""
        return run_name(self.number, {key: self.overrides.get(key) for key in self.swept})


def this_place() -> Place | None:
    """Of the run that Hydra started in this process; None if it is none of a sweep."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    hydra = HydraConfig.get()
    folder = Path(hydra.sweep.dir)
    overrides = overrides_of([str(text) for text in hydra.overrides.task], origin=folder)
    swept = read_plan(folder).swept if (folder / SWEEP_PLAN).is_file() else ()
    return Place(folder, int(hydra.job.num), overrides, swept)


def run_name(number: int, swept: Mapping[str, Value]) -> str:
    """Name of a run that tells it from the others of its sweep: ``3_gain=0.5,seed=1``.

    Keys are shortened to as many of their last parts as tell them apart. The number keeps names
    different where their values are alike, as in a search.
    """
    parts = []
    for key, value in swept.items():
        short = short_key(key, swept)
        shown = f"{value:g}" if isinstance(value, float) else typed(value).strip("'")
        parts.append(f"{short}={shown}")
    name = re.sub(r"[^\w.=,+\-]", "_", "_".join([str(number), ",".join(parts)]).rstrip("_"))
    return name[:_LONGEST_NAME]


def short_key(key: str, keys: Mapping[str, Value] | Sequence[str]) -> str:
    """As many of the last parts of a key as tell it from the other keys."""
    parts = key.split(".")
    for start in range(len(parts) - 1, 0, -1):
        short = ".".join(parts[start:])
        if not any(other != key and f".{other}".endswith(f".{short}") for other in keys):
            return short
    return key


def check_settings(folder: Path, before: SweepPlan, now: SweepPlan) -> None:
    """Refuse to go on with a sweep under other settings than it began with.

    Keys that there were not yet when it began are left alone: they came with a later version.

    Raises:
        ValueError: naming the keys with both values.
    """
    different = [
        f"{key} was {value} and is {now.settings.get(key)}"
        for key, value in before.settings.items()
        if now.settings.get(key) != value
    ]
    if different:
        raise ValueError(
            f"{folder} began with other settings than the config files have now: "
            f"{'; '.join(different)}. Put them back, or begin another sweep"
        )


def _where(config: DictConfig) -> tuple[str, dict[str, Any]]:
    content: Any = OmegaConf.to_container(config, resolve=False)
    left_out = ("hydra", "sweep", "figure", "run_folder", "ckpt_path")
    settings: dict[str, Any] = {}

    def flatten(prefix: str, node: Any) -> None:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                flatten(f"{prefix}.{key}" if prefix else str(key), value)
        else:
            settings[prefix] = json.loads(json.dumps(finite(node), default=str))

    flatten("", {key: value for key, value in content.items() if key not in left_out})
    return str(config.hydra.runtime.cwd), settings


def _app(config: DictConfig) -> str:
    return str(config.hydra.help.app_name)


def _parsed(config: DictConfig) -> dict[str, Override]:
    """What is swept or fixed, by key: the sweeper's own parameters, then the command line's."""
    params = OmegaConf.select(config, "hydra.sweeper.params")
    texts = [f"{key}={value}" for key, value in (params or {}).items()]
    texts += [str(text) for text in config.hydra.overrides.task]
    try:
        parsed = OverridesParser.create().parse_overrides(texts)
    except HydraException:  # a search space in the notation of its own sweeper
        parsed = OverridesParser.create().parse_overrides(texts[len(params or {}) :])
    return {override.get_key_element().lstrip("+~"): override for override in parsed}
