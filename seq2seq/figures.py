"""Figures at the end of a run: how they are shown, and which of them are better when smaller.

How those of a split are computed is left to `scoring`, and what else there is to the entries.
"""

from collections.abc import Mapping

Figures = dict[str, float | int | str | None]

# Of each split, below its name.
FIGURES = ("loss", "perplexity", "token_accuracy", "bleu", "chrf", "exact_match", "edit_rate")

SMALLER_IS_BETTER = ("loss", "perplexity", "edit_rate")


def table(figures: Mapping[str, float | int | str | None]) -> str:
    """Aligned lines, one a figure, with an empty line before and after."""
    width = max(len(name) for name in figures)
    lines = []
    for name, value in figures.items():
        shown = f"{value:,.4f}" if isinstance(value, float) else f"{value}"
        lines.append(f"  {name:<{width}}  {shown}")
    return "\n".join(["", *lines, ""])
