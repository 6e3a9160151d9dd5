"""Local attention against the paper's equations, written out one position at a time."""

import math

import pytest
import torch
from torch import Tensor, nn

from seq2seq.models.attention import Attention

QUERY, TARGETS, LENGTHS = 3, 7, [9, 1, 4]


def make(local: str, window: int | None, kind: str = "dot") -> Attention:
    torch.manual_seed(0)
    attention = Attention(
        kind=kind, query_size=QUERY, memory_size=QUERY, local=local, window=window
    )
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    return attention.double()


def make_inputs() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    query = torch.randn(3, TARGETS, QUERY, dtype=torch.float64)
    outputs = torch.randn(3, 9, QUERY, dtype=torch.float64)
    return query, outputs, torch.arange(9) < torch.tensor(LENGTHS).unsqueeze(1)


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def predicted(attention: Attention, query: list[float], length: int) -> float:
    """Eq. 9."""
    hidden = attention.window.hidden.weight.tolist()
    inner = [math.tanh(dot(row, query)) for row in hidden]
    score = dot(attention.window.position.weight[0].tolist(), inner)
    return length / (1 + math.exp(-score))


@pytest.mark.parametrize("local", ["monotonic", "predictive"])
@pytest.mark.parametrize("window", [1, 2])
def test_weights_follow_the_equations_one_position_at_a_time(local: str, window: int) -> None:
    attention = make(local, window)
    query, outputs, mask = make_inputs()
    context, found, _ = attention(query, attention.memory(outputs, mask))
    for row, length in enumerate(LENGTHS):
        for time in range(TARGETS):
            q = query[row, time].tolist()
            # Timesteps and positions count from 1.
            p = min(time + 1, length) if local == "monotonic" else predicted(attention, q, length)
            inside = [s for s in range(1, length + 1) if p - window <= s <= p + window]
            exp = {s: math.exp(dot(q, outputs[row, s - 1].tolist())) for s in inside}
            weights = {s: exp[s] / sum(exp.values()) for s in inside}
            if local == "predictive":  # eq. 10, with the standard deviation D / 2
                deviation = window / 2
                for s in inside:
                    weights[s] *= math.exp(-((s - p) ** 2) / (2 * deviation**2))
            expected = [weights.get(s, 0.0) for s in range(1, 10)]
            assert found[row, time].tolist() == pytest.approx(expected, abs=1e-12)
            mixed = [dot(expected, column) for column in outputs[row].T.tolist()]
            assert context[row, time].tolist() == pytest.approx(mixed, abs=1e-12)


@pytest.mark.parametrize("kind", ["additive", "general", "scaled_dot"])
def test_a_window_over_everything_is_global_attention(kind: str) -> None:
    attention, without = make("monotonic", 9, kind), make("none", None, kind)
    query, outputs, mask = make_inputs()
    found = attention(query, attention.memory(outputs, mask))
    expected = without(query, without.memory(outputs, mask))
    assert torch.equal(found.alignment, expected.alignment)
    assert torch.equal(found.context, expected.context)


def test_outputs_longer_than_the_source_stay_at_its_end() -> None:
    attention = make("monotonic", 1)
    _, outputs, mask = make_inputs()
    query = torch.randn(3, 40, QUERY, dtype=torch.float64)
    found = attention(query, attention.memory(outputs, mask)).alignment
    assert found.isfinite().all()
    for row, length in enumerate(LENGTHS):
        late = found[row, length:]
        assert not late[:, : max(0, length - 2)].any()
        assert (late[:, length - 1] > 0).all()


@pytest.mark.parametrize("saturated", [-1e4, 1e4])
def test_a_position_at_either_end_keeps_a_window(saturated: float) -> None:
    attention = make("predictive", 1)
    query, outputs, mask = make_inputs()
    with torch.no_grad():
        attention.window.hidden.weight.fill_(1e4)
        attention.window.position.weight.fill_(saturated)
    query = query.abs()
    answer = attention(query, attention.memory(outputs, mask))
    assert answer.context.isfinite().all()
    assert (answer.alignment.sum(2) > 0).all()


def test_the_predicted_position_learns_from_the_gaussian() -> None:
    """Moving towards the position that the loss wants, by gradient descent on W and v alone."""
    attention = make("predictive", 4)
    query, outputs, mask = make_inputs()
    query, outputs, mask = query[:1, :1], outputs[:1], mask[:1]
    memory = attention.memory(outputs, mask)
    optimizer = torch.optim.SGD(attention.window.parameters(), lr=0.1)
    start = predicted(attention, query[0, 0].tolist(), 9)
    wanted = round(start) + 2 if start < 5 else round(start) - 2
    for _ in range(200):
        optimizer.zero_grad()
        (-attention(query, memory).alignment[0, 0, wanted - 1].log()).backward()
        optimizer.step()
    end = predicted(attention, query[0, 0].tolist(), 9)
    assert abs(end - wanted) < 0.3 * abs(start - wanted)
