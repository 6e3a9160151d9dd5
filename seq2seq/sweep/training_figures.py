"""The figures of a report about the course of training: curves, and the gradient over distance.

The gradient norms are those of `diagnostics`, the curves whatever a run logged.
"""

import math
import textwrap
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

from seq2seq.diagnostics.gradient_profile import GradientProfile
from seq2seq.sweep.combinations import DIVERGED, Combination, number, ranked
from seq2seq.sweep.evidence import Evidence
from seq2seq.sweep.figure import MOST_STEPS, apart, line_colour, shown
from seq2seq.sweep.metric_figures import evenly_on_logarithm
from seq2seq.sweep.picture import Panel, Picture
from seq2seq.sweep.plan import short_key
from seq2seq.sweep.runs import is_number

CURVES = ("train/loss", "val/loss")

# More lines than these are told apart by the number that was swept, not by a colour each.
_MOST_COLOURS = 8
_MOST_POINTS = 300
_MOST_PANELS = 4
_MOST_HEAT_MAPS = 8
_TITLE_WIDTH = 38  # letters


def curves(combinations: Sequence[Combination], keys: Sequence[str]) -> Picture | None:
    """What was logged over the optimizer steps; None if no run logged a loss.

    Args:
        combinations: one line each, the mean over their runs.
        keys: that were swept, without seeds.
    """
    logged = {name for one in _all(combinations) for row in one.curves.values() for name in row}
    names = [name for name in CURVES if name in logged]
    if not names:
        return None
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
    lost = any(one.status == DIVERGED for one in _all(combinations))
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


def gradient_heat_maps(
    evidence: Sequence[Evidence],
    combinations: Sequence[Combination],
    keys: Sequence[str],
    *,
    metric: str,
) -> Picture | None:
    """Gradient norm over distance and training, run beside run; None where it wasn't kept.

    Args:
        evidence: all runs.
        combinations: the same, with the runs that differ by seed only together.
        keys: that were swept, without seeds.
        metric: that says which run is best and worst.
    """
    probed = [one for one in evidence if one.flow]
    if not probed:
        return None
    layer = probed[0].flow[0].layer
    profiles = {one.name: _of_layer(one, layer) for one in probed}
    probed = [one for one in probed if profiles[one.name]]
    chosen = _chosen(probed, combinations, keys, metric)
    logarithms = {one.name: _matrix(profiles[one.name]) for one in chosen}
    known = np.concatenate([matrix[np.isfinite(matrix)] for matrix in logarithms.values()])
    if not known.size:
        return None
    # One run that explodes, or has underflowed, doesn't take all colours.
    low, high = np.percentile(known, [5, 95])
    norm = Normalize(math.floor(low), max(math.ceil(high), math.floor(low) + 2))
    remarks = _remarks(chosen, metric)
    panels = [
        Panel(
            draw=_HeatMap(profiles[one.name], logarithms[one.name], norm),
            title=_title(one, keys, remarks),
            alt=f"Gradient norm of {layer} in run {one.name}: "
            + _flow_in_words(profiles[one.name]),
        )
        for one in chosen
    ]
    return Picture(
        name="gradient_norm",
        caption=f"Norm of the gradient with respect to the hidden state of {layer}, by distance "
        f"from the last timestep (upwards) over training (to the right): {len(chosen)} of "
        f"{len(probed)} runs. Dark towards the top: the gradient vanishes on its way back; even "
        "colour: it is carried; brighter towards the top: it explodes.",
        panels=tuple(panels),
        size=(3.3, 2.5),
        header=("run", *keys, "layer", "step", "distance", "norm"),
        rows=[
            [
                one.name,
                *(one.run.overrides.get(key) for key in keys),
                *(layer, profile.step, distance, value),
            ]
            for one in chosen
            for profile in profiles[one.name]
            for distance, value in enumerate(profile.from_end)
        ],
        scale=ScalarMappable(norm, "viridis"),
        beyond=True,
        scale_label="decimal logarithm of the gradient norm",
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


class _HeatMap:
    """Draws the gradient norm of one run."""

    def __init__(
        self, profiles: Sequence[GradientProfile], matrix: NDArray[np.float64], norm: Normalize
    ) -> None:
        self._steps = [profile.step for profile in profiles]
        self._matrix, self._norm = matrix, norm

    def __call__(self, figure: FigureBase) -> None:
        axes: Axes = figure.subplots()
        colours = matplotlib.colormaps["viridis"].with_extremes(bad="0.88")
        distances = len(self._matrix)
        axes.pcolormesh(
            _borders(self._steps),
            np.arange(distances + 1) - 0.5,
            np.ma.masked_invalid(self._matrix),
            norm=self._norm,
            cmap=colours,
            rasterized=True,
        )
        axes.set_xlim(left=min(self._steps[0], self._steps[-1] - 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("optimizer steps")
        axes.set_ylabel("timesteps back")


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
        steps = [step for step, row in member.curves.items() if name in row]
        if member.status == DIVERGED and steps:
            points.append((max(steps), member.curves[max(steps)][name]))
    return points


def _ends_in_words(combinations: Sequence[Combination], name: str) -> str:
    ends = [
        member.curves[max(steps)][name]
        for member in _all(combinations)
        if (steps := [step for step, row in member.curves.items() if name in row])
    ]
    return f"The runs end between {min(ends):.3g} and {max(ends):.3g}."


def _of_layer(one: Evidence, layer: str) -> list[GradientProfile]:
    """By step; what is known only as transport, without a loss, is left out."""
    found = {
        profile.step: profile
        for profile in one.flow
        if profile.layer == layer and profile.quantity == "hidden"
    }
    return [found[step] for step in sorted(found)]


def _chosen(
    probed: Sequence[Evidence],
    combinations: Sequence[Combination],
    keys: Sequence[str],
    metric: str,
) -> list[Evidence]:
    """The best and the worst run, and others spread over the first number that was swept."""
    numeric = [key for key in keys if all(number(one, key) is not None for one in probed)]

    def place(one: Evidence) -> tuple[float, ...]:
        return tuple(number(one, key) or 0.0 for key in numeric)

    order = ranked([_alone(one, metric) for one in probed], metric)
    chosen = {one.members[0].name: one.members[0] for one in (*order[:1], *order[-1:])}
    names = {one.name for one in probed}
    groups = [[one for one in it.members if one.name in names] for it in combinations]
    groups = [group for group in groups if group and not any(one.name in chosen for one in group)]
    if len(combinations) == 1:  # they differ by seed only
        groups = [[one] for one in probed if one.name not in chosen]
    others = sorted((group[0] for group in groups), key=place)
    count = min(_MOST_HEAT_MAPS - len(chosen), len(others))
    for index in np.linspace(0, len(others) - 1, count).round().astype(int):
        chosen[others[index].name] = others[index]
    return sorted(chosen.values(), key=place)


def _alone(one: Evidence, metric: str) -> Combination:
    value = number(one, metric)
    return Combination({}, (one,), () if value is None else (value,))


def _remarks(chosen: Sequence[Evidence], metric: str) -> dict[str, str]:
    order = ranked([_alone(one, metric) for one in chosen], metric)
    if len(order) < 2:
        return {}
    return {order[0].members[0].name: "best", order[-1].members[0].name: "worst"}


def _title(one: Evidence, keys: Sequence[str], remarks: dict[str, str]) -> str:
    values = [f"{short_key(key, keys)} {shown(one.run.overrides.get(key))}" for key in keys]
    words = [remarks.get(one.name), one.status if one.status != "finished" else None]
    extra = [word for word in words if word]
    title = ", ".join(values or [f"run {one.name}"]) + (f" ({', '.join(extra)})" if extra else "")
    return "\n".join(textwrap.wrap(title, _TITLE_WIDTH))


def _matrix(profiles: Sequence[GradientProfile]) -> NDArray[np.float64]:
    """Decimal logarithms ``[distances, steps]``, NaN where unknown."""
    distances = max(len(profile.from_end) for profile in profiles)
    matrix = np.full((distances, len(profiles)), math.nan)
    for column, profile in enumerate(profiles):
        matrix[: len(profile.from_end), column] = profile.log10()
    known = np.flatnonzero(np.isfinite(matrix).any(axis=1))
    return matrix[: known[-1] + 1] if known.size else matrix


def _borders(steps: Sequence[int]) -> NDArray[np.float64]:
    """Half-way between steps, and as far beyond the first and the last."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    array = np.array(steps, np.float64)
    middle = (array[1:] + array[:-1]) / 2
    return np.concatenate([[2 * array[0] - middle[0]], middle, [2 * array[-1] - middle[-1]]])


def _flow_in_words(profiles: Sequence[GradientProfile]) -> str:
    first, last = profiles[0], profiles[-1]
    slopes = [
        f"slope {profile.slope:.2g} per timestep at step {profile.step}"
        for profile in ([first, last] if last is not first else [first])
        if not math.isnan(profile.slope)
    ]
    return ", ".join(slopes) or "too short for a slope"
