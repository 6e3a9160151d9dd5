"""The benchmark of sweeps: its ways start the same runs, and its parts add up."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"

TINY = ("--runs=2", "--steps=2", "--hidden=8", "data.train_size=64", "data.test_size=8")


@pytest.fixture(autouse=True)
def _script_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield
    sys.modules.pop("benchmark_sweep", None)


def rows(printed: str) -> list[list[str]]:
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.slow
def test_the_parts_of_a_run_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    import benchmark_sweep

    benchmark_sweep.main(["--only-parts", *TINY, "--runs=1"])
    found = {name: float(ms) for name, ms, _ in rows(capsys.readouterr().out)[2:]}
    assert list(found) == [*benchmark_sweep.PARTS, "all"]
    assert sum(found[part] for part in benchmark_sweep.PARTS) == pytest.approx(found["all"], abs=1)
    assert all(found[part] > 0 for part in benchmark_sweep.PARTS)


def test_time_inside_another_part_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import contextlib
    import time

    import benchmark_sweep

    now = 0.0
    monkeypatch.setattr(time, "process_time", lambda: now)
    parts = benchmark_sweep.Parts()

    class Work:
        def outer(self) -> None:
            nonlocal now
            now += 1.0
            self.inner()
            now += 2.0

        def inner(self) -> None:
            nonlocal now
            now += 4.0

    with contextlib.ExitStack() as stack:
        parts.wrap(stack, Work, "outer", "training")
        parts.wrap(stack, Work, "inner", "data")
        Work().outer()
        now += 8.0
    Work().outer()
    counted = {part: seconds for part, seconds in parts.total().items() if seconds}
    assert counted == {"training": 3.0, "data": 4.0, "all else": 15.0}


@pytest.mark.slow
def test_every_way_gives_the_same_figures(capsys: pytest.CaptureFixture[str]) -> None:
    import benchmark_sweep

    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    benchmark_sweep.main(["--at-once=2", *TINY])
    names = [row[0] for row in rows(capsys.readouterr().out)]
    assert set(benchmark_sweep.ways(2)) <= set(names)


def test_a_number_that_makes_no_sense_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    import benchmark_sweep

    with pytest.raises(SystemExit):
        benchmark_sweep.arguments(["--at-once=0"])
    assert "--at-once=0 must be at least 1" in capsys.readouterr().err
