"""The heat maps of a report: gradient norm over distance and training, run beside run.

What the norms mean is the business of `diagnostics`, how they are read that of `evidence`.
"""

import math
import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import FigureBase
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from seq2seq.diagnostics.gradient_profile import GradientProfile
from seq2seq.sweep.combinations import Combination, by_condition, is_seed, number, ranked, seed_of
from seq2seq.sweep.evidence import Evidence
from seq2seq.sweep.figure import shown
from seq2seq.sweep.picture import Panel, Picture
from seq2seq.sweep.plan import short_key
from seq2seq.sweep.runs import swept

_MOST_HEAT_MAPS = 8
_TITLE_WIDTH = 38  # letters
# Colour of what was not measured.
_UNKNOWN = "0.88"


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
    distances = max(map(len, logarithms.values()))
    # Which is best of runs that learn different things can't be said.
    remarks = _remarks(chosen, metric) if len(by_condition(combinations)) < 2 else {}
    titles = _titles(chosen, keys, remarks)
    panels = [
        Panel(
            draw=_HeatMap(
                [profile.step for profile in profiles[one.name]],
                logarithms[one.name],
                norm,
                last_step=max(one.curves, default=0),
                distances=distances,
            ),
            title=title,
            alt=f"Gradient norm of {layer} in run {one.name}: "
            + _flow_in_words(profiles[one.name]),
        )
        for one, title in zip(chosen, titles, strict=True)
    ]
    return Picture(
        name="gradient_norm",
        caption=f"Norm of the gradient with respect to the hidden state of {layer}, by distance "
        f"from the last timestep (upwards) over training (to the right): {len(chosen)} of "
        f"{len(probed)} runs. Dark towards the top: the gradient vanishes on its way back; even "
        "colour: it is carried; brighter towards the top: it explodes; grey: "
        "not measured, as too few examples are that long.",
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


class _HeatMap:
    """Draws the gradient norm of one run."""

    def __init__(
        self,
        steps: Sequence[int],
        matrix: NDArray[np.float64],
        norm: Normalize,
        *,
        last_step: int,
        distances: int,
    ) -> None:
        self._steps, self._matrix, self._norm = steps, matrix, norm
        self._last_step, self._distances = max(last_step, steps[-1]), distances

    def __call__(self, figure: FigureBase) -> None:
        axes: Axes = figure.subplots()
        colours = matplotlib.colormaps["viridis"].with_extremes(bad=_UNKNOWN)
        axes.set_facecolor(_UNKNOWN)
        axes.pcolormesh(
            _borders(self._steps),
            np.arange(len(self._matrix) + 1) - 0.5,
            np.ma.masked_invalid(self._matrix),
            norm=self._norm,
            cmap=colours,
            rasterized=True,
        )
        axes.set_ylim(-0.5, self._distances - 0.5)
        if len(self._steps) == 1:  # a column without a width of its own
            axes.set_xticks(self._steps)
        else:
            axes.set_xlim(self._steps[0], min(self._last_step, _borders(self._steps)[-1]))
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("optimizer steps")
        axes.set_ylabel("timesteps back")


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
    known = value is not None
    return Combination(
        values={},
        members=(one,),
        found=(value,) if value is not None else (),
        seeds=(seed_of(one.run.overrides),) if known else (),
    )


def _remarks(chosen: Sequence[Evidence], metric: str) -> dict[str, str]:
    order = ranked([_alone(one, metric) for one in chosen], metric)
    if len(order) < 2 or order[0].found == order[-1].found:
        return {}
    return {order[0].members[0].name: "best", order[-1].members[0].name: "worst"}


def _titles(chosen: Sequence[Evidence], keys: Sequence[str], remarks: dict[str, str]) -> list[str]:
    """What was swept; of runs that share it their seeds too, or their names."""
    seeds = [key for key in swept([one.run for one in chosen]) if is_seed(key)]
    named = [[one.run.overrides.get(key) for key in keys] for one in chosen]
    with_seeds = [
        [*values, *(one.run.overrides.get(key) for key in seeds)]
        for one, values in zip(chosen, named, strict=True)
    ]
    titles = []
    for one, values, seeded in zip(chosen, named, with_seeds, strict=True):
        shared = named.count(values) > 1
        extra = [*keys, *(seeds if shared else [])]
        run = [f"run {one.name}"] if shared and with_seeds.count(seeded) > 1 else []
        titles.append(_title(one, extra, run, remarks))
    return titles


def _title(one: Evidence, keys: Sequence[str], run: list[str], remarks: dict[str, str]) -> str:
    values = [f"{short_key(key, keys)} {shown(one.run.overrides.get(key))}" for key in keys]
    values += run
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
