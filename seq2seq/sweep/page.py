"""The page of a report: what its tables and sentences say, put into `page.html` with the figures.

One file without links to anything else, beside it a PNG and a CSV of every figure. What the runs
left is read by `evidence`, what they amount to is worked out by `combinations`.
"""

import shlex
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import seq2seq
from seq2seq.records import write_whole
from seq2seq.sweep.combinations import (
    DIVERGED,
    FAILED,
    Combination,
    best_by_value,
    best_member,
    by_condition,
    combine,
    edge,
    is_condition,
    is_seed,
    number,
    ranked,
    runs_in_words,
    smaller_is_better,
    varied,
)
from seq2seq.sweep.curve_figure import curves
from seq2seq.sweep.evidence import Evidence, Gathered, gather
from seq2seq.sweep.figure import MOST_STEPS, different_values, measured, shown
from seq2seq.sweep.gradient_figure import gradient_heat_maps
from seq2seq.sweep.importance import importance
from seq2seq.sweep.metric_figures import (
    importance_figure,
    metric_by_key,
    slope_at_start,
    sweet_spot,
)
from seq2seq.sweep.picture import Picture
from seq2seq.sweep.plan import short_key
from seq2seq.sweep.progress import duration
from seq2seq.sweep.report_tables import (
    combination_table,
    condition_table,
    mean_in_words,
    run_table,
    write_combinations,
)
from seq2seq.sweep.runs import Run, Value, swept
from seq2seq.sweep.table import write_table

PAGE = "index.html"

# Values of a key that are named in the words at the top.
_MOST_VALUES = 4
# Things to learn whose values are compared there one by one.
_MOST_CONDITIONS = 6


@dataclass(frozen=True)
class Section:
    """A heading with a figure, or with the reason why there is none."""

    id: str
    title: str
    picture: Picture | None
    instead: str = ""


def write_report(folders: Sequence[Path], *, metric: str | None, output: Path | None) -> Path:
    """Write the page of one or several sweeps, or of single runs.

    Args:
        folders: of sweeps or runs.
        metric: a figure of `metrics.json`; None for what the sweep was to make better.
        output: the page, or a folder for it; None for ``report`` in the first folder.

    Returns:
        The page's path.

    Raises:
        ValueError: for a folder without runs, or a metric that no run has.
        OSError: if it can't be written.
    """
    gathered = gather(folders)
    chosen = choose_metric(gathered.evidence, metric)
    path = _page_path(folders[0], output)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"--output: {path.parent} is a file, not a folder") from error
    keys, between = varied(gathered.evidence)
    combinations = combine(gathered.evidence, keys, chosen)
    sections = _sections(gathered.evidence, combinations, keys, chosen)
    for section in sections:
        if section.picture is not None:
            section.picture.write(path.parent)
    write_table(path.parent / "runs.csv", [one.run for one in gathered.evidence])
    repeated = any(len(one.members) > 1 for one in combinations)
    over_seeds = combination_table(combinations, keys, chosen) if repeated else None
    if over_seeds is not None:
        write_combinations(path.parent / "combinations.csv", combinations, keys, chosen)
    content = {
        "title": ", ".join(_folder_name(folder) for folder in folders),
        "headline": _headline(gathered),
        "going_on": [" ".join(map(quoted, command)) for command in gathered.going_on],
        "swept": _swept_in_words(gathered.evidence, keys, between),
        "metric": chosen,
        "better": "lower" if smaller_is_better(chosen) else "higher",
        "best": _best(combinations, keys, chosen),
        "without": _why_none_is_best(gathered, chosen),
        "reached": _reached(combinations, keys, chosen),
        "too_many": len(by_condition(combinations)) > _MOST_CONDITIONS,
        "by_condition": condition_table(combinations, keys, chosen),
        "conditions": " and ".join(short_key(key, keys) for key in keys if is_condition(key)),
        "over_seeds": over_seeds,
        "seeds": any(map(is_seed, swept([one.run for one in gathered.evidence]))),
        "known": any(one.found for one in combinations),
        "runs": run_table(gathered.evidence, keys, chosen),
        "notes": [
            *((f"Sweep {name}", [note]) for name, note in gathered.notes),
            *((f"Run {one.name}", one.notes) for one in gathered.evidence if one.notes),
        ],
        "sections": sections,
        "command": " ".join(map(quoted, _command(folders, metric, output))),
        "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "version": seq2seq.__version__,
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    write_whole(path, environment.get_template("page.html").render(content))
    return path


def choose_metric(evidence: Sequence[Evidence], wanted: str | None) -> str:
    """The one asked for, or what most runs were to make better.

    Raises:
        ValueError: if no run has the one asked for, with those there are.
    """
    if wanted is None:
        return Counter(one.objective for one in evidence).most_common(1)[0][0]
    known = sorted(
        {
            name
            for one in evidence
            for name in one.run.columns
            if "/" in name and number(one, name) is not None
        }
    )
    if not known:
        raise ValueError(f"--metric {wanted}: no run has any figures yet; leave it out")
    if wanted not in known:
        raise ValueError(
            f"--metric {wanted} is a figure of no run; choose one of {', '.join(known)}"
        )
    return wanted


def _command(folders: Sequence[Path], metric: str | None, output: Path | None) -> list[str]:
    asked = {"--metric": metric, "--output": output}
    given = [(option, str(value)) for option, value in asked.items() if value is not None]
    return ["seq2seq-report", *map(str, folders), *(text for pair in given for text in pair)]


def _page_path(folder: Path, output: Path | None) -> Path:
    if output is None:
        return folder / "report" / PAGE
    return output if output.suffix.lower() in (".html", ".htm") else output / PAGE


def _folder_name(folder: Path) -> str:
    return folder.resolve().name or str(folder)


def _sections(
    evidence: Sequence[Evidence], combinations: list[Combination], keys: list[str], metric: str
) -> list[Section]:
    def drawn(id_: str, title: str, draw: Callable[[], Picture | None], instead: str) -> Section:
        try:
            picture = draw()
        except ValueError as error:
            return Section(id_, title, None, f"{str(error)[0].upper()}{str(error)[1:]}.")
        return Section(id_, title, picture, "" if picture else instead)

    known = [one for one in evidence if number(one, metric) is not None]
    slope = drawn(
        "slope",
        "The gradient before training",
        lambda: slope_at_start(evidence, combinations),
        "",
    )
    if all(one.inspected for one in evidence):
        return [slope]  # the others are about training
    return [
        slope
        if slope.picture and not known
        else drawn(
            "sweet-spot",
            "The sweet spot",
            lambda: sweet_spot(evidence, combinations, metric),
            "",
        ),
        drawn(
            "metric",
            "The metric over each key",
            lambda: metric_by_key(evidence, combinations, metric),
            "",
        ),
        drawn(
            "importance",
            "What matters how much",
            lambda: importance_figure(
                importance(
                    [one.run.overrides for one in known],
                    [number(one, metric) or 0.0 for one in known],
                    keys,
                ),
                metric,
                left_out=len(evidence) - len(known),
            ),
            "",
        ),
        drawn(
            "curves",
            "Training curves",
            lambda: curves(combinations, keys),
            "No run has logged a loss.",
        ),
        drawn(
            "gradient",
            "The gradient norm over distance and training",
            lambda: gradient_heat_maps(evidence, combinations, keys, metric=metric),
            "No run has kept its gradient norms: callbacks=default does.",
        ),
    ]


def _headline(gathered: Gathered) -> list[str]:
    evidence = gathered.evidence
    counts = Counter(one.status for one in evidence)
    runs = runs_in_words(len(evidence))
    said = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    lines = [f"{runs}: {said}."]
    if gathered.planned is not None and gathered.planned > len(evidence):
        lines.append(f"{gathered.planned} runs are planned, {len(evidence)} have begun.")
    # How soon a run failed says nothing of how long one takes.
    whole = [one for one in evidence if one.status != FAILED]
    seconds = [one.seconds for one in whole if one.seconds is not None]
    which = " that did not fail" if len(whole) < len(evidence) else ""
    if len(seconds) > 1:
        lines.append(
            f"The runs{which} took {duration(sum(seconds))} in all, "
            f"{duration(statistics.median(seconds))} each (median)."
        )
    elif seconds:
        lines.append(f"The run{which} took {duration(seconds[0])}.")
    if counts["running"]:
        lines.append("Some are still running: the same command brings this page up to date.")
    return lines


def _why_none_is_best(gathered: Gathered, metric: str) -> str:
    evidence = gathered.evidence
    if all(one.inspected for one in evidence):
        if all(one.status == FAILED for one in evidence):
            return "All runs failed."
        return f"The runs were measured, not trained: none has {metric}."
    begun = (gathered.planned or 0) <= len(evidence)
    if not begun or any(one.status in ("running", "interrupted") for one in evidence):
        return f"No run has {metric} yet: it is known when a run has finished."
    finished = any(one.status == "finished" for one in evidence)
    return f"No run has {metric}" + ("." if finished else ", as none has finished.")


def quoted(text: str) -> str:
    """As a shell takes it, in the marks that are easiest to read."""
    simple = "'" in text and not set(text) & set('"$`\\!')
    return f'"{text}"' if simple else shlex.quote(text)


def _swept_in_words(
    evidence: Sequence[Evidence], keys: Sequence[str], between: Sequence[str]
) -> list[dict[str, str]]:
    """Each key with the values that it takes, seeds and what goes with the sweep last."""
    seeds = [key for key in swept([one.run for one in evidence]) if is_seed(key)]
    words = []
    for key in [*keys, *seeds]:
        values = different_values([one.run for one in evidence], key)
        if len(values) <= MOST_STEPS:
            text = ", ".join(map(shown, values))
        else:
            text = f"{len(values)} values from {shown(values[0])} to {shown(values[-1])}"
        words.append({"key": key, "taken": text, "note": ""})
        if key == "sweep" and between:
            words[-1]["note"] = f"They also differ in {', '.join(between)}."
    return words


def _best(
    combinations: Sequence[Combination], keys: Sequence[str], metric: str
) -> dict[str, Any] | None:
    order = ranked(combinations, metric)
    if not order:
        return None
    best = order[0]
    member = best_member(best, metric)
    seeds, runs = len(best.by_seed), len(best.found)
    mean = f"mean of {runs} runs with the same seed" if runs > 1 else ""
    if seeds > 1:
        mean = f"mean and standard deviation of {seeds} seeds"
    # Of runs that learn different things it says what is easiest. Single runs are compared by name.
    mixed = len(by_condition(combinations)) > 1 and list(keys) != ["sweep"]
    lowest = "Lowest" if smaller_is_better(metric) else "Highest"
    return {
        "title": f"{lowest} {metric} of all" if mixed else f"Best {metric}",
        "mixed": mixed,
        "value": mean_in_words(best),
        "mean": mean,
        "runs": runs,
        "missing": len(best.members) - runs - best.count(DIVERGED),
        "with": _with(best, keys),
        "lost": best.count(DIVERGED),
        "run": member.name,
        "run_value": measured(number(member, metric) or 0.0),
        "command": " ".join(map(quoted, member.command)),
    }


def _with(best: Combination, keys: Sequence[str]) -> str:
    return ", ".join(f"{short_key(key, keys)} {shown(best.values[key])}" for key in keys)


def _reached(
    combinations: Sequence[Combination], keys: Sequence[str], metric: str
) -> list[dict[str, Any]]:
    """What each key's values reach with the others at their best, for each thing to learn."""
    groups = by_condition(combinations)
    if len(groups) > _MOST_CONDITIONS:
        return []
    told = []
    for condition, group in groups.items():
        values = _by_key(group, [one for one in combinations if _in(one, condition)], keys, metric)
        if values:
            where = ", ".join(f"{short_key(key, keys)} {shown(value)}" for key, value in condition)
            told.append({"where": where if len(groups) > 1 else "", "keys": values})
    return told


def _in(one: Combination, condition: Sequence[tuple[str, Value]]) -> bool:
    return all(one.values[key] == value for key, value in condition)


def _by_key(
    known: Sequence[Combination],
    tried: Sequence[Combination],
    keys: Sequence[str],
    metric: str,
) -> list[dict[str, str]]:
    """Of each key what its values reach, and whether the best is at the edge of those tried."""
    words = []
    for key, values in best_by_value(known, metric).items():
        all_ = different_values(_runs(tried), key)
        # Of a number that is searched, no value stands for more than its own run.
        if is_condition(key) or len(values) < 2 or len(all_) > MOST_STEPS:
            continue
        told = [f"{shown(value)} ({measured(one.mean or 0)})" for value, one in values]
        more = ["others worse"] if len(values) > _MOST_VALUES else []
        words.append(
            {
                "key": short_key(key, keys),
                "value": shown(values[0][0]),
                "reached": ", ".join([*told[:_MOST_VALUES], *more]),
                "edge": edge(values[0][0], all_) or "",
            }
        )
    return words


def _runs(combinations: Sequence[Combination]) -> list[Run]:
    return [member.run for one in combinations for member in one.members]
