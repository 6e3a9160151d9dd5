"""The picture of a sweep: lines over one axis, a matrix, or how far each start carries a gradient.

Runs that differ only in what isn't drawn, such as the seed, are averaged: a line is their mean and
its band goes from the lowest to the highest. Which runs there are is the business of `sweep`.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from seq2seq.diagnostics.gradient_profile import SMALLEST_NORM
from seq2seq.sweep.runs import Run, Value, is_number, swept, typed

KINDS = ("lines", "matrix", "profile")

FIGURE = "sweep.png"

# The lowest share that a profile shows.
_LOWEST_NORM = 1e-12
# Marks of runs without a value, at the upper edge.
LOST = {"diverged": "x", "failed": "+"}
# Values of a grid, each named on its axis; more are those of a search.
MOST_STEPS = 12
# Share of a logarithmic axis that lies at least between two of its numbers, lest they overlap.
_APART = 0.08
# Of names side by side below an axis; more are turned.
_MOST_LETTERS = 40


def check_figure(kind: str, *, lines: str | None, x: str | None, y: Sequence[str]) -> None:
    """Refuse a kind that isn't there, or one that lacks a name it needs.

    Raises:
        ValueError: naming the config key.
    """
    if kind not in KINDS:
        raise ValueError(f"figure.kind={kind} must be one of {', '.join(KINDS)}")
    if kind != "profile" and (x is None or not y):
        raise ValueError(f"figure.kind={kind} needs figure.x and at least one name in figure.y")
    if kind == "matrix" and lines is None:
        raise ValueError("figure.kind=matrix needs figure.lines, the rows of the matrix")


def names(names: Any) -> list[str]:
    """What a key of the figure names: nothing, one name, or a list of them."""
    return [] if names is None else [names] if isinstance(names, str) else list(names)


def figure_of(runs: Sequence[Run], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of :func:`draw`: the config's, or what suits the sweep.

    Without an axis it is the first number that was swept, with a line for each value of the next
    key; without a quantity the losses are drawn, with the slope below if it was measured.
    """
    measured = [
        name
        for name in ("test/loss", "slope")
        if any(run.columns.get(name) is not None for run in runs)
    ]
    figure = {
        **wanted,
        "y": names(wanted["y"]) or measured or ["test/loss"],
        "logarithmic": names(wanted["logarithmic"]),
    }
    if wanted["x"] is not None:
        return figure
    keys = [key for key in swept(runs) if key != "seed"]
    if wanted["kind"] == "profile":
        return {**figure, "lines": wanted["lines"] or (keys[0] if keys else None)}
    if not measured:
        raise ValueError("no run has a loss or was measured")
    if not keys:
        raise ValueError("the runs differ in nothing but their seed")
    numbers = [key for key in keys if all(is_number(run.overrides.get(key)) for run in runs)]
    axis = (numbers or keys)[0]
    lines, panels, *_ = [*(key for key in keys if key != axis), None, None]
    return {
        **figure,
        "x": axis,
        "lines": wanted["lines"] or lines,
        "panels": wanted["panels"] or panels,
    }


def draw(
    runs: Sequence[Run],
    *,
    kind: str,
    x: str | None = None,
    y: Sequence[str] = (),
    lines: str | None = None,
    panels: str | None = None,
    logarithmic: Sequence[str] = (),
    title: str | None = None,
) -> bytes:
    """Draw the runs of a sweep, as PNG.

    Names are those of the sweep's table: overrides, such as ``model.hidden_size``, and its columns,
    such as ``test/loss``. A run that diverged has no loss: there is a cross at the upper edge, or a
    plus where one failed.

    Args:
        runs: with what is known of each.
        kind: ``lines``: each of ``y`` over ``x``, one below the other; ``matrix``: the means of
            each of ``y`` as colours and numbers, ``lines`` against ``x``; ``profile``: what is left
            of a gradient over the distance back, from the measurement before training.
        x: horizontal axis: any values, numbers where they are; not for a profile.
        y: what is drawn; not for a profile.
        lines: one line, or row of the matrix, for each value.
        panels: one panel side by side for each value.
        logarithmic: those of ``x`` and ``y`` whose axis is logarithmic.
        title: above the picture.

    Raises:
        ValueError: if a name is in no run, with the names there are.
    """
    check_figure(kind, lines=lines, x=x, y=y)
    if kind == "profile":
        x, y, logarithmic = None, ["transport"], ()
        if not any(run.transport for run in runs):
            raise ValueError(
                "figure.kind=profile needs runs that were measured before training: inspect=true"
            )
    for key, name in [("x", x), ("lines", lines), ("panels", panels), *(("y", one) for one in y)]:
        _require(runs, f"figure.{key}", name if kind != "profile" or key != "y" else None)
    if kind != "profile":
        _require_numbers(runs, y)
    for name in logarithmic:
        _require_positive(runs, name, [x, *y])
    columns = different_values(runs, panels)
    labels = different_values(runs, lines)
    height = 1.3 + 0.4 * len(labels) if kind == "matrix" else 3.3
    figure = Figure(
        figsize=(max(5.0, 4.2 * len(columns)) + 1.5, height * len(y) + 0.6), layout="constrained"
    )
    grid = figure.subplots(len(y), len(columns), squeeze=False, sharey="row")
    for row, name in enumerate(y):
        for column, panel in enumerate(columns):
            axes = grid[row, column]
            chosen = [run for run in runs if panels is None or run.value(panels) == panel]
            if panels is not None and not row:
                axes.set_title(f"{_short(panels)} {shown(panel)}", fontsize=10)
            if kind == "lines":
                assert x is not None
                draw_lines(axes, chosen, x, name, lines, labels, logarithmic)
            elif kind == "matrix":
                assert x is not None and lines is not None
                _draw_matrix(axes, chosen, x, name, lines, labels)
            else:
                _draw_profiles(axes, chosen, lines, labels)
            if not column:
                vertical = {"lines": _short(name), "matrix": _short(lines or "")}
                axes.set_ylabel(vertical.get(kind, "transport: share left"))
    if lines is not None and kind != "matrix":
        # A line may have its first point in any panel.
        found: dict[str, Any] = {}
        for axes in grid.flat:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                found.setdefault(label, handle)
        order = [shown(label) for label in labels if shown(label) in found]
        handles = [found[label] for label in order]
        figure.legend(handles, order, title=_short(lines), loc="outside right center", fontsize=8)
    if title:
        figure.suptitle(title, fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def draw_lines(
    axes: Axes,
    runs: Sequence[Run],
    x: str,
    y: str,
    lines: str | None,
    labels: Sequence[Value],
    logarithmic: Sequence[str],
    *,
    joined: bool = True,
    band: bool = True,
) -> None:
    """Draw the means of ``y`` over ``x``, one line for each of ``labels``.

    Where a run diverged there is a cross at the upper edge, where one failed a plus.

    Args:
        axes: to draw on.
        runs: whose overrides and columns are the names.
        x: horizontal axis.
        y: vertical axis.
        lines: what has the labels as its values; None for one line of all runs.
        labels: values of ``lines``, in the order of their colours.
        logarithmic: those of ``x`` and ``y`` whose axis is logarithmic.
        joined: draw a line through the means; else points only.
        band: from the lowest value to the highest.
    """
    at = positions(runs, x)
    numeric = all(is_number(value) for value in at)
    if y in logarithmic:
        axes.set_yscale("log")
    if x in logarithmic and numeric:
        axes.set_xscale("log")
        if len(at) <= MOST_STEPS:
            axes.set_xticks(list(at.values()), apart(list(at)))
            axes.xaxis.set_minor_locator(NullLocator())
    for index, label in enumerate(labels):
        line = [run for run in runs if lines is None or run.value(lines) == label]
        colour = line_colour(index, len(labels))
        points = [(place, _finite(line, x, value, y)) for value, place in at.items()]
        known = [(place, values) for place, values in points if values]
        if known:
            where = [place for place, _ in known]
            axes.plot(
                where,
                [_mean(values, geometric=y in logarithmic) for _, values in known],
                color=colour,
                linestyle="-" if joined else "",
                marker=_MARKERS[index % len(_MARKERS)],
                markersize=4,
                label=shown(label),
            )
        if known and band:
            axes.fill_between(
                where,
                [min(values) for _, values in known],
                [max(values) for _, values in known],
                color=colour,
                alpha=0.15,
                linewidth=0,
            )
        across = axes.get_xaxis_transform()
        for status, mark in LOST.items():
            lost = [at[run.value(x)] for run in line if run.value("status") == status]
            if lost:
                entry = "" if known else shown(label)
                height = [0.98] * len(lost)
                axes.plot(lost, height, mark, color=colour, transform=across, label=entry)
    if not numeric:
        places = [shown(value) for value in at]
        turned = sum(map(len, places)) > _MOST_LETTERS
        axes.set_xticks(
            range(len(at)), places, rotation=30 if turned else 0, ha="right" if turned else "center"
        )
    if y in ("slope", "attenuation", "leading_exponent", "attenuation_over_layers"):
        axes.axhline(0, color="grey", linestyle=":", linewidth=1)
    axes.set_xlabel(_short(x))
    axes.label_outer()
    axes.grid(alpha=0.25)


def apart(values: Sequence[Value]) -> list[str]:
    """Labels of a logarithmic axis: every value, or none where the one before is too near."""
    logarithms = [math.log(float(value)) for value in values]  # type: ignore[arg-type]
    least = _APART * (logarithms[-1] - logarithms[0])
    labels, last = [], -math.inf
    for value, place in zip(values, logarithms, strict=True):
        labels.append(shown(value) if place - last >= least else "")
        last = place if labels[-1] else last
    return labels


def positions(runs: Sequence[Run], x: str) -> dict[Value, float]:
    """Where the values of a horizontal axis lie: numbers at themselves, others side by side."""
    places = different_values(runs, x)
    if all(is_number(value) for value in places):
        return {value: float(value) for value in places}  # type: ignore[arg-type]
    return {value: float(index) for index, value in enumerate(places)}


def _draw_matrix(
    axes: Axes,
    runs: Sequence[Run],
    x: str,
    y: str,
    lines: str,
    labels: Sequence[Value],
) -> None:
    places = different_values(runs, x)
    means = np.full((len(labels), len(places)), np.nan)
    for row, label in enumerate(labels):
        line = [run for run in runs if run.value(lines) == label]
        for column, value in enumerate(places):
            found = _finite(line, x, value, y)
            if found:
                means[row, column] = _mean(found)
    known = means[np.isfinite(means)]
    low, high = (known.min(), known.max()) if known.size else (0.0, 1.0)
    axes.imshow(means, aspect="auto", cmap="viridis", vmin=low, vmax=high)
    for (row, column), value in np.ndenumerate(means):
        dark = not math.isfinite(value) or value < (low + high) / 2
        axes.text(
            column,
            row,
            measured(value) if math.isfinite(value) else "-",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if dark and math.isfinite(value) else "black",
        )
    axes.set_xticks(range(len(places)), [shown(value) for value in places])
    axes.set_yticks(range(len(labels)), [shown(label) for label in labels])
    axes.set_xlabel(_short(x))
    axes.label_outer()
    title = axes.get_title()
    axes.set_title(f"{title}, {_short(y)}" if title else _short(y), fontsize=10)


def _draw_profiles(
    axes: Axes, runs: Sequence[Run], lines: str | None, labels: Sequence[Value]
) -> None:
    for index, label in enumerate(labels):
        line = [run for run in runs if lines is None or run.value(lines) == label]
        profiles = [run.transport for run in line if run.transport]
        if not profiles:
            continue
        length = min(len(profile) for profile in profiles)
        cut = np.array([profile[:length] for profile in profiles])
        logarithms = np.log(np.maximum(cut, SMALLEST_NORM))
        axes.plot(
            range(length),
            np.exp(logarithms.mean(0)),
            color=line_colour(index, len(labels)),
            linestyle=_DASHES[index // 10 % len(_DASHES)],
            label=shown(label),
        )
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, _LOWEST_NORM), max(high, 10.0))
    axes.axhline(1, color="grey", linestyle=":", linewidth=1)
    axes.set_xlabel("timesteps back from the end")
    axes.grid(alpha=0.25)


_MARKERS = "os^vD*Pp<>"
_DASHES = ("-", "--", ":")


def line_colour(index: int, count: int) -> Any:
    """Of one among so many lines."""
    name = "tab10" if count <= 10 else "tab20"
    return matplotlib.colormaps[name](index % 20)


def _require(runs: Sequence[Run], key: str, name: str | None) -> None:
    if name is None or any(run.value(name) is not None for run in runs):
        return
    known = {known for run in runs for known in (*run.overrides, *run.columns)}
    filled = sorted(name for name in known if any(run.value(name) is not None for run in runs))
    raise ValueError(f"{key}={name} is known of no run; choose one of {', '.join(filled)}")


def _require_numbers(runs: Sequence[Run], names: Sequence[str]) -> None:
    for name in names:
        if not any(is_number(run.value(name)) for run in runs):
            raise ValueError(f"figure.y={name} holds no numbers")


def _require_positive(runs: Sequence[Run], name: str, axes: Sequence[str | None]) -> None:
    if name not in axes:
        raise ValueError(f"figure.logarithmic={name} is neither figure.x nor in figure.y")
    values = [run.value(name) for run in runs]
    if any(is_number(value) and value <= 0 for value in values):  # type: ignore[operator]
        raise ValueError(f"figure.logarithmic={name}: some values are not above 0")


def different_values(runs: Sequence[Run], name: str | None) -> list[Value]:
    """Different values in order: numbers by size, then anything else as first seen."""
    if name is None:
        return [None]
    values = list(dict.fromkeys(run.value(name) for run in runs))
    numbers = sorted(value for value in values if is_number(value))  # type: ignore[type-var]
    return [*numbers, *(value for value in values if not is_number(value))]


def _finite(runs: Sequence[Run], x: str, value: Value, y: str) -> list[float]:
    found = [run.value(y) for run in runs if run.value(x) == value]
    return [float(one) for one in found if is_number(one) and math.isfinite(one)]  # type: ignore[arg-type]


def _mean(values: Sequence[float], *, geometric: bool = False) -> float:
    if geometric and min(values) > 0:
        return math.exp(sum(map(math.log, values)) / len(values))
    return sum(values) / len(values)


def shown(value: Value) -> str:
    """A value as it stands beside a line or an axis."""
    if value is None or isinstance(value, bool):
        return typed(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def measured(value: float) -> str:
    """A loss or another figure of a run, with the digits that tell it from the next one."""
    return f"{value:.5g}"


def _short(name: str) -> str:
    """An override without the group that it is known by, a column in words."""
    return name.replace("_", " ") if "." not in name else name
