"""Total derivatives per timestep against an unrolled reference, and what must not change them.

The reference walks through one example at a time in plain Python, with its own gate formulas and
without padding, masks, batches or fused kernels, and asks autograd for every state's gradient.
"""

import math
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from seq2seq.diagnostics.forward_signal import forward_signal
from seq2seq.diagnostics.gradient_flow import (
    Call,
    GradientRecorder,
    LayerFlow,
    RecomputationError,
    layer_flow,
)
from seq2seq.diagnostics.gradient_profile import log_slope, root_mean_square
from seq2seq.diagnostics.weight_gradient import recurrent_gradient_by_third
from seq2seq.models.cells import STEP_CELLS
from seq2seq.models.encoder_decoder import EncoderDecoder, encoder_decoder
from seq2seq.models.recurrent import (
    CELLS,
    KERNEL_GATES,
    RecurrentLayer,
    RecurrentNoise,
    has_cell_state,
    reverse_by_length,
)

VOCABULARY = 11
SOURCE_LENGTHS = torch.tensor([5, 9, 3, 1, 7, 9])
TARGET_LENGTHS = torch.tensor([4, 2, 8, 6, 1, 8])
PROJECTED = "lstm with projection"
EVERY_CELL = (*CELLS, PROJECTED)
PROJECTION = 3


@dataclass
class Pairs:
    source: Tensor
    decoder_input: Tensor
    labels: Tensor

    @property
    def tokens(self) -> int:
        return int(TARGET_LENGTHS.sum())


def make_pairs(*, more_padding: int = 0, seed: int = 0) -> Pairs:
    generator = torch.Generator().manual_seed(seed)

    def ragged(lengths: Tensor) -> Tensor:
        size = (len(lengths), int(lengths.max()))
        ids = torch.randint(1, VOCABULARY, size, generator=generator)
        ids = nn.functional.pad(ids, (0, more_padding))
        return ids.masked_fill(torch.arange(ids.size(1)) >= lengths.unsqueeze(1), 0)

    return Pairs(ragged(SOURCE_LENGTHS), ragged(TARGET_LENGTHS), ragged(TARGET_LENGTHS))


def kind_of(cell: str) -> dict[str, Any]:
    """The options that make a cell of these tests."""
    if cell == PROJECTED:
        return {"cell": "lstm", "projection_size": PROJECTION}
    return {"cell": cell}


def make_model(cell: str = "lstm", **options: object) -> EncoderDecoder:
    values: dict[str, object] = {
        "source_vocabulary_size": VOCABULARY,
        "target_vocabulary_size": VOCABULARY,
        "pad_id": 0,
        "embedding_size": 5,
        "hidden_size": 4,
    }
    torch.manual_seed(1)
    model = encoder_decoder(**(values | kind_of(cell) | options))  # type: ignore[arg-type]
    for parameter in model.parameters():  # large enough that no gate is near one half
        parameter.data.mul_(1.5)
    return model.double()


class KeptDropout(nn.Module):
    """Dropout of one half with masks that stay readable."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.masks.append(2.0 * (torch.rand_like(x) > 0.5))
        return x * self.masks[-1]


def summed_loss(model: EncoderDecoder, pairs: Pairs) -> Tensor:
    logits = model.logits(model(pairs.source, SOURCE_LENGTHS, pairs.decoder_input))
    real = torch.arange(logits.size(1)) < TARGET_LENGTHS.unsqueeze(1)
    return nn.functional.cross_entropy(logits[real].double(), pairs.labels[real], reduction="sum")


def recorded_flows(
    model: EncoderDecoder, pairs: Pairs, *, rows: Tensor | None = None, factor: float = 1.0
) -> dict[str, LayerFlow]:
    """Flows of all layers after the backward pass of `factor` times the mean loss per token."""
    rows = torch.arange(len(SOURCE_LENGTHS)) if rows is None else rows
    with GradientRecorder(model.recurrent_layers(), rows=rows) as record:
        loss = summed_loss(model, pairs) / pairs.tokens
    (loss * factor).backward()
    return {
        name: layer_flow(
            layer,
            record.calls[name],
            lengths=(TARGET_LENGTHS if name.startswith("decoder") else SOURCE_LENGTHS)[rows],
            scale=pairs.tokens / factor,
        )
        for name, layer in model.recurrent_layers().items()
    }


# --- the reference ------------------------------------------------------------------------------


def one_step(layer: RecurrentLayer, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    rnn, size = layer.rnn, layer.hidden_size

    def gate(index: int) -> tuple[Tensor, Tensor]:
        rows = slice(index * size, (index + 1) * size)
        return (
            rnn.weight_ih_l0[rows] @ x + rnn.bias_ih_l0[rows],
            rnn.weight_hh_l0[rows] @ h + rnn.bias_hh_l0[rows],
        )

    if layer.cell == "lstm":
        i, f, g, o = (sum(gate(index)) for index in range(4))
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        shown = torch.sigmoid(o) * torch.tanh(c)
        return (rnn.weight_hr_l0 @ shown if layer.projects else shown), c
    if layer.cell == "gru":
        r, z = torch.sigmoid(sum(gate(0))), torch.sigmoid(sum(gate(1)))
        from_input, from_hidden = gate(2)
        return (1 - z) * torch.tanh(from_input + r * from_hidden) + z * h, c
    if layer.cell == "mgu":
        keep = torch.sigmoid(sum(gate(0)))
        recurrent = rnn.weight_hh_l0[size:] @ ((1 - keep) * h) + rnn.bias_hh_l0[size:]
        return (1 - keep) * torch.tanh(gate(1)[0] + recurrent) + keep * h, c
    if layer.cell.startswith("layer_norm"):
        from_input, from_hidden = (
            [
                layer_norm(w[rows] @ z, [size], gain[rows], bias[rows])
                for rows in torch.arange(len(w)).split(size)
            ]
            for z, w, gain, bias in (
                (x, rnn.weight_ih_l0, rnn.norm_gain_ih_l0, rnn.bias_ih_l0),
                (h, rnn.weight_hh_l0, rnn.norm_gain_hh_l0, rnn.bias_hh_l0),
            )
        )
        if layer.cell == "layer_norm_gru":
            r, z = (torch.sigmoid(from_input[k] + from_hidden[k]) for k in range(2))
            return (1 - z) * torch.tanh(from_input[2] + r * from_hidden[2]) + z * h, c
        i, f, g, o = (a + b for a, b in zip(from_input, from_hidden, strict=True))
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        shown = layer_norm(c, [size], rnn.norm_gain_cell, rnn.norm_bias_cell)
        return torch.sigmoid(o) * torch.tanh(shown), c
    total = sum(gate(0))
    return (torch.tanh(total) if layer.cell == "rnn_tanh" else torch.relu(total)), c


@dataclass
class Trace:
    """States of one layer on one example, in the order of the scan."""

    hidden: list[Tensor]
    cell: list[Tensor]

    def step(self, layer: RecurrentLayer, x: Tensor, h: Tensor, c: Tensor) -> None:
        h, c = one_step(layer, x, h, c)
        h.retain_grad()
        if layer.has_cell:
            c.retain_grad()
        self.hidden.append(h)
        self.cell.append(c)


def attend(model: EncoderDecoder, query: Tensor, outputs: list[Tensor]) -> Tensor:
    attention = model.decoder.attention
    scores = []
    for output in outputs:
        if attention.kind == "additive":
            joined = attention.query_projection(query) + attention.key_projection(output)
            scores.append((attention.energy.weight @ torch.tanh(joined)).squeeze())
        elif attention.kind == "general":
            scores.append(query @ (attention.key_projection.weight @ output))
        else:
            scores.append(query @ output * attention.scale)
    weights = torch.stack(scores).exp()
    weights = weights / weights.sum()
    return sum(weight * output for weight, output in zip(weights, outputs, strict=True))


def connected(connection: nn.Module, below: Tensor, output: Tensor) -> Tensor:
    if connection.kind == "residual":
        return below + output
    if connection.kind == "highway":
        gate = torch.sigmoid(connection.highway.weight @ below + connection.highway.bias)
        return gate * output + (1 - gate) * below
    return output


def unrolled(
    model: EncoderDecoder, pairs: Pairs, row: int, masks: dict[str, list[Tensor]]
) -> tuple[dict[str, Trace], Tensor]:
    """States of every layer and the summed loss of one example."""
    encoder, decoder, bridge = model.encoder, model.decoder, model.bridge
    source = pairs.source[row, : SOURCE_LENGTHS[row]].tolist()
    if encoder.reverse_source:
        source = source[-2::-1] + source[-1:]
    traces: dict[str, Trace] = {}
    xs = [encoder.embedding.weight[token] for token in source]
    finals: list[list[Trace]] = []
    for index, pair in enumerate(encoder.layers):
        below = xs
        if index and masks["encoder"]:
            xs = [x * mask for x, mask in zip(xs, masks["encoder"][index - 1][row], strict=False)]
        zeros = torch.zeros(encoder.hidden_size, dtype=xs[0].dtype)
        onward, finals_here = [], []
        for direction, layer in (
            ("forward", pair.forward_layer),
            ("backward", pair.backward_layer),
        ):
            if layer is None:
                continue
            trace = traces[f"encoder/layer{index}/{direction}"] = Trace([], [])
            h, c = zeros[: layer.output_size], zeros
            for x in xs if direction == "forward" else reversed(xs):
                trace.step(layer, x, h, c)
                h, c = trace.hidden[-1], trace.cell[-1]
            onward.append(trace.hidden if direction == "forward" else trace.hidden[::-1])
            finals_here.append(trace)
        xs = [
            connected(encoder.connections[index], x, torch.cat(outputs))
            for x, *outputs in zip(below, *onward, strict=True)
        ]
        finals.append(finals_here)
    if encoder.reverse_source:
        xs = xs[-2::-1] + xs[-1:]

    states = []
    for index, layer in enumerate(decoder.layers):
        h = torch.cat([trace.hidden[-1] for trace in finals[index]])
        c = torch.cat([trace.cell[-1] for trace in finals[index]])
        if bridge.kind == "linear":
            h = torch.tanh(bridge.hidden[index].weight @ h + bridge.hidden[index].bias)
            if layer.has_cell:
                c = torch.tanh(bridge.cell[index].weight @ c + bridge.cell[index].bias)
        states.append((h, c))
        traces[f"decoder/layer{index}"] = Trace([], [])

    fed = torch.zeros(decoder.output_size, dtype=xs[0].dtype)
    loss = torch.zeros((), dtype=xs[0].dtype)
    for time in range(int(TARGET_LENGTHS[row])):
        x = decoder.embedding.weight[pairs.decoder_input[row, time]]
        if decoder.query_state == "previous":
            context = attend(model, states[-1][0], xs)
            x = torch.cat([x, context])
        elif decoder.input_feeding:
            x = torch.cat([x, fed])
        for index, layer in enumerate(decoder.layers):
            below = x
            if index and masks["decoder"]:
                x = x * masks["decoder"][index - 1][row, time]
            trace = traces[f"decoder/layer{index}"]
            trace.step(layer, x, *states[index])
            states[index] = trace.hidden[-1], trace.cell[-1]
            x = connected(decoder.connections[index], below, trace.hidden[-1])
        if decoder.attention is not None:
            if decoder.query_state == "current":
                context = attend(model, x, xs)
            x = fed = torch.tanh(decoder.attention_vector.weight @ torch.cat([context, x]))
        logits = decoder.output.weight @ x + decoder.output.bias
        loss = loss + torch.logsumexp(logits, 0) - logits[pairs.labels[row, time]]
    return traces, loss


def relative_error(value: Tensor, reference: Tensor) -> float:
    if not reference.norm():
        return float(value.norm())
    return float((value - reference).norm() / reference.norm())


def assert_flows_equal_reference(
    model: EncoderDecoder, pairs: Pairs, flows: dict[str, LayerFlow], masks: dict[str, list[Tensor]]
) -> None:
    compared = 0
    for row in range(len(SOURCE_LENGTHS)):
        traces, loss = unrolled(model, pairs, row, masks)
        loss.backward()
        assert traces.keys() == flows.keys()
        for name, trace in traces.items():
            flow = flows[name]
            for time, state in enumerate(trace.hidden):
                expected = torch.zeros_like(state) if state.grad is None else state.grad
                assert relative_error(flow.hidden[time, row], expected) < 1e-10, (name, row, time)
                compared += 1
            if flow.cell is not None:
                for time, state in enumerate(trace.cell):
                    assert relative_error(flow.cell[time, row], state.grad) < 1e-10
            assert not flow.hidden[len(trace.hidden) :, row].any()
    assert compared > 100


# --- claims -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "attention", "bidirectional"),
    [
        *product(KERNEL_GATES, ["none", "general"], [False, True]),
        *product([*STEP_CELLS, PROJECTED], ["general"], [True]),
    ],
)
def test_total_derivatives_equal_the_unrolled_reference_with_dropout_between_layers(
    cell: str, attention: str, bidirectional: bool
) -> None:
    model = make_model(
        cell=cell, attention=attention, encoder_layers=2, bidirectional=bidirectional
    )
    model.encoder.layer_dropout, model.decoder.layer_dropout = KeptDropout(), KeptDropout()
    pairs = make_pairs()
    flows = recorded_flows(model, pairs)
    masks = {
        "encoder": model.encoder.layer_dropout.masks,
        "decoder": model.decoder.layer_dropout.masks,
    }
    assert_flows_equal_reference(model, pairs, flows, masks)


@pytest.mark.parametrize("cell", EVERY_CELL)
@pytest.mark.parametrize("input_feeding", [False, True])
def test_dropped_recurrent_weights_give_the_flow_of_a_network_that_has_only_the_others(
    cell: str, input_feeding: bool
) -> None:
    options = {"cell": cell, "encoder_layers": 2, "input_feeding": input_feeding}
    model, other = make_model(**options, weight_dropout=0.4), make_model(**options)
    kept = {name: layer.draw_noise() for name, layer in model.recurrent_layers().items()}
    for name, layer in model.recurrent_layers().items():
        layer.draw_noise = lambda noise=kept[name]: noise
    for name, layer in other.recurrent_layers().items():
        layer.rnn.weight_hh_l0.data.mul_(kept[name].recurrent_mask)
    flows = recorded_flows(model, make_pairs())
    for name, expected in recorded_flows(other, make_pairs()).items():
        found = flows[name]
        for value, reference in zip(
            (found.hidden, found.transport), (expected.hidden, expected.transport), strict=True
        ):
            torch.testing.assert_close(value, reference, rtol=1e-10, atol=1e-12)
        layer = model.recurrent_layers()[name]
        signal = forward_signal(layer, found.scan).hidden_rms
        assert signal == pytest.approx(forward_signal(layer, expected.scan).hidden_rms)
        whole = recurrent_gradient_by_third(found).sum(0) / make_pairs().tokens
        torch.testing.assert_close(whole, layer.rnn.weight_hh_l0.grad, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("cell", EVERY_CELL)
@pytest.mark.parametrize("training", [False, True])
def test_zoneout_gives_the_same_flow_carried_back_here_and_by_autograd_step_by_step(
    cell: str, training: bool
) -> None:
    torch.manual_seed(0)
    kind = kind_of(cell)
    share = 0.4 if has_cell_state(kind["cell"]) else 0.0
    layer = RecurrentLayer(
        **kind, input_size=3, hidden_size=4, zoneout_hidden=0.3, zoneout_cell=share
    ).double()
    layer.train(training)
    x = torch.randn(5, 7, 3, dtype=torch.float64)
    weights = torch.randn(5, 7, layer.output_size, dtype=torch.float64)
    noise = layer.draw_steps(x, None)
    assert (noise is not None) == training
    rows = torch.tensor([0, 2, 4])
    with GradientRecorder({"layer": layer}, rows=rows) as fused:
        output, state = layer(x, noise=noise)
    finals = [tensor for tensor in state if tensor is not None]
    (output * weights).sum().add(sum(one.square().sum() for one in finals)).backward()
    gradient = layer.rnn.weight_hh_l0.grad.clone()
    layer.zero_grad()
    with GradientRecorder({"layer": layer}, rows=rows) as stepwise:
        outputs, state = [], None
        for time in range(7):
            now = None
            if noise is not None:
                now = RecurrentNoise(
                    None, *(None if one is None else one[:, time : time + 1] for one in noise[1:])
                )
            output, state = layer(x[:, time : time + 1], None, state, now)
            outputs.append(output)
    finals = [tensor for tensor in state if tensor is not None]
    loss = (torch.cat(outputs, 1) * weights).sum() + sum(one.square().sum() for one in finals)
    loss.backward()
    torch.testing.assert_close(layer.rnn.weight_hh_l0.grad, gradient, rtol=1e-10, atol=1e-12)
    first = layer_flow(layer, fused.calls["layer"])
    second = layer_flow(layer, stepwise.calls["layer"])
    for name in ("hidden", "transport", *(["cell"] if layer.has_cell else [])):
        value, reference = getattr(first, name), getattr(second, name)
        torch.testing.assert_close(value, reference, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        recurrent_gradient_by_third(first), recurrent_gradient_by_third(second)
    )
    signal = forward_signal(layer, first.scan)
    rms = output[rows].detach().square().mean().sqrt()
    assert signal.hidden_rms[-1] == pytest.approx(float(rms), rel=1e-10)
    if layer.has_cell:
        rms = finals[1][0, rows].detach().square().mean().sqrt()
        assert signal.cell_rms[-1] == pytest.approx(float(rms), rel=1e-10)


def test_zoneout_of_a_whole_network_is_followed_in_training() -> None:
    model = make_model(encoder_layers=2, input_feeding=True, zoneout_hidden=0.3, zoneout_cell=0.3)
    pairs, rows = make_pairs(), torch.arange(len(SOURCE_LENGTHS))
    with GradientRecorder(model.recurrent_layers(), rows=rows) as record:
        loss = summed_loss(model, pairs)
    loss.backward()
    for name, layer in model.recurrent_layers().items():
        lengths = TARGET_LENGTHS if name.startswith("decoder") else SOURCE_LENGTHS
        flow = layer_flow(layer, record.calls[name], lengths=lengths)
        gradient = recurrent_gradient_by_third(flow).sum(0)
        torch.testing.assert_close(gradient, layer.rnn.weight_hh_l0.grad, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("connection", ["residual", "highway"])
@pytest.mark.parametrize("input_feeding", [False, True])
def test_a_way_around_the_layers_is_part_of_the_total_derivatives(
    connection: str, input_feeding: bool
) -> None:
    model = make_model(
        cell="lstm",
        encoder_layers=3,
        decoder_layers=3,
        bidirectional_layers=1,
        input_feeding=input_feeding,
        layer_connection=connection,
    )
    model.encoder.layer_dropout = KeptDropout()
    pairs = make_pairs()
    flows = recorded_flows(model, pairs)
    assert [one.kind for one in model.encoder.connections] == ["none", "none", connection]
    masks = {"encoder": model.encoder.layer_dropout.masks, "decoder": []}
    assert_flows_equal_reference(model, pairs, flows, masks)


@pytest.mark.parametrize("cell", EVERY_CELL)
@pytest.mark.parametrize("query_state", ["current", "previous"])
def test_a_decoder_that_steps_gives_total_derivatives_too(cell: str, query_state: str) -> None:
    model = make_model(
        cell=cell,
        attention="additive",
        encoder_layers=2,
        input_feeding=True,
        query_state=query_state,
        reverse_source=True,
    )
    pairs = make_pairs()
    flows = recorded_flows(model, pairs)
    assert_flows_equal_reference(model, pairs, flows, {"encoder": [], "decoder": []})


@pytest.mark.parametrize("cell", EVERY_CELL)
def test_calling_a_layer_once_or_once_a_timestep_gives_the_same_flow(cell: str) -> None:
    torch.manual_seed(0)
    layer = RecurrentLayer(**kind_of(cell), input_size=3, hidden_size=4).double()
    x = torch.randn(5, 7, 3, dtype=torch.float64)
    weights = torch.randn(5, 7, layer.output_size, dtype=torch.float64)
    rows = torch.arange(5)
    with GradientRecorder({"layer": layer}, rows=rows) as fused:
        output, state = layer(x)
    (output * weights).sum().add(state.hidden.square().sum()).backward()
    with GradientRecorder({"layer": layer}, rows=rows) as stepwise:
        outputs, state = [], None
        for time in range(7):
            output, state = layer(x[:, time : time + 1], state=state)
            outputs.append(output)
    loss = (torch.cat(outputs, 1) * weights).sum() + state.hidden.square().sum()
    loss.backward()
    first = layer_flow(layer, fused.calls["layer"])
    second = layer_flow(layer, stepwise.calls["layer"])
    torch.testing.assert_close(first.hidden, second.hidden, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(first.transport, second.transport, rtol=1e-10, atol=1e-12)
    if first.cell is not None:
        torch.testing.assert_close(first.cell, second.cell, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cell", EVERY_CELL)
def test_padding_changes_no_derivative(cell: str) -> None:
    model = make_model(cell=cell, encoder_layers=2)
    tight = recorded_flows(model, make_pairs())
    loose_pairs, pairs = make_pairs(more_padding=4), make_pairs()
    # The same tokens, more padding.
    for name in ("source", "decoder_input", "labels"):
        time = getattr(pairs, name).size(1)
        getattr(loose_pairs, name)[:, :time] = getattr(pairs, name)
    loose = recorded_flows(model, loose_pairs)
    for name, flow in tight.items():
        time = len(flow.hidden)
        torch.testing.assert_close(loose[name].hidden[:time], flow.hidden, rtol=1e-12, atol=1e-13)
        assert not loose[name].hidden[time:].any()
        assert not loose[name].transport[time:].any()
        torch.testing.assert_close(loose[name].transport[:time], flow.transport)


def test_undefined_outputs_in_the_padding_reach_no_derivative() -> None:
    torch.manual_seed(0)
    layer = RecurrentLayer(cell="gru", input_size=3, hidden_size=4)
    lengths = torch.tensor([2, 5])
    x = torch.randn(2, 5, 3)
    flows = []
    for garbage in (0.0, math.nan):
        x[0, 2:] = garbage
        with GradientRecorder({"layer": layer}, rows=torch.arange(2)) as record:
            _, state = layer(x, lengths)
        state.hidden.sum().backward()
        flows.append(layer_flow(layer, record.calls["layer"]))
    assert torch.equal(flows[0].hidden, flows[1].hidden)
    assert torch.equal(flows[0].transport, flows[1].transport)


def test_a_subset_of_the_batch_gives_the_rows_of_the_whole() -> None:
    model = make_model(encoder_layers=2)
    everyone = recorded_flows(model, make_pairs())
    rows = torch.tensor([1, 4])
    some = recorded_flows(model, make_pairs(), rows=rows)
    for name, flow in everyone.items():
        torch.testing.assert_close(some[name].hidden, flow.hidden[:, rows], rtol=1e-12, atol=0)


def test_a_factor_on_the_loss_changes_nothing() -> None:
    model = make_model()
    plain = recorded_flows(model, make_pairs())
    scaled = recorded_flows(model, make_pairs(), factor=1024.0 / 3)
    for name, flow in plain.items():
        torch.testing.assert_close(scaled[name].hidden, flow.hidden, rtol=1e-12, atol=0)


@pytest.mark.parametrize("input_feeding", [False, True])
def test_recording_changes_no_value_and_no_gradient(input_feeding: bool) -> None:
    gradients, losses = [], []
    for record in (False, True):
        model = make_model(
            encoder_layers=2, input_feeding=input_feeding, layer_dropout=0.3, output_dropout=0.2
        ).float()
        torch.manual_seed(5)
        pairs = make_pairs()
        layers = model.recurrent_layers() if record else {}
        with GradientRecorder(layers, rows=torch.arange(3)):
            loss = summed_loss(model, pairs)
        loss.backward()
        losses.append(loss.detach())
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert torch.equal(*losses)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_hook_on_the_outputs_alone_would_miss_the_recurrent_path() -> None:
    """Guard of the oracle: the quantity is not what a fused kernel's outputs receive."""
    model = make_model(attention="none", bidirectional=False)
    rows = torch.arange(len(SOURCE_LENGTHS))
    with GradientRecorder(model.recurrent_layers(), rows=rows) as record:
        loss = summed_loss(model, make_pairs())
    loss.backward()
    (call,) = record.calls["encoder/layer0/forward"]
    assert "output" not in call.gradients
    flow = layer_flow(
        model.recurrent_layers()["encoder/layer0/forward"], record.calls["encoder/layer0/forward"]
    )
    assert flow.hidden[0].norm(dim=1).min() > 0


def explicit_transport(
    layer: RecurrentLayer, call: Call, length: int, start: Tensor
) -> list[Tensor]:
    """A state gradient carried back by explicit Jacobians of one step, longest way last."""
    size = layer.output_size
    has_cell = layer.has_cell
    x = call.inputs[0]
    if layer.reverse:
        x = reverse_by_length(call.inputs, torch.tensor([length]))[0]

    def step(state: Tensor, x: Tensor) -> Tensor:
        h, c = state[:size], state[size:]
        h, c = one_step(layer, x, h, c)
        return torch.cat([h, c]) if has_cell else h

    states = [torch.zeros(size + layer.hidden_size * has_cell, dtype=torch.float64)]
    for time in range(length):
        states.append(step(states[-1], x[time]).detach())
    carried = [start]
    for time in reversed(range(1, length)):
        jacobian = torch.func.jacrev(step)(states[time], x[time])
        carried.append(carried[-1] @ jacobian)
    return carried


@pytest.mark.parametrize("cell", EVERY_CELL)
@pytest.mark.parametrize("reverse", [False, True])
def test_transport_is_the_product_of_explicit_state_jacobians(cell: str, reverse: bool) -> None:
    torch.manual_seed(0)
    layer = RecurrentLayer(**kind_of(cell), input_size=3, hidden_size=4, reverse=reverse).double()
    x = torch.randn(1, 8, 3, dtype=torch.float64)
    length = 6
    with GradientRecorder({"layer": layer}, rows=torch.arange(1)) as record:
        output, _ = layer(x, torch.tensor([length]))
    output.sum().backward()
    calls = record.calls["layer"]
    flow = layer_flow(layer, calls)
    start = flow.transport[length - 1, 0]
    assert float(start.norm()) == pytest.approx(1.0, abs=1e-12)
    for distance, expected in enumerate(explicit_transport(layer, calls[0], length, start)):
        found = flow.transport[length - 1 - distance, 0]
        torch.testing.assert_close(found, expected.detach(), rtol=1e-10, atol=1e-14)


def test_transport_draws_the_same_vectors_again_and_leaves_the_global_generator_alone() -> None:
    model = make_model()
    before = torch.get_rng_state()
    first = recorded_flows(model, make_pairs())
    assert torch.equal(before, torch.get_rng_state())
    second = recorded_flows(model, make_pairs())
    assert all(torch.equal(first[name].transport, second[name].transport) for name in first)


@pytest.mark.parametrize("gain", [0.8, 1.0, 1.1])
def test_the_slope_of_a_scaled_orthogonal_linear_network_is_the_logarithm_of_its_gain(
    gain: float,
) -> None:
    torch.manual_seed(0)
    layer = RecurrentLayer(cell="rnn_relu", input_size=6, hidden_size=6).double()
    with torch.no_grad():
        # A permutation is orthogonal and keeps positive states positive, where relu is linear.
        layer.rnn.weight_hh_l0.copy_(gain * torch.eye(6, dtype=torch.float64).roll(1, 0))
        layer.rnn.weight_ih_l0.copy_(torch.eye(6))
        layer.rnn.bias_ih_l0.zero_()
        layer.rnn.bias_hh_l0.zero_()
    lengths = torch.tensor([30, 12, 25, 30])
    x = torch.rand(4, 30, 6, dtype=torch.float64) + 0.1
    with GradientRecorder({"layer": layer}, rows=torch.arange(4)) as record:
        _, state = layer(x, lengths)
    state.hidden.square().sum().backward()
    norms = layer_flow(layer, record.calls["layer"]).norms()
    for quantity in ("hidden", "transport"):
        profile = root_mean_square(norms[quantity][:1], lengths[:1], from_end=True, min_examples=1)
        assert log_slope(profile) == pytest.approx(math.log(gain), abs=1e-9)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("input_feeding", [False, True])
def test_bfloat16_autocast_stays_close_to_float64(cell: str, input_feeding: bool) -> None:
    options = {
        "cell": cell,
        "encoder_layers": 2,
        "hidden_size": 16,
        "embedding_size": 16,
        "input_feeding": input_feeding,
    }
    exact = recorded_flows(make_model(**options), make_pairs())
    model = make_model(**options).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        flows = recorded_flows(model, make_pairs())
    for name, flow in exact.items():
        for quantity, norms in flow.norms().items():
            rough = flows[name].norms()[quantity]
            assert relative_error(rough, norms) < 0.05, (name, quantity)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("input_feeding", [False, True])
def test_a_gpu_gives_the_same_flow(precision: torch.dtype | None, input_feeding: bool) -> None:
    options = {
        "encoder_layers": 2,
        "hidden_size": 16,
        "embedding_size": 16,
        "input_feeding": input_feeding,
    }
    exact = recorded_flows(make_model(**options), make_pairs())
    model = make_model(**options).float().cuda()
    pairs = make_pairs()
    layers = model.recurrent_layers()
    factor = 1024.0 if precision is torch.float16 else 1.0
    with (
        torch.autocast("cuda", dtype=precision, enabled=precision is not None),
        GradientRecorder(layers, rows=torch.arange(6, device="cuda")) as record,
    ):
        logits = model.logits(
            model(pairs.source.cuda(), SOURCE_LENGTHS.cuda(), pairs.decoder_input.cuda())
        )
        real = (torch.arange(logits.size(1)) < TARGET_LENGTHS.unsqueeze(1)).cuda()
        loss = nn.functional.cross_entropy(logits[real].float(), pairs.labels.cuda()[real])
    (loss * factor).backward()
    for name, layer in layers.items():
        lengths = TARGET_LENGTHS if name.startswith("decoder") else SOURCE_LENGTHS
        flow = layer_flow(layer, record.calls[name], lengths=lengths, scale=pairs.tokens / factor)
        for quantity, norms in exact[name].norms().items():
            assert relative_error(flow.norms()[quantity], norms) < 0.05, (name, quantity)


def test_float64_sees_a_gradient_that_float32_cannot_hold() -> None:
    torch.manual_seed(0)
    layer = RecurrentLayer(cell="lstm", input_size=8, hidden_size=8)
    with GradientRecorder({"layer": layer}, rows=torch.arange(2)) as record:
        _, state = layer(torch.randn(2, 400, 8))
    state.hidden.sum().backward()
    norms = layer_flow(layer, record.calls["layer"]).norms()["hidden"]
    assert 0 < float(norms[:, 0].min()) < 1e-45
    assert norms.isfinite().all()


def test_weights_other_than_those_of_the_recorded_pass_are_noticed() -> None:
    layer = RecurrentLayer(cell="lstm", input_size=3, hidden_size=4)
    with GradientRecorder({"layer": layer}, rows=torch.arange(2)) as record:
        output, _ = layer(torch.randn(2, 6, 3))
    output.sum().backward()
    with torch.no_grad():
        layer.rnn.weight_hh_l0.mul_(-3)
    with pytest.raises(RecomputationError, match="recomputed from its inputs and weights"):
        layer_flow(layer, record.calls["layer"])


def test_a_gradient_that_is_not_finite_is_named() -> None:
    layer = RecurrentLayer(cell="lstm", input_size=3, hidden_size=4)
    with GradientRecorder({"layer": layer}, rows=torch.arange(2)) as record:
        output, _ = layer(torch.randn(2, 6, 3))
    (output.sum() * math.inf).backward()
    with pytest.raises(FloatingPointError, match="not finite"):
        layer_flow(layer, record.calls["layer"])


def test_a_layer_called_in_pieces_is_refused() -> None:
    layer = RecurrentLayer(cell="gru", input_size=3, hidden_size=4)
    with GradientRecorder({"layer": layer}, rows=torch.arange(2)) as record:
        first = layer(torch.randn(2, 6, 3))
        second = layer(torch.randn(2, 4, 3), state=first.state)
    second.output.sum().backward()
    with pytest.raises(ValueError, match=r"\[6, 4\] timesteps in turn"):
        layer_flow(layer, record.calls["layer"])


def test_nothing_is_recorded_without_gradients_or_after_the_context() -> None:
    layer = RecurrentLayer(cell="gru", input_size=3, hidden_size=4)
    with GradientRecorder({"layer": layer}, rows=torch.arange(2)) as record, torch.no_grad():
        layer(torch.randn(2, 6, 3))
    layer(torch.randn(2, 6, 3))
    assert record.calls == {"layer": []}
