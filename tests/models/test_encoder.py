"""The encoder against PyTorch's own stacked, packed modules with the same weights."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from seq2seq.models.encoder import Encoder, EncoderOutput
from seq2seq.models.recurrent import CELLS, KERNEL_GATES, RecurrentState

VOCABULARY, EMBEDDING, HIDDEN, PAD = 11, 4, 3, 0
LENGTHS = torch.tensor([5, 1, 8, 3])


def make_encoder(**options: Any) -> Encoder:
    torch.manual_seed(0)
    values = {"cell": "lstm", "layers": 2, "bidirectional": True} | options
    encoder = Encoder(
        vocabulary_size=VOCABULARY,
        pad_id=PAD,
        embedding_size=EMBEDDING,
        hidden_size=HIDDEN,
        **values,
    )
    for name, parameter in encoder.named_parameters():
        if "rnn" in name:
            nn.init.normal_(parameter, std=0.5)
    return encoder.double()


def make_source() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    source = torch.randint(1, VOCABULARY, (len(LENGTHS), int(LENGTHS.max())), generator=generator)
    return source.masked_fill(torch.arange(source.size(1)) >= LENGTHS.unsqueeze(1), PAD)


def tensors(state: RecurrentState) -> list[Tensor]:
    return [tensor for tensor in state if tensor is not None]


def assert_same(actual: EncoderOutput, expected: EncoderOutput) -> None:
    torch.testing.assert_close(actual.outputs, expected.outputs, atol=1e-12, rtol=1e-12)
    for ours, theirs in zip(tensors(actual.state), tensors(expected.state), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    assert torch.equal(actual.mask, expected.mask)


def stacked(encoder: Encoder, cell: str, layers: int, bidirectional: bool) -> nn.RNNBase:
    """PyTorch's module of the same depth and directions, with this encoder's weights."""
    kinds = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN, "rnn_relu": nn.RNN}
    extra = {"nonlinearity": cell.removeprefix("rnn_")} if cell.startswith("rnn") else {}
    rnn = kinds[cell](
        EMBEDDING, HIDDEN, layers, batch_first=True, bidirectional=bidirectional, **extra
    ).double()
    with torch.no_grad():
        for index, layer in enumerate(encoder.layers):
            for suffix, one in (("", layer.forward_layer), ("_reverse", layer.backward_layer)):
                if one is None:
                    continue
                for name, parameter in one.rnn.named_parameters():
                    theirs = name.replace("_l0", f"_l{index}{suffix}")
                    getattr(rnn, theirs).copy_(parameter)
    return rnn


@pytest.mark.parametrize("cell", KERNEL_GATES)
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_encoder_equals_pytorch_stack_over_packed_sequences(
    cell: str, layers: int, bidirectional: bool
) -> None:
    encoder = make_encoder(cell=cell, layers=layers, bidirectional=bidirectional)
    source = make_source()
    encoded = encoder(source, LENGTHS)
    packed = pack_padded_sequence(
        encoder.embedding(source), LENGTHS, batch_first=True, enforce_sorted=False
    )
    output, final = stacked(encoder, cell, layers, bidirectional)(packed)
    expected, _ = pad_packed_sequence(output, batch_first=True)
    torch.testing.assert_close(encoded.outputs, expected, atol=1e-12, rtol=1e-12)
    final = final if cell == "lstm" else (final,)
    for ours, theirs in zip(tensors(encoded.state), final, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_outputs_are_zero_and_masked_exactly_where_the_source_is_padding() -> None:
    encoded = make_encoder()(make_source(), LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        assert encoded.mask[row].tolist() == [True] * length + [False] * (8 - length)
        assert not encoded.outputs[row, length:].any()
        assert encoded.outputs[row, :length].all()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("reverse_source", [False, True])
def test_padding_does_not_change_encoder_output(cell: str, reverse_source: bool) -> None:
    encoder = make_encoder(cell=cell, reverse_source=reverse_source)
    source = make_source()
    expected = encoder(source, LENGTHS)
    # Even tokens that stand where padding should be, and more of it.
    padding = torch.arange(source.size(1)) >= LENGTHS.unsqueeze(1)
    other = nn.functional.pad(source.masked_fill(padding, 7), (0, 4), value=9)
    wide = encoder(other, LENGTHS)
    assert not wide.outputs[:, source.size(1) :].any()
    trimmed = EncoderOutput(wide.outputs[:, :8], wide.state, wide.mask[:, :8])
    assert_same(trimmed, expected)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_order_of_the_batch_does_not_matter(cell: str) -> None:
    encoder = make_encoder(cell=cell)
    source, order = make_source(), torch.tensor([2, 0, 3, 1])
    expected = encoder(source, LENGTHS)
    permuted = encoder(source[order], LENGTHS[order])
    assert_same(
        permuted,
        EncoderOutput(expected.outputs[order], expected.state.select(order), expected.mask[order]),
    )


@pytest.mark.parametrize("bidirectional", [False, True])
def test_reversed_source_equals_reading_reversed_tokens_and_aligning_the_outputs_again(
    bidirectional: bool,
) -> None:
    reversing = make_encoder(bidirectional=bidirectional, reverse_source=True)
    plain = make_encoder(bidirectional=bidirectional)
    source = make_source()
    encoded = reversing(source, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        *words, end = source[row, :length].tolist()
        turned = plain(torch.tensor([[*reversed(words), end]]), torch.tensor([length]))
        outputs = turned.outputs[0]
        aligned = torch.cat([outputs[:-1].flip(0), outputs[-1:]])
        torch.testing.assert_close(encoded.outputs[row, :length], aligned, atol=1e-12, rtol=1e-12)
        for ours, theirs in zip(tensors(encoded.state), tensors(turned.state), strict=True):
            torch.testing.assert_close(ours[:, row], theirs[:, 0], atol=1e-12, rtol=1e-12)


def test_dropout_between_layers_leaves_the_last_layer_alone() -> None:
    encoder = make_encoder(layers=2, layer_dropout=0.9)
    single = make_encoder(layers=1, layer_dropout=0.9)
    encoded = encoder(make_source(), LENGTHS)
    assert encoded.outputs[encoded.mask].all()
    source = make_source()
    assert torch.equal(single(source, LENGTHS).outputs, single.eval()(source, LENGTHS).outputs)
    assert not torch.equal(
        encoder(source, LENGTHS).outputs, encoder.eval()(source, LENGTHS).outputs
    )


def test_the_padding_token_has_a_zero_embedding_without_gradient() -> None:
    encoder = make_encoder()
    assert not encoder.embedding.weight[PAD].any()
    encoder(make_source(), LENGTHS).outputs.sum().backward()
    gradient = encoder.embedding.weight.grad
    assert not gradient[PAD].any()
    assert gradient[make_source().unique()[1:]].any(dim=1).all()
