"""Truncated backpropagation through time, against loops that cut the graph by hand.

The loops walk through one example at a time, without padding, in float64.
"""

import copy
import math

import pytest
import torch
from torch import Tensor

from seq2seq.diagnostics.gradient_flow import GradientRecorder, LayerFlow, layer_flow
from seq2seq.diagnostics.gradient_profile import gradient_profiles
from seq2seq.models.cells import StepCell
from seq2seq.models.encoder_decoder import EncoderDecoder, Feeding, encoder_decoder
from seq2seq.models.recurrent import CELLS, RecurrentLayer, RecurrentState

SIZE, WIDTH, LONGEST, CHUNK = 3, 4, 7, 3
LENGTHS = torch.tensor([7, 3, 1, 4, 6])  # within, at and after the ends of chunks


def make_layer(cell: str, **options: object) -> RecurrentLayer:
    torch.manual_seed(1)
    layer = RecurrentLayer(cell=cell, input_size=SIZE, hidden_size=WIDTH, **options)  # type: ignore[arg-type]
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.6)
    return layer.double()


def make_inputs() -> Tensor:
    torch.manual_seed(2)
    return torch.randn(len(LENGTHS), LONGEST, SIZE, dtype=torch.float64)


def first_state(layer: RecurrentLayer) -> RecurrentState:
    torch.manual_seed(3)
    hidden, cell = torch.randn(2, 1, len(LENGTHS), WIDTH, dtype=torch.float64).unbind()
    return RecurrentState(
        hidden.requires_grad_(), cell.requires_grad_() if layer.has_cell else None
    )


def one_step(
    layer: RecurrentLayer, x: Tensor, h: Tensor, c: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The state after one timestep of one example."""
    rnn = layer.rnn
    if isinstance(rnn, StepCell):
        return rnn.next_state(rnn.gate_values(rnn.drive(x), h, rnn.weight_hh_l0), h, c)
    weights = [rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0, rnn.bias_hh_l0]
    w, u, b, d = (one.chunk(len(layer.gates)) for one in weights)
    driven = [w[gate] @ x + b[gate] for gate in range(len(w))]
    recurrent = [u[gate] @ h + d[gate] for gate in range(len(w))]
    both = [one + other for one, other in zip(driven, recurrent, strict=True)]
    if layer.cell == "lstm":
        assert c is not None
        c = both[1].sigmoid() * c + both[0].sigmoid() * both[2].tanh()
        return both[3].sigmoid() * c.tanh(), c
    if layer.cell == "gru":
        r, z = both[0].sigmoid(), both[1].sigmoid()
        return (1 - z) * (driven[2] + r * recurrent[2]).tanh() + z * h, None
    return (both[0].tanh() if layer.cell == "rnn_tanh" else both[0].relu()), None


class Walk:
    """All states of a layer, cut by hand before every ``chunk``-th timestep of the scan."""

    def __init__(self, layer: RecurrentLayer, x: Tensor, state: RecurrentState, chunk: int) -> None:
        self.states: list[list[tuple[Tensor, Tensor | None]]] = []  # in the order of the scan
        for row, length in enumerate(LENGTHS.tolist()):
            h = state.hidden[0, row]
            c = None if state.cell is None else state.cell[0, row]
            steps = range(length - 1, -1, -1) if layer.reverse else range(length)
            passed = []
            for time, position in enumerate(steps):
                if time and time % chunk == 0:
                    h, c = h.detach(), None if c is None else c.detach()
                h, c = one_step(layer, x[row, position], h, c)
                for one in (h, c):
                    if one is not None and one.requires_grad:
                        one.retain_grad()
                passed.append((h, c))
            self.states.append(passed)

    def outputs(self, row: int, reverse: bool) -> Tensor:
        hidden = torch.stack([h for h, _ in self.states[row]])
        return hidden.flip(0) if reverse else hidden


def weights_of_loss() -> Tensor:
    torch.manual_seed(4)
    return torch.randn(len(LENGTHS), LONGEST + 2, WIDTH, dtype=torch.float64)


def loss_of(rows: list[Tensor], finals: list[tuple[Tensor, Tensor | None]]) -> Tensor:
    """Of the outputs at every timestep and of the final states."""
    total, weight = torch.zeros((), dtype=torch.float64), weights_of_loss()
    for row, (outputs, (hidden, cell)) in enumerate(zip(rows, finals, strict=True)):
        total = total + (outputs.square() * weight[row, : len(outputs)]).sum()
        total = total + (hidden * weight[row, -1]).sum()
        if cell is not None:
            total = total + (cell * weight[row, -2]).sum()
    return total


def layer_loss(
    layer: RecurrentLayer, x: Tensor, state: RecurrentState
) -> tuple[Tensor, list[Tensor]]:
    output, final = layer(x, LENGTHS, state)
    rows = [output[row, :length] for row, length in enumerate(LENGTHS.tolist())]
    cells = [None] * len(rows) if final.cell is None else list(final.cell[0])
    return loss_of(rows, list(zip(final.hidden[0], cells, strict=True))), rows


def walk_loss(
    layer: RecurrentLayer, x: Tensor, state: RecurrentState, chunk: int
) -> tuple[Tensor, Walk]:
    walk = Walk(layer, x, state, chunk)
    rows = [walk.outputs(row, layer.reverse) for row in range(len(LENGTHS))]
    return loss_of(rows, [passed[-1] for passed in walk.states]), walk


def gradients(
    layer: RecurrentLayer, loss: Tensor, x: Tensor, state: RecurrentState
) -> list[Tensor]:
    states = [one for one in state if one is not None]
    return list(torch.autograd.grad(loss, [*layer.parameters(), x, *states]))


@pytest.mark.parametrize("chunk", [1, CHUNK])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_equal_a_loop_that_detaches_and_values_one_that_does_not(
    cell: str, reverse: bool, chunk: int
) -> None:
    layer = make_layer(cell, reverse=reverse, truncation=chunk)
    x, state = make_inputs().requires_grad_(), first_state(layer)
    loss, rows = layer_loss(layer, x, state)
    whole_loss, whole_rows = layer_loss(layer.eval(), x, state)  # evaluation isn't cut
    expected, _ = walk_loss(layer, x, state, chunk)
    torch.testing.assert_close(loss, whole_loss, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(rows, whole_rows, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    cut = gradients(layer, loss, x, state)
    for ours, theirs in zip(cut, gradients(layer, expected, x, state), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    untruncated = gradients(layer, whole_loss, x, state)
    assert not torch.allclose(cut[1], untruncated[1])


def test_zoneout_and_dropped_weights_are_those_of_the_whole_scan_chunk_by_chunk() -> None:
    noisy = {"weight_dropout": 0.3, "zoneout_hidden": 0.3, "zoneout_cell": 0.4}
    layer = make_layer("lstm", truncation=CHUNK, **noisy)
    whole = make_layer("lstm", **noisy)
    x = make_inputs()
    noise = layer.draw_steps(x, layer.draw_noise())
    ours, theirs = (one(x, LENGTHS, noise=noise) for one in (layer, whole))
    torch.testing.assert_close(ours.state, theirs.state, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("truncation", [LONGEST, LONGEST + 1])
@pytest.mark.parametrize("cell", CELLS)
def test_a_chunk_as_long_as_the_sequences_is_bitwise_no_truncation(
    cell: str, truncation: int
) -> None:
    found = []
    for layer in (
        make_layer(cell, reverse=True, truncation=truncation),
        make_layer(cell, reverse=True),
    ):
        x, state = make_inputs().requires_grad_(), first_state(layer)
        loss, _ = layer_loss(layer, x, state)
        found.append([loss, *gradients(layer, loss, x, state)])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_the_final_state_sends_its_gradient_into_the_chunk_where_the_sequence_ends() -> None:
    layer = make_layer("lstm", truncation=CHUNK)
    x = make_inputs().requires_grad_()
    final = layer(x, LENGTHS).state
    assert final.cell is not None
    (final.hidden + final.cell).sum().backward()
    assert x.grad is not None
    reached = x.grad.abs().sum(2) > 0
    for row, length in enumerate(LENGTHS.tolist()):
        begin = (length - 1) // CHUNK * CHUNK
        assert reached[row].tolist() == [begin <= time < length for time in range(LONGEST)]


def make_model(**options: object) -> EncoderDecoder:
    torch.manual_seed(5)
    settings = {"embedding_size": 5, "hidden_size": 6, "encoder_layers": 2, "truncation": CHUNK}
    model = encoder_decoder(
        source_vocabulary_size=11,
        target_vocabulary_size=11,
        pad_id=0,
        **(settings | options),  # type: ignore[arg-type]
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.4)
    return model.double()


def make_tokens() -> tuple[Tensor, Tensor]:
    torch.manual_seed(6)
    source = torch.randint(4, 11, (len(LENGTHS), LONGEST))
    source = source.masked_fill(torch.arange(LONGEST) >= LENGTHS.unsqueeze(1), 0)
    return source, torch.randint(4, 11, (len(LENGTHS), 8))


def by_hand(model: EncoderDecoder, source: Tensor, target: Tensor) -> Tensor:
    """Features one timestep at a time, everything that is carried cut by hand."""
    state = model.start(source, LENGTHS)
    features = []
    for time, tokens in enumerate(target.unbind(1)):
        if time and time % CHUNK == 0:
            before = state.decoder
            recurrent = RecurrentState(
                *(one if one is None else one.detach() for one in before.recurrent)
            )
            fed = None if before.fed is None else before.fed.detach()
            attention = before.attention
            if attention is not None:
                attention = type(attention)(*(one.detach() for one in attention))
            cut = before._replace(recurrent=recurrent, fed=fed, attention=attention)
            state = state._replace(decoder=cut)
        output = model.decoder.step(tokens, state.decoder, state.memory)
        assert output.state is not None
        state = state._replace(decoder=output.state)
        features.append(output.features)
    return torch.cat(features, dim=1)


def parameter_gradients(model: EncoderDecoder, features: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model.logits(features).log_softmax(2)[..., 5].sum().backward()  # type: ignore[no-untyped-call]
    return {
        name: torch.zeros_like(one) if one.grad is None else one.grad.clone()
        for name, one in model.named_parameters()
    }


@pytest.mark.parametrize(
    "options",
    [
        {"attention": "general"},
        {"attention": "none", "cell": "gru"},
        {"attention": "location", "coverage": True},
        {"attention": "general", "input_feeding": True},
        {"attention": "location", "input_feeding": True, "cell": "layer_norm_lstm"},
        {
            "attention": "additive",
            "coverage": True,
            "input_feeding": True,
            "query_state": "previous",
        },
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
@pytest.mark.parametrize("how", ["teacher forced", "own tokens"])
def test_a_decoder_cuts_all_that_it_carries_at_the_same_timesteps(
    options: dict[str, object], how: str
) -> None:
    model = make_model(**options)
    source, target = make_tokens()
    # Almost never its own token, but step by step.
    feeding = Feeding(1 - 1e-12, "argmax") if how == "own tokens" else None
    ours = parameter_gradients(model, model(source, LENGTHS, target, feeding))
    theirs = parameter_gradients(model, by_hand(model, source, target))
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-11, msg=name)
    whole = make_model(**options, truncation=None)
    uncut = parameter_gradients(whole, whole(source, LENGTHS, target))
    name = "decoder.layers.1.rnn.weight_hh_l0"
    assert not torch.allclose(ours[name], uncut[name])


def test_every_chunk_contributes_to_the_gradient() -> None:
    model = make_model(attention="general")
    source = torch.arange(4, 11).expand(len(LENGTHS), -1)  # each position a token of its own
    target = torch.arange(4, 11).expand(len(LENGTHS), -1)
    lengths = torch.full((len(LENGTHS),), source.size(1))
    features = model(source, lengths, target)
    found = parameter_gradients(model, features)
    for side in ("encoder", "decoder"):
        assert (found[f"{side}.embedding.weight"][4:].abs().sum(1) > 0).all()


def test_a_truncation_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="truncation is 0, but it must be at least 1"):
        make_model(truncation=0)


def flow_of(layer: RecurrentLayer, x: Tensor, state: RecurrentState) -> LayerFlow:
    with GradientRecorder({"layer": layer}, rows=torch.arange(len(LENGTHS))) as recorder:
        loss, _ = layer_loss(layer, x, state)
    loss.backward()  # type: ignore[no-untyped-call]
    return layer_flow(layer, recorder.calls["layer"])


@pytest.mark.parametrize("zoneout", [0.0, 0.2])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_gradient_flow_is_that_of_autograd_and_transport_ends_with_the_chunk(
    cell: str, reverse: bool, zoneout: float
) -> None:
    layer = make_layer(cell, reverse=reverse, truncation=CHUNK, zoneout_hidden=zoneout)
    x, state = make_inputs().requires_grad_(), first_state(layer)
    flow = flow_of(layer, x, state)
    if not zoneout:
        loss, walk = walk_loss(layer, x, state, CHUNK)
        loss.backward()  # type: ignore[no-untyped-call]
        for row, passed in enumerate(walk.states):
            for time, (hidden, total_cell) in enumerate(passed):
                torch.testing.assert_close(flow.hidden[time, row], hidden.grad)
                if total_cell is not None:
                    assert flow.cell is not None
                    torch.testing.assert_close(flow.cell[time, row], total_cell.grad)
    # Within the chunk it is that of the same layer without truncation.
    whole = copy.deepcopy(layer)
    whole.truncation = None
    uncut = flow_of(whole, x, state)
    times = torch.arange(LONGEST).unsqueeze(1)
    inside = ((times >= (LENGTHS - 1) // CHUNK * CHUNK) & (times < LENGTHS)).unsqueeze(2)
    torch.testing.assert_close(flow.transport, uncut.transport * inside)
    assert flow.transported.tolist() == [1, 3, 1, 1, 3]


def test_the_profile_of_the_transport_ends_with_the_chunk() -> None:
    layer = make_layer("lstm", truncation=CHUNK)
    flow = flow_of(layer, make_inputs(), first_state(layer))
    hidden, _, transport = gradient_profiles(
        0, "layer", flow.norms(), flow.lengths, min_examples=2, transported=flow.transported
    )
    norms = flow.norms()["transport"]
    expected = [
        math.sqrt(sum(float(norms[row, LENGTHS[row] - 1 - back]) ** 2 for row in rows) / len(rows))
        for back, rows in enumerate([range(5), (1, 4), (1, 4)])
    ]
    assert transport.from_end == pytest.approx(expected)
    assert math.isfinite(transport.attenuation)
    assert len(hidden.from_end) == LONGEST


@pytest.mark.parametrize("query_state", ["current", "previous"])
def test_a_decoder_that_steps_shows_the_same_cut(query_state: str) -> None:
    model = make_model(
        attention="general", input_feeding=True, query_state=query_state, decoder_layers=1
    )
    source, target = make_tokens()
    layer = model.recurrent_layers()["decoder/layer0"]
    with GradientRecorder({"layer": layer}, rows=torch.arange(len(LENGTHS))) as recorder:
        features = model(source, LENGTHS, target)
    features[:, CHUNK].sum().backward()  # the first timestep of the second chunk
    flow = layer_flow(layer, recorder.calls["layer"])
    assert flow.cell is not None
    for gradient in (flow.hidden, flow.cell):
        reached = torch.linalg.vector_norm(gradient, dim=(1, 2)) > 0
        assert reached.tolist() == [time == CHUNK for time in range(target.size(1))]
    carried = torch.linalg.vector_norm(flow.transport, dim=2) > 0
    last = (target.size(1) - 1) // CHUNK * CHUNK
    assert carried.all(1).tolist() == [time >= last for time in range(target.size(1))]


def test_bfloat16_carries_its_state_from_chunk_to_chunk() -> None:
    model = make_model(attention="general").float()
    source, target = make_tokens()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(source, LENGTHS, target)
    torch.testing.assert_close(rounded.float(), model(source, LENGTHS, target), rtol=0.1, atol=0.1)
