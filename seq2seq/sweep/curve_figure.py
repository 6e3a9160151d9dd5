"""The training curves of a report: what runs logged over the optimizer steps.

Runs that differ by seed only share a line; how they are put together is left to `combinations`.
"""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import FigureBase
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from seq2seq.sweep.combinations import DIVERGED, Combination
from seq2seq.sweep.evidence import Evidence
from seq2seq.sweep.figure import MOST_STEPS, apart, line_colour, measured, shown
from seq2seq.sweep.metric_figures import evenly_on_logarithm
from seq2seq.sweep.picture import Panel, Picture
from seq2seq.sweep.plan import short_key
from seq2seq.sweep.runs import is_number

CURVES = ("train/loss", "val/loss")

# More lines than these are told apart by the number that was swept, not by a colour each.
_MOST_COLOURS = 8
_MOST_POINTS = 300
_MOST_PANELS = 4


def curves(combinations: Sequence[Combination], keys: Sequence[str]) -> Picture | None:
    """What was logged over the optimizer steps; None if no run logged a loss.

    Args:
        combinations: one line each, the mean over their runs.
        keys: that were swept, without seeds.
    """
    names = [name for name in CURVES if any(_logged(one, name) for one in _all(combinations))]
    if not names:
        return None
    # What has no line needs no colour.
    combinations = [
        one
        for one in combinations
        if any(_logged(member, name) for member in one.members for name in names)
    ]
    colours = _Colours(combinations, keys)
    spread = any(len(one.members) > 1 for one in combinations)
    bands = spread and len(combinations) <= _MOST_COLOURS
    across = _panel_key(combinations, keys) if colours.scale is not None else None
    panels = []
    for name in names:
        limits = _limits(combinations, name)
        for value in dict.fromkeys(one.values.get(across or "") for one in combinations):
            indices = [
                index
                for index, one in enumerate(combinations)
                if across is None or one.values[across] == value
            ]
            part = [combinations[index] for index in indices]
            if not any(_logged(one, name) for one in _all(part)):
                continue
            where = f"{short_key(across, keys)} {shown(value)}" if across else ""
            panels.append(
                Panel(
                    draw=_Curves(part, name, [colours[i] for i in indices], limits, bands=bands),
                    title=where,
                    alt=" ".join(
                        [name, where, "over the optimizer steps.", _ends_in_words(part, name)]
                    ),
                )
            )
    lost = any(_last_points(one, name) for one in combinations for name in names)
    return Picture(
        name="curves",
        caption=f"{' and '.join(names)} over the optimizer steps, "
        + ("one line for each combination" if keys else "mean over the runs")
        + (", its mean over the runs" if spread and keys else "")
        + (" in a band from the lowest to the highest." if bands else ".")
        + (" A cross is where a run diverged." if lost else ""),
        panels=tuple(panels),
        size=(4.6, 3.3),
        header=("run", *keys, "step", *names),
        rows=[
            [
                one.name,
                *(one.run.overrides.get(key) for key in keys),
                step,
                *(row.get(name) for name in names),
            ]
            for one in _all(combinations)
            for step, row in sorted(one.curves.items())
            if any(name in row for name in names)
        ],
        legend=colours.legend,
        legend_title=", ".join(short_key(key, keys) for key in keys),
        scale=colours.scale,
        scale_label=colours.key or "",
        scale_ticks=colours.ticks,
    )


class _Colours:
    """Gives each combination its colour: one of a few, or that of its place on a scale."""

    def __init__(self, combinations: Sequence[Combination], keys: Sequence[str]) -> None:
        self.legend: tuple[tuple[Any, str], ...] = ()
        self.scale: ScalarMappable | None = None
        self.key: str | None = None
        self.ticks: tuple[tuple[float, str], ...] = ()
        few = len(combinations) <= _MOST_COLOURS
        numeric = [
            key for key in keys if all(is_number(one.values.get(key)) for one in combinations)
        ]
        if few:
            self._of = [line_colour(index, len(combinations)) for index in range(len(combinations))]
            if keys:
                labels = [", ".join(shown(one.values[key]) for key in keys) for one in combinations]
                self.legend = tuple(zip(self._of, labels, strict=True))
        elif numeric:
            self.key = numeric[0]
            values = [float(one.values[self.key]) for one in combinations]  # type: ignore[arg-type]
            scale = LogNorm if evenly_on_logarithm(_all(combinations), self.key) else Normalize
            norm, colours = scale(min(values), max(values)), matplotlib.colormaps["viridis"]
            self.scale = ScalarMappable(norm, colours)
            self._of = [colours(norm(value)) for value in values]
            places = sorted(set(values))
            if scale is LogNorm and len(places) <= MOST_STEPS:
                self.ticks = tuple(zip(places, apart(places), strict=True))
        else:
            key = keys[0]
            found = list(dict.fromkeys(one.values[key] for one in combinations))
            self._of = [
                line_colour(found.index(one.values[key]), len(found)) for one in combinations
            ]
            self.legend = tuple(
                (line_colour(index, len(found)), f"{short_key(key, keys)} {shown(value)}")
                for index, value in enumerate(found)
            )

    def __getitem__(self, index: int) -> Any:
        return self._of[index]


class _Curves:
    """Draws one logged figure of some combinations."""

    def __init__(
        self,
        combinations: Sequence[Combination],
        name: str,
        colours: Sequence[Any],
        limits: tuple[float, float] | None,
        *,
        bands: bool,
    ) -> None:
        self._lines = [_over_steps(one, name) for one in combinations]
        self._lost = [_last_points(one, name) for one in combinations]
        self._name, self._colours, self._limits, self._bands = name, colours, limits, bands

    def __call__(self, figure: FigureBase) -> None:
        axes: Axes = figure.subplots()
        for (steps, values), lost, colour in zip(
            self._lines, self._lost, self._colours, strict=True
        ):
            if not len(steps):
                continue
            # A run with a single value, as of one validation, is a point.
            mark = "o" if len(steps) == 1 else ""
            axes.plot(steps, np.nanmean(values, axis=0), color=colour, linewidth=1.4, marker=mark)
            if self._bands and len(values) > 1:
                band = (np.nanmin(values, axis=0), np.nanmax(values, axis=0))
                axes.fill_between(steps, *band, color=colour, alpha=0.18, linewidth=0)
            for step, value in lost:
                axes.plot(step, value, "x", color=colour, markersize=8)
        if self._limits is not None:
            low, high = self._limits
            if low > 0 and high > 20 * low:
                axes.set_yscale("log")
                axes.set_ylim(low / 1.2, high * 1.2)
            else:
                axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("optimizer steps")
        axes.set_ylabel(self._name)
        axes.grid(alpha=0.25)


def _all(combinations: Sequence[Combination]) -> list[Evidence]:
    return [member for one in combinations for member in one.members]


def _panel_key(combinations: Sequence[Combination], keys: Sequence[str]) -> str | None:
    """Another key than the one of the colours, with few values: a panel for each."""
    for key in keys:
        values = {one.values[key] for one in combinations}
        if 1 < len(values) <= _MOST_PANELS and not all(map(is_number, values)):
            return key
    return None


def _limits(combinations: Sequence[Combination], name: str) -> tuple[float, float] | None:
    """Lowest and highest value that is logged, for panels that compare."""
    values = [
        row[name]
        for member in _all(combinations)
        for row in member.curves.values()
        if math.isfinite(row.get(name, math.nan))
    ]
    return (min(values), max(values)) if values and min(values) < max(values) else None


def _logged(one: Evidence, name: str) -> bool:
    return any(math.isfinite(row.get(name, math.nan)) for row in one.curves.values())


def _over_steps(one: Combination, name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Steps at which any run logged it, and its values ``[runs, steps]``, NaN where it did not."""
    curves = [
        {step: row[name] for step, row in member.curves.items() if name in row}
        for member in one.members
    ]
    curves = [curve for curve in curves if curve]
    steps = np.array(sorted({step for curve in curves for step in curve}), np.int64)
    values = np.array([[curve.get(int(step), math.nan) for step in steps] for curve in curves])
    width = math.ceil(len(steps) / _MOST_POINTS)
    if width > 1:  # means over neighbours: more points than a screen has don't show
        starts = np.arange(0, len(steps), width)
        sums = np.add.reduceat(np.nan_to_num(values), starts, axis=1)
        counts = np.add.reduceat(np.isfinite(values), starts, axis=1)
        values = np.where(counts, sums / np.maximum(counts, 1), math.nan)
        steps = steps[starts]
    return steps, values


def _last_points(one: Combination, name: str) -> list[tuple[int, float]]:
    points = []
    for member in one.members:
        if member.status == DIVERGED and _logged(member, name):
            step = _last_step(member, name)
            points.append((step, member.curves[step][name]))
    return points


def _ends_in_words(combinations: Sequence[Combination], name: str) -> str:
    ends = [
        member.curves[_last_step(member, name)][name]
        for member in _all(combinations)
        if _logged(member, name)
    ]
    if len(ends) == 1:
        return f"The run ends at {measured(ends[0])}."
    return f"The runs end between {measured(min(ends))} and {measured(max(ends))}."


def _last_step(one: Evidence, name: str) -> int:
    return max(step for step, row in one.curves.items() if math.isfinite(row.get(name, math.nan)))
