"""Trials of one number on one layer, and the search for the value with which a measurement fits.

What is tried and what it should come to is left to the methods: `sweet_spot` and `lsuv`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

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
    slope: float,
    target: float,
    tolerance: float,
    trials: int,
) -> list[tuple[float, float]]:
    """Look for the value at which a growing function of one number is a target.

    Bisection between the nearest values below and above the target, quickened by the secant
    through them, which may not come nearer to either than a tenth of their distance. Until both are
    known, the next value is where the function would be the target if it grew by ``slope``. A
    function that overflows counts as infinite.

    Args:
        measure: the function.
        start: the first value.
        low, high: nothing beyond them is tried.
        slope: growth of the function near the start, above 0.
        target: what the function should be.
        tolerance: how far from it is near enough.
        trials: most values to try, at least 1.

    Returns:
        Values and what they gave, in the order in which they were tried.
    """
    tried: list[tuple[float, float]] = []
    value = min(max(start, low), high)
    while len(tried) < trials:
        try:
            found = measure(value)
        except FloatingPointError:
            found = math.inf
        tried.append((value, found))
        if abs(found - target) <= tolerance:
            break
        below = max((one for one in tried if one[1] < target), default=None)
        above = min((one for one in tried if one[1] >= target), default=None)
        if below is None or above is None:
            step = (target - found) / slope if math.isfinite(found) else low - value
            value = min(max(value + step, low), high)
        else:
            value = _between(below, above, target)
        if any(value == one for one, _ in tried):
            break  # a bound that doesn't reach the target
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


def _between(below: tuple[float, float], above: tuple[float, float], target: float) -> float:
    (left, low), (right, high) = below, above
    share = 0.5 if math.isinf(high) else (target - low) / (high - low)
    return left + min(max(share, 0.1), 0.9) * (right - left)
