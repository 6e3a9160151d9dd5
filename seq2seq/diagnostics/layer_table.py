"""Tables of what was measured of each recurrent layer, for a terminal."""

import math
from collections.abc import Sequence

from seq2seq.diagnostics.layer_report import LayerReport


def matrix_table(reports: Sequence[LayerReport]) -> str:
    """One line for each gate: its recurrent matrix, its mean value and saturation."""
    rows = [["layer", "gate", "spectral radius", "largest singular value", "mean", "saturated"]]
    for report in reports:
        for gate, spectrum in report.spectra.items():
            rows.append(
                [
                    report.layer,
                    gate,
                    _number(spectrum.spectral_radius),
                    _number(spectrum.largest_singular_value),
                    _number(report.signal.gate_means[gate]),
                    f"{report.signal.saturated[gate]:.0%}",
                ]
            )
    return aligned(rows, text_columns=2)


def signal_table(reports: Sequence[LayerReport]) -> str:
    """One line for each layer: size of its states, and how long its gates alone would keep them."""
    rows = [["layer", "h first", "h last", "c last", "input drive", "keep horizon", "10 to 90 %"]]
    for report in reports:
        signal = report.signal
        low, _, high = signal.keep_horizon_quantiles
        rows.append(
            [
                report.layer,
                _number(signal.hidden_rms[0]),
                _number(signal.hidden_rms[-1]),
                _number(signal.cell_rms[-1] if signal.cell_rms else math.nan),
                _number(signal.drive_rms),
                _number(signal.keep_horizon),
                "-" if math.isnan(low) else f"{low:.1f} to {high:.1f}",
            ]
        )
    return aligned(rows, text_columns=1)


def time_table(reports: Sequence[LayerReport]) -> str:
    """One line for each layer: gradient, transport, exponents, beside the lengths of the data."""
    rows = [
        [
            "layer",
            "lengths",
            "gradient slope",
            "transport slope",
            "half-life",
            "attenuation",
            "lambda 1",
            "directions left",
        ]
    ]
    for report in reports:
        lengths = report.lengths
        left = [report.memory_dimension(length) for length in (lengths.median, lengths.long)]
        rows.append(
            [
                report.layer,
                f"{lengths.median} / {lengths.long}",
                _number(report.gradient["hidden"].slope),
                _number(report.slope),
                _number(report.half_life),
                _number(report.attenuation),
                _number(report.exponents[0]),
                " / ".join(f"{count}{'+' * report.all_kept(count)}" for count in left)
                + f" of {report.directions}",
            ]
        )
    return aligned(rows, text_columns=1)


def aligned(rows: Sequence[Sequence[str]], *, text_columns: int) -> str:
    """Columns side by side, the first ``text_columns`` of them left-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:.3g}" if abs(value) >= 1000 or 0 < abs(value) < 0.005 else f"{value:.2f}"
