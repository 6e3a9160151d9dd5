"""The lines that say how a sweep ended."""

from collections.abc import Callable
from pathlib import Path

import pytest

from seq2seq.sweep.runs import read_runs
from seq2seq.sweep.table import outcome

MakeRun = Callable[..., Path]


@pytest.mark.parametrize(
    ("objective", "line"),
    [
        ("test/loss", "lowest test/loss 1.0000 optimizer.lr=1"),
        ("test/exact_match", "highest test/exact_match 0.5000 optimizer.lr=1"),
        ("val/bleu", ""),
    ],
)
def test_the_best_run_is_that_of_the_objective(
    make_run: MakeRun, tmp_path: Path, objective: str, line: str
) -> None:
    for number in (1, 2):
        folder = tmp_path / str(number)
        make_run(folder, {"optimizer.lr": number}, loss=float(number), objective=objective)
    assert outcome(read_runs(tmp_path)).splitlines()[1:] == ([line] if line else [])


def test_no_run_is_best_of_those_that_learn_different_things(
    make_run: MakeRun, tmp_path: Path
) -> None:
    for number, data in enumerate(("copy", "reverse")):
        make_run(tmp_path / str(number), {"data": data}, loss=1.0 + number)
    assert outcome(read_runs(tmp_path)) == "2 runs: 2 finished"


def test_runs_that_differ_in_the_seed_of_their_data_compare(
    make_run: MakeRun, tmp_path: Path
) -> None:
    for seed in (1, 2):
        make_run(tmp_path / str(seed), {"data.seed": seed}, loss=float(seed))
    assert outcome(read_runs(tmp_path)).endswith("lowest test/loss 1.0000 data.seed=1")
