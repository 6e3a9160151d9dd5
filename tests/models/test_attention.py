"""Each score against the papers' equations, written out one query and one position at a time."""

import math

import pytest
import torch
from torch import Tensor

from seq2seq.models.attention import ATTENTIONS, Attention

QUERY, LENGTHS = 4, [3, 1, 5]
KINDS = ATTENTIONS[1:]


def make_attention(kind: str, *, memory: int = QUERY, size: int | None = None) -> Attention:
    torch.manual_seed(0)
    return Attention(kind=kind, query_size=QUERY, memory_size=memory, attention_size=size).double()


def make_inputs(memory: int = QUERY) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    query = torch.randn(3, 2, QUERY, dtype=torch.float64)
    outputs = torch.randn(3, 5, memory, dtype=torch.float64)
    return query, outputs, torch.arange(5) < torch.tensor(LENGTHS).unsqueeze(1)


def score(attention: Attention, query: Tensor, output: Tensor) -> float:
    """The score of one query and one encoder output, in Python numbers."""
    q, m = query.tolist(), output.tolist()
    if attention.kind == "additive":
        w, bias = (tensor.tolist() for tensor in attention.query_projection.parameters())
        u, v = attention.key_projection.weight.tolist(), attention.energy.weight[0].tolist()
        inner = [dot(w[unit], q) + dot(u[unit], m) + bias[unit] for unit in range(len(v))]
        return dot(v, [math.tanh(value) for value in inner])
    if attention.kind == "general":
        return dot(q, [dot(row, m) for row in attention.key_projection.weight.tolist()])
    return dot(q, m) / (math.sqrt(len(q)) if attention.kind == "scaled_dot" else 1)


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_attention_equals_the_equations_one_position_at_a_time(kind: str) -> None:
    memory = QUERY if "dot" in kind else 6
    attention = make_attention(kind, memory=memory, size=7 if kind == "additive" else None)
    query, outputs, mask = make_inputs(memory)
    context, alignment = attention(query, attention.memory(outputs, mask))
    for row, length in enumerate(LENGTHS):
        for time in range(query.size(1)):
            scores = [score(attention, query[row, time], outputs[row, s]) for s in range(length)]
            total = sum(math.exp(value) for value in scores)
            weights = [math.exp(value) / total for value in scores]
            assert alignment[row, time, :length].tolist() == pytest.approx(weights, abs=1e-12)
            mixed = [
                sum(weights[s] * float(outputs[row, s, unit]) for s in range(length))
                for unit in range(memory)
            ]
            assert context[row, time].tolist() == pytest.approx(mixed, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_padding_gets_weight_exactly_zero_and_the_rest_sums_to_one(
    kind: str, dtype: torch.dtype
) -> None:
    attention = make_attention(kind).to(dtype)
    query, outputs, mask = make_inputs()
    # A score that would win by far if padding were read.
    outputs = torch.where(mask.unsqueeze(2), outputs, 1e3).to(dtype)
    context, alignment = attention(query.to(dtype), attention.memory(outputs, mask))
    assert alignment.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert context.dtype == dtype
    padding = ~mask.unsqueeze(1).expand_as(alignment)
    assert (alignment[padding] == 0).all()
    torch.testing.assert_close(alignment.sum(2), torch.ones_like(alignment[..., 0]))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_gets_no_gradient(kind: str) -> None:
    attention = make_attention(kind)
    query, outputs, mask = make_inputs()
    outputs.requires_grad_()
    context, _ = attention(query, attention.memory(outputs, mask))
    context.square().sum().backward()
    assert not outputs.grad[~mask].any()
    assert outputs.grad[mask].any(dim=1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_all_queries_at_once_equal_one_at_a_time(kind: str) -> None:
    attention = make_attention(kind)
    query, outputs, mask = make_inputs()
    memory = attention.memory(outputs, mask)
    together = attention(query, memory)
    alone = [attention(query[:, time : time + 1], memory) for time in range(query.size(1))]
    for index in range(2):
        expected = torch.cat([answer[index] for answer in alone], dim=1)
        torch.testing.assert_close(together[index], expected, atol=1e-12, rtol=1e-12)


def test_selected_rows_of_the_memory_answer_as_before() -> None:
    attention = make_attention("general")
    query, outputs, mask = make_inputs()
    memory = attention.memory(outputs, mask)
    rows = torch.tensor([2, 2, 0])
    context, alignment = attention(query[rows], memory.select(rows))
    expected = attention(query, memory)
    torch.testing.assert_close(context, expected[0][rows], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(alignment, expected[1][rows], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", ["dot", "scaled_dot"])
def test_a_dot_product_of_different_widths_is_refused_with_both(kind: str) -> None:
    with pytest.raises(ValueError, match=rf"attention={kind} .* size 4 .* size 6 .*general"):
        make_attention(kind, memory=6)


@pytest.mark.parametrize("kind", ["dot", "general", "scaled_dot"])
def test_a_size_that_would_be_ignored_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=rf"attention_size=7 has no meaning for attention={kind}"):
        make_attention(kind, size=7)


@pytest.mark.parametrize("kind", ["none", "Dot"])
def test_an_unknown_score_is_refused_with_the_choices(kind: str) -> None:
    with pytest.raises(ValueError, match=rf"attention is '{kind}'.*'scaled_dot'"):
        make_attention(kind)
