"""Thirds of the recurrent gradient against autograd with a copy of the weights at each timestep."""

import math

import pytest
import torch
from torch import Tensor

from seq2seq.diagnostics.gradient_flow import GradientRecorder, LayerFlow, layer_flow
from seq2seq.diagnostics.weight_gradient import (
    recurrent_gradient_by_third,
    weight_gradient_by_time,
)
from seq2seq.models.recurrent import CELLS, RecurrentLayer

ROWS, INPUT, HIDDEN = 4, 3, 5
LENGTHS = torch.tensor([9, 2, 7, 4])


def make_layer(cell: str, *, reverse: bool) -> RecurrentLayer:
    torch.manual_seed(1)
    layer = RecurrentLayer(cell=cell, input_size=INPUT, hidden_size=HIDDEN, reverse=reverse)
    for parameter in layer.parameters():  # large enough that no gate is near one half
        parameter.data.mul_(1.5)
    return layer.double()


def make_data(padding: int) -> tuple[Tensor, Tensor]:
    """Inputs, and how each output enters the loss."""
    generator = torch.Generator().manual_seed(2)
    size = (ROWS, int(LENGTHS.max()))
    x = torch.randn(*size, INPUT, generator=generator, dtype=torch.float64)
    weights = torch.randn(*size, HIDDEN, generator=generator, dtype=torch.float64)
    unreal = torch.arange(size[1]) >= LENGTHS.unsqueeze(1)
    weights = weights.masked_fill(unreal.unsqueeze(2), 0.0)
    more = (0, 0, 0, padding)
    return torch.nn.functional.pad(x, more), torch.nn.functional.pad(weights, more)


def recorded_flow(layer: RecurrentLayer, *, stepwise: bool = False, padding: int = 0) -> LayerFlow:
    x, weights = make_data(padding)
    x.requires_grad_()
    with GradientRecorder({"layer": layer}, rows=torch.arange(ROWS)) as recorder:
        if stepwise:
            state, outputs = None, []
            for one in x.split(1, dim=1):
                output, state = layer(one, None, state)
                outputs.append(output)
            output = torch.cat(outputs, dim=1)
        else:
            output, _ = layer(x, LENGTHS)
    # What a kernel leaves in the padding is undefined.
    real = (torch.arange(x.size(1)) < LENGTHS.unsqueeze(1)).unsqueeze(2)
    (output.masked_fill(~real, 0.0) * weights).sum().backward()
    return layer_flow(layer, recorder.calls["layer"], lengths=LENGTHS)


def by_copies(layer: RecurrentLayer) -> Tensor:
    """``[3, gates * hidden, hidden]``, every timestep with a copy of the weights of its own."""
    w, u, b_w, b_u = (parameter.detach() for parameter in list(layer.rnn.parameters())[:4])
    x, weights = make_data(0)
    thirds = torch.zeros(3, *u.shape, dtype=torch.float64)
    for row, length in enumerate(LENGTHS.tolist()):
        order = range(length - 1, -1, -1) if layer.reverse else range(length)
        copies = [u.clone().requires_grad_() for _ in range(length)]
        h = torch.zeros(1, HIDDEN, dtype=torch.float64)
        c, loss = h, 0.0
        for time, copied in zip(order, copies, strict=True):
            one = x[row, time].unsqueeze(0)
            match layer.cell:
                case "lstm":
                    h, c = torch.lstm_cell(one, (h, c), w, copied, b_w, b_u)
                case "gru":
                    h = torch.gru_cell(one, h, w, copied, b_w, b_u)
                case "rnn_tanh":
                    h = torch.rnn_tanh_cell(one, h, w, copied, b_w, b_u)
                case "rnn_relu":
                    h = torch.rnn_relu_cell(one, h, w, copied, b_w, b_u)
                case _:
                    gates = layer.rnn.gate_values(layer.rnn.drive(one), h, copied)
                    h, c = layer.rnn.next_state(gates, h, c)
            loss = loss + (h[0] * weights[row, time]).sum()
        for done, gradient in enumerate(torch.autograd.grad(loss, copies)):
            thirds[int(3 * (done + 0.5) / length)] += gradient
    return thirds


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_each_third_is_the_gradient_of_its_own_copies_of_the_weights(
    cell: str, reverse: bool
) -> None:
    layer = make_layer(cell, reverse=reverse)
    expected = by_copies(layer)
    for padding in (0, 3):
        layer.zero_grad()
        found = recurrent_gradient_by_third(recorded_flow(layer, padding=padding))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        whole = layer.rnn.weight_hh_l0.grad
        torch.testing.assert_close(found.sum(0), whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_a_layer_called_step_by_step_gives_the_same_thirds(cell: str) -> None:
    layer = make_layer(cell, reverse=False)
    found = recurrent_gradient_by_third(recorded_flow(layer, stepwise=True))
    torch.testing.assert_close(found, by_copies(layer), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_the_cosine_and_the_shares_are_those_of_the_thirds(cell: str) -> None:
    layer = make_layer(cell, reverse=False)
    early, middle, late = by_copies(layer).flatten(1)
    found = weight_gradient_by_time(recorded_flow(layer))
    cosine = torch.nn.functional.cosine_similarity(early, late, dim=0)
    assert found.cosine == pytest.approx(float(cosine), rel=1e-9)
    norms = [float(third.norm()) for third in (early, middle, late)]
    assert list(found.shares) == ["early", "middle", "late"]
    assert list(found.shares.values()) == pytest.approx([n / sum(norms) for n in norms], rel=1e-9)


def test_a_third_without_gradient_has_no_cosine() -> None:
    layer = make_layer("rnn_tanh", reverse=False)
    layer.rnn.weight_hh_l0.data.zero_()  # nothing comes back through time
    x = make_data(0)[0].requires_grad_()
    with GradientRecorder({"layer": layer}, rows=torch.arange(ROWS)) as recorder:
        _, state = layer(x, LENGTHS)
    state.hidden.sum().backward()
    found = weight_gradient_by_time(layer_flow(layer, recorder.calls["layer"]))
    assert math.isnan(found.cosine)
    assert list(found.shares.values()) == [0.0, 0.0, 1.0]
