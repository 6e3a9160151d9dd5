"""The layer-normalised LSTM."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from seq2seq.models.cells.layer_norm import check_units, normalize_gates
from seq2seq.models.cells.step_cell import StepCell


class LayerNormLSTM(StepCell):
    """An LSTM whose activations and whose cell state are normalised over the units.

    ::

        a = LN(W x_t; v, b) + LN(U h_{t-1}; v', b')        gate by gate
        i, f, o = sigmoid(a)    g = tanh(a)
        c_t = f * c_{t-1} + i * g
        h_t = o * tanh(LN(c_t; v'', b''))

    Ba, Kiros and Hinton 2016, "Layer normalization", supplementary material on the LSTM, whose
    third bias ``b`` of the gates would do nothing beside the two of ``LN``. There the four gates
    are normalised together; here each is on its own, so that one gate's size says nothing about
    another's.

    Raises:
        ValueError: for a single unit.
    """

    gates = "ifgo"
    has_cell = True

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        check_units(hidden_size, "layer_norm_lstm")
        rows = len(self.gates) * hidden_size
        self.norm_gain_ih_l0 = nn.Parameter(torch.ones(rows))
        self.norm_gain_hh_l0 = nn.Parameter(torch.ones(rows))
        self.norm_gain_cell = nn.Parameter(torch.ones(hidden_size))
        self.norm_bias_cell = nn.Parameter(torch.zeros(hidden_size))

    def drive(self, x: Tensor) -> Tensor:
        """``LN(W x; v, b)``."""
        projected = linear(x, self.weight_ih_l0)
        return normalize_gates(projected, 4, self.norm_gain_ih_l0, self.bias_ih_l0)

    def gate_values(
        self, driven: Tensor, hidden: Tensor, recurrent_weight: Tensor
    ) -> dict[str, Tensor]:
        """All but ``g`` between 0 and 1."""
        projected = linear(hidden, recurrent_weight)
        recurrent = normalize_gates(projected, 4, self.norm_gain_hh_l0, self.bias_hh_l0)
        i, f, g, o = (driven + recurrent).chunk(4, dim=-1)
        return {"i": i.sigmoid(), "f": f.sigmoid(), "g": g.tanh(), "o": o.sigmoid()}

    def next_state(
        self, gates: Mapping[str, Tensor], hidden: Tensor, cell: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The cell state itself stays as it is: what is normalised is only what leaves it."""
        assert cell is not None
        cell = gates["f"] * cell + gates["i"] * gates["g"]
        normal = normalize_gates(cell, 1, self.norm_gain_cell, self.norm_bias_cell)
        return gates["o"] * normal.tanh(), cell
