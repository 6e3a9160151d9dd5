"""Ways around the layers of a stack, against the equations written out."""

from typing import Any

import pytest
import torch
from torch import Tensor

from seq2seq.models.connection import LAYER_CONNECTIONS, LayerConnection, connections
from seq2seq.models.encoder_decoder import EncoderDecoder, encoder_decoder

LENGTHS = torch.tensor([4, 1, 6])


def build(**options: Any) -> EncoderDecoder:
    torch.manual_seed(0)
    sizes = {"source_vocabulary_size": 9, "target_vocabulary_size": 9, "pad_id": 0}
    return encoder_decoder(**sizes, embedding_size=4, hidden_size=6, **options).double()


def tokens(time: int) -> Tensor:
    return torch.randint(1, 9, (3, time), generator=torch.Generator().manual_seed(1))


def kinds(model: EncoderDecoder) -> tuple[list[str], list[str]]:
    return (
        [one.kind for one in model.encoder.connections],
        [one.kind for one in model.decoder.connections],
    )


def test_residual_adds_and_a_highway_mixes_under_its_gate() -> None:
    torch.manual_seed(0)
    below, output = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    assert LayerConnection(kind="none", size=6)(below, output) is output
    assert torch.equal(LayerConnection(kind="residual", size=6)(below, output), output + below)
    highway = LayerConnection(kind="highway", size=6).double()
    weight, bias = highway.highway.weight, highway.highway.bias
    gate = 1 / (1 + torch.exp(-(torch.einsum("oi,bti->bto", weight, below) + bias)))
    expected = gate * output + (1 - gate) * below
    torch.testing.assert_close(highway(below, output), expected, atol=1e-12, rtol=1e-12)


def test_an_open_highway_is_no_connection_and_a_shut_one_leaves_the_layer_out() -> None:
    torch.manual_seed(0)
    below, output = torch.randn(2, 3, 5, 6)
    highway = LayerConnection(kind="highway", size=6)
    for bias, expected in ((100.0, output), (-100.0, below)):
        torch.nn.init.constant_(highway.highway.bias, bias)
        torch.testing.assert_close(highway(below, output), expected)


def test_only_layers_as_wide_as_the_one_below_are_connected() -> None:
    assert [one.kind for one in connections("residual", [12, 6, 6])] == ["none", "none", "residual"]
    assert [one.kind for one in connections("residual", [6, 6], top=False)] == ["none", "none"]
    deep = build(encoder_layers=3, layer_connection="residual", bidirectional_layers=1)
    assert kinds(deep) == (["none", "none", "residual"], ["none", "residual", "residual"])
    # Only the state of the encoder's top layer goes on, so a way around it would lead nowhere.
    blind = build(encoder_layers=3, layer_connection="highway", attention="none")
    assert kinds(blind) == (["none", "highway", "none"], ["none", "highway", "highway"])


@pytest.mark.parametrize("kind", LAYER_CONNECTIONS)
@pytest.mark.parametrize("query_state", ["current", "previous"])
def test_a_connected_decoder_gives_the_same_fused_and_step_by_step(
    kind: str, query_state: str
) -> None:
    feeding = query_state == "previous"
    model = build(
        decoder_layers=3, layer_connection=kind, input_feeding=feeding, query_state=query_state
    ).eval()
    target = tokens(5)
    forced = model(tokens(6), LENGTHS, target)
    state = model.start(tokens(6), LENGTHS)
    for time in range(5):
        output = model.decoder.step(target[:, time], state.decoder, state.memory)
        assert output.state is not None
        state = state._replace(decoder=output.state)
        torch.testing.assert_close(output.features[:, 0], forced[:, time], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("kind", LAYER_CONNECTIONS)
def test_padding_does_not_change_a_connected_encoder(kind: str) -> None:
    encoder = build(encoder_layers=3, layer_connection=kind, bidirectional_layers=1).encoder
    source = tokens(6)
    encoded = encoder(source, LENGTHS)
    padding = torch.arange(6) >= LENGTHS.unsqueeze(1)
    wide = torch.nn.functional.pad(source.masked_fill(padding, 7), (0, 4), value=8)
    other = encoder(wide, LENGTHS)
    torch.testing.assert_close(other.outputs[:, :6], encoded.outputs, atol=1e-12, rtol=1e-12)
    assert not other.outputs[:, 6:].any() and encoded.outputs.shape == (3, 6, 6)
    torch.testing.assert_close(other.state, encoded.state, atol=1e-12, rtol=1e-12)


def test_one_bidirectional_layer_below_others_reads_as_the_paper_draws_it() -> None:
    encoder = build(encoder_layers=3, bidirectional_layers=1).encoder
    assert [pair.backward_layer is None for pair in encoder.layers] == [False, True, True]
    assert [pair.forward_layer.input_size for pair in encoder.layers] == [4, 12, 6]
    source = tokens(6)
    encoded = encoder(source, LENGTHS)
    x = encoder.embedding(source)
    first, second, third = encoder.layers
    ahead, back = first.forward_layer(x, LENGTHS), first.backward_layer(x, LENGTHS)
    middle = second.forward_layer(torch.cat([ahead.output, back.output], dim=2), LENGTHS)
    top = third.forward_layer(middle.output, LENGTHS)
    real = encoded.mask.unsqueeze(2)
    assert torch.equal(encoded.outputs, top.output.masked_fill(~real, 0.0))
    finals = torch.cat([scan.state.hidden for scan in (ahead, back, middle, top)])
    assert torch.equal(encoded.state.hidden, finals)


def test_connections_and_directions_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"layer_connection is 'skip'.*none, residual, highway"):
        build(layer_connection="skip")
    with pytest.raises(ValueError, match=r"layer_connection is residual, but no layer"):
        build(layer_connection="residual")
    with pytest.raises(ValueError, match=r"bidirectional_layers is 3, .* has 2 layers"):
        build(encoder_layers=2, bidirectional_layers=3)
    with pytest.raises(ValueError, match=r"bidirectional_layers is 1, but bidirectional is false"):
        build(bidirectional=False, bidirectional_layers=1)
    with pytest.raises(ValueError, match=r"bidirectional_layers is 0, .* at least 1"):
        build(bidirectional_layers=0)
