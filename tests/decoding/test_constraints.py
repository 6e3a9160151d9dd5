"""Forced prefixes, blocked n-grams and minimum lengths, beside a search through every output."""

import math

import pytest
import torch

from seq2seq.decoding import Constraints, beam_search, greedy, sample
from seq2seq.decoding.constraints import block_repeated

LIMITS = [4, 5, 3, 4]

RULES = {
    "unigrams": {"block_ngram": 1},
    "bigrams": {"block_ngram": 2},
    "trigrams": {"block_ngram": 3},
    "minimum": {"min_lengths": [3, 5, 0, 4]},
    "prefixes": {"prefixes": [[3], [], [6, 6, 4], [5, 3]]},
    "all": {"block_ngram": 1, "min_lengths": [3, 5, 3, 4], "prefixes": [[3, 3], [], [6], [5, 5]]},
}


def rules(name, examples=range(4)):
    options = dict(RULES[name])
    for key in ("min_lengths", "prefixes"):
        if key in options:
            options[key] = [options[key][example] for example in examples]
    if "min_lengths" in options:
        options["min_lengths"] = torch.tensor(options["min_lengths"])
    return Constraints(**options)


def allowed(tokens, finished, *, block_ngram, least, prefix, vocabulary=7):
    """Whether an output keeps the rules, token by token, from their description."""
    for position, token in enumerate([*tokens, *[2] * finished]):
        before = tokens[:position]
        if position < len(prefix):
            if token != prefix[position]:
                return False
            continue

        def repeats(candidate, before=before):
            ngrams = [
                tuple(before[i : i + block_ngram]) for i in range(len(before) - block_ngram + 1)
            ]
            return tuple([*before, candidate][-block_ngram:]) in ngrams

        if token != 2:
            if block_ngram and repeats(token):
                return False
        elif position + 1 < least:
            stuck = block_ngram and all(repeats(other) for other in range(3, vocabulary))
            if not stuck:
                return False
    return True


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("name", RULES)
def test_a_wide_beam_equals_exhaustive_search_through_what_is_allowed(
    name, alpha, markov, enumerate_outputs, ids
):
    step = markov(examples=4, seed=5)
    found = beam_search(
        step,
        step.start(),
        max_lengths=torch.tensor(LIMITS),
        beam_size=1500,
        n_best=20,
        length_penalty=alpha,
        constraints=rules(name),
        **ids,
    )
    options = {"block_ngram": 0, "min_lengths": [0] * 4, "prefixes": [[]] * 4} | RULES[name]
    for example, limit in enumerate(LIMITS):
        outputs = [
            (tokens, total / ((5 + len(tokens) + finished) / 6) ** alpha, finished)
            for tokens, total, finished in enumerate_outputs(step, step.start(example), limit)
            if allowed(
                tokens,
                finished,
                block_ngram=options["block_ngram"],
                least=options["min_lengths"][example],
                prefix=options["prefixes"][example],
            )
        ]
        best = sorted(outputs, key=lambda output: -output[1])[:20]
        assert [(h.tokens, h.finished) for h in found[example]] == [(o[0], o[2]) for o in best]
        assert [h.score for h in found[example]] == pytest.approx([o[1] for o in best], abs=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_greedy_and_samples_keep_the_rules_and_a_beam_of_one_is_greedy(name, markov, ids):
    step = markov(examples=4, seed=7)
    limits = torch.tensor(LIMITS)
    options = {"max_lengths": limits, "constraints": rules(name), **ids}
    written = greedy(step, step.start(), **options)
    assert beam_search(step, step.start(), beam_size=1, **options) == written
    drawn = sample(
        step, step.start(), generator=torch.Generator().manual_seed(1), samples=60, **options
    )
    plain = {"block_ngram": 0, "min_lengths": [0] * 4, "prefixes": [[]] * 4} | RULES[name]
    for example in range(4):
        for hypothesis in written[example] + drawn[example]:
            assert allowed(
                hypothesis.tokens,
                hypothesis.finished,
                block_ngram=plain["block_ngram"],
                least=plain["min_lengths"][example],
                prefix=plain["prefixes"][example],
            )


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("search", [greedy, beam_search])
def test_batch_of_one_equals_batch_of_many(search, name, markov, ids):
    step = markov(examples=4, seed=3)
    limits = torch.tensor(LIMITS)
    together = search(step, step.start(), max_lengths=limits, constraints=rules(name), **ids)
    for example in range(4):
        (alone,) = search(
            step,
            step.start(example),
            max_lengths=limits[[example]],
            constraints=rules(name, [example]),
            **ids,
        )
        assert alone == together[example]


def test_samples_follow_the_distribution_that_is_left(markov, ids):
    step = markov(seed=2, spread=1)
    (drawn,) = sample(
        step,
        step.start(),
        max_lengths=torch.tensor([2]),
        generator=torch.Generator().manual_seed(0),
        samples=20_000,
        constraints=Constraints(block_ngram=1, prefixes=[[4]]),
        **ids,
    )
    weights = {token: math.exp(step.table[0, 1, 4, token]) for token in (2, 3, 5, 6)}
    for token, weight in weights.items():
        tokens = [4] if token == 2 else [4, token]
        share = sum(h.tokens == tokens for h in drawn) / 20_000
        assert share == pytest.approx(weight / sum(weights.values()), abs=0.015)


def test_log_probabilities_are_the_models_own_under_every_rule(markov, ids):
    step = markov(seed=4)
    (best,) = greedy(
        step,
        step.start(),
        max_lengths=torch.tensor([5]),
        constraints=rules("all", [0]),
        **ids,
    )
    history = [0, ids["bos_id"], *best[0].tokens, *[ids["eos_id"]] * best[0].finished]
    total = sum(
        step.table[0, a, b, c].item()
        for a, b, c in zip(history, history[1:], history[2:], strict=False)
    )
    assert best[0].log_probability == pytest.approx(total, abs=1e-12)


def test_an_output_may_end_early_where_nothing_else_is_possible(markov, ids):
    step = markov()  # the tokens 3 to 6 are all that may be written, once each
    (best,) = greedy(
        step,
        step.start(),
        max_lengths=torch.tensor([9]),
        constraints=Constraints(min_lengths=torch.tensor([9]), block_ngram=1),
        **ids,
    )
    assert sorted(best[0].tokens) == [3, 4, 5, 6]
    assert best[0].finished


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_blocked_tokens_are_those_that_would_repeat_an_ngram(size):
    generator = torch.Generator().manual_seed(size)
    history = torch.randint(0, 3, (50, 9), generator=generator)
    for length in range(10):
        log_probs = torch.zeros(50, 3)
        block_repeated(log_probs, history[:, :length], size)
        for row in range(50):
            tokens = history[row, :length].tolist()
            seen = {tuple(tokens[i : i + size]) for i in range(length - size + 1)}
            for token in range(3):
                blocked = tuple([*tokens, token][-size:]) in seen
                assert (log_probs[row, token] == -torch.inf) == blocked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_ngram": -1}, "block_ngram=-1"),
        ({"min_lengths": torch.tensor([4])}, "minimum length 4 exceeds the maximum 3"),
        ({"prefixes": [[3, 4, 5, 6]]}, "prefix of 4 tokens exceeds the maximum length 3"),
        ({"prefixes": [[3, 2]]}, r"prefix \[3, 2\] holds a control token"),
    ],
)
@pytest.mark.parametrize("search", [greedy, beam_search])
def test_rules_that_no_output_can_follow_are_refused(search, options, message, markov, ids):
    step = markov()
    with pytest.raises(ValueError, match=message):
        search(
            step,
            step.start(),
            max_lengths=torch.tensor([3]),
            constraints=Constraints(**options),
            **ids,
        )
