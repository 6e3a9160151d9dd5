"""The figures of a report about the outcome: the metric over each key, the sweet spot, importance.

How runs are counted and averaged is the business of `combinations` and `importance`.
"""

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import FigureBase

from seq2seq.sweep.combinations import Combination, best_values, number, smaller_is_better
from seq2seq.sweep.evidence import Evidence
from seq2seq.sweep.figure import (
    LOST,
    MOST_STEPS,
    different_values,
    draw_lines,
    line_colour,
    positions,
    shown,
)
from seq2seq.sweep.importance import Importance, correlation_ratio, grouped
from seq2seq.sweep.picture import Panel, Picture
from seq2seq.sweep.plan import short_key
from seq2seq.sweep.runs import Run, is_number

# More lines can't be told apart.
_MOST_LINES = 8
_GREY = "0.55"


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
        raise ValueError(f"no run has {metric} yet")
    logarithmic = [metric] if _wide([number(one, metric) for one in evidence]) else []
    panels = [
        Panel(
            draw=_Scatter(evidence, combinations, key, metric, logarithmic),
            alt=f"{metric} of each run over {key}, with the mean of each value. "
            + _in_words(combinations, key, metric),
        )
        for key in keys
    ]
    marks = _marks_in_words(evidence)
    return Picture(
        name="metric_by_key",
        caption=f"Each grey point is a run, each blue one the mean over all other keys. "
        f"{'Lower' if smaller_is_better(metric) else 'Higher'} is better.{marks}",
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
) -> Picture | None:
    """Metric and gradient slope over the number that moves the slope; None if none does.

    Args:
        evidence: all runs.
        combinations: the same, with the runs that differ by seed only together.
        metric: that is drawn.
    """
    keys = list(combinations[0].values)
    measured = [one for one in evidence if number(one, "slope") is not None]
    scores = {}
    for key in keys:
        values = [one.run.overrides.get(key) for one in measured]
        if all(is_number(value) for value in values) and len(set(values)) > 1:
            slopes = [number(one, "slope") or 0.0 for one in measured]
            scores[key] = correlation_ratio(grouped(values), slopes)
    if not scores or max(scores.values()) <= 0 or not _known(measured, metric):
        return None
    x = max(scores, key=scores.__getitem__)
    lines = _lines(measured, [key for key in keys if key != x], metric)
    labels = different_values([one.run for one in evidence], lines)
    best = best_values(combinations, metric).get(x)
    averaged = [key for key in keys if key not in (x, lines)]
    short = short_key(x, keys)
    legend = [(line_colour(i, len(labels)), shown(label)) for i, label in enumerate(labels)]
    return Picture(
        name="sweet_spot",
        caption=f"Above {metric}, below the slope of the gradient's logarithm per timestep at the "
        f"start of training, over {short}. Below 0 the gradient vanishes on its way back, above it "
        "explodes."
        + (f" The dashed line is at the best {short}, {shown(best.value)}." if best else "")
        + (f" Averaged over {', '.join(averaged)}." if averaged else "")
        + _marks_in_words(evidence),
        panels=(
            Panel(
                draw=_SweetSpot(evidence, x, metric, lines, best.value if best else None),  # type: ignore[arg-type]
                alt=f"{metric} and gradient slope over {x}. " + _in_words(combinations, x, metric),
            ),
        ),
        size=(4.6, 4.8),
        header=("run", x, *([lines] if lines else []), "status", metric, "slope"),
        rows=[
            [
                one.name,
                *(one.run.overrides.get(key) for key in (x, lines) if key),
                one.status,
                number(one, metric),
                number(one, "slope"),
            ]
            for one in evidence
        ],
        legend=tuple(legend) if lines else (),
        legend_title=short_key(lines, keys) if lines else "",
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
        + (f" Left out: {left_out} runs without a value." if left_out else ""),
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
        self._key, self._metric = key, metric
        self._logarithmic = [*logarithmic, *([key] if evenly_on_logarithm(evidence, key) else [])]
        self._points = [
            (one.run.value(key), value)
            for one in evidence
            if (value := number(one, metric)) is not None
        ]
        # Means of combinations weigh the same however many of their seeds have ended.
        means = [
            Run(one.members[0].run.folder, one.values, {metric: one.mean}, ())
            for one in combinations
        ]
        lost = [one.run for one in evidence if one.status in LOST]
        self._runs = [
            *means,
            *(
                Run(run.folder, run.overrides, {"status": run.columns["status"]}, ())
                for run in lost
            ),
        ]
        values = different_values(self._runs, key)
        steps = len(values) <= MOST_STEPS or len(combinations[0].values) == 1
        self._joined = steps and all(is_number(value) for value in values)

    def __call__(self, figure: FigureBase) -> None:
        axes: Axes = figure.subplots()
        at = positions(self._runs, self._key)
        axes.margins(y=0.12)
        across, up = zip(*((at[place], value) for place, value in self._points), strict=True)
        axes.plot(across, up, "o", color=_GREY, markersize=4, alpha=0.6)
        draw_lines(
            *(axes, self._runs, self._key, self._metric, None, [None], self._logarithmic),
            joined=self._joined,
            band=False,
        )
        if not all(map(is_number, at)):
            axes.set_xlim(-0.5, len(at) - 0.5)
        axes.set_xlabel(self._key)
        axes.set_ylabel(self._metric)


class _SweetSpot:
    """Draws metric and slope, one above the other."""

    def __init__(
        self,
        evidence: Sequence[Evidence],
        x: str,
        metric: str,
        lines: str | None,
        best: float | None,
    ) -> None:
        self._evidence, self._x, self._metric = evidence, x, metric
        self._lines, self._best = lines, best

    def __call__(self, figure: FigureBase) -> None:
        runs = [one.run for one in self._evidence]
        labels = different_values(runs, self._lines)
        logarithmic = [self._x] if evenly_on_logarithm(self._evidence, self._x) else []
        if _wide([number(one, self._metric) for one in self._evidence]):
            logarithmic.append(self._metric)
        joined = len(different_values(runs, self._x)) <= MOST_STEPS
        above, below = figure.subplots(2, 1, sharex=True)
        for axes, name in ((above, self._metric), (below, "slope")):
            axes.margins(y=0.12)
            marked = runs if axes is above else [_unmarked(run) for run in runs]
            draw_lines(
                *(axes, marked, self._x, name, self._lines, labels, logarithmic), joined=joined
            )
            if self._best is not None:
                axes.axvline(self._best, color="0.3", linestyle="--", linewidth=1)
        above.set_ylabel(self._metric)
        below.set_ylabel("gradient slope per timestep")
        below.set_xlabel(self._x)


def evenly_on_logarithm(evidence: Sequence[Evidence], key: str) -> bool:
    """Whether the values of a key are spaced more evenly by their ratio than by their distance."""
    values = sorted({value for one in evidence if (value := number(one, key)) is not None})
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


def _unmarked(run: Run) -> Run:
    """The same without a status: the slope of a run that diverged later is known all the same."""
    return Run(run.folder, run.overrides, {**run.columns, "status": None}, run.transport)


def _marks_in_words(evidence: Sequence[Evidence]) -> str:
    words = {"diverged": "a cross is a run that diverged", "failed": "a plus one that failed"}
    found = [
        text for status, text in words.items() if any(one.status == status for one in evidence)
    ]
    return f" At the upper edge {', '.join(found)}." if found else ""


def _in_words(combinations: Sequence[Combination], key: str, metric: str) -> str:
    best = best_values(combinations, metric).get(key)
    if best is None:
        return ""
    return f"The best median, {best.median:.4g}, is at {shown(best.value)}."
