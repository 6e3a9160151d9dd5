"""Which swept key matters how much: the share of the metric's variance that its means explain.

Main effects of an analysis of variance, as functional ANOVA attributes them for hyperparameters:
Hutter, Hoos and Leyton-Brown 2014, An Efficient Approach for Assessing Hyperparameter Importance,
ICML. What the seed alone does is the noise beside them.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seq2seq.sweep.runs import Value, is_number

# Groups that the many different values of a searched number are put into.
_GROUPS = 4
_FEWEST_RUNS = 6


@dataclass(frozen=True)
class Share:
    """Of the variance.

    Args:
        name: the key.
        explained: between 0 and 1.
        chance: what as many values would explain on average if they had no effect.
    """

    name: str
    explained: float
    chance: float


@dataclass(frozen=True)
class Importance:
    """How the variance over runs divides.

    Args:
        shares: one a key, the largest first.
        noise: between runs that differ in their seed only; None where there are none.
        together: the rest: effects that keys have only in combination, and, where not every
            combination was run, what can't be told apart.
        runs: number of runs it rests on.
        logarithmic: whether the logarithm of the metric was taken.
    """

    shares: tuple[Share, ...]
    noise: float | None
    together: float
    runs: int
    logarithmic: bool


def importance(
    settings: Sequence[Mapping[str, Value]], metric: Sequence[float], keys: Sequence[str]
) -> Importance:
    """Divide the variance of a metric over the keys that were swept.

    One effect for each value of each key is fitted, their sum as near as possible to the metric. A
    key's part is the variance of its effects over the runs; what is left between combinations
    belongs to no key alone. In a complete grid the effects are the means of the values.

    Args:
        settings: of each run, its value of each key.
        metric: of each run; its logarithm is taken if all are above 0.
        keys: that were swept, without seeds.

    Raises:
        ValueError: saying why there is too little to go by.
    """
    if not keys:
        raise ValueError("the runs differ in nothing but their seed")
    if len(metric) < _FEWEST_RUNS:
        raise ValueError(
            f"{len(metric)} {'run has' if len(metric) == 1 else 'runs have'} a value, and fewer "
            f"than {_FEWEST_RUNS} say too little"
        )
    columns = {key: grouped([one.get(key) for one in settings]) for key in keys}
    columns = {key: groups for key, groups in columns.items() if len(set(groups)) > 1}
    effects = sum(map(_effects_of, columns.values()))
    if not columns or len(metric) < 2 * (effects + 1):
        raise ValueError(
            f"{len(metric)} runs have a value, too few for the {effects} effects of the swept keys"
        )
    logarithmic = min(metric) > 0
    values = np.log(metric) if logarithmic else np.asarray(metric, dtype=np.float64)
    total = float(((values - values.mean()) ** 2).sum())
    if total <= 1e-12 * max(1.0, float((values**2).sum())):
        raise ValueError("all runs have the same value")
    effects_of = _effects(columns, values)
    parts = {key: float(np.mean(effect**2)) for key, effect in effects_of.items()}
    cells = [tuple(one.get(key) for key in keys) for one in settings]
    within = _within(cells, values) / len(values)
    sum_of_effects = values.mean() + sum(effects_of.values())
    left = max(0.0, float(np.mean((values - sum_of_effects) ** 2)) - within)
    whole = sum(parts.values()) + left + within
    shares = [
        Share(
            name=key, explained=part / whole, chance=_effects_of(columns[key]) / (len(values) - 1)
        )
        for key, part in parts.items()
    ]
    return Importance(
        shares=tuple(sorted(shares, key=lambda share: -share.explained)),
        noise=within / whole if len(set(cells)) < len(cells) else None,
        together=left / whole,
        runs=len(values),
        logarithmic=logarithmic,
    )


def grouped(values: Sequence[Value]) -> list[Hashable]:
    """The values themselves, or quarters of them: numbers of which few occur twice."""
    if len(set(values)) <= max(_GROUPS, len(values) // 2):
        return list(values)
    numbers = [float(value) for value in values if is_number(value)]  # type: ignore[arg-type]
    if len(numbers) < len(values):
        return list(values)
    borders = np.quantile(numbers, np.linspace(0, 1, _GROUPS + 1)[1:-1])
    return [int(quarter) for quarter in np.searchsorted(borders, numbers, side="left")]


def correlation_ratio(groups: Sequence[Hashable], values: Sequence[float]) -> float:
    """Share of the variance of the values that the means of the groups explain; 0 without any."""
    array = np.asarray(values, dtype=np.float64)
    total = float(((array - array.mean()) ** 2).sum())
    return 1 - _within(groups, array) / total if total > 0 else 0.0


def _effects_of(groups: Sequence[Hashable]) -> int:
    return len(set(groups)) - 1


def _effects(
    columns: Mapping[str, Sequence[Hashable]], values: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """The effect of each key on each run, 0 on average, from the best sum of effects."""
    indicators = {
        key: np.array([[group == other for other in dict.fromkeys(groups)] for group in groups])
        for key, groups in columns.items()
    }
    matrix = np.concatenate(list(indicators.values()), axis=1).astype(np.float64)
    # As keys may change together, the smallest of the solutions is taken.
    solution = np.linalg.lstsq(matrix, values - values.mean(), rcond=None)[0]
    found, start = {}, 0
    for key, indicator in indicators.items():
        effect = indicator @ solution[start : start + indicator.shape[1]]
        found[key] = effect - effect.mean()
        start += indicator.shape[1]
    return found


def _within(groups: Sequence[Hashable], values: NDArray[np.float64]) -> float:
    members: dict[Hashable, list[float]] = {}
    for group, value in zip(groups, values, strict=True):
        members.setdefault(group, []).append(float(value))
    return math.fsum(len(all_) * float(np.var(all_)) for all_ in members.values())
