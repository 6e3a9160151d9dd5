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

from seq2seq.sweep.combinations import condition_of, is_condition, seed_of
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
        within: keys within one value of which the differences lie that were divided.
    """

    shares: tuple[Share, ...]
    noise: float | None
    together: float
    runs: int
    logarithmic: bool
    within: tuple[str, ...] = ()


def importance(
    settings: Sequence[Mapping[str, Value]], metric: Sequence[float], keys: Sequence[str]
) -> Importance:
    """Divide the variance of a metric over the keys that were swept.

    One effect for each value of each key is fitted, their sum as near as possible to the metric. A
    key's part is the variance of its effects over the runs; what is left between combinations
    belongs to no key alone. In a complete grid the effects are the means of the values. Where runs
    learn different things, all that is divided are the differences between runs that learn the
    same: values of the metric compare only there.

    Args:
        settings: of each run, its value of each key.
        metric: of each run; its logarithm is taken if all are above 0.
        keys: that were swept, without seeds; those of what is learned have no share.

    Raises:
        ValueError: saying why there is too little to go by.
    """
    if not keys:
        raise ValueError("the runs differ in nothing but their seed")
    if not metric:
        raise ValueError("no run has a value")
    if len(metric) < _FEWEST_RUNS:
        raise ValueError(
            f"{len(metric)} {'run has' if len(metric) == 1 else 'runs have'} a value, and fewer "
            f"than {_FEWEST_RUNS} say too little"
        )
    conditions = [condition_of({key: one.get(key) for key in keys}) for one in settings]
    there_are = len(set(conditions))
    within = tuple(key for key in keys if is_condition(key)) if there_are > 1 else ()
    columns = {
        key: grouped([one.get(key) for one in settings]) for key in keys if not is_condition(key)
    }
    effects_in = {key: _effects_in(conditions, groups) for key, groups in columns.items()}
    columns = {key: groups for key, groups in columns.items() if effects_in[key]}
    if not columns and within:
        raise ValueError(
            f"within one {' and '.join(within)}, where values compare, no key was swept"
        )
    effects = sum(effects_in.values())
    if not columns or len(metric) < 2 * (effects + there_are):
        raise ValueError(
            f"{len(metric)} runs have a value, too few for the effects of the swept keys"
            + (
                f" within one {' and '.join(within)}, of which there are {there_are}"
                if within
                else ""
            )
        )
    logarithmic = min(metric) > 0
    values = np.log(metric) if logarithmic else np.asarray(metric, dtype=np.float64)
    size = float((values**2).sum())
    values = _centred(conditions, values[:, None])[:, 0]
    if float((values**2).sum()) <= 1e-12 * max(1.0, size):
        raise ValueError("all runs have the same value")
    effects_of = _effects(columns, conditions, values)
    parts = {key: float(np.mean(effect**2)) for key, effect in effects_of.items()}
    cells = [tuple(one.get(key) for key in keys) for one in settings]
    repeated = {(cell, seed_of(one)) for cell, one in zip(cells, settings, strict=True)}
    noise = _within(cells, values) / len(values)
    left = max(0.0, float(np.mean((values - sum(effects_of.values())) ** 2)) - noise)
    whole = sum(parts.values()) + left + noise
    shares = [
        Share(
            name=key,
            explained=part / whole,
            chance=effects_in[key] / (len(values) - there_are),
        )
        for key, part in parts.items()
    ]
    return Importance(
        shares=tuple(sorted(shares, key=lambda share: -share.explained)),
        noise=noise / whole if len(set(cells)) < len(repeated) else None,
        together=left / whole,
        runs=len(values),
        logarithmic=logarithmic,
        within=within,
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


def _effects_in(conditions: Sequence[Hashable], groups: Sequence[Hashable]) -> int:
    """How many effects of a key can be told from those of what is learned."""
    inside = len(set(zip(conditions, groups, strict=True))) - len(set(conditions))
    return min(len(set(groups)) - 1, inside)


def _centred(conditions: Sequence[Hashable], columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns ``[runs, columns]`` less their means over runs that learn the same."""
    centred = columns.copy()
    for condition in dict.fromkeys(conditions):
        rows = np.array([one == condition for one in conditions])
        centred[rows] -= columns[rows].mean(axis=0)
    return centred


def _effects(
    columns: Mapping[str, Sequence[Hashable]],
    conditions: Sequence[Hashable],
    values: NDArray[np.float64],
) -> dict[str, NDArray[np.float64]]:
    """The effect of each key on each run, 0 on average, from the best sum of effects."""
    indicators = {
        key: _centred(
            conditions,
            np.array(
                [[group == other for other in dict.fromkeys(groups)] for group in groups],
                dtype=np.float64,
            ),
        )
        for key, groups in columns.items()
    }
    matrix = np.concatenate(list(indicators.values()), axis=1)
    # As keys may change together, the smallest of the solutions is taken.
    solution = np.linalg.lstsq(matrix, values, rcond=None)[0]
    found, start = {}, 0
    for key, indicator in indicators.items():
        found[key] = indicator @ solution[start : start + indicator.shape[1]]
        start += indicator.shape[1]
    return found


def _within(groups: Sequence[Hashable], values: NDArray[np.float64]) -> float:
    members: dict[Hashable, list[float]] = {}
    for group, value in zip(groups, values, strict=True):
        members.setdefault(group, []).append(float(value))
    return math.fsum(len(all_) * float(np.var(all_)) for all_ in members.values())
