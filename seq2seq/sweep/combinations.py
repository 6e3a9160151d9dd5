"""Runs that differ in nothing but their seed, taken together: mean, spread, and which is best.

A run that diverged counts as worse than any that has a value. What is shown of it is left to the
page and the figures.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from seq2seq.figures import SMALLER_IS_BETTER
from seq2seq.sweep.evidence import Evidence
from seq2seq.sweep.runs import Value, is_number, swept

DIVERGED, FAILED = "diverged", "failed"

# Figures of a run's course that are better when smaller, beside those of a test.
_SMALLER_OF_TRAINING = ("seconds", "steps_to_target")


@dataclass(frozen=True)
class Combination:
    """One value for each swept key but the seeds, and the runs that have it.

    Args:
        values: by key.
        members: at least one.
        found: the metric of those members that have it, in their order.
        seeds: of the same members.
    """

    values: Mapping[str, Value]
    members: tuple[Evidence, ...]
    found: tuple[float, ...]
    seeds: tuple[tuple[Value, ...], ...]

    @property
    def mean(self) -> float | None:
        """Of the metric, over seeds; None where no run has it."""
        return statistics.fmean(self.by_seed) if self.found else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation of the metric; None with fewer than two seeds."""
        return statistics.stdev(self.by_seed) if len(self.by_seed) > 1 else None

    @property
    def by_seed(self) -> tuple[float, ...]:
        """The metric of each seed that has it: runs with the same one are no repetitions."""
        together: dict[tuple[Value, ...], list[float]] = {}
        for seed, value in zip(self.seeds, self.found, strict=True):
            together.setdefault(seed, []).append(value)
        return tuple(map(statistics.fmean, together.values()))

    def count(self, status: str) -> int:
        """Number of members that ended, or stand, so."""
        return sum(member.status == status for member in self.members)

    def mean_of(self, column: str) -> float | None:
        """Of any column that holds finite numbers."""
        found = [number(member, column) for member in self.members]
        known = [one for one in found if one is not None]
        return statistics.fmean(known) if known else None


def smaller_is_better(metric: str) -> bool:
    """Whether a figure such as ``test/loss`` is an error or a cost."""
    return metric.rpartition("/")[2] in (*SMALLER_IS_BETTER, *_SMALLER_OF_TRAINING)


def number(one: Evidence, name: str) -> float | None:
    """A finite number among a run's overrides and columns."""
    value = one.run.value(name)
    if not is_number(value) or not math.isfinite(value):  # type: ignore[arg-type]
        return None
    return float(value)  # type: ignore[arg-type]


def runs_in_words(count: int) -> str:
    """``1 run``, ``2 runs``."""
    return "1 run" if count == 1 else f"{count} runs"


def is_seed(key: str) -> bool:
    """Whether runs that differ in it are repetitions of each other."""
    return key.rpartition(".")[2] in ("seed", "initialization_seed")


def seed_of(overrides: Mapping[str, Value]) -> tuple[Value, ...]:
    """All that may differ between repetitions."""
    return tuple(value for key, value in overrides.items() if is_seed(key))


def is_condition(key: str) -> bool:
    """Whether it says what is learned, not how: values of the metric compare only within it."""
    return key == "sweep" or (key.partition(".")[0] == "data" and not is_seed(key))


def condition_of(settings: Mapping[str, Value]) -> tuple[tuple[str, Value], ...]:
    """What is learned, by key; nothing where all learn the same."""
    return tuple((key, value) for key, value in settings.items() if is_condition(key))


def by_condition(
    combinations: Sequence[Combination],
) -> dict[tuple[tuple[str, Value], ...], list[Combination]]:
    """Those with a value of the metric, apart by what is learned: one group if all compare."""
    groups: dict[tuple[tuple[str, Value], ...], list[Combination]] = {}
    for one in combinations:
        if one.found:
            groups.setdefault(condition_of(one.values), []).append(one)
    return groups


def varied(evidence: Sequence[Evidence]) -> tuple[list[str], list[str]]:
    """Keys but the seeds in which runs differ, and those that differ from sweep to sweep only.

    What differs from sweep to sweep only, the key ``sweep`` says already.
    """
    keys = [key for key in swept([one.run for one in evidence]) if not is_seed(key)]
    if "sweep" not in keys:
        return keys, []
    sweeps = {one.run.overrides["sweep"] for one in evidence}
    between = [
        key
        for key in keys
        if key != "sweep"
        and len({(one.run.overrides["sweep"], one.run.overrides[key]) for one in evidence})
        == len(sweeps)
    ]
    return [key for key in keys if key not in between], between


def combine(evidence: Sequence[Evidence], keys: Sequence[str], metric: str) -> list[Combination]:
    """Runs with the same values of the keys together, in the order of the runs."""
    together: dict[tuple[Value, ...], list[Evidence]] = {}
    for one in evidence:
        together.setdefault(tuple(one.run.overrides.get(key) for key in keys), []).append(one)
    return [
        Combination(
            values=dict(zip(keys, values, strict=True)),
            members=tuple(members),
            found=tuple(value for one in members if (value := number(one, metric)) is not None),
            seeds=tuple(
                seed_of(one.run.overrides) for one in members if number(one, metric) is not None
            ),
        )
        for values, members in together.items()
    ]


def ranked(combinations: Sequence[Combination], metric: str) -> list[Combination]:
    """Those with a value, the best mean first; after them those of which a run diverged."""
    sign = _sign(metric)
    known = [one for one in combinations if one.found]
    return sorted(known, key=lambda one: (one.count(DIVERGED) > 0, sign * (one.mean or 0.0)))


def best_member(combination: Combination, metric: str) -> Evidence:
    """The run of a combination with the best value.

    Raises:
        ValueError: if none has one.
    """
    known = [one for one in combination.members if number(one, metric) is not None]
    if not known:
        raise ValueError(f"no run has {metric}")
    sign = _sign(metric)
    return min(known, key=lambda one: sign * (number(one, metric) or 0.0))


@dataclass(frozen=True)
class BestValue:
    """The value of one key whose runs do best, whatever the other keys are.

    Args:
        key: that was swept.
        value: of it.
        median: of the metric over the combinations with that value, whose own value is the median
            over seeds, a diverged run the worst of all.
    """

    key: str
    value: Value
    median: float


def best_values(combinations: Sequence[Combination], metric: str) -> dict[str, BestValue]:
    """By key; a key without a value that has a finite median is left out."""
    sign = _sign(metric)
    found = {}
    for key in combinations[0].values if combinations else ():
        by_value: dict[Value, list[float]] = {}
        for one in combinations:
            # Of a combination first, so that missing seeds don't shift what it stands for.
            measured = [*one.by_seed, *[sign * math.inf] * one.count(DIVERGED)]
            if measured:
                by_value.setdefault(one.values[key], []).append(statistics.median(measured))
        medians = {value: statistics.median(all_) for value, all_ in by_value.items()}
        finite = {value: median for value, median in medians.items() if math.isfinite(median)}
        if len(by_value) > 1 and finite:
            best = min(finite, key=lambda value: sign * finite[value])
            found[key] = BestValue(key, best, finite[best])
    return found


def best_by_value(
    combinations: Sequence[Combination], metric: str
) -> dict[str, list[tuple[Value, Combination]]]:
    """Of each key, its values with the best combination that has them, the best first."""
    found: dict[str, dict[Value, Combination]] = {}
    for one in ranked(combinations, metric):
        for key, value in one.values.items():
            found.setdefault(key, {}).setdefault(value, one)
    return {key: list(by_value.items()) for key, by_value in found.items()}


def _sign(metric: str) -> int:
    return 1 if smaller_is_better(metric) else -1


def edge(value: Value, tried: Sequence[Value]) -> str | None:
    """``smallest`` or ``largest`` if a number has none beyond it among three or more."""
    numbers = [one for one in tried if is_number(one)]
    if len(numbers) < len(tried) or len(numbers) < 3:
        return None
    if value == min(numbers):  # type: ignore[type-var]
        return "smallest"
    return "largest" if value == max(numbers) else None  # type: ignore[type-var]
