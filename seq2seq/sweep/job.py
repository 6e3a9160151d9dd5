"""One run of a sweep, from inside its process: what it is spared, what it answers, what it prints.

Training and inspection are handed in; the sweep around them is `record`'s.
"""

import contextlib
import logging
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from seq2seq.figures import FIGURES, SMALLER_IS_BETTER
from seq2seq.records import SWEEP_PLAN
from seq2seq.status import RECORD, Diverged, read_status, recorded
from seq2seq.sweep.launchers import led
from seq2seq.sweep.plan import Place, read_plan, short_key, this_place
from seq2seq.sweep.progress import progress_of, tell
from seq2seq.sweep.resume import recorded_figures, resuming, take_up
from seq2seq.sweep.runs import Value, typed

logger = logging.getLogger(__name__)

# The objective of a run that has none, for a sweeper that minimises: some can't compare with
# infinity, and none with NaN.
WORST = 1e30


def run_job(config: DictConfig, work: Callable[[DictConfig], Mapping[str, Any] | str]) -> float:
    """Run one job of a sweep, so that whatever becomes of it the sweep goes on.

    Args:
        config: of the job; ``sweep.objective`` names the figure that a sweeper is told.
        work: gives the figures of a training, or what there is to say of an inspection.

    Returns:
        The objective, always finite; :data:`WORST` or its negative, whichever loses, for a job that
        diverged, failed or has no such figure.

    Raises:
        KeyboardInterrupt: if the user wants no more.
    """
    only_warnings()
    folder = Path(config.run_folder)
    objective = config.sweep.objective
    try:
        if resuming() and take_up(config, folder) is not None:
            return objective_value(recorded_figures(folder), objective)
        with led(HydraConfig.get()):
            figures = work(config)
    except Exception as error:
        # Refused before it began: the record doesn't know of it yet. One that could go on is left
        # as it was.
        if _status(folder) is None:
            with contextlib.suppress(Exception), recorded(folder):
                raise error
        logger.info("error: %s", error)
        outcome = "diverged" if isinstance(error, Diverged) else "failed"
        anew = resuming() and config.get("ckpt_path") is not None and outcome == "failed"
        hint = f" (delete {folder} to begin it anew)" if anew else ""
        _tell_end(folder, f"{outcome}: {error}{hint}")
        return objective_value({}, objective)
    except SystemExit:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from None
    if isinstance(figures, str):
        _tell_end(folder, figures)
        return 0.0
    value = objective_value(figures, objective)
    shown = f"{value:.4f}" if abs(value) < WORST else "none"
    _tell_end(folder, f"{objective} {shown}, {read_status(folder)['seconds']:.1f} s")
    return value


def objective_value(figures: Mapping[str, Any], name: str) -> float:
    """A figure as a sweeper takes it: finite, and worse than any other where there is none."""
    value = figures.get(name)
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(max(min(value, WORST), -WORST))
    return WORST if name.rpartition("/")[2] in SMALLER_IS_BETTER else -WORST


def check_objective(name: str, *, validated: bool) -> None:
    """Refuse an objective that no run will have.

    Args:
        name: value of ``sweep.objective``.
        validated: whether training is interrupted by validations.

    Raises:
        ValueError: naming the key.
    """
    split, _, figure = name.partition("/")
    if split not in ("test", "val", "test_longer") or figure not in FIGURES:
        raise ValueError(
            f"sweep.objective={name} is no figure of a run: choose test/ or val/ and one of "
            f"{', '.join(FIGURES)}"
        )
    if split == "val" and not validated:
        raise ValueError(
            f"sweep.objective={name} needs validations, but trainer.limit_val_batches=0 leaves "
            "them out: set trainer.limit_val_batches=1.0"
        )


def _status(folder: Path) -> str | None:
    try:
        return str(read_status(folder)["status"]) if (folder / RECORD).exists() else None
    except ValueError:  # damaged: what is known of the run now replaces it
        return None


def only_warnings() -> None:
    """Keep a job's tables out of the terminal, where the sweep's lines stand; its log has them."""
    for handler in logging.getLogger().handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.WARNING)


def _tell_end(folder: Path, outcome: str) -> None:
    """Print one line of a run, and where there is no progress line below how far the sweep is."""
    place = this_place()
    if place is None:
        return
    line = f"{place.number:>4}  {_swept(place)}  {outcome}"
    if not sys.stderr.isatty() and (place.sweep / SWEEP_PLAN).is_file():
        progress = progress_of(place.sweep, read_plan(place.sweep).jobs)
        running = progress.counts.get("running", 0)
        line = f"{line}  [{progress.line(workers=running + 1)}]"
    tell(line)


def _swept(place: Place) -> str:
    def shown(value: Value) -> str:
        return f"{value:.6g}" if isinstance(value, float) else typed(value)

    return " ".join(
        f"{short_key(key, place.swept)}={shown(place.overrides.get(key))}" for key in place.swept
    )
