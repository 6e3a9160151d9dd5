"""The minimal gated unit, which is also the example of how a cell is added (docs/new_cell.md)."""

from collections.abc import Mapping

from torch import Tensor
from torch.nn.functional import linear

from seq2seq.models.cells.step_cell import StepCell


class MinimalGatedUnit(StepCell):
    """A GRU with one gate, which forgets and resets at once.

    ::

        z = sigmoid(W_z x_t + U_z h_{t-1} + b_z)
        n = tanh(W_n x_t + U_n ((1 - z) * h_{t-1}) + b_n)
        h_t = z * h_{t-1} + (1 - z) * n

    Zhou, Wu, Zhang and Zhou 2016, "Minimal gated unit for recurrent neural networks". Their gate
    ``f`` is ``1 - z`` here, so that a large one remembers, as in the GRU.
    """

    gates = "zn"

    def gate_values(
        self, driven: Tensor, hidden: Tensor, recurrent_weight: Tensor
    ) -> dict[str, Tensor]:
        """``z`` between 0 and 1."""
        drive_z, drive_n = driven.chunk(2, dim=-1)
        weight_z, weight_n = recurrent_weight.chunk(2)
        bias_z, bias_n = self.bias_hh_l0.chunk(2)
        z = (drive_z + linear(hidden, weight_z, bias_z)).sigmoid()
        n = (drive_n + linear((1 - z) * hidden, weight_n, bias_n)).tanh()
        return {"z": z, "n": n}

    def next_state(
        self, gates: Mapping[str, Tensor], hidden: Tensor, cell: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Between the old state and the candidate."""
        return gates["z"] * hidden + (1 - gates["z"]) * gates["n"], None
