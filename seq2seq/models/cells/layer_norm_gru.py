"""The layer-normalised GRU."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from seq2seq.models.cells.layer_norm import check_units, normalize_gates
from seq2seq.models.cells.step_cell import StepCell


class LayerNormGRU(StepCell):
    """A GRU whose activations are normalised over the units, gate by gate.

    ::

        r, z = sigmoid(LN(W x_t; v, b) + LN(U h_{t-1}; v', b'))
        n = tanh(LN(W_n x_t; v_n, b_n) + r * LN(U_n h_{t-1}; v'_n, b'_n))
        h_t = (1 - z) * n + z * h_{t-1}

    Ba, Kiros and Hinton 2016, "Layer normalization", supplementary material on the GRU. There both
    gates are normalised together, and a large ``z`` writes; here each is on its own, and remembers.

    Raises:
        ValueError: for a single unit.
    """

    gates = "rzn"

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        check_units(hidden_size, "layer_norm_gru")
        rows = len(self.gates) * hidden_size
        self.norm_gain_ih_l0 = nn.Parameter(torch.ones(rows))
        self.norm_gain_hh_l0 = nn.Parameter(torch.ones(rows))

    def drive(self, x: Tensor) -> Tensor:
        """``LN(W x; v, b)``."""
        projected = linear(x, self.weight_ih_l0)
        return normalize_gates(projected, 3, self.norm_gain_ih_l0, self.bias_ih_l0)

    def gate_values(
        self, driven: Tensor, hidden: Tensor, recurrent_weight: Tensor
    ) -> dict[str, Tensor]:
        """``r`` and ``z`` between 0 and 1."""
        projected = linear(hidden, recurrent_weight)
        recurrent = normalize_gates(projected, 3, self.norm_gain_hh_l0, self.bias_hh_l0)
        from_input, from_hidden = driven.chunk(3, dim=-1), recurrent.chunk(3, dim=-1)
        r, z = (torch.sigmoid(from_input[gate] + from_hidden[gate]) for gate in (0, 1))
        return {"r": r, "z": z, "n": torch.tanh(from_input[2] + r * from_hidden[2])}

    def next_state(
        self, gates: Mapping[str, Tensor], hidden: Tensor, cell: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """As the GRU."""
        return gates["z"] * hidden + (1 - gates["z"]) * gates["n"], None
