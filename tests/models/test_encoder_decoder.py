"""The whole network: what padding and batching must not change, and which arguments it refuses."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seq2seq.models.cells import STEP_CELLS
from seq2seq.models.encoder_decoder import EncoderDecoder, encoder_decoder
from seq2seq.models.recurrent import KERNEL_GATES

PAD, BOS, VOCABULARY = 0, 1, 13
SOURCE_LENGTHS = torch.tensor([4, 1, 7, 2])
TARGET_LENGTHS = torch.tensor([2, 5, 1, 3])

# One network for each way in which source and target are joined.
WAYS: list[dict[str, Any]] = [
    {"attention": "none", "bidirectional": False, "bridge": "copy", "encoder_layers": 2},
    {"attention": "none", "reverse_source": True},
    {"attention": "general", "decoder_layers": 2},
    {"attention": "additive", "input_feeding": True, "query_state": "previous"},
    {"attention": "general", "input_feeding": True, "bridge": "zero"},
    {"attention": "dot", "bidirectional": False, "tie_embeddings": True, "embedding_size": 6},
    {
        "attention": "scaled_dot",
        "bidirectional": False,
        "share_embeddings": True,
        "tie_embeddings": True,
        "embedding_size": 6,
        "embedding_rank": 3,
    },
]
every_way = pytest.mark.parametrize(
    "options",
    WAYS,
    ids=lambda options: "-".join(str(value) for value in options.values()),
)


# A cell that is written out differs from others within its layer alone.
every_way_and_cell = pytest.mark.parametrize(
    ("cell", "options"),
    [*product(KERNEL_GATES, WAYS), *product(STEP_CELLS, WAYS[2:3])],
    ids=lambda one: one if isinstance(one, str) else "-".join(map(str, one.values())),
)


def build(**options: Any) -> EncoderDecoder:
    torch.manual_seed(0)
    values = {"cell": "lstm", "embedding_size": 4, "hidden_size": 6, "pad_id": PAD}
    sizes = {"source_vocabulary_size": VOCABULARY, "target_vocabulary_size": VOCABULARY}
    model = encoder_decoder(**(sizes | values | options))
    for name, parameter in model.named_parameters():
        if "embedding" not in name:
            nn.init.normal_(parameter, std=0.4)
    return model.double()


def make_pairs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    source = torch.randint(2, VOCABULARY, (4, 7), generator=generator)
    target = torch.randint(2, VOCABULARY, (4, 5), generator=generator)
    source = source.masked_fill(torch.arange(7) >= SOURCE_LENGTHS.unsqueeze(1), PAD)
    target = target.masked_fill(torch.arange(5) >= TARGET_LENGTHS.unsqueeze(1), PAD)
    return source, F.pad(target, (1, 0), value=BOS)


def losses(model: EncoderDecoder, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
    """Loss of each example, summed over its real target positions: [batch]."""
    features = model(source, lengths, target[:, :-1])
    labels = target[:, 1:]
    each = F.cross_entropy(
        model.logits(features).transpose(1, 2), labels, ignore_index=PAD, reduction="none"
    )
    return each.sum(dim=1)


def gradients(model: EncoderDecoder, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_all_close(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name in expected:
        torch.testing.assert_close(
            actual[name], expected[name], atol=1e-10, rtol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
        )


@every_way_and_cell
def test_padding_changes_neither_loss_nor_any_gradient(cell: str, options: dict[str, Any]) -> None:
    model = build(cell=cell, **options)
    source, target = make_pairs()
    together = losses(model, source, SOURCE_LENGTHS, target)
    expected = gradients(model, together.sum())
    # Wider padding, on both sides.
    wide = losses(model, F.pad(source, (0, 5)), SOURCE_LENGTHS, F.pad(target, (0, 3)))
    torch.testing.assert_close(wide, together, atol=1e-10, rtol=1e-10)
    assert_all_close(gradients(model, wide.sum()), expected)
    # No padding at all: each example alone.
    alone = torch.cat(
        [
            losses(
                model,
                source[row : row + 1, : SOURCE_LENGTHS[row]],
                SOURCE_LENGTHS[row : row + 1],
                target[row : row + 1, : TARGET_LENGTHS[row] + 1],
            )
            for row in range(len(source))
        ]
    )
    torch.testing.assert_close(alone, together, atol=1e-10, rtol=1e-10)
    assert_all_close(gradients(model, alone.sum()), expected)


@every_way
def test_order_of_the_batch_changes_nothing(options: dict[str, Any]) -> None:
    model = build(**options)
    source, target = make_pairs()
    order = torch.tensor([2, 0, 3, 1])
    expected = losses(model, source, SOURCE_LENGTHS, target)
    permuted = losses(model, source[order], SOURCE_LENGTHS[order], target[order])
    torch.testing.assert_close(permuted, expected[order], atol=1e-12, rtol=1e-12)


@every_way
def test_every_parameter_has_a_gradient(options: dict[str, Any]) -> None:
    model = build(**options)
    source, target = make_pairs()
    for name, gradient in gradients(
        model, losses(model, source, SOURCE_LENGTHS, target).sum()
    ).items():
        assert gradient is not None, name
        assert gradient.any(), name


@every_way_and_cell
def test_decoding_steps_give_the_distributions_of_teacher_forcing(
    cell: str, options: dict[str, Any]
) -> None:
    model = build(cell=cell, **options)
    source, target = make_pairs()
    forced = torch.log_softmax(model.logits(model(source, SOURCE_LENGTHS, target[:, :-1])), dim=2)
    state = model.start(source, SOURCE_LENGTHS)
    for time, tokens in enumerate(target[:, :-1].T):
        log_probabilities, state, alignment = model.step(tokens, state)
        torch.testing.assert_close(log_probabilities, forced[:, time], atol=1e-10, rtol=1e-10)
        assert (alignment is None) == (options["attention"] == "none")
        if alignment is not None:
            assert alignment.shape == source.shape
            assert not alignment[torch.arange(7) >= SOURCE_LENGTHS.unsqueeze(1)].any()


@every_way
def test_selected_hypotheses_go_on_as_before(options: dict[str, Any]) -> None:
    model = build(**options)
    source, target = make_pairs()
    _, state, _ = model.step(target[:, 0], model.start(source, SOURCE_LENGTHS))
    rows = torch.tensor([3, 3, 0])
    expected, _, _ = model.step(target[:, 1], state)
    chosen, _, _ = model.step(target[rows, 1], state.select(rows))
    torch.testing.assert_close(chosen, expected[rows], atol=1e-12, rtol=1e-12)


def test_log_probabilities_are_float32_in_half_precision() -> None:
    model = build().bfloat16()
    source, target = make_pairs()
    log_probabilities, _, _ = model.step(target[:, 0], model.start(source, SOURCE_LENGTHS))
    assert log_probabilities.dtype == torch.float32
    torch.testing.assert_close(log_probabilities.exp().sum(1), torch.ones(4))


@every_way_and_cell
def test_bfloat16_autocast_trains_and_decodes(cell: str, options: dict[str, Any]) -> None:
    model = build(cell=cell, **options).float()
    source, target = make_pairs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = losses(model, source, SOURCE_LENGTHS, target).sum()
        state = model.start(source, SOURCE_LENGTHS)
        for tokens in target[:, :2].T:
            _, state, _ = model.step(tokens, state.select(torch.arange(4)))
    assert all(gradient.isfinite().all() for gradient in gradients(model, loss.float()).values())


def test_recurrent_layers_are_named_in_the_order_of_the_signal() -> None:
    model = build(encoder_layers=2, decoder_layers=2)
    layers = model.recurrent_layers()
    assert list(layers) == [
        "encoder/layer0/forward",
        "encoder/layer0/backward",
        "encoder/layer1/forward",
        "encoder/layer1/backward",
        "decoder/layer0",
        "decoder/layer1",
    ]
    assert [layer.reverse for layer in layers.values()] == [False, True] * 2 + [False] * 2
    assert list(build(bidirectional=False).recurrent_layers()) == [
        "encoder/layer0/forward",
        "decoder/layer0",
    ]


@pytest.mark.parametrize(
    ("encoder_layers", "decoder_layers", "bidirectional", "bridge"),
    [
        values
        for values in product([1, 2, 3], [1, 2, 3], [False, True], ["linear", "copy", "zero"])
        if values[0] != values[1]
    ],
)
def test_any_depth_of_encoder_goes_with_any_depth_of_decoder(
    encoder_layers: int, decoder_layers: int, bidirectional: bool, bridge: str
) -> None:
    hidden = 12 if bridge == "copy" and bidirectional else 6 if bridge == "copy" else 5
    model = build(
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        bidirectional=bidirectional,
        bridge=bridge,
        decoder_hidden_size=hidden,
    )
    source, target = make_pairs()
    assert losses(model, source, SOURCE_LENGTHS, target).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 0}, "hidden_size is 0, but it must be at least 1"),
        ({"embedding_size": -1}, "embedding_size is -1, but it must be at least 1"),
        ({"decoder_layers": 0}, "decoder_layers is 0, but it must be at least 1"),
        ({"attention_size": 0}, "attention_size is 0, but it must be at least 1"),
        ({"output_dropout": 1.0}, "output_dropout is 1.0, but it must be at least 0 and below 1"),
        ({"embedding_dropout": -0.1}, "embedding_dropout is -0.1"),
        ({"layer_dropout": 0.1}, "layer_dropout is 0.1, but encoder and decoder have one layer"),
        ({"cell": "rnn"}, "cell is 'rnn', but it must be one of lstm, gru, rnn_tanh, rnn_relu"),
        ({"attention": "luong"}, "attention is 'luong', but it must be one of"),
        ({"attention": "dot"}, "attention=dot .* size 6 .* size 12"),
        ({"attention": "none", "attention_size": 4}, "attention_size is 4, but attention is none"),
        ({"attention": "none", "attention_heads": 2}, "attention_heads is 2, but attention is n"),
        ({"attention": "none", "coverage": True}, "coverage is True, but attention is none"),
        ({"attention": "none", "local_attention": "monotonic"}, "local_attention is monotonic, b"),
        ({"attention_heads": 0}, "attention_heads is 0, but it must be at least 1"),
        ({"attention": "location", "attention_kernel": 0}, "attention_kernel is 0, but it must"),
        ({"attention": "location", "attention_filters": 0}, "attention_filters is 0, but it m"),
        ({"local_attention": "monotonic", "attention_window": 0}, "attention_window is 0, but it"),
        ({"attention": "none", "bridge": "zero"}, "bridge=zero with attention=none"),
        ({"bridge": "copy"}, "bridge=copy .* 12 together and the decoder has 6"),
        ({"attention": "none", "input_feeding": True}, "input_feeding=true .* attention=none"),
        ({"query_state": "previous"}, "query_state=previous .* input_feeding=true"),
        ({"tie_embeddings": True}, "tie_embeddings=true .* is 4 .* is 6"),
    ],
)
def test_values_that_do_not_fit_are_refused_with_name_and_value(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)
