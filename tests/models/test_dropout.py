"""Dropout drawn once a sequence and dropout of words: what is dropped, where, and when."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seq2seq.models.dropout import SequenceDropout, WordDropout
from seq2seq.models.encoder_decoder import EncoderDecoder, encoder_decoder

LENGTHS = torch.tensor([6, 4, 5])
EVERY = {
    "embedding_dropout": 0.3,
    "layer_dropout": 0.3,
    "output_dropout": 0.3,
    "word_dropout": 0.3,
    "weight_dropout": 0.3,
}


def build(**options: Any) -> EncoderDecoder:
    torch.manual_seed(0)
    sizes = {"source_vocabulary_size": 9, "target_vocabulary_size": 9, "pad_id": 0}
    values = {"embedding_size": 4, "hidden_size": 6, "encoder_layers": 2} | options
    return encoder_decoder(**sizes, **values).double()


def tokens(time: int) -> Tensor:
    return torch.randint(1, 9, (3, time), generator=torch.Generator().manual_seed(1))


def test_one_mask_serves_every_timestep_of_a_sequence_and_each_has_its_own() -> None:
    torch.manual_seed(0)
    dropped = SequenceDropout(0.4)(torch.ones(50, 7, 40))
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.6])
    assert float(dropped.mean()) == pytest.approx(1, abs=0.05)
    assert len(dropped[:, 0].unique(dim=0)) == 50


def test_words_are_dropped_whole_by_type_or_by_token() -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 30, (40, 50))
    ones = torch.ones(40, 50, 6)
    by_type = WordDropout(0.4, vocabulary_size=30, by_type=True)(ones, ids)[..., 0]
    for row, kept in zip(ids, by_type, strict=True):
        for word in row.unique():
            assert len(kept[row == word].unique()) == 1  # each occurrence alike
    by_token = WordDropout(0.4, vocabulary_size=30, by_type=False)(ones, ids)
    assert torch.equal(by_token, by_token[..., :1].expand_as(by_token))
    assert any(len(by_token[0, ids[0] == word, 0].unique()) == 2 for word in ids[0].unique())
    for dropped in (by_type, by_token):
        assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.6])
        assert float(dropped.mean()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("variational", [False, True])
def test_nothing_is_dropped_in_evaluation(variational: bool) -> None:
    model = build(**EVERY, variational_dropout=variational)
    plain = build()
    inputs = (tokens(6), LENGTHS, tokens(5))
    assert not torch.equal(model(*inputs), plain(*inputs))
    state = torch.get_rng_state()
    assert torch.equal(model.eval()(*inputs), plain(*inputs))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("query_state", ["fused", "current", "previous"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_what_is_drawn_once_is_the_same_teacher_forced_and_step_by_step(
    cell: str, query_state: str
) -> None:
    options: dict[str, Any] = {"cell": cell, "variational_dropout": True, **EVERY}
    if query_state != "fused":
        options |= {"input_feeding": True, "query_state": query_state}
    model, target = build(**options), tokens(5)
    state = model.start(tokens(6), LENGTHS)
    forced = model.decoder(target, state.decoder, state.memory).features
    decoder = state.decoder
    for time in range(5):
        output = model.decoder.step(target[:, time], decoder, state.memory)
        decoder = output.state
        torch.testing.assert_close(output.features[:, 0], forced[:, time], atol=1e-10, rtol=1e-10)
    assert not torch.equal(model(tokens(6), LENGTHS, target), forced)  # drawn anew


def test_rows_that_are_chosen_keep_their_masks() -> None:
    model, rows = build(**EVERY, variational_dropout=True), torch.tensor([2, 0, 2])
    state = model.start(tokens(6), LENGTHS)
    word = tokens(1)[:, 0]
    expected = model.decoder.step(word, state.decoder, state.memory).features[rows]
    chosen = state.select(rows)
    found = model.decoder.step(word[rows], chosen.decoder, chosen.memory).features
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def test_each_dropout_acts_at_its_own_place_in_encoder_and_decoder() -> None:
    for name, share in EVERY.items():
        if name == "weight_dropout":
            continue
        model = build(**{name: share}, variational_dropout=True)
        outputs = []
        for one in (model, build()):
            torch.manual_seed(3)
            outputs.append(
                (one.encoder(tokens(6), LENGTHS).outputs, one(tokens(6), LENGTHS, tokens(5)))
            )
        (encoded, features), (plain_encoded, plain_features) = outputs
        assert torch.equal(encoded, plain_encoded) == (name == "output_dropout")
        assert not torch.equal(features, plain_features)


def test_dropped_weights_get_no_gradient_and_all_others_do() -> None:
    model = build(weight_dropout=0.5)
    layer = model.encoder.layers[0].forward_layer
    noise = layer.draw_noise()
    layer.draw_noise = lambda: noise
    model(tokens(6), LENGTHS, tokens(5)).sum().backward()
    assert torch.equal(layer.rnn.weight_hh_l0.grad != 0, noise.recurrent_mask != 0)


def test_with_all_off_the_same_random_numbers_are_drawn_as_without_these_options() -> None:
    model = build(embedding_dropout=0.3, layer_dropout=0.3, output_dropout=0.3)
    torch.manual_seed(5)
    features = model(tokens(6), LENGTHS, tokens(5))
    torch.manual_seed(5)
    drop, encoder, decoder = nn.Dropout(0.3), model.encoder, model.decoder
    x = drop(encoder.embedding(tokens(6)))
    finals = []
    for index, pair in enumerate(encoder.layers):
        x, states = pair(drop(x) if index else x, LENGTHS)
        finals += states
    hidden = torch.cat([state.hidden for state in finals])
    cells = torch.cat([state.cell for state in finals])
    start = model.bridge(finals[0]._replace(hidden=hidden, cell=cells))
    mask = torch.arange(6) < LENGTHS.unsqueeze(1)
    memory = decoder.attention.memory(x.masked_fill(~mask.unsqueeze(2), 0.0), mask)
    x = drop(decoder.embedding(tokens(5)))
    for index, (layer, state) in enumerate(zip(decoder.layers, start.layers(), strict=True)):
        x = layer(drop(x) if index else x, None, state).output
    context, *_ = decoder.attention(x, memory)
    expected = drop(torch.tanh(decoder.attention_vector(torch.cat([context, x], dim=2))))
    assert torch.equal(features, expected)


def test_variational_dropout_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"variational_dropout=true .* none of embedding_dropout"):
        build(variational_dropout=True, weight_dropout=0.5)
    with pytest.raises(ValueError, match=r"word_dropout is 1, .* below 1"):
        build(word_dropout=1)
