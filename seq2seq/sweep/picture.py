"""A figure of a report: panels that a page lays out to its width, one PNG of all, and their data.

On a page each panel is a vector image of its own, so that a narrow screen shows them one below the
other at a size that can be read. What is drawn is left to `metric_figures`, `curve_figure` and
`gradient_figure`.
"""

import base64
import csv
import io
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import to_hex
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D

from seq2seq.records import write_whole

_PNG_COLUMNS = 3


@dataclass(frozen=True)
class Panel:
    """One part of a figure.

    Args:
        draw: puts it on an empty figure, or on a part of one.
        alt: what it shows, for those who can't see it.
        title: above it, such as the run; empty if the axes say all.
    """

    draw: Callable[[FigureBase], None]
    alt: str
    title: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure with its words and its data.

    Args:
        name: of its files, without extension.
        caption: sentences that say what is to be seen.
        panels: at least one.
        size: width and height of a panel in inches.
        legend: colour and meaning of each line.
        legend_title: what the meanings are values of.
        scale: colours with the numbers that they stand for.
        scale_label: what the numbers are.
        scale_ticks: numbers to name beside the colours, with their names; empty for round ones.
        beyond: whether the first and the last colour stand for what lies beyond, too.
        header: names of the columns of the data.
        rows: the data.
    """

    name: str
    caption: str
    panels: tuple[Panel, ...]
    size: tuple[float, float]
    header: tuple[str, ...]
    rows: Sequence[Sequence[Any]]
    legend: tuple[tuple[Any, str], ...] = ()
    legend_title: str = ""
    scale: ScalarMappable | None = None
    scale_label: str = ""
    scale_ticks: tuple[tuple[float, str], ...] = ()
    beyond: bool = False

    @property
    def swatches(self) -> list[tuple[str, str]]:
        """The legend, its colours as a page writes them."""
        return [(to_hex(colour), label) for colour, label in self.legend]

    def images(self) -> list[tuple[str, Panel]]:
        """Each panel as the source of an image: vectors inside the address itself."""
        images = []
        for panel in self.panels:
            with _style():
                figure = Figure(figsize=self.size, layout="constrained")
                _draw(panel, figure)
                images.append((_source(figure), panel))
        return images

    def scale_image(self) -> str | None:
        """The colours and their numbers, lying, as the source of an image."""
        if self.scale is None:
            return None
        with _style():
            figure = Figure(figsize=(4.6, 0.62), layout="constrained")
            self._draw_scale(figure.subplots())
            return _source(figure)

    def _draw_scale(self, axes: Axes) -> None:
        assert self.scale is not None
        bar = axes.figure.colorbar(
            self.scale,
            cax=axes,
            orientation="horizontal",
            label=self.scale_label,
            extend="both" if self.beyond else "neither",
        )
        bar.outline.set_visible(False)
        if self.scale_ticks:
            numbers, names = zip(*self.scale_ticks, strict=True)
            bar.set_ticks(numbers, labels=names)
            bar.minorticks_off()

    def write(self, folder: Path) -> None:
        """Leave a PNG of all panels and a CSV of the data."""
        with _style():
            figure = self._whole()
            figure.savefig(folder / f"{self.name}.png", dpi=150)
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(self.header)
        writer.writerows([_cell(value) for value in row] for row in self.rows)
        write_whole(folder / f"{self.name}.csv", text.getvalue())

    def _whole(self) -> Figure:
        columns = min(_PNG_COLUMNS, len(self.panels))
        rows = math.ceil(len(self.panels) / columns)
        width, height = self.size
        lines = math.ceil(len(self.legend) / columns) if self.legend else 0
        below = 0.3 + 0.22 * (lines + 1) if self.legend else 0.0
        below += 0.7 if self.scale is not None else 0.0
        figure = Figure(figsize=(width * columns, height * rows + below), layout="constrained")
        parts = figure.subfigures(
            2 if below else 1,
            1,
            squeeze=False,
            height_ratios=[height * rows, below] if below else None,
        )[:, 0]
        grid = parts[0].subfigures(rows, columns, squeeze=False).flat
        for panel, part in zip(self.panels, grid, strict=False):
            _draw(panel, part)
        if self.scale is not None:
            axes = parts[1].subplots()
            axes.set_box_aspect(0.03)
            self._draw_scale(axes)
        elif self.legend:
            handles = [Line2D([], [], color=colour, marker="o") for colour, _ in self.legend]
            labels = [label for _, label in self.legend]
            parts[1].legend(
                handles, labels, title=self.legend_title, loc="upper center", ncols=columns
            )
        return figure


def _style() -> AbstractContextManager[None]:
    # The ids in an image depend on its content only, so that the same data give the same page.
    return matplotlib.rc_context(
        {
            "svg.hashsalt": "seq2seq",
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )


def _draw(panel: Panel, figure: FigureBase) -> None:
    panel.draw(figure)
    if panel.title:
        figure.suptitle(panel.title, fontsize=10)


def _source(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value
