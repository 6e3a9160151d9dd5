"""Means over seeds and what is called best, against numbers worked out by hand."""

from pathlib import Path

import pytest

from seq2seq.sweep.combinations import (
    Combination,
    best_by_value,
    best_member,
    best_values,
    by_condition,
    combine,
    edge,
    ranked,
    smaller_is_better,
    varied,
)
from seq2seq.sweep.evidence import Evidence
from seq2seq.sweep.runs import Run, Value


def run(loss: float | None, status: str = "", **overrides: Value) -> Evidence:
    columns = {"status": status or ("finished" if loss is not None else "diverged")}
    columns |= {"test/loss": loss, "test/bleu": None if loss is None else -loss}
    return Evidence(Run(Path("x"), overrides, columns, ()), name=f"{overrides}")


RUNS = [
    run(1.0, gain=0.5, cell="gru", seed=1),
    run(3.0, gain=0.5, cell="gru", seed=2),
    run(1.5, gain=1.0, cell="gru", seed=1),
    run(1.5, gain=1.0, cell="gru", seed=2),
    run(0.1, gain=2.0, cell="gru", seed=1),
    run(None, gain=2.0, cell="gru", seed=2),
    run(None, "failed", gain=3.0, cell="gru", seed=1),
]


def combined(runs: list[Evidence] = RUNS, metric: str = "test/loss") -> list[Combination]:
    return combine(runs, varied(runs)[0], metric)


def test_runs_that_differ_by_seed_only_are_taken_together() -> None:
    first, *_, last = combined()
    assert dict(first.values) == {"gain": 0.5}
    assert (first.mean, first.deviation) == (2.0, pytest.approx(2**0.5))
    assert (last.mean, last.deviation, last.count("failed")) == (None, None, 1)


def test_the_best_has_the_best_mean_and_none_that_diverged() -> None:
    order = ranked(combined(), "test/loss")
    assert [one.values["gain"] for one in order] == [1.0, 0.5, 2.0]
    assert best_member(order[1], "test/loss").run.overrides["seed"] == 1


def test_a_figure_that_should_be_large_is_ranked_the_other_way() -> None:
    assert smaller_is_better("test_longer/edit_rate") and not smaller_is_better("test/bleu")
    order = ranked(combined(metric="test/bleu"), "test/bleu")
    assert [one.values["gain"] for one in order] == [1.0, 0.5, 2.0]


def test_the_best_value_of_a_key_is_that_of_the_best_median_with_divergence_the_worst() -> None:
    best = best_values(combined(), "test/loss")["gain"]
    assert (best.value, best.median) == (1.0, 1.5)


def test_values_are_compared_with_the_other_keys_at_their_best() -> None:
    losses = {("gru", 1.0): 3.0, ("gru", 2.0): 1.0, ("rnn", 1.0): 2.0, ("rnn", 2.0): 4.0}
    runs = [run(loss, cell=cell, gain=gain) for (cell, gain), loss in losses.items()]
    reached = best_by_value(combined(runs), "test/loss")
    assert [(value, one.mean) for value, one in reached["cell"]] == [("gru", 1.0), ("rnn", 2.0)]
    assert [(value, one.mean) for value, one in reached["gain"]] == [(2.0, 1.0), (1.0, 2.0)]


@pytest.mark.parametrize(
    ("value", "tried", "told"),
    [
        (1.0, (1.0, 2, 3), "smallest"),
        (2, (1.0, 2, 3), None),
        (3, (1.0, 2, 3), "largest"),
        (1, (1, 2), None),
        ("a", ("a", 1, 2, 3), None),
    ],
)
def test_a_value_at_the_edge_of_what_was_tried_is_told(
    value: Value, tried: tuple[Value, ...], told: str | None
) -> None:
    assert edge(value, tried) == told


def test_a_seed_that_has_not_ended_does_not_shift_the_other_keys() -> None:
    runs = [
        *(run(loss, gain=1.0, cell=cell, seed=seed) for seed in (1, 2) for cell, loss in PAIR),
        *(run(loss + 0.1, gain=2.0, cell=cell, seed=1) for cell, loss in PAIR),
        run(0.0 + 0.1, gain=2.0, cell="gru", seed=2),
    ]
    assert best_values(combined(runs), "test/loss")["gain"].value == 1.0


PAIR = (("gru", 0.0), ("rnn", 5.0))


def test_what_differs_from_sweep_to_sweep_only_is_said_by_its_name() -> None:
    runs = [
        run(1.0, sweep="a", steps=10, gain=1.0),
        run(1.0, sweep="a", steps=10, gain=2.0),
        run(1.0, sweep="b", steps=20, gain=1.0),
    ]
    assert varied(runs) == (["sweep", "gain"], ["steps"])


def test_a_combination_without_values_has_no_best_run() -> None:
    with pytest.raises(ValueError, match="no run has test/loss"):
        best_member(combined()[-1], "test/loss")


def test_runs_with_the_same_seed_are_one_seed() -> None:
    runs = [run(loss, gain=1.0, seed=seed) for seed, loss in ((1, 1.0), (1, 2.0), (2, 3.5))]
    (one,) = combine(runs, [], "test/loss")
    assert one.by_seed == (1.5, 3.5)
    assert (one.mean, one.deviation) == (2.5, pytest.approx(2**0.5))


def test_values_compare_only_between_runs_that_learn_the_same() -> None:
    runs = [run(1.0, data=data, gain=gain) for data in ("copy", "reverse") for gain in (1, 2)]
    groups = by_condition(combined([*runs, run(None, data="sort", gain=1)]))
    assert {condition: len(group) for condition, group in groups.items()} == {
        (("data", "copy"),): 2,
        (("data", "reverse"),): 2,
    }


def test_the_seed_of_the_data_is_a_seed() -> None:
    assert len(by_condition(combined([run(1.0, **{"data.seed": seed}) for seed in (1, 2)]))) == 1
