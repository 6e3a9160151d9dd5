"""The figures of a report about the outcome: the metric over each key, the sweet spot, importance.

How runs are counted and averaged is the business of `combinations` and `importance`.
"""

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import FigureBase

from seq2seq.sweep.combinations import (
    Combination,
    best_values,
    by_condition,
    condition_of,
    is_condition,
    number,
    runs_in_words,
    smaller_is_better,
)
from seq2seq.sweep.evidence import Evidence
from seq2seq.sweep.figure import (
    LOST,
    MOST_STEPS,
    different_values,
    draw_lines,
    line_colour,
    measured,
    positions,
    shown,
)
from seq2seq.sweep.importance import Importance, correlation_ratio, grouped
from seq2seq.sweep.picture import Panel, Picture
from seq2seq.sweep.plan import short_key
from seq2seq.sweep.runs import Run, Value, is_number

# More lines can't be told apart.
_MOST_LINES = 8
_GREY = "0.55"
# Name under which a run has the label of its line.
_LINE = "line"
# Names of columns as an axis has them.
_IN_WORDS = {"slope": "gradient slope per timestep", "half_life": "half-life in timesteps"}


def metric_by_key(
    evidence: Sequence[Evidence], combinations: Sequence[Combination], metric: str
) -> Picture:
    """One panel for each key: a point for each run, a line through the means.

    Args:
        evidence: all runs.
        combinations: the same, with the runs that differ by seed only together.
        metric: that is drawn.

    Raises:
        ValueError: if no run has the metric, or no key was swept.
    """
    keys = list(combinations[0].values)
    if not keys:
        raise ValueError("the runs differ in nothing but their seed")
    if not _known(evidence, metric):
        raise ValueError(f"no run has {metric}")
    logarithmic = [metric] if _wide([number(one, metric) for one in evidence]) else []
    conditions = [key for key in keys if is_condition(key)]
    labels = different_values([_labelled(one.run, conditions) for one in evidence], _LINE)
    told_apart = 1 < len(labels) <= _MOST_LINES and len(conditions) < len(keys)
    panels = [
        Panel(
            draw=_Scatter(evidence, combinations, key, metric, logarithmic),
            alt=f"{metric} of each run over {key}, with the mean of each value. "
            + _in_words(combinations, key, metric),
        )
        for key in keys
    ]
    means = "each blue one the mean over all other keys"
    if told_apart:
        means = (
            f"each coloured one the mean over all other keys within one {' and '.join(conditions)}"
        )
    elif len(labels) > 1 and len(conditions) < len(keys):
        means = (
            f"and means are left out, as values compare only within one of {len(labels)} "
            f"{' and '.join(conditions)}"
        )
    marks = _marks_in_words(evidence)
    return Picture(
        name="metric_by_key",
        caption=f"Each grey point is a run, {means}. "
        f"{'Lower' if smaller_is_better(metric) else 'Higher'} is better.{marks}",
        legend=_legend(labels) if told_apart else (),
        legend_title=", ".join(short_key(key, keys) for key in conditions) if told_apart else "",
        panels=tuple(panels),
        size=(4.6, 3.1),
        header=("run", *keys, "status", metric),
        rows=[
            [
                one.name,
                *(one.run.overrides.get(key) for key in keys),
                one.status,
                number(one, metric),
            ]
            for one in evidence
        ],
    )


def sweet_spot(
    evidence: Sequence[Evidence], combinations: Sequence[Combination], metric: str
) -> Picture:
    """Metric and gradient slope over the number that moves the slope.

    Args:
        evidence: all runs.
        combinations: the same, with the runs that differ by seed only together.
        metric: that is drawn.

    Raises:
        ValueError: saying what is missing.
    """
    if not _known(evidence, metric):
        raise ValueError(f"no run has {metric}")
    keys = list(combinations[0].values)
    x = _axis(evidence, keys)
    if not _known([one for one in evidence if number(one, x) is not None], metric):
        raise ValueError(f"no run with a number as {x} has {metric}")
    return _over_axis(evidence, combinations, x, (metric, "slope"))


def slope_at_start(evidence: Sequence[Evidence], combinations: Sequence[Combination]) -> Picture:
    """Slope and half-life of the gradient before training over the number that moves the slope.

    Args:
        evidence: all runs.
        combinations: the same, with the runs that differ by seed only together.

    Raises:
        ValueError: saying what is missing.
    """
    x = _axis(evidence, list(combinations[0].values))
    return _over_axis(evidence, combinations, x, ("slope", "half_life"))


def _axis(evidence: Sequence[Evidence], keys: Sequence[str]) -> str:
    """The number whose values explain most of the slope among runs that learn the same.

    Raises:
        ValueError: if the slope is unknown, or no number moves it.
    """
    known = [one for one in evidence if number(one, "slope") is not None]
    if not known:
        raise ValueError(
            "the slope of the gradient is not known: inspect=true measures it before training"
        )
    scores = {}
    for key in keys:
        if is_condition(key):
            continue
        # A value such as null has no place on an axis of numbers.
        placed = [one for one in known if number(one, key) is not None]
        conditions = [_condition(one, keys) for one in placed]
        groups = grouped([number(one, key) for one in placed])
        slopes = [number(one, "slope") or 0.0 for one in placed]
        inside = list(zip(conditions, groups, strict=True))
        if len(set(inside)) > len(set(conditions)):
            scores[key] = correlation_ratio(inside, _less_means(slopes, conditions))
    if not scores or max(scores.values()) <= 0:
        raise ValueError("no number was swept that moves the slope of the gradient")
    return max(scores, key=scores.__getitem__)


def _less_means(values: Sequence[float], groups: Sequence[Hashable]) -> list[float]:
    members: dict[Hashable, list[float]] = {}
    for group, value in zip(groups, values, strict=True):
        members.setdefault(group, []).append(value)
    return [
        value - statistics.fmean(members[group])
        for group, value in zip(groups, values, strict=True)
    ]


def _over_axis(
    evidence: Sequence[Evidence],
    combinations: Sequence[Combination],
    x: str,
    names: tuple[str, str],
) -> Picture:
    """The sweet spot, or the slope and the half-life, one above the other."""
    keys = list(combinations[0].values)
    placed = [one for one in evidence if number(one, x) is not None]
    metric = None if names[0] == "slope" else names[0]
    inside = [one for one in combinations if any(number(it, x) is not None for it in one.members)]
    best = None
    if len(_conditions(placed, keys)) > 1:
        lines = [key for key in keys if is_condition(key)]
    else:
        chosen = _lines(placed, [key for key in keys if key != x], names[0])
        lines = [chosen] if chosen else []
        best = best_values(inside, names[0]).get(x) if metric else None
    runs = [_labelled(one.run, lines) for one in placed]
    labels = different_values(runs, _LINE)
    if len(labels) > _MOST_LINES:
        raise ValueError(
            f"values compare only within one of {len(labels)} {' and '.join(lines)}, which are too "
            "many for one figure"
        )
    short = short_key(x, keys)
    averaged = [
        short_key(key, keys)
        for key in keys
        if key not in (x, *lines) and len(different_values(runs, key)) > 1
    ]
    left_out = len(evidence) - len(placed)
    sentences = [
        f"Above {metric}, below the slope of the gradient's logarithm per timestep at the start of "
        f"training, over {short}."
        if metric
        else "Above the slope of the gradient's logarithm per timestep before training, below its "
        f"half-life in timesteps where it vanishes, over {short}.",
        "Below a slope of 0 the gradient vanishes on its way back, above it explodes.",
    ]
    if best is not None:
        sentences.append(f"The dashed line is at the best {short}, {shown(best.value)}.")
    if averaged:
        sentences.append(f"Averaged over {', '.join(averaged)}.")
    if left_out:
        sentences.append(f"Left out: {runs_in_words(left_out)} whose {short} is no number.")
    in_words = _in_words(inside, x, names[0]) if metric else ""
    return Picture(
        name="sweet_spot" if metric else "slope",
        caption=" ".join(sentences) + (_marks_in_words(placed) if metric else ""),
        panels=(
            Panel(
                draw=_SweetSpot(runs, x, names, labels, best.value if best else None),  # type: ignore[arg-type]
                alt=f"{' and '.join(_IN_WORDS.get(name, name) for name in names)} over {x}. "
                + in_words,
            ),
        ),
        size=(4.6, 4.8),
        header=("run", x, *lines, "status", *names),
        rows=[
            [
                one.name,
                *(one.run.overrides.get(key) for key in (x, *lines)),
                one.status,
                *(number(one, name) for name in names),
            ]
            for one in placed
        ],
        legend=_legend(labels) if lines else (),
        legend_title=", ".join(short_key(key, keys) for key in lines),
    )


def importance_figure(found: Importance, metric: str, *, left_out: int) -> Picture:
    """A bar for each key, for the seed, and for what keys do only together.

    Args:
        found: the shares.
        metric: whose variance they divide.
        left_out: number of runs that have no value of it.
    """
    bars = [(share.name, share.explained) for share in found.shares]
    names = [share.name for share in found.shares]
    labels = [short_key(name, names) for name in names]
    if found.noise is not None:
        bars.append(("seed (noise)", found.noise))
    bars.append(("in combination", found.together))
    labels += [name for name, _ in bars[len(labels) :]]
    chance = [share.chance for share in found.shares]

    def draw(figure: FigureBase) -> None:
        axes: Axes = figure.subplots()
        colours = [line_colour(0, 1)] * len(chance) + [_GREY] * (len(bars) - len(chance))
        axes.barh(labels, [100 * share for _, share in bars], color=colours, height=0.6)
        for row, share in enumerate(chance):
            axes.plot([100 * share] * 2, [row - 0.38, row + 0.38], color="black", linewidth=1.2)
        for row, (_, share) in enumerate(bars):
            axes.annotate(
                f"{100 * share:.0f} %",
                (100 * max(share, chance[row] if row < len(chance) else 0), row),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
            )
        axes.invert_yaxis()
        axes.set_xlim(0, 112)
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel("share of the variance, %")

    quantity = f"the logarithm of {metric}" if found.logarithmic else metric
    return Picture(
        name="importance",
        caption=f"How much of the variance of {quantity} over {found.runs} runs the means of each "
        "key explain: the main effects of an analysis of variance (Hutter et al. 2014). The black "
        "tick is what as many values would explain by chance."
        + (
            f" Only differences within one {' and '.join(found.within)} are divided, as values "
            "compare only there."
            if found.within
            else ""
        )
        + (f" Left out: {runs_in_words(left_out)} without a value." if left_out else ""),
        panels=(
            Panel(
                draw=draw,
                alt="Share of the variance: "
                + ", ".join(f"{name} {100 * share:.0f} %" for name, share in bars),
            ),
        ),
        size=(4.6, 0.9 + 0.38 * len(bars)),
        header=("key", "share", "by chance"),
        rows=[
            [name, share, by_chance]
            for (name, share), by_chance in zip(
                bars, [*chance, *[None] * (len(bars) - len(chance))], strict=True
            )
        ],
    )


class _Scatter:
    """Draws the metric of all runs over one key."""

    def __init__(
        self,
        evidence: Sequence[Evidence],
        combinations: Sequence[Combination],
        key: str,
        metric: str,
        logarithmic: Sequence[str],
    ) -> None:
        keys = list(combinations[0].values)
        lines = [key for key in keys if is_condition(key)]
        lines = lines if len(lines) < len(keys) else []
        self._key, self._metric = key, metric
        self._logarithmic = [*logarithmic, *([key] if evenly_on_logarithm(evidence, key) else [])]
        self._points = [
            (one.run.value(key), value)
            for one in evidence
            if (value := number(one, metric)) is not None
        ]
        # Means of combinations weigh the same however many of their seeds have ended.
        means = [
            _labelled(Run(one.members[0].run.folder, one.values, {metric: one.mean}, ()), lines)
            for one in combinations
        ]
        lost = [one.run for one in evidence if one.status in LOST]
        self._runs = [
            *means,
            *(
                _labelled(
                    Run(run.folder, run.overrides, {"status": run.columns["status"]}, ()), lines
                )
                for run in lost
            ),
        ]
        labels = different_values(self._runs, _LINE)
        self._labels = labels if len(labels) <= _MOST_LINES else []
        values = different_values(self._runs, key)
        steps = len(values) <= MOST_STEPS or len(keys) == 1
        self._joined = steps and all(is_number(value) for value in values)

    def __call__(self, figure: FigureBase) -> None:
        axes: Axes = figure.subplots()
        at = positions(self._runs, self._key)
        axes.margins(y=0.12)
        across, up = zip(*((at[place], value) for place, value in self._points), strict=True)
        axes.plot(across, up, "o", color=_GREY, markersize=4, alpha=0.6)
        draw_lines(
            *(axes, self._runs, self._key, self._metric, _LINE, self._labels),
            self._logarithmic,
            joined=self._joined,
            band=False,
        )
        if not all(map(is_number, at)):
            axes.set_xlim(-0.5, len(at) - 0.5)
        axes.set_xlabel(self._key)
        axes.set_ylabel(self._metric)


class _SweetSpot:
    """Draws two figures of the runs, one above the other."""

    def __init__(
        self,
        runs: Sequence[Run],
        x: str,
        names: tuple[str, str],
        labels: Sequence[Value],
        best: float | None,
    ) -> None:
        self._runs, self._x, self._names = runs, x, names
        self._labels, self._best = labels, best

    def __call__(self, figure: FigureBase) -> None:
        logarithmic = [self._x] if _evenly([run.value(self._x) for run in self._runs]) else []
        joined = len(different_values(self._runs, self._x)) <= MOST_STEPS
        grid = figure.subplots(2, 1, sharex=True)
        for axes, name in zip(grid, self._names, strict=True):
            axes.margins(y=0.12)
            runs = self._runs if "/" in name else [_unmarked(run) for run in self._runs]
            if name == "half_life":  # a negative one is the time to double
                runs = [run if _positive(run.value(name)) else _without(run, name) for run in runs]
            wide = name != "slope" and _wide([_finite(run.value(name)) for run in runs])
            draw_lines(
                *(axes, runs, self._x, name, _LINE, self._labels),
                [*logarithmic, *([name] if wide else [])],
                joined=joined,
            )
            if self._best is not None:
                axes.axvline(self._best, color="0.3", linestyle="--", linewidth=1)
            axes.set_ylabel(_IN_WORDS.get(name, name))
        grid[-1].set_xlabel(self._x)


def evenly_on_logarithm(evidence: Sequence[Evidence], key: str) -> bool:
    """Whether the values of a key are spaced more evenly by their ratio than by their distance."""
    return _evenly([one.run.value(key) for one in evidence])


def _evenly(found: Sequence[Value]) -> bool:
    values = sorted({value for one in found if (value := _finite(one)) is not None})
    if len(values) < 2 or values[0] <= 0 or values[-1] / values[0] < 8:
        return False
    if len(values) == 2:
        return True
    distances = [after - before for before, after in pairwise(values)]
    ratios = [math.log(after / before) for before, after in pairwise(values)]
    return _unevenness(ratios) < _unevenness(distances)


def _unevenness(gaps: Sequence[float]) -> float:
    return statistics.pstdev(gaps) / statistics.fmean(gaps)


def _lines(evidence: Sequence[Evidence], keys: Sequence[str], metric: str) -> str | None:
    """Of the keys with few values the one that the metric depends on most."""
    known = [one for one in evidence if number(one, metric) is not None]
    metrics = [number(one, metric) or 0.0 for one in known]
    scores = {
        key: correlation_ratio([one.run.overrides.get(key) for one in known], metrics)
        for key in keys
        if 1 < len({one.run.overrides.get(key) for one in evidence}) <= _MOST_LINES
    }
    return max(scores, key=scores.__getitem__) if scores else None


def _known(evidence: Sequence[Evidence], metric: str) -> bool:
    return any(number(one, metric) is not None for one in evidence)


def _wide(values: Sequence[float | None]) -> bool:
    """Whether they reach over so many powers of ten that a logarithm shows them better."""
    known = [value for value in values if value is not None]
    return min(known, default=0.0) > 0 and max(known) > 20 * min(known)


def _finite(value: Value) -> float | None:
    known = is_number(value) and math.isfinite(value)  # type: ignore[arg-type]
    return float(value) if known else None  # type: ignore[arg-type]


def _positive(value: Value) -> bool:
    return (_finite(value) or 0.0) > 0


def _labelled(run: Run, keys: Sequence[str]) -> Run:
    """The same with the label of the line that it belongs to: its values of some keys."""
    return Run(
        run.folder,
        {**run.overrides, _LINE: _label(run.overrides, keys)},
        run.columns,
        run.transport,
    )


def _label(settings: Mapping[str, Value], keys: Sequence[str]) -> Value:
    values = [settings.get(key) for key in keys]
    return values[0] if len(values) == 1 else ", ".join(map(shown, values)) or None


def _conditions(evidence: Sequence[Evidence], keys: Sequence[str]) -> list[Hashable]:
    """The different things that runs learn, as first seen."""
    return list(dict.fromkeys(_condition(one, keys) for one in evidence))


def _condition(one: Evidence, keys: Sequence[str]) -> Hashable:
    return condition_of({key: one.run.overrides.get(key) for key in keys})


def _legend(labels: Sequence[Value]) -> tuple[tuple[Any, str], ...]:
    return tuple((line_colour(i, len(labels)), shown(label)) for i, label in enumerate(labels))


def _unmarked(run: Run) -> Run:
    """The same without a status: the slope of a run that diverged later is known all the same."""
    return _without(run, "status")


def _without(run: Run, column: str) -> Run:
    return Run(run.folder, run.overrides, {**run.columns, column: None}, run.transport)


def _marks_in_words(evidence: Sequence[Evidence]) -> str:
    words = {"diverged": "a cross is a run that diverged", "failed": "a plus one that failed"}
    found = [
        text for status, text in words.items() if any(one.status == status for one in evidence)
    ]
    return f" At the upper edge {', '.join(found)}." if found else ""


def _in_words(combinations: Sequence[Combination], key: str, metric: str) -> str:
    best = best_values(combinations, metric).get(key)
    if best is None or len(by_condition(combinations)) > 1:
        return ""
    return f"The best median, {measured(best.median)}, is at {shown(best.value)}."
