"""Every logged figure of a run in a table beside TensorBoard's files, one line a step.

TensorBoard is for the eye; this is the data, readable at any moment by anything that reads lines.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from seq2seq.records import CURVES, finite, read_lines, write_whole


class CurveTable(Logger):
    """Lightning's logger that appends ``{"step": 20, "train/loss": 2.1, ...}`` to ``curves.jsonl``.

    A step may have several lines, as figures come from several places. What isn't finite is null.

    Args:
        folder: of the run.
        before_step: optimizer step from which a resumed run goes on: lines of an interrupted one
            from there on are dropped, for they will come again.
    """

    def __init__(self, *, folder: Path, before_step: int = 0) -> None:
        super().__init__()
        self._path = folder / CURVES
        if self._path.exists():
            lines, _ = read_lines(self._path)  # the last may have been cut off by a kill
            kept = [line for line in lines if line["step"] < before_step]
            write_whole(self._path, "".join(json.dumps(line) + "\n" for line in kept))

    @property
    def name(self) -> str:
        """What Lightning calls it."""
        return "curves"

    @property
    def version(self) -> str:
        """There is one."""
        return ""

    @property
    def save_dir(self) -> str:
        """Folder of the table."""
        return str(self._path.parent)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Leave them to the run's config."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a line and hand it to the system, so that a killed run has lost nothing."""
        figures = {name: value for name, value in metrics.items() if name != "epoch"}
        if not figures:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite({"step": step, **figures}), allow_nan=False) + "\n")
