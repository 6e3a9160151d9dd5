"""What happens around a sweep: checks before its first job, its table after each, its figure.

Hydra calls it; which runs there are and what they left is read by `runs`.
"""

import logging
import math
import sys
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from seq2seq.config import plain
from seq2seq.sweep.runs import COLUMNS, Run, read_run, read_runs, swept
from seq2seq.sweep.table import TABLE, outcome, write_table

logger = logging.getLogger(__name__)


def only_warnings() -> None:
    """Keep a job's tables out of the terminal, where the sweep's lines stand; its log has them."""
    for handler in logging.getLogger().handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.WARNING)


def lost(folder: Path, error: Exception) -> float:
    """Take note of a job that ended in an error, so that the sweep can go on.

    Returns:
        The objective for a sweeper that minimises: infinity, as it can't compare with NaN.
    """
    from seq2seq.status import RECORD, recorded

    logger.error("error: %s", error)
    if not (folder / RECORD).exists():  # it was refused before it began
        try:
            with recorded(folder):
                raise error
        except type(error):
            pass
    return math.inf


def end_early(folder: Path) -> str:
    """Bring the table of an interrupted sweep up to date, and say where it is."""
    write_table(folder / TABLE, read_runs(folder))
    return f"what has ended is in {folder / TABLE}"


class SweepRecord(Callback):
    """Hydra's callback: the table after each job of a sweep, table and figure at its end.

    Before anything is written it refuses a folder in which something ran already, and what would
    show its mistake only at the end.
    """

    def __init__(self) -> None:
        self._ended: dict[Path, Run] = {}  # each is read once, when it has ended

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Look at the folder of a single run before Hydra writes its config there."""
        from seq2seq.status import check_free

        try:
            folder = Path(config.hydra.run.dir)
            check_free(folder, key="hydra.run.dir", ckpt_path=config.ckpt_path)
        except ValueError as error:
            sys.exit(f"error: {error}")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Look at the sweep before its first job."""
        try:
            check_sweep(config)
        except ValueError as error:
            sys.exit(f"error: {error}")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Bring the table up to date, for those who look while the sweep runs."""
        if config.hydra.mode == RunMode.MULTIRUN:
            folder = Path(config.hydra.sweep.dir)
            ended = Path(config.hydra.runtime.output_dir)
            self._ended[ended.resolve()] = read_run(ended)
            write_table(folder / TABLE, read_runs(folder, known=self._ended))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Say how the runs ended and draw their figure; an exit with 1 if any of them failed."""
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
        if any(run.columns["status"] == "failed" for run in runs):
            sys.exit(1)


def check_sweep(config: DictConfig) -> None:
    """Refuse what would spoil a sweep, or show only when all its runs have ended.

    Raises:
        ValueError: for a folder that holds a sweep, several experiments, or a figure that can't be
            drawn.
    """
    from seq2seq.sweep.figure import check_figure, names

    folder = Path(config.hydra.sweep.dir)
    if next(folder.rglob(".hydra"), None) is not None:
        raise ValueError(f"{folder} holds a sweep already: choose another hydra.sweep.dir")
    if config.hydra.output_subdir is None:
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
