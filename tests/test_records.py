"""The JSON files of a run."""

import json
import math
from pathlib import Path

import pytest

from seq2seq.records import read_json, write_json


def test_what_was_written_is_read_again_without_infinities(tmp_path: Path) -> None:
    content = {"a": 1, "b": [0.5, math.nan, (1, "x")], "c": {"d": -math.inf, "e": None, "f": True}}
    write_json(tmp_path / "a.json", content)
    wanted = {"a": 1, "b": [0.5, None, [1, "x"]], "c": {"d": None, "e": None, "f": True}}
    assert read_json(tmp_path / "a.json") == wanted
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_file_that_cannot_be_written_whole_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert read_json(path) == {"old": 1}


@pytest.mark.parametrize("text", ["", '{"a": 1', json.dumps([1, 2])])
def test_another_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"a\.json"):
        read_json(path)
