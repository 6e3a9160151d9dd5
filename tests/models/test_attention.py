"""Each score against the papers' equations, written out one query and one position at a time.

What depends on earlier alignments, and local attention, have files of their own; what holds for
every kind of attention is here.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seq2seq.models.attention import ATTENTIONS, Attention

QUERY, QUERIES, LENGTHS = 4, 3, [3, 1, 5]
SCORES = [kind for kind in ATTENTIONS if kind not in ("none", "location")]
VARIANTS: dict[str, dict[str, Any]] = {
    **{kind: {"kind": kind} for kind in SCORES},
    "heads": {"kind": "scaled_dot", "heads": 2},
    "additive heads": {"kind": "additive", "heads": 4, "attention_size": 8},
    "location": {"kind": "location", "filters": 2, "kernel": 3},
    "coverage": {"kind": "additive", "coverage": True},
    "location and coverage": {"kind": "location", "coverage": True, "kernel": 7},
    "monotonic": {"kind": "general", "local": "monotonic", "window": 1},
    "predictive": {"kind": "dot", "local": "predictive", "window": 1},
    "predictive heads": {"kind": "scaled_dot", "heads": 2, "local": "predictive", "window": 2},
    "monotonic location": {"kind": "location", "local": "monotonic", "window": 1},
    "predictive coverage": {
        "kind": "additive",
        "coverage": True,
        "local": "predictive",
        "window": 2,
    },
}


def make_attention(
    kind: str, *, memory: int = QUERY, size: int | None = None, **options: Any
) -> Attention:
    torch.manual_seed(0)
    return Attention(
        kind=kind, query_size=QUERY, memory_size=memory, attention_size=size, **options
    ).double()


def make_variant(name: str) -> Attention:
    torch.manual_seed(0)
    attention = Attention(query_size=QUERY, memory_size=QUERY, **VARIANTS[name])
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    return attention.double()


def make_inputs(memory: int = QUERY) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    query = torch.randn(3, QUERIES, QUERY, dtype=torch.float64)
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


@pytest.mark.parametrize("kind", SCORES)
def test_attention_equals_the_equations_one_position_at_a_time(kind: str) -> None:
    memory = QUERY if "dot" in kind else 6
    attention = make_attention(kind, memory=memory, size=7 if kind == "additive" else None)
    query, outputs, mask = make_inputs(memory)
    context, alignment, _ = attention(query, attention.memory(outputs, mask))
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


@pytest.mark.parametrize("memory", [QUERY, 6])
def test_heads_are_those_of_torch(memory: int) -> None:
    attention = make_attention("scaled_dot", memory=memory, size=8, heads=4)
    theirs = nn.MultiheadAttention(8, 4, bias=False, kdim=memory, vdim=memory, batch_first=True)
    projections = {
        "q_proj_weight": torch.eye(8),
        "k_proj_weight": attention.key_projection.weight,
        "v_proj_weight": attention.value_projection.weight,
        "out_proj.weight": torch.eye(8),
    }
    theirs.double().load_state_dict(projections)
    query, outputs, mask = make_inputs(memory)
    context, alignment, _ = attention(query, attention.memory(outputs, mask))
    # Their query and result are as wide as all heads together.
    mixed, expected = theirs(
        attention.query_projection(query), outputs, outputs, key_padding_mask=~mask
    )
    torch.testing.assert_close(alignment, expected, atol=1e-12, rtol=1e-12)
    expected = attention.output_projection(mixed)
    torch.testing.assert_close(context, expected, atol=1e-12, rtol=1e-12)


def test_a_head_of_the_additive_score_is_an_additive_attention_of_its_own() -> None:
    attention = make_attention("additive", memory=6, size=8, heads=2)
    query, outputs, mask = make_inputs(6)
    context, alignment, _ = attention(query, attention.memory(outputs, mask))
    contexts, alignments = [], []
    for head, rows in enumerate((slice(0, 4), slice(4, 8))):
        alone = make_attention("additive", memory=6, size=4)
        parts = {
            "query_projection.weight": attention.query_projection.weight[rows],
            "query_projection.bias": attention.query_projection.bias[rows],
            "key_projection.weight": attention.key_projection.weight[rows],
            "energy.weight": attention.energy.weight[head : head + 1],
        }
        alone.load_state_dict(parts)
        mixed, weights, _ = alone(query, alone.memory(outputs, mask))
        contexts.append(mixed @ attention.value_projection.weight[rows].T)
        alignments.append(weights)
    expected = attention.output_projection(torch.cat(contexts, dim=2))
    torch.testing.assert_close(context, expected, atol=1e-12, rtol=1e-12)
    expected = torch.stack(alignments).mean(0)
    torch.testing.assert_close(alignment, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_padding_gets_weight_exactly_zero_and_the_rest_sums_to_one(
    name: str, dtype: torch.dtype
) -> None:
    attention = make_variant(name).to(dtype)
    query, outputs, mask = make_inputs()
    # A score that would win by far if padding were read.
    outputs = torch.where(mask.unsqueeze(2), outputs, 1e3).to(dtype)
    context, alignment, _ = attention(query.to(dtype), attention.memory(outputs, mask))
    assert alignment.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert context.dtype == dtype
    assert context.isfinite().all()
    padding = ~mask.unsqueeze(1).expand_as(alignment)
    assert (alignment[padding] == 0).all()
    total = alignment.sum(2)
    if "predictive" in name:
        assert ((total > math.exp(-2) - 1e-6) & (total < 1)).all()
    else:
        torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize("name", VARIANTS)
def test_autocast_keeps_alignments_exact_enough_to_add_up(name: str) -> None:
    attention = make_variant(name).float()
    query, outputs, mask = make_inputs()
    exact = attention(query.float(), attention.memory(outputs.float(), mask))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = attention(query.float(), attention.memory(outputs.float(), mask))
    assert half.alignment.dtype == torch.float32
    # Scores of a few units are off by hundredths.
    torch.testing.assert_close(half.alignment, exact.alignment, atol=0.1, rtol=0.1)
    if half.state is not None:
        covered = half.alignment.sum(1)
        torch.testing.assert_close(half.state.coverage, covered, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_padding_gets_no_gradient(name: str) -> None:
    attention = make_variant(name)
    query, outputs, mask = make_inputs()
    outputs.requires_grad_()
    context, *_ = attention(query, attention.memory(outputs, mask))
    context.square().sum().backward()
    assert not outputs.grad[~mask].any()
    reached = outputs.grad.any(dim=2)
    if attention.window is None:
        assert torch.equal(reached, mask)
    assert reached.any(dim=1).all()
    for parameter, tensor in attention.named_parameters():
        assert tensor.grad.any(), parameter


@pytest.mark.parametrize("name", VARIANTS)
def test_more_padding_changes_nothing(name: str) -> None:
    attention = make_variant(name)
    query, outputs, mask = make_inputs()
    answer = attention(query, attention.memory(outputs, mask))
    longer = nn.functional.pad(outputs, (0, 0, 0, 2), value=7.0)
    padded = attention(query, attention.memory(longer, nn.functional.pad(mask, (0, 2))))
    torch.testing.assert_close(padded.context, answer.context, atol=1e-12, rtol=1e-12)
    assert not padded.alignment[:, :, 5:].any()
    torch.testing.assert_close(padded.alignment[:, :, :5], answer.alignment, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_all_queries_at_once_equal_one_at_a_time(name: str) -> None:
    attention = make_variant(name)
    query, outputs, mask = make_inputs()
    memory = attention.memory(outputs, mask)
    together = attention(query, memory)
    alone, state = [], attention.first_state(memory)
    for time in range(QUERIES):
        alone.append(attention(query[:, time : time + 1], memory, state))
        state = alone[-1].state
    for index in range(2):
        expected = torch.cat([answer[index] for answer in alone], dim=1)
        torch.testing.assert_close(together[index], expected, atol=1e-12, rtol=1e-12)
    assert (state is not None) == attention.remembers
    if state is not None:
        for one, other in zip(together.state, state, strict=True):
            torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", VARIANTS)
def test_selected_rows_of_memory_and_state_answer_as_before(name: str) -> None:
    attention = make_variant(name)
    query, outputs, mask = make_inputs()
    memory = attention.memory(outputs, mask)
    state = attention(query[:, :2], memory).state
    expected = attention(query[:, 2:], memory, state)
    rows = torch.tensor([2, 2, 0])
    chosen = None if state is None else state.select(rows)
    found = attention(query[rows, 2:], memory.select(rows), chosen)
    for index in range(2):
        torch.testing.assert_close(found[index], expected[index][rows], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_are_finite_differences(name: str) -> None:
    attention = make_variant(name)
    query, outputs, mask = make_inputs()
    ask = Ask(attention)
    names = [name for name, _ in ask.named_parameters()]

    def answer(query: Tensor, outputs: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        given = dict(zip(names, weights, strict=True))
        context, alignment, _ = torch.func.functional_call(ask, given, (query, outputs, mask))
        return context, alignment

    inputs = [query, outputs, *(each.detach() for each in attention.parameters())]
    assert torch.autograd.gradcheck(
        answer, [each.requires_grad_() for each in inputs], fast_mode=True
    )


class Ask(nn.Module):
    """Memory and answers in one call."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, query: Tensor, outputs: Tensor, mask: Tensor) -> Any:
        return self.attention(query, self.attention.memory(outputs, mask))


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "general", "heads": 2}, "attention_heads=2 .* attention=general"),
        ({"kind": "dot", "heads": 2}, "attention_heads=2 .* attention=dot .*=scaled_dot"),
        ({"kind": "location", "heads": 2}, "attention_heads=2 .* attention=location"),
        ({"kind": "additive", "heads": 2, "coverage": True}, "attention_heads=2 .* coverage=true"),
        ({"kind": "additive", "heads": 3}, "attention_heads=3 must divide .* 4: .* attention_size"),
        ({"kind": "dot", "coverage": True}, "coverage=true .* attention is dot"),
        ({"kind": "additive", "filters": 3}, "attention_filters=3 .* attention=additive"),
        ({"kind": "dot", "kernel": 3}, "attention_kernel=3 .* attention=dot"),
        ({"kind": "location", "kernel": 4}, "attention_kernel=4 must be odd"),
        ({"kind": "dot", "local": "hard"}, "local_attention is 'hard'.*'predictive'"),
        ({"kind": "dot", "window": 3}, "attention_window=3 .* local_attention"),
    ],
)
def test_options_without_a_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_attention(**options)
