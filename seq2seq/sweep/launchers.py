"""Where the runs of a sweep run and who chooses them: what Hydra's plugins need to be told.

The plugins come with extras of this package; what they do is theirs.
"""

import importlib
import importlib.util
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from seq2seq.figures import SMALLER_IS_BETTER
from seq2seq.status import is_held

# Options of Hydra's groups that an extra brings, with the extra and the plugin's package.
_EXTRAS = {
    "hydra/launcher=joblib": ("joblib", "hydra_joblib_launcher"),
    "hydra/launcher=submitit_local": ("submitit", "hydra_submitit_launcher"),
    "hydra/launcher=submitit_slurm": ("submitit", "hydra_submitit_launcher"),
    "hydra/sweeper=optuna": ("optuna", "hydra_optuna_sweeper"),
}


def check_extras(arguments: Sequence[str]) -> None:
    """Refuse a launcher or sweeper whose extra isn't installed.

    Hydra would say that there is no such option.

    Args:
        arguments: of the command line.

    Raises:
        ValueError: saying what to install.
    """
    for argument in arguments:
        extra, package = _EXTRAS.get(argument.replace("'", "").replace('"', ""), (None, ""))
        if extra is not None and not _is_installed(package):
            raise ValueError(
                f"{argument} needs an extra that isn't installed: pip install 'seq2seq[{extra}]'"
            )


def prepare(config: DictConfig) -> None:
    """Fill in what the plugins leave open, and refuse what can't be meant.

    A search draws from the seed of the sweep, so that it can be repeated. Of the processes that
    submitit starts on this machine, no more run at once than it has cores.

    Args:
        config: composed for a multirun, modified in place before Hydra reads it.

    Raises:
        ValueError: for a search that would look for the worst.
    """
    sweeper, launcher = config.hydra.sweeper, config.hydra.launcher
    if launcher._target_.endswith(".LocalLauncher") and "max_batch_size" in sweeper:
        sweeper.max_batch_size = sweeper.max_batch_size or cores()
    if not sweeper._target_.endswith(".OptunaSweeper"):
        return
    # It would say that it has begun a study.
    importlib.import_module("optuna").logging.set_verbosity(logging.WARNING)
    sampler = sweeper.sampler
    if "seed" in sampler and sampler.seed is None:
        sampler.seed = config.seed
    objective = config.sweep.objective
    smaller = objective.rpartition("/")[2] in SMALLER_IS_BETTER
    direction, wanted = _name(sweeper.direction), "minimize" if smaller else "maximize"
    if direction != wanted:
        raise ValueError(
            f"hydra.sweeper.direction={direction} would look for the worst {objective}: use "
            f"hydra.sweeper.direction={wanted}"
        )


def runs_at_once(hydra: Any) -> int:
    """How many runs of a sweep share the cores of this machine.

    Args:
        hydra: Hydra's node of a run's config.
    """
    launcher, sweeper = hydra.launcher, hydra.sweeper
    if launcher._target_.endswith(".JoblibLauncher"):
        jobs = int(launcher.n_jobs)
        return jobs if jobs > 0 else max(1, cores() + 1 + jobs)  # -1: one for each core
    if launcher._target_.endswith(".LocalLauncher"):
        return sweeper.get("n_jobs") or sweeper.get("max_batch_size") or cores()
    return 1


@contextmanager
def led(hydra: Any, *, seconds: float = 1.0) -> Iterator[None]:
    """End this process if the one that leads the sweep dies while the block runs.

    Processes that a launcher started on this machine would train on, and hold their folders against
    a sweep that is resumed.

    Args:
        hydra: Hydra's node of a run's config.
        seconds: from one look at the leader to the next.
    """
    if not hydra.launcher._target_.endswith((".JoblibLauncher", ".LocalLauncher")):
        yield
        return
    over = threading.Event()

    def watch() -> None:
        while not over.wait(seconds):
            if not is_held(Path(hydra.sweep.dir)) and not over.is_set():
                os._exit(1)  # its record is left as if it had been killed, which it is

    watcher = threading.Thread(target=watch, name="sweep leader", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(f"hydra_plugins.{package}") is not None
    except ModuleNotFoundError:  # there are no plugins at all
        return False


def _name(direction: Any) -> str:
    """The direction's name, whether it is text or the plugin's enumeration."""
    return str(getattr(direction, "name", direction))
