"""The decoder: fused against stepwise, and both against the papers' equations written out."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seq2seq.models.attention import ATTENTIONS, Attention, Memory
from seq2seq.models.cells import STEP_CELLS
from seq2seq.models.decoder import Decoder, DecoderOutput
from seq2seq.models.recurrent import KERNEL_GATES, RecurrentState, has_cell_state

VOCABULARY, EMBEDDING, HIDDEN, PAD = 9, 4, 6, 0
SOURCE_LENGTHS, TIME = torch.tensor([3, 1, 5]), 4
BATCH = len(SOURCE_LENGTHS)

# (attention, input_feeding, query_state): all that the decoder allows
WAYS = [
    (attention, feeding, query)
    for attention, (feeding, query) in product(
        ATTENTIONS, [(False, "current"), (True, "current"), (True, "previous")]
    )
    if attention != "none" or not feeding
]


# What attention can have beside its score.
PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "heads": ("scaled_dot", {"heads": 3}),
    "coverage": ("additive", {"coverage": True}),
    "monotonic": ("general", {"local": "monotonic", "window": 1}),
    "predictive": ("dot", {"local": "predictive", "window": 2}),
    "all": ("location", {"coverage": True, "local": "monotonic", "window": 1}),
}


def make_decoder(
    attention: str = "general",
    *,
    memory: int = HIDDEN,
    parts: dict[str, Any] | None = None,
    **options: Any,
) -> Decoder:
    torch.manual_seed(0)
    scores = None
    if attention != "none":
        scores = Attention(kind=attention, query_size=HIDDEN, memory_size=memory, **(parts or {}))
    values = {"cell": "lstm", "layers": 1, "embedding_size": EMBEDDING} | options
    decoder = Decoder(
        vocabulary_size=VOCABULARY,
        pad_id=PAD,
        hidden_size=HIDDEN,
        attention=scores,
        memory_size=memory,
        **values,
    )
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.5)
    return decoder.double()


def make_memory(decoder: Decoder, size: int = HIDDEN) -> Memory | None:
    if decoder.attention is None:
        return None
    torch.manual_seed(1)
    outputs = torch.randn(BATCH, int(SOURCE_LENGTHS.max()), size, dtype=torch.float64)
    return decoder.attention.memory(
        outputs, torch.arange(outputs.size(1)) < SOURCE_LENGTHS.unsqueeze(1)
    )


def make_start(layers: int, cell: str) -> RecurrentState:
    torch.manual_seed(2)
    shape = (layers, BATCH, HIDDEN)
    hidden = torch.rand(shape, dtype=torch.float64)
    return RecurrentState(
        hidden, torch.randn(shape, dtype=torch.float64) if has_cell_state(cell) else None
    )


def make_tokens() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(1, VOCABULARY, (BATCH, TIME), generator=generator)


def step_by_step(decoder: Decoder, start: RecurrentState, memory: Memory | None) -> DecoderOutput:
    state = decoder.first_state(start, memory)
    outputs = []
    for tokens in make_tokens().T:
        outputs.append(decoder.step(tokens, state, memory))
        state = outputs[-1].state
    features = torch.cat([output.features for output in outputs], dim=1)
    if memory is None:
        return DecoderOutput(features, state, None)
    return DecoderOutput(features, state, torch.cat([o.alignment for o in outputs], dim=1))


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("attention", "input_feeding", "query_state", "layers", "cell"),
    [
        *((*way, layers, cell) for way, layers, cell in product(WAYS, [1, 2], KERNEL_GATES)),
        *((*way, 2, cell) for way, cell in product(WAYS[-2:], STEP_CELLS)),
    ],
)
def test_teacher_forcing_equals_one_step_at_a_time(
    cell: str, layers: int, attention: str, input_feeding: bool, query_state: str
) -> None:
    decoder = make_decoder(
        attention, cell=cell, layers=layers, input_feeding=input_feeding, query_state=query_state
    )
    memory, start = make_memory(decoder), make_start(layers, cell)
    forced = decoder(make_tokens(), decoder.first_state(start, memory), memory)
    stepped = step_by_step(decoder, start, memory)
    assert forced.features.shape == (BATCH, TIME, HIDDEN)
    assert_close(forced.features, stepped.features)
    assert (forced.alignment is None) == (attention == "none")
    if forced.alignment is not None:
        assert_close(forced.alignment, stepped.alignment)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    ("input_feeding", "query_state"), [(False, "current"), (True, "current"), (True, "previous")]
)
def test_teacher_forcing_equals_one_step_at_a_time_with_every_part_of_attention(
    part: str, input_feeding: bool, query_state: str
) -> None:
    attention, parts = PARTS[part]
    decoder = make_decoder(
        attention, parts=parts, layers=2, input_feeding=input_feeding, query_state=query_state
    )
    memory, start = make_memory(decoder), make_start(2, "lstm")
    forced = decoder(make_tokens(), decoder.first_state(start, memory), memory)
    stepped = step_by_step(decoder, start, memory)
    assert_close(forced.features, stepped.features)
    assert_close(forced.alignment, stepped.alignment)


@pytest.mark.parametrize(
    ("attention", "input_feeding", "steps"),
    [("none", 0, 1), ("general", 0, 1), ("location", 0, 1), ("general", 1, 4)],
)
def test_only_input_feeding_walks_in_python(
    attention: str, input_feeding: bool, steps: int
) -> None:
    decoder = make_decoder(attention, input_feeding=bool(input_feeding))
    calls = []
    decoder.layers[0].register_forward_hook(lambda *_: calls.append(1))
    memory = make_memory(decoder)
    decoder(make_tokens(), decoder.first_state(make_start(1, "lstm"), memory), memory)
    assert len(calls) == steps


class ByHand:
    """Gates, scores and attention vector as the papers write them, for one example at a time."""

    def __init__(self, decoder: Decoder, memory: Tensor) -> None:
        self.decoder = decoder
        self.memory = memory  # [source_time, memory], real positions only
        self.layer = decoder.layers[0].rnn

    def affine(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        layer = self.layer
        return (
            layer.weight_ih_l0 @ x + layer.bias_ih_l0,
            layer.weight_hh_l0 @ h + layer.bias_hh_l0,
        )

    def lstm(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = sum(self.affine(x, h)).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def gru(self, x: Tensor, h: Tensor) -> Tensor:
        from_x, from_h = self.affine(x, h)
        (r, z, n), (r_h, z_h, n_h) = from_x.chunk(3), from_h.chunk(3)
        r, z = (r + r_h).sigmoid(), (z + z_h).sigmoid()
        n = (n + r * n_h).tanh()
        return (1 - z) * n + z * h

    def context(self, scores: list[Tensor]) -> Tensor:
        weights = torch.stack(scores).exp()
        weights = weights / weights.sum()
        return sum(weight * m for weight, m in zip(weights, self.memory, strict=True))

    def general(self, h: Tensor) -> Tensor:
        weight = self.decoder.attention.key_projection.weight
        return self.context([h @ (weight @ m) for m in self.memory])

    def additive(self, s: Tensor) -> Tensor:
        scores = self.decoder.attention
        w, u, v = scores.query_projection, scores.key_projection.weight, scores.energy.weight[0]
        return self.context([v @ (w.weight @ s + w.bias + u @ m).tanh() for m in self.memory])

    def attention_vector(self, context: Tensor, h: Tensor) -> Tensor:
        return (self.decoder.attention_vector.weight @ torch.cat([context, h])).tanh()


def test_input_feeding_follows_luong() -> None:
    decoder = make_decoder("general", memory=5, input_feeding=True)
    memory, start = make_memory(decoder, 5), make_start(1, "lstm")
    forced = decoder(make_tokens(), decoder.first_state(start, memory), memory)
    for row, length in enumerate(SOURCE_LENGTHS.tolist()):
        hand = ByHand(decoder, memory.values[row, :length])
        h, c, fed = start.hidden[0, row], start.cell[0, row], torch.zeros(HIDDEN).double()
        for time, token in enumerate(make_tokens()[row]):
            h, c = hand.lstm(torch.cat([decoder.embedding.weight[token], fed]), h, c)
            fed = hand.attention_vector(hand.general(h), h)
            assert_close(forced.features[row, time], fed)
        assert_close(forced.state.recurrent.hidden[0, row], h)
        assert_close(forced.state.recurrent.cell[0, row], c)
        assert_close(forced.state.fed[row], fed)


def test_previous_state_as_query_follows_bahdanau() -> None:
    decoder = make_decoder(
        "additive", memory=5, cell="gru", input_feeding=True, query_state="previous"
    )
    memory, start = make_memory(decoder, 5), make_start(1, "gru")
    forced = decoder(make_tokens(), decoder.first_state(start, memory), memory)
    for row, length in enumerate(SOURCE_LENGTHS.tolist()):
        hand = ByHand(decoder, memory.values[row, :length])
        s = start.hidden[0, row]
        for time, token in enumerate(make_tokens()[row]):
            context = hand.additive(s)
            s = hand.gru(torch.cat([decoder.embedding.weight[token], context]), s)
            assert_close(forced.features[row, time], hand.attention_vector(context, s))
        assert_close(forced.state.recurrent.hidden[0, row], s)


def test_attention_without_input_feeding_follows_luong() -> None:
    decoder = make_decoder("general", memory=5, cell="gru")
    memory, start = make_memory(decoder, 5), make_start(1, "gru")
    forced = decoder(make_tokens(), decoder.first_state(start, memory), memory)
    for row, length in enumerate(SOURCE_LENGTHS.tolist()):
        hand = ByHand(decoder, memory.values[row, :length])
        h = start.hidden[0, row]
        for time, token in enumerate(make_tokens()[row]):
            h = hand.gru(decoder.embedding.weight[token], h)
            assert_close(forced.features[row, time], hand.attention_vector(hand.general(h), h))


def test_a_step_does_not_see_later_tokens() -> None:
    decoder = make_decoder("general")
    memory, start = make_memory(decoder), make_start(1, "lstm")
    tokens = make_tokens()
    changed = tokens.clone()
    changed[:, 2:] = 1 + changed[:, 2:] % (VOCABULARY - 1)
    first = decoder(tokens, decoder.first_state(start, memory), memory).features
    second = decoder(changed, decoder.first_state(start, memory), memory).features
    assert torch.equal(first[:, :2], second[:, :2])
    assert not torch.equal(first[:, 2:], second[:, 2:])


@pytest.mark.parametrize("part", ["none", *PARTS])
@pytest.mark.parametrize("input_feeding", [False, True])
def test_selected_rows_of_the_state_continue_as_before(input_feeding: bool, part: str) -> None:
    attention, parts = PARTS.get(part, ("general", {}))
    decoder = make_decoder(attention, parts=parts, layers=2, input_feeding=input_feeding)
    memory = make_memory(decoder)
    tokens = make_tokens()[:, 0]
    state = decoder.step(tokens, decoder.first_state(make_start(2, "lstm"), memory), memory).state
    rows = torch.tensor([2, 0, 2, 1])
    expected = decoder.step(tokens, state, memory).features[rows]
    chosen = decoder.step(tokens[rows], state.select(rows), memory.select(rows)).features
    assert_close(chosen, expected)


def test_each_dropout_acts_in_training_only_and_at_its_own_place() -> None:
    for option, layers in (("embedding_dropout", 1), ("layer_dropout", 2), ("output_dropout", 1)):
        decoder = make_decoder("general", layers=layers, **{option: 0.5})
        memory = make_memory(decoder)
        start = decoder.first_state(make_start(layers, "lstm"), memory)
        training = decoder(make_tokens(), start, memory).features
        plain = make_decoder("general", layers=layers)(make_tokens(), start, memory).features
        assert not torch.equal(training, plain)
        assert torch.equal(decoder.eval()(make_tokens(), start, memory).features, plain)
        if option == "output_dropout":
            kept = training != 0
            assert 0.2 < float(kept.double().mean()) < 0.8
            assert_close(training[kept], 2 * plain[kept])


def test_tied_embeddings_are_one_parameter_that_learns_from_both_sides() -> None:
    decoder = make_decoder("general", embedding_size=HIDDEN, tie_embeddings=True)
    assert decoder.output.weight is decoder.embedding.weight
    names = [name for name, _ in decoder.named_parameters()]
    assert "embedding.weight" in names and "output.weight" not in names
    memory = make_memory(decoder)
    state = decoder.first_state(make_start(1, "lstm"), memory)
    features = decoder(make_tokens(), state, memory).features
    read = make_tokens().unique()
    unread = torch.tensor([token for token in range(1, VOCABULARY) if token not in read.tolist()])
    assert len(unread)  # tokens that only the output layer touches
    decoder.output(features).square().sum().backward()
    assert decoder.embedding.weight.grad[unread].any(dim=1).all()


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match=r"query_state is 'next'.*'current', 'previous'"):
        make_decoder(query_state="next")
    with pytest.raises(ValueError, match=r"input_feeding=true .* attention=none has none"):
        make_decoder("none", input_feeding=True)
    with pytest.raises(ValueError, match=r"query_state=previous .* needs input_feeding=true"):
        make_decoder(query_state="previous")
    with pytest.raises(
        ValueError, match=r"tie_embeddings=true .* embedding_size is 4 .* size is 6"
    ):
        make_decoder(tie_embeddings=True)
