"""Recurrent cells that are written out step by step, by the name that ``model.cell`` gives them.

A new one is a file beside these and a line in the table; docs/new_cell.md shows it.
"""

from seq2seq.models.cells.layer_norm_gru import LayerNormGRU
from seq2seq.models.cells.layer_norm_lstm import LayerNormLSTM
from seq2seq.models.cells.minimal_gated_unit import MinimalGatedUnit
from seq2seq.models.cells.projected_lstm import ProjectedLSTM
from seq2seq.models.cells.step_cell import StepCell

__all__ = ["STEP_CELLS", "ProjectedLSTM", "StepCell"]

STEP_CELLS: dict[str, type[StepCell]] = {
    "layer_norm_lstm": LayerNormLSTM,
    "layer_norm_gru": LayerNormGRU,
    "mgu": MinimalGatedUnit,
}
