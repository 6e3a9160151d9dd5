"""Scores that depend on earlier alignments, against the papers' equations as loops over numbers."""

import math

import pytest
import torch
from torch import Tensor, nn

from seq2seq.models.attention import Attention

SIZE, TARGETS, LENGTHS = 3, 4, [5, 1, 4]


def make(kind: str, coverage: bool) -> tuple[Attention, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    kernel = 3 if kind == "location" else None
    filters = 2 if kind == "location" else None
    attention = Attention(
        kind=kind,
        query_size=4,
        memory_size=2,
        attention_size=SIZE,
        filters=filters,
        kernel=kernel,
        coverage=coverage,
    )
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    query = torch.randn(3, TARGETS, 4, dtype=torch.float64)
    outputs = torch.randn(3, 5, 2, dtype=torch.float64)
    return attention.double(), query, outputs, torch.arange(5) < torch.tensor(LENGTHS).unsqueeze(1)


def alignments(attention: Attention, query: Tensor, outputs: Tensor) -> list[list[float]]:
    """Of one example, from lists of Python numbers; both equations of the papers in one."""
    w, b = (tensor.tolist() for tensor in attention.query_projection.parameters())
    v = attention.key_projection.weight.tolist()
    energy = attention.energy.weight[0].tolist()
    history = attention.history
    length = len(outputs)
    before = [1.0] + [0.0] * (length - 1)  # the alignment of the step before
    covered = [0.0] * length
    answers = []
    for q in query.tolist():
        scores = []
        for s, m in enumerate(outputs.tolist()):
            inner = [dot(w[i], q) + dot(v[i], m) + b[i] for i in range(SIZE)]
            if history.filters is not None:
                features = [  # f_s = sum_j F_j a_{s + j}, j from -1 to 1
                    sum(
                        weight * before[s + j - 1]
                        for j, weight in enumerate(row)
                        if 0 <= s + j - 1 < length
                    )
                    for row in history.filters.weight.tolist()
                ]
                u = history.location.weight.tolist()
                inner = [inner[i] + dot(u[i], features) for i in range(SIZE)]
            if history.coverage is not None:
                w_c = history.coverage.weight.tolist()
                inner = [inner[i] + w_c[i][0] * covered[s] for i in range(SIZE)]
            scores.append(dot(energy, [math.tanh(x) for x in inner]))
        total = sum(math.exp(score) for score in scores)
        before = [math.exp(score) / total for score in scores]
        covered = [c + a for c, a in zip(covered, before, strict=True)]
        answers.append(before)
    return answers


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("kind", "coverage"), [("location", False), ("additive", True), ("location", True)]
)
def test_alignments_follow_the_equations_one_number_at_a_time(kind: str, coverage: bool) -> None:
    attention, query, outputs, mask = make(kind, coverage)
    context, found, state = attention(query, attention.memory(outputs, mask))
    for row, length in enumerate(LENGTHS):
        expected = alignments(attention, query[row], outputs[row, :length])
        for time, weights in enumerate(expected):
            assert found[row, time, :length].tolist() == pytest.approx(weights, abs=1e-12)
            mixed = [dot(weights, column) for column in outputs[row, :length].T.tolist()]
            assert context[row, time].tolist() == pytest.approx(mixed, abs=1e-12)
        assert state.previous[row, :length].tolist() == pytest.approx(expected[-1], abs=1e-12)
        covered = [sum(column) for column in zip(*expected, strict=True)]
        assert state.coverage[row, :length].tolist() == pytest.approx(covered, abs=1e-12)
        assert int(state.time[row]) == TARGETS


def test_a_filter_that_looks_back_moves_the_alignment_on() -> None:
    attention = Attention(
        kind="location", query_size=4, memory_size=4, attention_size=1, filters=1, kernel=3
    ).double()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.zero_()
        attention.history.filters.weight[0, 0] = 1.0  # what the position before had
        attention.history.location.weight.fill_(10.0)
        attention.energy.weight.fill_(100.0)
    outputs = torch.randn(1, 6, 4, dtype=torch.float64)
    memory = attention.memory(outputs, torch.ones(1, 6, dtype=torch.bool))
    found = attention(torch.randn(1, 5, 4, dtype=torch.float64), memory).alignment
    torch.testing.assert_close(found[0], torch.eye(6, dtype=torch.float64)[1:])


def test_coverage_that_repels_visits_every_position_once() -> None:
    attention = Attention(
        kind="additive", query_size=4, memory_size=4, attention_size=1, coverage=True
    ).double()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.zero_()
        attention.key_projection.weight[0, 0] = 1.0
        attention.history.coverage.weight.fill_(-5.0)
        attention.energy.weight.fill_(100.0)
    outputs = torch.zeros(1, 4, 4, dtype=torch.float64)
    outputs[0, :, 0] = torch.tensor([0.4, 0.8, 0.2, 0.6])
    memory = attention.memory(outputs, torch.ones(1, 4, dtype=torch.bool))
    found = attention(torch.zeros(1, 4, 4, dtype=torch.float64), memory).alignment
    assert found[0].argmax(dim=1).tolist() == [1, 3, 0, 2]
