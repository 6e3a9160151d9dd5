"""How far a sweep is, from the folders of its runs."""

from pathlib import Path

import pytest

from seq2seq.records import write_json
from seq2seq.status import held
from seq2seq.sweep.progress import Progress, ProgressLine, duration, progress_of


def a_run(folder: Path, status: str, seconds: float | None = None) -> Path:
    folder.mkdir(parents=True)
    record = {"status": status} if seconds is None else {"status": status, "seconds": seconds}
    write_json(folder / "status.json", record)
    return folder


def test_runs_are_counted_and_the_rest_takes_as_long_as_those_that_ended(tmp_path: Path) -> None:
    a_run(tmp_path / "0", "finished", 100)
    a_run(tmp_path / "1", "diverged", 20)
    a_run(tmp_path / "2", "failed", 1)  # how long it took says nothing of the others
    a_run(tmp_path / "3", "running")  # killed: nobody holds it
    (tmp_path / "4").mkdir()
    (tmp_path / "4" / "status.json").write_text("{")
    with held(a_run(tmp_path / "5", "running")):
        progress = progress_of(tmp_path, 13)
    assert progress.counts == {
        "finished": 1,
        "diverged": 1,
        "failed": 1,
        "interrupted": 1,
        "running": 1,
    }
    assert progress.ended == 3
    assert progress.left(workers=1) == 10 * 60
    assert progress.left(workers=2) == 5 * 60
    assert progress.line() == (
        "3 of 13 runs done, 1 running, 1 diverged, 1 failed, about 10 min left"
    )


def test_an_unknown_end_is_said_and_a_finished_sweep_has_nothing_left() -> None:
    assert Progress(None, {}, None).line() == "0 of ? runs done, 0 running, 0 diverged, 0 failed"
    done = Progress(2, {"finished": 2}, 3.0)
    assert done.line() == "2 of 2 runs done, 0 running, 0 diverged, 0 failed"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.512, "0.51 s"),
        (42.2, "42 s"),
        (61, "1 min 1 s"),
        (3599.7, "1 h 0 min"),
        (7322, "2 h 2 min"),
    ],
)
def test_a_duration_is_told_in_two_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_on_a_terminal_a_line_follows_the_sweep_and_goes_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a_run(tmp_path / "0", "finished", 1)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    line = ProgressLine(tmp_path, 4, seconds=0.01)
    line.start()
    shown = ""
    while "1 of 4 runs done" not in shown:
        shown += capsys.readouterr().err
    line.stop()
    assert capsys.readouterr().err.endswith("\r\x1b[K")


def test_elsewhere_nothing_is_shown_below(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ProgressLine(tmp_path, 4, seconds=0.01)
    line.start()
    line.stop()
    assert capsys.readouterr().err == ""
