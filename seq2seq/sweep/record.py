"""What happens around a sweep: checks before its first job, its table after each, its figure.

Hydra calls it; which runs there are and what they left is read by `runs`.
"""

import contextlib
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from seq2seq import user_errors
from seq2seq.config import plain
from seq2seq.event_log import open_tensorboard
from seq2seq.records import SWEEP_PLAN, write_json
from seq2seq.status import RECORD, check_free, held, is_held, read_status
from seq2seq.sweep.composition import share_composition
from seq2seq.sweep.job import check_objective
from seq2seq.sweep.launchers import check_extras, prepare
from seq2seq.sweep.plan import SweepPlan, check_settings, plan_of, read_plan, write_plan
from seq2seq.sweep.progress import ProgressLine, progress_of, tell
from seq2seq.sweep.resume import resumed_arguments
from seq2seq.sweep.runs import COLUMNS, Run, read_run, read_runs, swept
from seq2seq.sweep.table import TABLE, outcome, write_table

logger = logging.getLogger(__name__)


class SweepRecord(Callback):
    """Hydra's callback: the table after each run of a sweep, table and figure at its end.

    Before anything is written it refuses a folder in which something ran already, and what would
    show its mistake only at the end.

    Args:
        resume: whether the sweep in the folder goes on; see :mod:`seq2seq.sweep.resume`.
    """

    def __init__(self, *, resume: bool = False) -> None:
        self._resume = resume
        self._ended: dict[Path, Run] = {}  # each is read once, when it has ended
        self._leads = False

    def __getstate__(self) -> dict[str, Any]:
        """What the processes of a launcher get: they run the jobs and leave the sweep alone."""
        return {"_resume": self._resume, "_ended": {}, "_leads": False}

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Look at the folder of a single run before Hydra writes its config there."""
        try:
            folder = Path(config.hydra.run.dir)
            check_free(folder, key="hydra.run.dir", ckpt_path=config.ckpt_path)
        except ValueError as error:
            sys.exit(f"error: {error}")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Look at the sweep before its first run, keep its plan, and hold its folder."""
        folder = Path(config.hydra.sweep.dir)
        try:
            check_sweep(config, resume=self._resume)
            prepare(config)
            plan = plan_of(config)
            if self._resume:
                before = read_plan(folder)
                check_settings(folder, before, plan)
                plan = before
            _holding.enter_context(held(folder))
            if self._resume:
                tell(f"{folder}: {progress_of(folder, plan.jobs).line()}")
            else:
                write_plan(folder, plan)
        except ValueError as error:
            sys.exit(f"error: {error}")
        line = ProgressLine(folder, plan.jobs)
        _holding.callback(line.stop)
        line.start()
        share_composition()
        self._leads = True
        _begun.append((folder, plan))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Bring the table up to date, for those who look while the sweep runs."""
        if self._leads:
            folder = Path(config.hydra.sweep.dir)
            ended = Path(config.hydra.runtime.output_dir)
            self._ended[ended.resolve()] = read_run(ended)
            write_table(folder / TABLE, read_runs(folder, known=self._ended))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Say how the runs ended, in table, figure and page; exit with 1 if any of them failed."""
        _let_go()
        try:
            well = self._sum_up(config)
        except Exception:  # of which Hydra would make a warning, and a success
            logger.exception("the sweep could not be summed up")
            well = False
        if not well:
            sys.exit(1)

    def _sum_up(self, config: DictConfig) -> bool:
        from seq2seq.sweep.figure import FIGURE, draw, figure_of

        folder = Path(config.hydra.sweep.dir)
        runs = read_runs(folder, known=self._ended)
        write_table(folder / TABLE, runs)
        print(outcome(runs), flush=True)
        print(folder / TABLE, flush=True)
        try:
            figure = figure_of(runs, plain(config.figure))
            (folder / FIGURE).write_bytes(draw(runs, **figure))
            print(folder / FIGURE, flush=True)
            drawn = {figure["x"], figure["lines"], figure["panels"], *figure["y"], "seed"}
            averaged = [key for key in swept(runs) if key not in drawn]
            if averaged:
                print(f"the figure averages over {', '.join(averaged)}", flush=True)
        except ValueError as error:
            logger.error("no figure was drawn: %s", error)
        if config.sweep.report:
            _report(folder)
        return all(run.columns["status"] in ("finished", "diverged") for run in runs)


def _report(folder: Path) -> None:
    from seq2seq.sweep.page import write_report

    try:
        print(write_report([folder], metric=None, output=None), flush=True)
    except ValueError as error:
        logger.error("no report was written: %s", error)
    events = folder / "tensorboard"
    if events.is_dir():
        print(open_tensorboard(events), flush=True)


# Of the sweep that this process leads: its folder and plan, and what is to be let go of at its end.
_begun: list[tuple[Path, SweepPlan]] = []
_holding = contextlib.ExitStack()


def _let_go() -> None:
    _begun.clear()
    _holding.close()


def start(entry: Callable[[], Any], *, app: str) -> None:
    """Start Hydra's part of a command; whatever ends a sweep, it tells how it stands.

    Args:
        entry: what ``hydra.main`` made of a function; reads the command line.
        app: the command's name.

    Raises:
        SystemExit: with one sentence for whatever the user can mend; on Ctrl-C with how to go on.
    """
    try:
        arguments = resumed_arguments(sys.argv[1:], app=app)
        check_extras(arguments)
        # Between overrides Hydra's parser doesn't take it; the sort leaves all others in order.
        sys.argv[1:] = sorted(arguments, key=lambda text: text not in ("-m", "--multirun"))
        with user_errors.told():
            entry()
    except (OSError, ValueError) as error:  # before anything of a run's own was built
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        if not _begun:
            sys.exit("\ninterrupted")
        folder, plan = _begun[-1]
        _let_go()
        _mark_interrupted(folder)
        with contextlib.suppress(ValueError):  # nothing had begun
            write_table(folder / TABLE, read_runs(folder))
        sys.exit(
            f"\ninterrupted: {progress_of(folder, plan.jobs).line()}; go on with "
            f"{plan.app} -m sweep.resume={shlex.quote(os.fspath(folder))}"
        )
    finally:
        for folder, _ in _begun:  # refused by Hydra: whether anything ran decides what is left
            _unclaim(folder)
        _let_go()


def _unclaim(folder: Path) -> None:
    """Take back a plan of which no run has begun: the corrected command may want its folder."""
    if next(folder.rglob(".hydra"), None) is None and next(folder.rglob(RECORD), None) is None:
        for name in (SWEEP_PLAN, "multirun.yaml"):
            (folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # there was something in it before
            folder.rmdir()


def _mark_interrupted(folder: Path) -> None:
    """Write down what became of runs whose process was stopped before it could."""
    give_up = time.monotonic() + 5  # seconds that processes may take to die
    records = list(folder.rglob(RECORD))
    while any(is_held(path.parent) for path in records) and time.monotonic() < give_up:
        time.sleep(0.05)
    for path in records:
        with contextlib.suppress(ValueError):
            if read_status(path.parent)["status"] == "interrupted":
                write_json(path, {"status": "interrupted"})


def check_sweep(config: DictConfig, *, resume: bool = False) -> None:
    """Refuse what would spoil a sweep, or show only when all its runs have ended.

    Args:
        config: composed for a multirun.
        resume: whether the sweep in the folder goes on.

    Raises:
        ValueError: for a folder that holds a sweep, a record in it that is damaged, several
            experiments, an objective that no run has, or a figure that can't be drawn.
    """
    from seq2seq.sweep.figure import check_figure, names

    folder = Path(config.hydra.sweep.dir)
    if resume:
        for path in folder.rglob(RECORD):
            try:  # what is damaged must not be taken for a run that failed
                if read_status(path.parent)["status"] in ("finished", "diverged"):
                    read_run(path.parent)
            except ValueError as error:
                raise ValueError(f"{error}; delete {path.parent} to run it again") from error
    elif (folder / SWEEP_PLAN).is_file() or next(folder.rglob(".hydra"), None) is not None:
        hint = f", or go on with sweep.resume={folder}" if (folder / SWEEP_PLAN).is_file() else ""
        raise ValueError(f"{folder} holds a sweep already: choose another hydra.sweep.dir{hint}")
    if config.hydra.job.chdir:
        raise ValueError(
            "hydra.job.chdir=true would make every run look for the sweep's folder inside its own: "
            "leave it out"
        )
    sweep: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    subdir = str(sweep["subdir"])
    if not any(name in subdir for name in ("job.num", "job.id", "override_dirname")):
        raise ValueError(
            f"hydra.sweep.subdir={subdir} would be the folder of every run: add "
            "${hydra.job.num} to it"
        )
    check_objective(config.sweep.objective, validated=config.trainer.limit_val_batches != 0)
    if config.hydra.output_subdir is None and not resume:
        raise ValueError(
            "hydra.output_subdir=null leaves out the configs that the table of a sweep is made of: "
            "leave it as it is"
        )
    for override in config.hydra.overrides.task:
        key, _, value = str(override).partition("=")
        if key.lstrip("+") == "experiment" and "," in value:
            raise ValueError(
                f"{override}: an experiment may be a sweep of its own, so run one at a time"
            )
    figure = plain(config.figure)
    check_figure(figure["kind"], lines=figure["lines"] or "chosen", x="x", y=("y",))
    inspected = config.inspect or config.hydra.help.app_name == "seq2seq-inspect"
    if figure["kind"] == "profile" and not inspected:
        raise ValueError(
            "figure.kind=profile needs runs that are measured before training: inspect=true"
        )
    choices = set(config.hydra.runtime.choices)
    for key in ("x", "lines", "panels", "y", "logarithmic"):
        for name in names(figure[key]):
            column = name in COLUMNS or name.split("/")[0] in ("test", "test_longer", "train")
            if not column and name not in choices and not _is_key(config, name):
                raise ValueError(
                    f"figure.{key}={name} is neither a key of the config nor a column of "
                    f"sweep.csv: {', '.join(COLUMNS)}, test/loss, test/exact_match, ..."
                )


def _is_key(config: DictConfig, name: str) -> bool:
    node: Any = OmegaConf.to_container(config, resolve=False)
    for part in name.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True
