"""What a run's folder says of how the run stands."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from seq2seq.status import STATUSES, Diverged, held, is_held, read_status, recorded


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


def test_a_run_whose_process_was_killed_is_interrupted(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time; from seq2seq.status import recorded\n"
        "with recorded(pathlib.Path(sys.argv[1])): print('begun', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    assert read_status(tmp_path)["status"] == "running"
    with pytest.raises(ValueError, match="is being worked in"), recorded(tmp_path):
        pass
    process.kill()
    process.wait()
    assert json.loads((tmp_path / "status.json").read_text()) == {"status": "running"}
    assert read_status(tmp_path)["status"] == "interrupted"


def test_a_folder_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    with held(tmp_path):
        assert is_held(tmp_path)
        with pytest.raises(ValueError, match="wait for its process to end"), held(tmp_path):
            pass
    assert not is_held(tmp_path)
    assert not is_held(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["{", "[1]", '{"status": "well"}', "{}"])
def test_a_damaged_record_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "status.json").write_text(content)
    with pytest.raises(ValueError, match="status.json"):
        read_status(tmp_path)
