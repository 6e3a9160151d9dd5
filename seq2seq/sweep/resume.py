"""How a sweep goes on where it ended: ``sweep.resume=FOLDER`` becomes its own command again.

Runs that have an outcome keep it, the others go on from their last checkpoint or begin anew.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from seq2seq.records import CURVES, INSPECTION, METRICS, SWEEP_PLAN, read_json, write_whole
from seq2seq.status import RECORD, check_free, read_status
from seq2seq.sweep.plan import read_plan

KEY = "sweep.resume"

# What a run that begins anew leaves to its successor is nothing: these are all that it writes.
_LEFTOVERS = (RECORD, METRICS, INSPECTION, CURVES, "gradient_flow.jsonl", "input_gradient.jsonl")

# Of Hydra's own keys, what may come from a sweep's file.
_HARMLESS = frozenset(
    {
        *("hydra/launcher", "hydra/sweeper", "hydra.sweep.subdir", "hydra.sweeper.max_batch_size"),
        *("hydra.launcher.n_jobs", "hydra.launcher.timeout_min", "hydra.launcher.partition"),
        *("hydra.launcher.cpus_per_task", "hydra.launcher.gpus_per_node", "hydra.launcher.mem_gb"),
        *("hydra.sweeper.n_trials", "hydra.sweeper.n_jobs", "hydra.sweeper.direction"),
        *("hydra.sweeper.sampler.seed", "hydra/sweeper/sampler"),
    }
)

# On the command line of a resumed sweep, beside its folder: where its jobs run may change.
_FREE = ("hydra/launcher", "hydra.launcher.")


def resumed_arguments(arguments: Sequence[str], *, app: str) -> list[str]:
    """The command line of a sweep that is to go on, if these arguments ask for one.

    Relative paths in it begin where the sweep was started, so this process goes there.

    Args:
        arguments: of the command line, without the command.
        app: the command.

    Returns:
        The same arguments, or those that the sweep in the folder was started with.

    Raises:
        ValueError: for a folder that holds no sweep of this command, for overrides that it wasn't
            started with, and for a command in the file that could run other things than a sweep.
    """
    asking = [text for text in arguments if text.partition("=")[0].lstrip("+") == KEY]
    if not asking or asking[-1].partition("=")[2] in ("", "null"):
        return list(arguments)
    folder = _folder(asking[-1])
    if not folder.is_dir():
        raise ValueError(f"{KEY}={folder} is not a folder: give the folder of a sweep")
    if not (folder / SWEEP_PLAN).is_file():
        raise ValueError(
            f"{KEY}={folder} holds no sweep that can go on ({SWEEP_PLAN} is missing): give the "
            "folder that the sweep named, the one with its numbered runs"
        )
    plan = read_plan(folder)
    if plan.app != app:
        raise ValueError(f"{KEY}={folder} is a sweep of {plan.app}: type that instead of {app}")
    others = [text for text in arguments if text not in asking]
    for text in plan.command:
        if text not in others and not _is_harmless(text):
            raise ValueError(
                f"{folder / SWEEP_PLAN} holds {text!r}, which is not taken from a file: type it "
                f"beside {KEY} if you trust it"
            )
    flags = [text for text in others if text.startswith("-") and text not in ("-m", "--multirun")]
    ours = [text for text in others if not text.startswith("-")]
    free = [text for text in ours if text.startswith(_FREE)]
    foreign = [text for text in ours if text not in free and text not in plan.command]
    if foreign:
        raise ValueError(
            f"{KEY}={folder} goes on as the sweep was started, without {' '.join(foreign)}: leave "
            f"that out, or begin another sweep. It was: {app} -m {' '.join(plan.command)}"
        )
    # Options of one launcher mean nothing to another.
    group = any(text.startswith("hydra/launcher") for text in free)
    replaced = _FREE if group else tuple(f"{text.partition('=')[0]}=" for text in free)
    command = [text for text in plan.command if not replaced or not text.startswith(replaced)]
    if Path(plan.started_in).is_dir():
        folder = folder.resolve()
        os.chdir(plan.started_in)
    return [
        *(*flags, "--multirun", *command, *free),
        # Hydra's own record of each run is kept as it is, so that runs can be told to be the same.
        *(f"hydra.sweep.dir={_quoted(folder)}", "hydra.output_subdir=null"),
        "hydra.callbacks.sweep.resume=true",
    ]


def _is_harmless(text: str) -> bool:
    """Whether an override from a file can start nothing: the file may be somebody else's.

    What a config's own targets may be is checked where they are built; Hydra's node is built by
    Hydra, which checks nothing.
    """
    key = text.partition("=")[0].lstrip("+~")
    if text.startswith("-") or "@" in key:
        return False
    return not key.startswith("hydra") or key in _HARMLESS


def resuming() -> bool:
    """Whether the run in this process belongs to a sweep that goes on."""
    hydra: Any = HydraConfig.get()
    return bool(OmegaConf.select(hydra, "callbacks.sweep.resume"))


def take_up(config: DictConfig, folder: Path) -> dict[str, Any] | None:
    """Prepare a run of a resumed sweep.

    One that was interrupted or failed gets its last checkpoint as ``ckpt_path``, or an empty folder
    if there is none.

    Args:
        config: of the run, modified in place.
        folder: of the run.

    Returns:
        The record of a run that has its outcome already, else None.

    Raises:
        ValueError: if the run in the folder was started with other overrides, is still going on,
            or its record is damaged.
    """
    _keep_config(config, folder)
    if not (folder / RECORD).is_file():
        return None
    record = read_status(folder)
    if record["status"] == "running":
        raise ValueError(f"{folder} is still running: wait for it, or stop its process")
    # A search was told that a run failed, and chose the next ones by it.
    ended = ("finished", "diverged", *(("failed",) if _is_search() else ()))
    if record["status"] in ended:
        return record
    last = folder / "checkpoints" / "last.ckpt"
    if last.is_file() and "ckpt_path" in config:
        config.ckpt_path = str(last)
        return None
    for name in _LEFTOVERS:
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    check_free(folder, key="hydra.sweep.dir")
    return None


def recorded_figures(folder: Path) -> dict[str, Any]:
    """Figures of a run that has finished before."""
    return read_json(folder / METRICS) if (folder / METRICS).is_file() else {}


def _keep_config(config: DictConfig, folder: Path) -> None:
    """Write what Hydra writes of a run, or see that it is what stands there."""
    hydra: Any = HydraConfig.instance().cfg
    overrides = list(hydra.hydra.overrides.task)
    place = folder / ".hydra"
    contents = {"config.yaml": config, "hydra.yaml": hydra, "overrides.yaml": overrides}
    if not all((place / name).is_file() for name in contents):
        place.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_whole(place / name, OmegaConf.to_yaml(content))
        return
    before = OmegaConf.to_container(OmegaConf.load(place / "overrides.yaml"))
    if before != overrides:
        raise ValueError(
            f"{folder} was started with {before}, but now it would be {overrides}: the search "
            "chose otherwise this time, as one does whose sampler has no seed "
            "(hydra.sweeper.sampler.seed) or whose figures changed; begin another"
        )


def _is_search() -> bool:
    hydra: Any = HydraConfig.get()
    return str(hydra.sweeper._target_).endswith("OptunaSweeper")


def _folder(override: str) -> Path:
    raw = override.partition("=")[2]
    try:
        (parsed,) = OverridesParser.create().parse_overrides([override])
        value = parsed.value()
    except HydraException:  # a path that isn't a word of Hydra's grammar
        return Path(raw)
    return Path(value if isinstance(value, str) else raw)


def _quoted(folder: Path) -> str:
    text = os.fspath(folder).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"
