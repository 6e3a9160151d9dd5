"""Shares of the variance, against sums worked out by hand and effects known beforehand."""

import itertools
import math

import numpy as np
import pytest

from seq2seq.sweep.importance import correlation_ratio, grouped, importance

GRID = [
    {"gain": gain, "cell": cell, "seed": seed}
    for gain, cell, seed in itertools.product((0.5, 1.0, 1.5), ("gru", "lstm"), (1, 2))
]


def test_in_a_complete_grid_a_share_is_the_variance_of_the_means() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=len(GRID))
    found = importance(GRID, values.tolist(), ["gain", "cell"])
    assert not found.logarithmic
    for key in ("gain", "cell"):
        means = [
            np.mean([value for one, value in zip(GRID, values, strict=True) if one[key] == level])
            for level in dict.fromkeys(one[key] for one in GRID)
        ]
        share = next(share for share in found.shares if share.name == key)
        assert share.explained == pytest.approx(np.var(means) / values.var())
    pairs = values.reshape(6, 2)
    assert found.noise == pytest.approx(pairs.var(axis=1).mean() / values.var())
    whole = sum(share.explained for share in found.shares) + found.together + found.noise
    assert whole == pytest.approx(1)


def test_effects_that_multiply_are_told_apart_by_the_logarithm() -> None:
    values = [one["gain"] * {"gru": 1, "lstm": 8}[one["cell"]] for one in GRID]
    found = importance(GRID, values, ["gain", "cell"])
    assert found.logarithmic
    assert [share.name for share in found.shares] == ["cell", "gain"]
    assert found.together == pytest.approx(0, abs=1e-12)
    assert found.noise == pytest.approx(0, abs=1e-12)


def test_what_keys_do_only_together_belongs_to_neither() -> None:
    grid = [{"a": a, "b": b} for a, b in itertools.product((0, 1), (0, 1))] * 2
    found = importance(grid, [1.0 if one["a"] == one["b"] else 2.0 for one in grid], ["a", "b"])
    assert found.together == pytest.approx(1)
    assert all(share.explained == pytest.approx(0, abs=1e-12) for share in found.shares)


def test_a_missing_corner_of_the_grid_does_not_give_one_key_the_effect_of_another() -> None:
    kept = [one for one in GRID if (one["gain"], one["cell"]) != (1.5, "lstm")]
    values = [{"gru": 0.0, "lstm": 1.0}[one["cell"]] for one in kept]
    cell, gain = importance(kept, values, ["gain", "cell"]).shares
    assert (cell.name, cell.explained) == ("cell", pytest.approx(1))
    assert gain.explained == pytest.approx(0, abs=1e-12)


def test_a_searched_number_is_put_into_quarters() -> None:
    numbers = [10 ** (-i / 7) for i in range(28)]
    assert sorted(grouped(numbers)) == [group for group in range(4) for _ in range(7)]
    found = importance([{"lr": number} for number in numbers], numbers, ["lr"])
    assert found.shares[0].explained > 0.8
    assert found.noise is None


def test_a_share_by_chance_is_what_random_values_explain_on_average() -> None:
    random = np.random.default_rng(1)
    explained = []
    for _ in range(300):
        found = importance(GRID, random.normal(size=len(GRID)).tolist(), ["gain"])
        explained.append(found.shares[0].explained)
    assert np.mean(explained) == pytest.approx(found.shares[0].chance, rel=0.1)


@pytest.mark.parametrize(
    ("runs", "values", "keys", "reason"),
    [
        (GRID, [1.0] * 12, ["gain"], "all runs have the same value"),
        (GRID[:5], [1.0, 2, 3, 4, 5], ["gain"], "5 runs have a value, and fewer than 6"),
        (GRID, list(range(12)), [], "differ in nothing but their seed"),
        (
            [{"name": f"{i}"} for i in range(6)],
            [1.0, 2, 3, 4, 5, 6],
            ["name"],
            "too few for the effects of the swept keys",
        ),
    ],
)
def test_too_little_to_go_by_is_said(
    runs: list[dict[str, object]], values: list[float], keys: list[str], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        importance(runs, values, keys)


def test_the_correlation_ratio_is_the_share_of_the_variance_between_groups() -> None:
    assert correlation_ratio(["a", "a", "b", "b"], [0, 2, 4, 6]) == pytest.approx(4 / 5)
    assert correlation_ratio(["a", "b"], [3, 3]) == 0
    assert math.isclose(correlation_ratio(["a", "b", "c"], [1, 2, 3]), 1)


def test_the_effect_of_what_is_learned_is_no_effect_of_a_setting() -> None:
    grid = [
        {"data": data, "gain": gain, "lr": {"copy": 0.1, "reverse": 0.2}[data], "seed": seed}
        for data, gain, seed in itertools.product(("copy", "reverse"), (0.5, 1.0, 1.5), (1, 2))
    ]
    values = [one["gain"] + {"copy": 0.0, "reverse": 50.0}[one["data"]] - 20 for one in grid]
    found = importance(grid, values, ["data", "gain", "lr"])
    assert [(share.name, share.explained) for share in found.shares] == [("gain", pytest.approx(1))]
    assert found.within == ("data",)
    with pytest.raises(ValueError, match="within one data, where values compare, no key was swept"):
        importance(grid, values, ["data", "lr"])


def test_runs_with_the_same_seed_say_nothing_of_noise() -> None:
    runs = [{"gain": gain, "seed": 1} for gain in (0.5, 1.0, 1.5) for _ in range(2)]
    assert importance(runs, [1.0, 1.0, 2.0, 2.0, 3.0, 3.0], ["gain"]).noise is None
