"""Factored and shared embeddings, against the plain product of matrices and untied copies."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seq2seq.initializers.blocks import parameter_layouts
from seq2seq.initializers.rules import initialize, rules_from_config
from seq2seq.models.embedding import FactoredEmbedding, FactoredOutput, make_embedding, make_output
from seq2seq.models.encoder_decoder import EncoderDecoder, encoder_decoder

VOCABULARY, RANK, SIZE = 7, 3, 5
TOKENS = torch.tensor([[2, 4, 1, 2], [6, 3, 0, 0]])
LENGTHS = torch.tensor([4, 2])


def factored() -> FactoredEmbedding:
    torch.manual_seed(0)
    return FactoredEmbedding(VOCABULARY, SIZE, rank=RANK, pad_id=0).double()


def assert_close(actual: Tensor | None, expected: Tensor) -> None:
    assert actual is not None
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("tied", [False, True])
def test_a_factored_embedding_is_the_product_of_two_matrices_and_so_are_its_gradients(
    tied: bool,
) -> None:
    embedding = factored()
    narrow, projection = embedding.weight, embedding.projection.weight
    onehot = F.one_hot(TOKENS, VOCABULARY).double()
    # The whole table as one matrix, [vocabulary, size].
    table = (narrow.detach() @ projection.detach().T).requires_grad_()
    embedded, expected = embedding(TOKENS), onehot @ table
    assert_close(embedded, expected)
    if tied:
        output = make_output(SIZE, embedding, tied=True).double()
        nn.init.normal_(output.bias)
        embedded, expected = output(embedded.tanh()), expected.tanh() @ table.T + output.bias
        assert_close(embedded, expected)
    direction = torch.randn(expected.shape, dtype=torch.float64)
    direction[TOKENS == 0] = 0  # nothing is learned from padding
    (embedded * direction).sum().backward()
    (whole,) = torch.autograd.grad((expected * direction).sum(), table)
    if not tied:  # only the embedding keeps its padding row out
        assert not whole[0].any()
    assert_close(narrow.grad, whole @ projection)
    assert_close(projection.grad, whole.T @ narrow)


def test_padding_stays_zero_whatever_the_projection() -> None:
    embedding = factored()
    assert not embedding(torch.zeros(2, 3, dtype=torch.int64)).any()
    embedding(TOKENS).sum().backward()
    assert embedding.weight.grad is not None and not embedding.weight.grad[0].any()


def test_a_factored_embedding_holds_rank_times_vocabulary_and_size_numbers() -> None:
    whole, narrow = make_embedding(1000, 64, pad_id=0), make_embedding(1000, 64, pad_id=0, rank=8)
    count = [sum(one.numel() for one in each.parameters()) for each in (whole, narrow)]
    assert count == [1000 * 64, 1000 * 8 + 8 * 64]
    tied = make_output(64, narrow, tied=True)
    assert isinstance(tied, FactoredOutput)
    assert tied(torch.zeros(2, 64)).shape == (2, 1000)
    assert set(tied.parameters()) - set(narrow.parameters()) == {tied.bias}


def build(**options: Any) -> EncoderDecoder:
    torch.manual_seed(0)
    sizes = {"embedding_size": SIZE, "hidden_size": SIZE, "pad_id": 0}
    vocabularies = {"source_vocabulary_size": VOCABULARY, "target_vocabulary_size": VOCABULARY}
    return encoder_decoder(**(sizes | vocabularies | options)).double()


def loss(model: EncoderDecoder) -> Tensor:
    features = model(TOKENS, LENGTHS, TOKENS)
    return (model.logits(features)[:, :, 1:] ** 2).sum()


@pytest.mark.parametrize("rank", [None, RANK])
@pytest.mark.parametrize("tie", [False, True])
def test_what_a_shared_embedding_learns_is_the_sum_over_its_untied_copies(
    rank: int | None, tie: bool
) -> None:
    shared = build(share_embeddings=True, tie_embeddings=tie, embedding_rank=rank)
    assert shared.encoder.embedding is shared.decoder.embedding
    apart = build(tie_embeddings=tie, embedding_rank=rank)
    apart.load_state_dict(shared.state_dict())
    found = dict(shared.named_parameters())
    learned = dict(zip(found, torch.autograd.grad(loss(shared), found.values()), strict=True))
    named = dict(apart.named_parameters())
    copies = dict(zip(named, torch.autograd.grad(loss(apart), named.values()), strict=True))
    assert named.keys() - found.keys() == {
        name for name in named if name.startswith("decoder.embedding.")
    }
    for name in found:
        twin = name.replace("encoder.embedding", "decoder.embedding")
        total = copies[name] + (copies[twin] if twin != name else 0)
        assert_close(learned[name], total)


@pytest.mark.parametrize("rank", [None, RANK])
def test_three_ways_of_using_one_embedding_are_one_parameter_that_is_set_once(
    rank: int | None,
) -> None:
    model = build(share_embeddings=True, tie_embeddings=True, embedding_rank=rank)
    layouts = {layout.name: layout.names for layout in parameter_layouts(model)}
    places = ("encoder.embedding", "decoder.embedding", "decoder.output")
    assert layouts["encoder.embedding.weight"] == tuple(f"{place}.weight" for place in places)
    if rank is not None:
        expected = tuple(f"{place}.projection.weight" for place in places)
        assert layouts["encoder.embedding.projection.weight"] == expected
    config = {
        "embedding": {"pattern": "*embedding.weight", "scheme": "normal", "scale": 2.0},
        "rest": {"pattern": "*", "scheme": "zeros"},
    }
    done = initialize(model, rules_from_config(config), seed=0, pad_id=0)
    assert len(done.assignments) == len(list(model.parameters()))
    weight = model.decoder.embedding.weight
    assert not weight[0].any() and weight[1:].any(dim=1).all()


def test_the_projection_keeps_the_scale_of_the_table() -> None:
    model = build(
        source_vocabulary_size=2000, target_vocabulary_size=9, embedding_size=200, embedding_rank=50
    )
    config = {
        "embedding": {"pattern": "*embedding.weight", "scheme": "normal", "scale": 0.3},
        "rest": {"pattern": "*", "scheme": "zeros"},
    }
    initialize(model, rules_from_config(config), seed=0, pad_id=0)
    embedded = model.encoder.embedding(torch.arange(1, 2000))
    assert float(embedded.detach().std()) == pytest.approx(0.3, rel=0.03)


def test_embeddings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="the source has 9 tokens and the target 7: set tokenizer"):
        build(share_embeddings=True, source_vocabulary_size=9)
    with pytest.raises(ValueError, match="embedding_rank is 0, but it must be at least 1"):
        build(embedding_rank=0)
