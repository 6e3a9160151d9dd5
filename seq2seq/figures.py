"""How figures at the end of a run are shown and kept: one table, one JSON file.

Which figures there are is left to the entries that collect them.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

Figures = dict[str, float | int | str | None]


def table(figures: Mapping[str, float | int | str | None]) -> str:
    """Aligned lines, one a figure, with an empty line before and after."""
    width = max(len(name) for name in figures)
    lines = []
    for name, value in figures.items():
        shown = f"{value:,.4f}" if isinstance(value, float) else f"{value}"
        lines.append(f"  {name:<{width}}  {shown}")
    return "\n".join(["", *lines, ""])


def write_figures(path: Path, figures: Mapping[str, float | int | str | None]) -> None:
    """Write the figures as JSON; the file is whole or not there, whenever the process dies."""
    unfinished = path.with_name(path.name + ".unfinished")
    # JSON has no infinity: an overflowed perplexity becomes null.
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in figures.items()
    }
    text = json.dumps(finite, indent=2, allow_nan=False) + "\n"
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
