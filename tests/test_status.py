"""What a run's folder says of how the run stands."""

from pathlib import Path

import pytest

from seq2seq.module import Diverged
from seq2seq.status import STATUSES, read_status, recorded


def test_a_run_is_running_until_it_has_ended(tmp_path: Path) -> None:
    with recorded(tmp_path / "run"):
        assert read_status(tmp_path / "run") == {"status": "running"}
    assert read_status(tmp_path / "run")["status"] == "finished"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Diverged("the loss is nan", step=7, tensor="the loss itself"), "diverged"),
        (RuntimeError("broken"), "failed"),
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit(1), "interrupted"),
    ],
)
def test_every_end_is_told_apart(tmp_path: Path, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), recorded(tmp_path):
        raise error
    told = read_status(tmp_path)
    assert told["status"] == status
    assert status in STATUSES
    if status == "diverged":
        assert (told["step"], told["tensor"]) == (7, "the loss itself")
    if status == "failed":
        assert "RuntimeError: broken" in told["traceback"]


def test_a_folder_where_nothing_began_counts_as_failed(tmp_path: Path) -> None:
    assert read_status(tmp_path) == {"status": "failed"}
