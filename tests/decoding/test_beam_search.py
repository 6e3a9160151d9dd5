import math
from itertools import pairwise

import pytest
import torch

from seq2seq.decoding import beam_search, greedy
from seq2seq.decoding.beam_search import best_tokens


def ranked(outputs, alpha):
    """By normalised log-probability, finished and cut alike."""

    def score(output):
        tokens, total, finished = output
        return total / ((5 + len(tokens) + finished) / 6) ** alpha

    return sorted(outputs, key=score, reverse=True)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 3.0])
@pytest.mark.parametrize("kind", ["markov", "recurrent"])
def test_a_wide_beam_equals_exhaustive_search(kind, alpha, request, enumerate_outputs, ids):
    step = request.getfixturevalue(kind)(examples=6, seed=11)
    limits = torch.tensor([4, 1, 3, 4, 2, 4])  # 341 outputs at most
    results = beam_search(
        step,
        step.start(),
        max_lengths=limits,
        beam_size=400,
        n_best=25,
        length_penalty=alpha,
        **ids,
    )
    for example, limit in enumerate(limits.tolist()):
        wanted = ranked(enumerate_outputs(step, step.start(example), limit), alpha)[:25]
        found = results[example]
        assert [(h.tokens, h.finished) for h in found] == [(w[0], w[2]) for w in wanted]
        totals = [hypothesis.log_probability for hypothesis in found]
        assert totals == pytest.approx([w[1] for w in wanted], abs=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_stopping_early_never_loses_the_best(markov, enumerate_outputs, ids, alpha):
    for seed in range(30):
        step = markov(seed=seed, spread=3)
        best = ranked(enumerate_outputs(step, step.start(), 4), alpha)[0]
        found = beam_search(
            step,
            step.start(),
            max_lengths=torch.tensor([4]),
            beam_size=256,
            length_penalty=alpha,
            **ids,
        )
        assert (found[0][0].tokens, found[0][0].finished) == (best[0], best[2])


def test_the_search_stops_when_nothing_unfinished_can_win(markov, ids):
    step = markov()
    step.table[:] = -4.0
    step.table[..., ids["eos_id"]] = -0.1
    beam_search(step, step.start(), max_lengths=torch.tensor([50]), beam_size=4, **ids)
    assert len(step.rows_computed) == 1
    # with alpha 1 a hypothesis of 50 tokens may have 9.2 times the loss: it takes longer to be sure
    step.rows_computed.clear()
    beam_search(
        step, step.start(), max_lengths=torch.tensor([50]), beam_size=4, length_penalty=1.0, **ids
    )
    assert len(step.rows_computed) == 1
    step.table[..., 5] = -0.3
    beam_search(
        step, step.start(), max_lengths=torch.tensor([50]), beam_size=4, length_penalty=1.0, **ids
    )
    assert 2 < len(step.rows_computed) < 50


@pytest.mark.parametrize("alpha", [0.0, 0.7])
@pytest.mark.parametrize("kind", ["markov", "recurrent"])
def test_a_beam_of_one_equals_greedy_exactly(kind, alpha, request, ids):
    step = request.getfixturevalue(kind)(examples=60, vocabulary=20, seed=4)
    limits = torch.randint(1, 20, (60,), generator=torch.Generator().manual_seed(3))
    options = {"max_lengths": limits, "length_penalty": alpha, **ids}
    narrow = beam_search(step, step.start(), beam_size=1, **options)
    assert narrow == greedy(step, step.start(), **options)


def test_a_beam_of_one_computes_the_same_rows_as_greedy(markov, ids):
    step = markov(examples=60, seed=9)
    limits = torch.full((60,), 25)
    greedy(step, step.start(), max_lengths=limits, **ids)
    rows = step.rows_computed[:]
    step.rows_computed.clear()
    beam_search(step, step.start(), max_lengths=limits, beam_size=1, **ids)
    assert step.rows_computed == rows


@pytest.mark.parametrize("beam_size", [1, 2, 3, 8])
def test_batch_of_one_equals_batch_of_many(markov, ids, beam_size):
    step = markov(examples=20, seed=6)
    limits = torch.randint(1, 10, (20,), generator=torch.Generator().manual_seed(4))
    options = {"beam_size": beam_size, "n_best": beam_size, "length_penalty": 0.6, **ids}
    together = beam_search(step, step.start(), max_lengths=limits, **options)
    for example in range(20):
        limit = limits[example : example + 1]
        alone = beam_search(step, step.start(example), max_lengths=limit, **options)
        assert alone[0] == together[example]


def test_n_best_is_sorted_and_distinct(recurrent, ids):
    step = recurrent(examples=10, vocabulary=9, seed=2)
    results = beam_search(
        step,
        step.start(),
        max_lengths=torch.full((10,), 8),
        beam_size=6,
        n_best=6,
        length_penalty=0.9,
        **ids,
    )
    for result in results:
        assert len(result) == 6
        assert len({(tuple(h.tokens), h.finished) for h in result}) == 6
        assert result == sorted(result, key=lambda h: -h.score)


def test_n_best_of_a_wide_beam_is_shorter_only_when_no_more_outputs_exist(markov, ids):
    step = markov()
    result = beam_search(
        step, step.start(), max_lengths=torch.tensor([1]), beam_size=50, n_best=50, **ids
    )
    assert sorted(h.tokens for h in result[0]) == [[], [3], [4], [5], [6]]
    assert [h.finished for h in result[0]] == [not h.tokens for h in result[0]]


def test_a_wider_beam_finds_what_greedy_misses(markov, ids):
    step = markov()
    step.table[:] = -20.0
    step.table[0, 0, 1, [3, 4]] = torch.tensor([0.6, 0.4]).log()
    step.table[0, 1, 3, [5, 6, 2]] = torch.tensor([0.34, 0.33, 0.33]).log()
    step.table[0, 1, 4, 2] = 0.0
    step.table[0, 3, 5, 2] = 0.0
    limits = torch.tensor([5])
    assert greedy(step, step.start(), max_lengths=limits, **ids)[0][0].tokens == [3, 5]
    result = beam_search(step, step.start(), max_lengths=limits, beam_size=2, **ids)
    assert result[0][0].tokens == [4]
    assert result[0][0].log_probability == pytest.approx(torch.tensor(0.4).log().item())


def test_a_larger_length_penalty_prefers_longer_outputs(markov, ids):
    step = markov(examples=40, seed=8, spread=1)
    lengths = []
    for alpha in (0.0, 1.0, 2.0):
        results = beam_search(
            step,
            step.start(),
            max_lengths=torch.full((40,), 12),
            beam_size=8,
            length_penalty=alpha,
            **ids,
        )
        lengths.append(sum(len(result[0].tokens) for result in results))
    assert lengths[0] < lengths[1] < lengths[2]


def test_ties_are_resolved_by_parent_and_token(markov, ids):
    step = markov()
    step.table[:] = -1.0
    step.table[..., ids["eos_id"]] = -1e9
    result = beam_search(
        step, step.start(), max_lengths=torch.tensor([2]), beam_size=6, n_best=6, **ids
    )
    assert [h.tokens for h in result[0]] == [[3, 3], [3, 4], [3, 5], [3, 6], [4, 3], [4, 4]]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 11, 12])
def test_best_tokens_equals_a_stable_sort(count):
    generator = torch.Generator().manual_seed(count)
    scores = torch.randint(-4, 0, (200, 12), generator=generator).float()
    scores[:100] += torch.rand(100, 12, generator=generator)  # no ties in the first half
    before = scores.clone()
    values, tokens = best_tokens(scores, count)
    wanted_values, wanted_tokens = scores.sort(dim=1, descending=True, stable=True)
    assert torch.equal(values, wanted_values[:, :count])
    assert torch.equal(tokens, wanted_tokens[:, :count])
    assert torch.equal(scores, before)


def test_different_log_probabilities_never_become_ties_by_addition(markov, ids):
    # float32 can't tell -60 - 1.0000001 from -60 - 1.0
    step = markov()
    step.table[:] = -20.0
    step.table[0, 0, 1, 3] = -60.0
    step.table[0, 0, 1, 2:] = torch.tensor([-70.0, -60.0, -70.0, -70.0, -70.0])
    step.table[0, 1, 3, 3:5] = torch.tensor([-1.0000001, -1.0])
    options = {"max_lengths": torch.tensor([2]), **ids}
    assert greedy(step, step.start(), **options)[0][0].tokens == [3, 4]
    assert beam_search(step, step.start(), beam_size=1, **options)[0][0].tokens == [3, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, "beam_size=0"),
        ({"beam_size": 3, "n_best": 4}, "n_best=4 must lie between 1 and beam_size=3"),
        ({"n_best": 0}, "n_best=0"),
    ],
)
def test_impossible_sizes_are_refused(markov, ids, options, message):
    step = markov()
    with pytest.raises(ValueError, match=message):
        beam_search(step, step.start(), max_lengths=torch.tensor([3]), **options, **ids)


class Aligned:
    """A random step function with a random alignment that depends on the two tokens before."""

    def __init__(self, markov, *, examples, source_lengths, seed=0):
        self.markov = markov(examples=examples, seed=seed)
        longest = max(source_lengths)
        generator = torch.Generator().manual_seed(seed)
        scores = 2 * torch.randn(examples, 7, 7, longest, generator=generator)
        real = torch.arange(longest) < torch.tensor(source_lengths)[:, None]
        self.weights = scores.masked_fill(~real[:, None, None], -torch.inf).softmax(dim=-1)
        self.start = self.markov.start

    def __call__(self, tokens, state):
        log_probs, after, _ = self.markov(tokens, state)
        return log_probs, after, self.weights[state.example, state.history, tokens]

    def coverage(self, example, tokens, finished, beta):
        """cp(X, Y) of equation 14, in plain numbers."""
        history = [0, 1, *tokens, *[2] * finished]
        rows = [self.weights[example, a, b].tolist() for a, b in pairwise(history[:-1])]
        sums = [sum(column) for column in zip(*rows, strict=True)]
        return beta * sum(math.log(min(total, 1.0)) for total in sums if total > 0)


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.2), (0.6, 0.2), (1.0, 1.5)])
def test_a_wide_beam_with_coverage_equals_exhaustive_search(
    alpha, beta, markov, enumerate_outputs, ids
):
    lengths, limits = [5, 1, 3, 4], [4, 3, 4, 4]
    step = Aligned(markov, examples=4, source_lengths=lengths, seed=12)
    options = {"n_best": 20, "length_penalty": alpha, "coverage_penalty": beta, **ids}
    found = beam_search(
        step,
        step.start(),
        max_lengths=torch.tensor(limits),
        source_lengths=torch.tensor(lengths),
        beam_size=400,
        **options,
    )
    changed = 0
    for example, limit in enumerate(limits):
        outputs = enumerate_outputs(step, step.start(example), limit)
        scored = [
            (
                tokens,
                finished,
                total / ((5 + len(tokens) + finished) / 6) ** alpha
                + step.coverage(example, tokens, finished, beta),
            )
            for tokens, total, finished in outputs
        ]
        best = sorted(scored, key=lambda output: -output[2])[:20]
        assert [(h.tokens, h.finished) for h in found[example]] == [o[:2] for o in best]
        assert [h.score for h in found[example]] == pytest.approx([o[2] for o in best], abs=1e-5)
        changed += best[0][0] != ranked(outputs, alpha)[0][0]
        alone = beam_search(
            step,
            step.start(example),
            max_lengths=torch.tensor([limit]),
            source_lengths=torch.tensor([lengths[example]]),
            beam_size=400,
            **options,
        )
        assert alone[0] == found[example]
    assert changed, "the penalty changes no best output, so the test says nothing"


def test_coverage_without_alignments_or_lengths_is_refused(recurrent, ids):
    step, limits = recurrent(), torch.tensor([3])
    options = {"max_lengths": limits, "source_lengths": limits, **ids}
    with pytest.raises(ValueError, match=r"coverage_penalty=0.2 needs alignments"):
        beam_search(step, step.start(), coverage_penalty=0.2, **options)
    for changes in ({"coverage_penalty": -1.0}, {"coverage_penalty": 1.0, "source_lengths": None}):
        with pytest.raises(ValueError, match="use 0 .none., or a positive number together with"):
            beam_search(step, step.start(), **(options | changes))
