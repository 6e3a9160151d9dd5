"""A sweep in words and numbers: its table, and the lines that say how it ended."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from seq2seq.records import write_whole
from seq2seq.sweep.runs import Run, Value, swept, typed

TABLE = "sweep.csv"


def write_table(path: Path, runs: Sequence[Run]) -> None:
    """One line a run: its number, what was swept, and all columns that any run has."""
    keys = swept(runs)
    known = dict.fromkeys(name for run in runs for name in run.columns)
    names = [
        name
        for name in known
        if name not in keys and any(run.columns.get(name) is not None for run in runs)
    ]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["run", *keys, *names])
    for run in runs:
        values = [run.overrides.get(key) for key in keys]
        values += [run.columns.get(name) for name in names]
        writer.writerow([run.folder.name, *(_cell(value) for value in values)])
    write_whole(path, text.getvalue())


def outcome(runs: Sequence[Run]) -> str:
    """How many runs there are, how they ended, and the lowest loss with its overrides."""
    counts = Counter(run.columns["status"] for run in runs)
    number = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    lines = [f"{number}: " + ", ".join(f"{n} {status}" for status, n in counts.items())]
    losses = {index: run.columns.get("test/loss") for index, run in enumerate(runs)}
    known = {index: loss for index, loss in losses.items() if isinstance(loss, float)}
    if known:
        best = min(known, key=known.__getitem__)
        overrides = [f"{key}={typed(runs[best].overrides.get(key))}" for key in swept(runs)]
        lines.append(" ".join([f"lowest test/loss {known[best]:.4f}", *overrides]))
    return "\n".join(lines)


def _cell(value: Value) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
