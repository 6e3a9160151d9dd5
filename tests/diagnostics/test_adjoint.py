"""The linearised recurrence against autograd and explicit Jacobians."""

import pytest
import torch
from torch import Tensor

from seq2seq.diagnostics.adjoint import linearize
from seq2seq.models.cells import StepCell
from seq2seq.models.recurrent import CELLS, RecurrentLayer, RecurrentState

TIME, BATCH, INPUT, HIDDEN = 6, 3, 5, 4


def make_layer(cell: str) -> RecurrentLayer:
    torch.manual_seed(3)
    layer = RecurrentLayer(cell=cell, input_size=INPUT, hidden_size=HIDDEN).double()
    for parameter in layer.parameters():
        parameter.data.mul_(2)
    return layer


def lstm_step(layer: RecurrentLayer, x: Tensor, state: RecurrentState) -> RecurrentState:
    """Written out, so that `c_t` is the tensor that `h_t` is made of."""
    weight_ih, weight_hh, bias_ih, bias_hh = layer.rnn.parameters()
    sums = x @ weight_ih.T + bias_ih + state.hidden @ weight_hh.T + bias_hh
    i, f, g, o = sums.chunk(4, dim=2)
    cell = f.sigmoid() * state.cell + i.sigmoid() * g.tanh()
    return RecurrentState(o.sigmoid() * cell.tanh(), cell)


def walk(layer: RecurrentLayer) -> tuple[Tensor, list[Tensor], list[Tensor], RecurrentState]:
    """Inputs, and every state of a walk in single steps, all with retained gradients."""
    x = torch.randn(TIME, BATCH, INPUT, dtype=torch.float64)
    hidden = torch.randn(1, BATCH, HIDDEN, dtype=torch.float64) / 2
    cell = torch.randn(1, BATCH, HIDDEN, dtype=torch.float64) if layer.has_cell else None
    initial = state = RecurrentState(hidden, cell)
    hiddens, cells = [], []
    for step in x:
        if layer.cell == "lstm":
            state = lstm_step(layer, step.unsqueeze(0), state)
        elif isinstance(layer.rnn, StepCell):
            gates = layer.rnn.gate_values(
                layer.rnn.drive(step), state.hidden, layer.rnn.weight_hh_l0
            )
            state = RecurrentState(*layer.rnn.next_state(gates, *state))
        else:
            state = layer(step.unsqueeze(1), state=state).state
        for tensor, states in ((state.hidden, hiddens), (state.cell, cells)):
            if tensor is not None:
                tensor.retain_grad()
                states.append(tensor)
    return x, hiddens, cells, initial


@pytest.mark.parametrize("cell", CELLS)
def test_the_recomputed_states_are_those_of_the_layer(cell: str) -> None:
    layer = make_layer(cell)
    x, hiddens, _, initial = walk(layer)
    before = torch.cat([initial.hidden, *hiddens[:-1]])
    initial_cell = None if initial.cell is None else initial.cell[0]
    found = linearize(layer, x, before, initial_cell).hidden
    torch.testing.assert_close(found, torch.cat(hiddens), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("cell", CELLS)
def test_several_losses_in_one_pass_equal_autograd_one_by_one(cell: str) -> None:
    layer = make_layer(cell)
    weights = torch.randn(2, TIME, BATCH, HIDDEN, dtype=torch.float64)
    cell_weights = torch.randn(2, TIME, BATCH, HIDDEN, dtype=torch.float64)
    expected = []
    for loss in range(2):
        torch.manual_seed(9)
        x, hiddens, cells, initial = walk(layer)
        total = (torch.cat(hiddens) * weights[loss]).sum()
        if cells:
            # Direct use of c_t beside its own h_t and the next step.
            total = total + (torch.cat(cells) * cell_weights[loss]).sum()
        total.backward()
        expected.append([state.grad for state in (*hiddens, *cells)])
    before = torch.cat([initial.hidden, *hiddens[:-1]]).detach()
    initial_cell = None if initial.cell is None else initial.cell[0]
    linearization = linearize(layer, x, before, initial_cell)
    given = weights.transpose(0, 1).contiguous()
    untouched = given.clone()
    hidden, cell_total = linearization.backpropagate(
        given, cell_weights.transpose(0, 1).contiguous()
    )
    assert torch.equal(given, untouched)
    for loss in range(2):
        reference = torch.cat(expected[loss][:TIME])
        torch.testing.assert_close(hidden[:, loss], reference, rtol=1e-12, atol=1e-14)
        if cell_total is not None:
            reference = torch.cat(expected[loss][TIME:])
            torch.testing.assert_close(cell_total[:, loss], reference, rtol=1e-12, atol=1e-14)
    assert (cell_total is None) == (not layer.has_cell)


def test_the_state_gradient_of_an_lstm_is_the_product_of_its_state_jacobians() -> None:
    layer = make_layer("lstm")
    x, hiddens, cells, initial = walk(layer)
    before = torch.cat([initial.hidden, *hiddens[:-1]]).detach()
    linearization = linearize(layer, x, before, initial.cell[0])
    start = torch.randn(2, BATCH, HIDDEN, dtype=torch.float64)
    direct = torch.zeros(2, TIME, BATCH, HIDDEN, dtype=torch.float64)
    direct[:, -1] = start
    hidden, cell = linearization.backpropagate(direct[0].unsqueeze(1), direct[1].unsqueeze(1))
    carried = linearization.carried_cell(hidden[:, 0], cell[:, 0], direct[1])

    def step(state: Tensor, x: Tensor) -> Tensor:
        h, c = torch.lstm_cell(
            x.unsqueeze(0),
            (state[:HIDDEN].unsqueeze(0), state[HIDDEN:].unsqueeze(0)),
            *(parameter.detach() for parameter in layer.rnn.parameters()),
        )
        return torch.cat([h[0], c[0]])

    for row in range(BATCH):
        expected = torch.cat([start[0, row], start[1, row]])
        for time in reversed(range(TIME - 1)):
            state = torch.cat([hiddens[time][0, row], cells[time][0, row]]).detach()
            expected = expected @ torch.func.jacrev(step)(state, x[time + 1, row])
            found = torch.cat([hidden[time, 0, row], carried[time, row]])
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


def test_a_large_update_gate_carries_the_gradient_unchanged() -> None:
    layer = make_layer("gru")
    with torch.no_grad():
        layer.rnn.bias_ih_l0[HIDDEN : 2 * HIDDEN] = 60.0  # z = 1: the state is kept
    x, hiddens, _, initial = walk(layer)
    before = torch.cat([initial.hidden, *hiddens[:-1]]).detach()
    direct = torch.zeros(TIME, 1, BATCH, HIDDEN, dtype=torch.float64)
    direct[-1] = 1.0
    hidden, _ = linearize(layer, x, before).backpropagate(direct)
    torch.testing.assert_close(hidden, torch.ones_like(hidden))
