import math
from collections import Counter

import pytest
import torch

from seq2seq.decoding import greedy, sample
from seq2seq.decoding.sampling import inverse_cumulative, likely


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_tempered_distribution(markov, ids, temperature):
    step = markov(seed=1, spread=1)
    results = sample(
        step,
        step.start(),
        max_lengths=torch.tensor([1]),
        generator=seeded(),
        temperature=temperature,
        samples=20_000,
        **ids,
    )
    counts = Counter(tuple(h.tokens) for h in results[0])
    weights = {
        () if token == ids["eos_id"] else (token,): math.exp(score / temperature)
        for token, score in enumerate(step.table[0, 0, ids["bos_id"]].tolist())
        if token not in (ids["pad_id"], ids["bos_id"])
    }
    total = sum(weights.values())
    chi_square = sum(
        (counts[tokens] - 20_000 * weight / total) ** 2 / (20_000 * weight / total)
        for tokens, weight in weights.items()
    )
    assert set(counts) <= set(weights)
    assert (
        chi_square < 18.5
    )  # 4 degrees of freedom: one chance in a thousand, and the seed is fixed


def test_whole_sequences_have_the_models_probability(markov, ids, enumerate_outputs):
    step = markov(seed=2)
    step.table[..., :2] = -torch.inf
    step.table = step.table.log_softmax(dim=-1)
    results = sample(
        step,
        step.start(),
        max_lengths=torch.tensor([3]),
        generator=seeded(),
        samples=20_000,
        **ids,
    )
    counts = Counter((tuple(h.tokens), h.finished) for h in results[0])
    for tokens, log_probability, finished in enumerate_outputs(step, step.start(), 3):
        p = math.exp(log_probability)
        found = counts[tuple(tokens), finished] / 20_000
        assert abs(found - p) < 5 * math.sqrt(p * (1 - p) / 20_000) + 1e-4


def test_log_probability_is_the_models_own_at_any_temperature(markov, ids):
    step = markov(seed=3)
    results = sample(
        step,
        step.start(),
        max_lengths=torch.tensor([1]),
        generator=seeded(),
        temperature=3.0,
        samples=50,
        **ids,
    )
    row = step.table[0, 0, ids["bos_id"]]
    for hypothesis in results[0]:
        token = ids["eos_id"] if hypothesis.finished else hypothesis.tokens[0]
        assert hypothesis.log_probability == row[token].item()


@pytest.mark.parametrize("temperature", [1e-5, 1e-300])
def test_a_low_temperature_is_greedy_search(markov, ids, temperature):
    step = markov(examples=20, seed=4)
    limits = torch.full((20,), 10)
    cold = sample(
        step, step.start(), max_lengths=limits, generator=seeded(), temperature=temperature, **ids
    )
    assert cold == greedy(step, step.start(), max_lengths=limits, **ids)


def test_the_same_seed_gives_the_same_samples_and_another_seed_others(markov, ids):
    step = markov(examples=10, seed=5, spread=1)

    def draw(seed):
        return sample(
            step,
            step.start(),
            max_lengths=torch.full((10,), 8),
            generator=seeded(seed),
            samples=3,
            **ids,
        )

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_global_random_state_is_neither_read_nor_moved(markov, ids):
    step = markov()
    before = torch.get_rng_state()
    sample(step, step.start(), max_lengths=torch.tensor([5]), generator=seeded(), **ids)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("samples", [1, 3])
def test_cutting_a_corpus_into_batches_changes_nothing(markov, ids, samples):
    step = markov(examples=24, seed=6, spread=1)
    limits = torch.randint(1, 20, (24,), generator=seeded(9))
    whole = sample(
        step, step.start(), max_lengths=limits, generator=seeded(7), samples=samples, **ids
    )
    for size in (1, 5, 24):
        generator, parts = seeded(7), []
        for first in range(0, 24, size):
            examples = range(24)[first : first + size]
            parts += sample(
                step,
                step.start(*examples),
                max_lengths=limits[first : first + size],
                generator=generator,
                samples=samples,
                **ids,
            )
        assert parts == whole


def test_samples_of_one_example_differ(markov, ids):
    step = markov(seed=8, spread=0.5)
    result = sample(
        step, step.start(), max_lengths=torch.tensor([10]), generator=seeded(), samples=8, **ids
    )
    assert len(result) == 1 and len(result[0]) == 8
    assert len({tuple(h.tokens) for h in result[0]}) > 4


def test_the_largest_uniform_number_never_draws_an_impossible_token():
    scores = torch.full((4, 6), -torch.inf)
    scores[0, 2] = 0.0
    scores[1, [0, 3]] = torch.tensor([0.3, 0.7]).log()
    scores[2, [1, 2, 4]] = torch.tensor([0.1, 0.1, 0.8]).log()
    scores[3, :3] = torch.tensor([1e-30, 1.0, 1e-30]).log()
    almost_one = torch.full((4,), 1.0 - 2.0**-53, dtype=torch.float64)
    assert inverse_cumulative(scores, almost_one).tolist()[:3] == [2, 3, 4]
    assert inverse_cumulative(scores, torch.zeros_like(almost_one)).tolist() == [2, 0, 1, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"samples": 0}, "samples=0"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
    ],
)
def test_impossible_options_are_refused(markov, ids, options, message):
    step = markov()
    with pytest.raises(ValueError, match=message):
        sample(
            step,
            step.start(),
            max_lengths=torch.tensor([3]),
            generator=seeded(),
            **options,
            **ids,
        )


# Sets worked out by hand from the probabilities 1/2, 1/8, 1/4, 1/16, 1/16 of the tokens 0 to 4.
@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 1}, [0]),
        ({"top_k": 3}, [0, 1, 2]),
        ({"top_k": 4}, [0, 1, 2, 3]),  # of the equals 3 and 4, the smaller id
        ({"top_k": 9}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.01}, [0]),
        ({"top_p": 0.5}, [0]),  # has the probability already
        ({"top_p": 0.51}, [0, 2]),
        ({"top_p": 0.75}, [0, 2]),
        ({"top_p": 0.8}, [0, 1, 2]),
        ({"top_p": 0.9375}, [0, 1, 2, 3]),
        ({"top_p": 0.95}, [0, 1, 2, 3, 4]),
        ({"top_p": 1.0}, [0, 1, 2, 3, 4]),
        ({"top_k": 2, "top_p": 0.6}, [0]),  # of 2/3 and 1/3
        ({"top_k": 2, "top_p": 0.7}, [0, 2]),
        ({"top_k": 3, "top_p": 0.8}, [0, 2]),  # of 4/7, 2/7 and 1/7
    ],
)
def test_likely_tokens_are_the_set_worked_out_by_hand(options, kept):
    probabilities = torch.tensor([[0.5, 0.125, 0.25, 0.0625, 0.0625]], dtype=torch.float64)
    scores = probabilities.log() - 3.0  # a constant of a row makes no difference
    found = likely(scores, **options)
    assert (found > -torch.inf).nonzero()[:, 1].tolist() == kept
    assert torch.equal(found[0, kept], scores[0, kept])


def test_a_nucleus_of_one_keeps_the_least_probable_token():
    scores = torch.tensor([[0.0, -1e3, -2e3]], dtype=torch.float64)
    assert torch.equal(likely(scores, top_p=1.0), scores)


def test_impossible_tokens_enter_no_nucleus():
    scores = torch.tensor([[-torch.inf, 0.0, -torch.inf]], dtype=torch.float64)
    for options in ({"top_k": 3}, {"top_p": 0.999}):
        assert (likely(scores, **options) > -torch.inf).tolist() == [[False, True, False]]


@pytest.mark.parametrize(
    ("options", "size"),
    [({"top_k": 3}, 3), ({"top_p": 0.7}, None), ({"top_k": 4, "top_p": 0.8}, None)],
)
def test_samples_follow_the_distribution_over_the_likely_tokens(markov, ids, options, size):
    step = markov(seed=1, spread=1)
    temperature, draws = 1.5, 20_000
    (results,) = sample(
        step,
        step.start(),
        max_lengths=torch.tensor([1]),
        generator=seeded(3),
        temperature=temperature,
        samples=draws,
        **options,
        **ids,
    )
    counts = Counter(ids["eos_id"] if h.finished else h.tokens[0] for h in results)
    row = step.table[0, 0, ids["bos_id"]].tolist()
    weights = {token: math.exp(row[token] / temperature) for token in range(2, 7)}
    ordered = sorted(weights, key=weights.get, reverse=True)[: options.get("top_k")]
    total, nucleus, reached = sum(weights[token] for token in ordered), [], 0.0
    for token in ordered:
        if reached < options.get("top_p", 1.1):
            nucleus.append(token)
        reached += weights[token] / total
    assert set(counts) == set(nucleus)
    assert len(nucleus) == size or (size is None and 1 < len(nucleus) < 5)
    total = sum(weights[token] for token in nucleus)
    chi_square = sum(
        (counts[token] - draws * weights[token] / total) ** 2 / (draws * weights[token] / total)
        for token in nucleus
    )
    assert chi_square < 16.3  # at most 3 degrees of freedom: one chance in a thousand
