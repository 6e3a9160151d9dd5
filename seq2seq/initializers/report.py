"""What was set, to be read before the first step: a table of every parameter.

Spectral radius of each gate of the recurrent matrices, and the sum of both biases of the gates,
are what the reader should look at. Printing and logging the table is left to the caller.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from seq2seq.diagnostics.spectrum import gate_blocks, spectral_radius
from seq2seq.initializers.rules import Assignment, Initialization
from seq2seq.initializers.trials import LayerCalibration
from seq2seq.models.recurrent import gates_of, recurrent_map

# Eigenvalues of one 1024 x 1024 block take a third of a second, of 2048 x 2048 about eight times
# that.
LARGEST_EXACT_SIZE = 1024

COLUMNS = ("parameter", "rule", "scheme", "shape", "mean", "standard deviation", "by gate")


@dataclass(frozen=True)
class ParameterReport:
    """One parameter after initialization.

    Args:
        parameter: its name; tied ones with all names.
        rule: config key below ``initializer`` of the rule that set it, by gate where they differ.
        scheme: the rule's scheme and its numbers, and what calibration did afterwards.
        shape: shape of the tensor.
        mean, standard_deviation: over all entries.
        spectral_radius: by gate, of recurrent matrices up to 1024 x 1024 a gate; else empty.
        bias_sum: by gate, mean of the sum of both biases; only in the row of the first of them.
    """

    parameter: str
    rule: str
    scheme: str
    shape: tuple[int, ...]
    mean: float
    standard_deviation: float
    spectral_radius: dict[str, float]
    bias_sum: dict[str, float]

    def cells(self) -> dict[str, str]:
        """The row as text, by column."""
        by_gate = ""
        if self.spectral_radius:
            by_gate = "spectral radius " + _listed(self.spectral_radius)
        elif self.bias_sum:
            by_gate = "bias sum " + _listed(self.bias_sum)
        texts = (
            self.parameter,
            self.rule,
            self.scheme,
            " x ".join(map(str, self.shape)),
            f"{self.mean:.4f}",
            f"{self.standard_deviation:.4f}",
            by_gate,
        )
        return dict(zip(COLUMNS, texts, strict=True))


def describe(
    initialization: Initialization, calibrated: Sequence[LayerCalibration] = ()
) -> list[ParameterReport]:
    """Measure every parameter, in the order in which they were set.

    Args:
        initialization: which rule set what.
        calibrated: what was done to the recurrent layers afterwards; it stands behind the scheme.
    """
    changed = {parameter: what for one in calibrated for parameter, what in one.changed.items()}
    return [_describe(assignment, changed) for assignment in initialization.assignments]


def text_table(rows: Sequence[ParameterReport], notes: Sequence[str] = ()) -> str:
    """Aligned columns for a terminal or a log file, one line a parameter, then the notes."""
    lines = [dict(zip(COLUMNS, COLUMNS, strict=True)), *(row.cells() for row in rows)]
    widths = {column: max(len(line[column]) for line in lines) for column in COLUMNS}
    table = [
        "  ".join(
            line[column].rjust(widths[column])
            if column in ("mean", "standard deviation")
            else line[column].ljust(widths[column])
            for column in COLUMNS
        ).rstrip()
        for line in lines
    ]
    return "\n".join([*table, *notes])


def markdown_table(rows: Sequence[ParameterReport], notes: Sequence[str] = ()) -> str:
    """The same for TensorBoard's text tab."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(row.cells().values()) + " |" for row in rows]
    return "\n".join([*lines, *("\n" + note for note in notes)])


def _describe(assignment: Assignment, changed: Mapping[nn.Parameter, str]) -> ParameterReport:
    layout = assignment.layout
    values = layout.parameter.detach().to("cpu", torch.float64)
    recurrent = bool(gates_of(layout.owner))
    radii = {}
    if recurrent and layout.local_name.startswith("weight_hh"):
        blocks = gate_blocks(recurrent_map(layout.owner), layout.gates)
        radii = {
            gate: spectral_radius(block)
            for gate, block in blocks.items()
            if block.size(0) == block.size(1) <= LARGEST_EXACT_SIZE
        }
    sums = {}
    other = layout.other_bias()
    if other is not None and layout.local_name.startswith("bias_ih"):
        total = gate_blocks(layout.parameter.detach() + other.detach(), layout.gates)
        sums = {gate: float(block.double().mean()) for gate, block in total.items()}
    scheme = _by_gate([str(rule) for rule in assignment.rules], layout.gates)
    if layout.parameter in changed:
        scheme += f"; calibrated: {changed[layout.parameter]}"
    return ParameterReport(
        parameter=" = ".join(layout.names),
        rule=_by_gate([rule.name for rule in assignment.rules], layout.gates),
        scheme=scheme,
        shape=tuple(values.shape),
        mean=float(values.mean()),
        standard_deviation=float(values.std(unbiased=False)),
        spectral_radius=radii,
        bias_sum=sums,
    )


def _by_gate(texts: Sequence[str], gates: str) -> str:
    """One text if all gates agree, else each text with its gates: ``igo: zeros, f: constant``."""
    if len(set(texts)) == 1:
        return texts[0]
    letters = dict.fromkeys(texts, "")
    for text, gate in zip(texts, gates, strict=True):
        letters[text] += gate
    return ", ".join(f"{gates}: {text}" for text, gates in letters.items())


def _listed(values: dict[str, float]) -> str:
    return " ".join(f"{gate} {value:.2f}" for gate, value in values.items())
