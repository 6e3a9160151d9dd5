"""The small JSON files of a run: each is whole or not there, whenever the process dies.

What stands in them is left to those who write them.
"""

import json
import math
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    """Write mappings, sequences, strings and numbers; what JSON has no number for becomes null."""
    unfinished = path.with_name(path.name + ".unfinished")
    text = json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


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


def _finite(value: Any) -> Any:
    match value:
        case dict():
            return {key: _finite(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_finite(inner) for inner in value]
        case float():
            return value if math.isfinite(value) else None
        case _:
            return value
