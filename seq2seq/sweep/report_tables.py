"""The tables of a report: runs, runs over seeds, and what is best for each task.

What a cell shows and what it is sorted by are told apart here; how it looks is left to `page.html`.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seq2seq.records import write_whole
from seq2seq.sweep.combinations import (
    DIVERGED,
    FAILED,
    Combination,
    condition_of,
    is_condition,
    is_seed,
    number,
    ranked,
    smaller_is_better,
)
from seq2seq.sweep.evidence import Evidence
from seq2seq.sweep.figure import measured, shown
from seq2seq.sweep.plan import short_key
from seq2seq.sweep.runs import DAMAGED, Value, swept

# Figures that stand in the table of runs beside the metric, where any run has them.
_COLUMNS = (
    *("test/loss", "test/token_accuracy", "test/exact_match", "test/bleu"),
    *("slope", "half_life", "verdict", "train/steps_to_target"),
)
# Settings of the task whose best runs are told one by one.
_MOST_CONDITIONS = 24


@dataclass(frozen=True)
class Cell:
    """Of a table.

    Args:
        text: as it is read.
        value: that a column is sorted by; None where it is unknown.
        details: more of it, shown on demand.
        status: that it is coloured by.
    """

    text: str
    value: float | str | None
    details: str = ""
    status: str = ""

    @property
    def numeric(self) -> bool:
        """Whether it stands at the right, as numbers do and what takes their place."""
        return not isinstance(self.value, str)


@dataclass(frozen=True)
class Table:
    """Rows of cells.

    Args:
        header: short name and full name of each column.
        rows: of as many cells.
        best: indices of the rows to point out.
    """

    header: list[tuple[str, str]]
    rows: list[list[Cell]]
    best: frozenset[int] = frozenset()

    def numeric(self, column: int) -> bool:
        """Whether the column stands at the right, heading and all."""
        return all(row[column].numeric for row in self.rows)


def condition_table(
    combinations: Sequence[Combination], keys: Sequence[str], metric: str
) -> Table | None:
    """What is best for each task, where tasks or sweeps were compared as well as settings."""
    conditions = [key for key in keys if is_condition(key)]
    others = [key for key in keys if not is_condition(key)]
    if not conditions or not others:
        return None
    best: dict[tuple[Any, ...], Combination] = {}
    for one in ranked(combinations, metric):
        best.setdefault(tuple(one.values[key] for key in conditions), one)
    if not 1 < len(best) <= _MOST_CONDITIONS:
        return None
    header = [(short_key(key, keys), key) for key in (*conditions, *others)]
    rows = [
        [
            *(_setting(one.values[key]) for key in (*conditions, *others)),
            Cell(mean_in_words(one), one.mean),
        ]
        for one in sorted(best.values(), key=lambda one: combinations.index(one))
    ]
    return Table([*header, (metric, metric)], rows)


def combination_table(
    combinations: Sequence[Combination], keys: Sequence[str], metric: str
) -> Table:
    """One row a combination of the other keys, the best first."""
    order = ranked(combinations, metric)
    order += [one for one in combinations if not one.found]
    there_are = {member.status for one in combinations for member in one.members}
    others = [status for status in ("running", "interrupted", DAMAGED) if status in there_are]
    counted = [DIVERGED, FAILED, *others]
    slopes = any(one.mean_of("slope") is not None for one in order)
    known = any(one.found for one in order)
    verdicts = not known and any(_verdicts(one) for one in order)
    header = [
        *((short_key(key, keys), key) for key in keys),
        *([(metric, f"mean ± standard deviation of {metric}")] if known else []),
        ("runs", "number of runs"),
        *((status, f"number {status}") for status in counted),
        *([("slope", "mean slope of the gradient before training")] if slopes else []),
        *([("verdict", "of the gradient before training")] if verdicts else []),
    ]
    rows = [
        [
            *(_setting(one.values[key]) for key in keys),
            *([Cell(mean_in_words(one) if one.found else "–", one.mean)] if known else []),
            _plain(len(one.members)),
            *(_plain(one.count(status)) for status in counted),
            *([_number(one.mean_of("slope"))] if slopes else []),
            *([_plain(_verdicts(one) or None)] if verdicts else []),
        ]
        for one in order
    ]
    best: dict[Any, int] = {}
    for row, one in enumerate(order):
        if one.found:
            best.setdefault(condition_of(one.values), row)
    return Table(header, rows, best=frozenset(best.values()))


def run_table(evidence: Sequence[Evidence], keys: Sequence[str], metric: str) -> Table:
    """One row a run, with what is known of the reason where it was lost; the best pointed out."""
    seeds = [key for key in swept([one.run for one in evidence]) if is_seed(key)]
    shown_keys = [*keys, *seeds]
    columns = [
        name
        for name in dict.fromkeys((metric, *_COLUMNS))
        if name != "half_life" or all(one.inspected for one in evidence)
        if any(one.run.columns.get(name) is not None for one in evidence)
    ]
    timed = any(one.seconds is not None for one in evidence)
    header = [
        ("run", "folder of the run"),
        ("status", "how the run stands"),
        *((short_key(key, shown_keys), key) for key in shown_keys),
        *((name.removeprefix("train/"), name) for name in columns),
        *([("seconds", "of the whole run")] if timed else []),
    ]
    rows = [
        [
            Cell(one.name, float(one.name) if one.name.isdecimal() else one.name),
            _status(one),
            *(_setting(one.run.overrides.get(key)) for key in shown_keys),
            *(_figure(one.run.columns.get(name)) for name in columns),
            *([_number(one.seconds)] if timed else []),
        ]
        for one in evidence
    ]
    sign = 1 if smaller_is_better(metric) else -1
    best: dict[Any, tuple[float, int]] = {}
    for index, one in enumerate(evidence):
        if (value := number(one, metric)) is not None:
            condition = condition_of({key: one.run.overrides.get(key) for key in keys})
            place = (sign * value, index)
            best[condition] = min(place, best.get(condition, place))
    rows_of_best = frozenset(index for _, index in best.values())
    return Table(header, rows, best=rows_of_best if len(evidence) > 1 else frozenset())


def _status(one: Evidence) -> Cell:
    """The word, and what is known of the reason."""
    record = one.record
    text, details = "", ""
    if one.status == DIVERGED and record.get("step") is not None:
        text = f"at step {record['step']}: {record.get('tensor')}"
        details = str(record.get("reason") or "")
    elif one.status == FAILED:
        reason = str(record.get("reason") or "").strip() or "it ended before it began"
        text = reason.splitlines()[0]
        details = str(record.get("traceback") or "")
    elif one.status == DAMAGED:
        text = "; ".join(one.notes)
    elif one.status in ("running", "interrupted") and one.curves:
        text = f"at step {max(one.curves)}"
    return Cell(text, one.status, details, status=one.status)


def _plain(value: Any) -> Cell:
    if isinstance(value, float):
        return _number(value)
    if value is None:
        return Cell("–", None)
    return Cell(shown(value), value if isinstance(value, (int, str)) else shown(value))


def _setting(value: Value) -> Cell:
    """Of a key, where null is a value, too."""
    # Sorted behind all others, as they have no place among numbers.
    return Cell(shown(value), None) if value in (None, "nan", "inf", "-inf") else _plain(value)


def _figure(value: Value) -> Cell:
    return Cell(measured(value), value) if isinstance(value, float) else _plain(value)


def _verdicts(one: Combination) -> str:
    found = [member.run.columns.get("verdict") for member in one.members]
    return ", ".join(str(verdict) for verdict in dict.fromkeys(found) if verdict is not None)


def _number(value: float | None) -> Cell:
    return Cell("–", None) if value is None else Cell(f"{value:.4g}", value)


def mean_in_words(one: Combination) -> str:
    """The mean of the metric with its standard deviation where there are several seeds."""
    mean = measured(one.mean or 0.0)
    return mean if one.deviation is None else f"{mean} ± {one.deviation:.2g}"


def write_combinations(
    path: Path, combinations: Sequence[Combination], keys: Sequence[str], metric: str
) -> None:
    """Leave the means, their deviations and how the runs ended as CSV."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    statuses = list(dict.fromkeys(one.status for it in combinations for one in it.members))
    writer.writerow([*keys, f"{metric} mean", f"{metric} deviation", "runs", *statuses])
    for one in combinations:
        known = [one.mean, one.deviation]
        numbers = ["" if value is None else f"{value:.6g}" for value in known]
        counts = [one.count(status) for status in statuses]
        writer.writerow([*one.values.values(), *numbers, len(one.members), *counts])
    write_whole(path, text.getvalue())
