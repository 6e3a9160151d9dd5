"""A sweep in words and numbers: its table, and the lines that say how it ended."""

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from seq2seq.records import write_whole
from seq2seq.sweep.combinations import is_condition, smaller_is_better
from seq2seq.sweep.evidence import objective_of
from seq2seq.sweep.runs import Run, Value, is_number, swept, typed

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
    """How many runs there are, how they ended, and the best by the objective with its overrides.

    No run is called best where they learn different things, as their figures don't compare.
    """
    counts = Counter(run.columns["status"] for run in runs)
    number = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    lines = [f"{number}: " + ", ".join(f"{n} {status}" for status, n in counts.items())]
    keys = swept(runs)
    objective = objective_of(runs[0].folder) if runs else ""
    known = {
        index: float(figure)  # type: ignore[arg-type]
        for index, run in enumerate(runs)
        if is_number(figure := run.columns.get(objective)) and math.isfinite(figure)  # type: ignore[arg-type]
    }
    if known and not any(map(is_condition, keys)):
        choose, word = (min, "lowest") if smaller_is_better(objective) else (max, "highest")
        best = choose(known, key=known.__getitem__)
        overrides = [f"{key}={typed(runs[best].overrides.get(key))}" for key in keys]
        lines.append(" ".join([f"{word} {objective} {known[best]:.4f}", *overrides]))
    return "\n".join(lines)


def _cell(value: Value) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
