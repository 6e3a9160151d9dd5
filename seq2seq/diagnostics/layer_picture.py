"""One picture of all recurrent layers before training: what goes back, what goes on, what is kept.

Drawn with matplotlib, which is loaded here alone and never while a network trains.
"""

import io
import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from seq2seq.diagnostics.layer_report import LayerReport
from seq2seq.diagnostics.lyapunov import KEPT_LOGARITHM
from seq2seq.diagnostics.verdict import LEAST_ATTENUATION, Verdict, most_attenuation

_VERDICT_COLOURS = {"vanishing": "#1f5fa8", "exploding": "#b3261e", "carries": "#2e7d32"}
_Colours = dict[str, tuple[float, float, float, float]]


def draw_layers(
    reports: Sequence[LayerReport], verdicts: Sequence[Verdict], *, title: str, advice: str
) -> bytes:
    """A PNG of five panels and the verdicts, one colour a layer, with the advice below them."""
    # Placed by hand: letting matplotlib find room takes longer than drawing.
    figure = Figure(figsize=(15, 9.5), dpi=110)
    figure.subplots_adjust(left=0.05, right=0.985, bottom=0.075, top=0.92, wspace=0.17, hspace=0.28)
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(textwrap.shorten(title, 140), fontsize=12)
    panels = figure.subplots(2, 3)
    palette = colormaps["tab10" if len(reports) <= 10 else "turbo"]
    shares = range(len(reports)) if len(reports) <= 10 else np.linspace(0, 1, len(reports))
    colours = {report.layer: palette(share) for report, share in zip(reports, shares, strict=True)}
    _draw_transport(panels[0, 0], reports, colours)
    _draw_gradient(panels[0, 1], reports, colours)
    _draw_exponents(panels[0, 2], reports, colours)
    _draw_signal(panels[1, 0], reports, colours)
    _draw_gates(panels[1, 1], reports, colours)
    _write_verdicts(panels[1, 2], reports, verdicts, colours)
    panels[1, 2].text(0, 0, textwrap.fill(advice, 46), va="bottom", fontsize=11)
    file = io.BytesIO()
    canvas.print_png(file)  # type: ignore[no-untyped-call]
    return file.getvalue()


def _draw_transport(axes: Axes, reports: Sequence[LayerReport], colours: _Colours) -> None:
    for report in reports:
        known = np.array(report.transport.from_end)
        axes.semilogy(known / known[0], color=colours[report.layer], label=report.layer)
    most = np.exp(min(most_attenuation(report) for report in reports))
    axes.axhspan(np.exp(LEAST_ATTENUATION), most, color="#2e7d32", alpha=0.1, zorder=0)
    for length in sorted({report.lengths.long for report in reports}):
        axes.axvline(length - 1, color="grey", linestyle=":", linewidth=1)
    _label(axes, "transport: what is left of a random vector", "steps back from the end")
    axes.text(0.98, 0.02, "green: carries", transform=axes.transAxes, ha="right", color="#2e7d32")


def _draw_gradient(axes: Axes, reports: Sequence[LayerReport], colours: _Colours) -> None:
    for report in reports:
        for quantity, profile in report.gradient.items():
            axes.semilogy(
                profile.from_end,
                color=colours[report.layer],
                linestyle="--" if quantity == "cell" else "-",
            )
    # At least two decades, so that a flat profile looks flat.
    low, high = axes.get_ylim()
    middle = math.sqrt(low * high)
    axes.set_ylim(min(low, middle / 10), max(high, middle * 10))
    dashed = "; dashed: c" if any("cell" in report.gradient for report in reports) else ""
    _label(axes, f"gradient norm of each example's loss, h{dashed}", "steps back from the end")


def _draw_exponents(axes: Axes, reports: Sequence[LayerReport], colours: _Colours) -> None:
    for report in reports:
        growth = report.lengths.long * np.array(report.exponents)
        axes.plot(range(1, len(growth) + 1), growth, color=colours[report.layer])
    axes.axhline(-KEPT_LOGARITHM, color="black", linestyle="--", linewidth=1)
    axes.text(
        0.02,
        -KEPT_LOGARITHM,
        "above: still there at the end",
        transform=axes.get_yaxis_transform(),
        va="bottom",
    )
    axes.set_ylim(max(axes.get_ylim()[0], -30), max(axes.get_ylim()[1], 1))
    _label(axes, "length times Lyapunov exponent", "direction")


def _draw_signal(axes: Axes, reports: Sequence[LayerReport], colours: _Colours) -> None:
    for report in reports:
        signal = report.signal
        axes.plot(signal.hidden_rms, color=colours[report.layer])
        if signal.cell_rms:
            axes.plot(signal.cell_rms, color=colours[report.layer], linestyle="--")
    largest = max(max(report.signal.hidden_rms) for report in reports)
    smallest = min(min(report.signal.hidden_rms) for report in reports)
    if largest > 10 or largest < 0.05:
        axes.set_yscale("log")
    elif smallest >= 0:
        axes.set_ylim(bottom=0)
    dashed = "; dashed: c" if any(report.signal.cell_rms for report in reports) else ""
    _label(axes, f"root mean square of h{dashed}", "timestep of the scan")


def _draw_gates(axes: Axes, reports: Sequence[LayerReport], colours: _Colours) -> None:
    gates = list(reports[0].spectra)
    width = 0.8 / len(reports)
    for index, report in enumerate(reports):
        places = np.arange(len(gates)) + (index - (len(reports) - 1) / 2) * width
        radii = [report.spectra[gate].spectral_radius for gate in gates]
        stretches = [report.spectra[gate].largest_singular_value for gate in gates]
        axes.bar(places, stretches, width * 0.9, color=colours[report.layer], alpha=0.3)
        axes.bar(places, radii, width * 0.9, color=colours[report.layer])
    axes.axhline(1, color="grey", linestyle=":", linewidth=1)
    means = [np.mean([report.signal.gate_means[gate] for report in reports]) for gate in gates]
    axes.set_xticks(
        range(len(gates)),
        [f"{gate}\nmean {mean:.2f}" for gate, mean in zip(gates, means, strict=True)],
    )
    _label(axes, "spectral radius; pale: largest singular value", "gate", grid_axis="y")


def _write_verdicts(
    axes: Axes, reports: Sequence[LayerReport], verdicts: Sequence[Verdict], colours: _Colours
) -> None:
    axes.axis("off")
    spacing = min(0.2, 0.8 / len(reports))
    size = 11 if len(reports) <= 5 else 8
    for index, (report, verdict) in enumerate(zip(reports, verdicts, strict=True)):
        top = 1 - index * spacing
        axes.plot([0, 0.05], [top - 0.02] * 2, color=colours[report.layer], linewidth=4)
        axes.text(0.08, top, report.layer, va="top", fontsize=size, weight="bold")
        axes.text(
            0.08,
            top - 0.3 * spacing,
            textwrap.fill(str(verdict), 46),
            va="top",
            fontsize=size,
            color=_VERDICT_COLOURS[verdict.kind],
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)


def _label(axes: Axes, title: str, x_label: str, *, grid_axis: str = "both") -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x_label)
    axes.set_axisbelow(True)
    axes.grid(axis=grid_axis, alpha=0.25)  # type: ignore[arg-type]
