"""Trials of one number on one layer, and the search for the value with which a measurement fits.

What is tried and what it should come to is left to the methods: `sweet_spot` and `lsuv`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from torch import nn


@dataclass(frozen=True)
class Trial:
    """One value of one number, and what was measured with it.

    Args:
        knob: what the number is: ``gain``, ``shift``, ...
        value: the number.
        quantity: what was measured: ``attenuation``, ``leak``, ...
        found: its value.
        target: what it should be.
    """

    knob: str
    value: float
    quantity: str
    found: float
    target: float


@dataclass(frozen=True)
class LayerCalibration:
    """What was tried on one layer and what was set.

    Args:
        layer: its name.
        trials: in their order.
        outcome: what was set and why, in words.
        reached: whether the layer now measures what it should.
        changed: what was done to each parameter.
    """

    layer: str
    trials: tuple[Trial, ...]
    outcome: str
    reached: bool
    changed: Mapping[nn.Parameter, str] = field(default_factory=dict)


def search(
    measure: Callable[[float], float],
    *,
    start: float,
    low: float,
    high: float,
    slope: float | None,
    target: float,
    tolerance: float,
    trials: int,
) -> list[tuple[float, float]]:
    """Look for the value at which a function of one number is a target.

    Bisection between the nearest two values with the target between them, quickened by the secant
    through them, which may not come nearer to either than a tenth of their distance. Until there
    are two, the next value is where the function would be the target if it grew by ``slope``;
    without a slope values further and further from the first are tried on both sides of it. A
    function that overflows counts as infinite.

    Args:
        measure: the function.
        start: the first value.
        low, high: nothing beyond them is tried.
        slope: growth of the function near the start, above 0; None if it may fall or be flat.
        target: what the function should be.
        tolerance: how far from it is near enough.
        trials: most values to try, at least 1.

    Returns:
        Values and what they gave, in the order in which they were tried.
    """
    tried: list[tuple[float, float]] = []
    value = min(max(start, low), high)
    around = _around(value, low, high)
    while len(tried) < trials:
        try:
            found = measure(value)
        except FloatingPointError:
            found = math.inf
        tried.append((value, found))
        if abs(found - target) <= tolerance:
            break
        crossings = [
            pair
            for pair in pairwise(sorted(tried))
            if (pair[0][1] < target) != (pair[1][1] < target)
        ]
        if crossings:
            value = _between(*min(crossings, key=lambda pair: pair[1][0] - pair[0][0]), target)
        elif slope is None:
            value = next(around, value)
        else:
            step = (target - found) / slope if math.isfinite(found) else low - value
            value = min(max(value + step, low), high)
        if any(value == one for one, _ in tried):
            break  # the bounds don't reach the target
    return tried


def nearest(tried: list[tuple[float, float]], target: float) -> tuple[float, float]:
    """The value that came nearest to the target, and what it gave.

    Raises:
        FloatingPointError: if the network overflows with every one of them.
    """
    value, found = min(tried, key=lambda one: abs(one[1] - target))
    if not math.isfinite(found):
        raise FloatingPointError("a recurrent layer overflows with every value that is tried")
    return value, found


def _around(start: float, low: float, high: float) -> Iterator[float]:
    """Values 0.1 below and above the start, then each twice as far, to the bounds."""
    reach = 0.1
    below = above = start
    while below > low or above < high:
        if below > low:
            below = max(start - reach, low)
            yield below
        if above < high:
            above = min(start + reach, high)
            yield above
        reach *= 2


def _between(one: tuple[float, float], other: tuple[float, float], target: float) -> float:
    (left, before), (right, after) = one, other
    share = (target - before) / (after - before) if math.isfinite(after - before) else 0.5
    return left + min(max(share, 0.1), 0.9) * (right - left)
