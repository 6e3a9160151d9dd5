"""The equations of the projected LSTM, for diagnostics; `nn.LSTM` itself runs it, in one call."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.functional import linear

from seq2seq.models.cells.step_cell import StepCell


class ProjectedLSTM(StepCell):
    """A view of an `nn.LSTM` with a projection, whose parameters it shares.

    ::

        i, f, o = sigmoid(W x_t + U h_{t-1} + b)    g = tanh(W x_t + U h_{t-1} + b)
        c_t = f * c_{t-1} + i * g                   h_t = W_r (o * tanh(c_t))

    Its hidden state is as wide as the projection, its gates and its cell state as ``hidden_size``.

    Args:
        lstm: of one layer and one direction, with ``proj_size``.
    """

    gates = "ifgo"
    has_cell = True

    def __init__(self, lstm: nn.LSTM) -> None:
        nn.Module.__init__(self)  # the parameters are there already
        self.input_size = lstm.input_size
        self.hidden_size = lstm.hidden_size
        for name, parameter in lstm.named_parameters():
            self.register_parameter(name, parameter)

    def gate_values(
        self, driven: Tensor, hidden: Tensor, recurrent_weight: Tensor
    ) -> dict[str, Tensor]:
        """All but ``g`` between 0 and 1."""
        activations = driven + linear(hidden, recurrent_weight, self.bias_hh_l0)
        i, f, g, o = activations.chunk(4, dim=-1)
        return {"i": i.sigmoid(), "f": f.sigmoid(), "g": g.tanh(), "o": o.sigmoid()}

    def next_state(
        self, gates: Mapping[str, Tensor], hidden: Tensor, cell: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The projection comes last, and the cell state isn't projected."""
        assert cell is not None
        cell = gates["f"] * cell + gates["i"] * gates["g"]
        return linear(gates["o"] * cell.tanh(), self.get_parameter("weight_hr_l0")), cell
