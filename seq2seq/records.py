"""The JSON files of a run: each is whole or not there, whenever the process dies.

What stands in them is left to those who write them.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

METRICS, INSPECTION, CURVES = "metrics.json", "inspection.json", "curves.jsonl"
SWEEP_PLAN = "sweep.json"


def write_whole(path: Path, text: str) -> None:
    """Write a text file that others see whole or not at all, even if processes write it at once."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    with unfinished.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
    unfinished.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Write mappings, sequences, strings and numbers; what JSON has no number for becomes null."""
    write_whole(path, json.dumps(finite(content), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a mapping that :func:`write_json` wrote.

    Raises:
        ValueError: if the file holds anything else.
        FileNotFoundError: if there is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no mapping of names to values")
    return content


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int | None]:
    """Read a file of one JSON mapping a line.

    Returns:
        The mappings, as far as the file is sound, and the number of the first line that isn't: the
        last one may be cut off where a process was killed. None if all are.
    """
    found: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            content = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError):
            return found, number
        if not isinstance(content, dict):
            return found, number
        found.append(content)
    return found, None


def finite(value: Any) -> Any:
    """The same mapping or sequence with null for every number that isn't finite."""
    match value:
        case dict():
            return {key: finite(inner) for key, inner in value.items()}
        case list() | tuple():
            return [finite(inner) for inner in value]
        case float():
            return value if math.isfinite(value) else None
        case _:
            return value
