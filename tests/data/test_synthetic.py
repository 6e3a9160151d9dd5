from collections import Counter

import pytest

from seq2seq.data.corpus import Corpus, CorpusError
from seq2seq.data.synthetic import BLANK, _addition, _summand_pairs, recall, synthetic_task

SPLITS = ("train", "validation", "test", "test_longer")


def small(task: str, **arguments) -> Corpus:
    sizes = {"train_size": 300, "validation_size": 40, "test_size": 50, "longer_size": 60}
    return synthetic_task(task=task, **(sizes | arguments))


def small_recall(**arguments) -> Corpus:
    sizes = {"train_size": 300, "validation_size": 40, "test_size": 50, "longer_size": 60}
    return recall(**(sizes | {"symbols": 3, "lag": 4} | arguments))


def numbers(text: str) -> list[int]:
    return [int(symbol) for symbol in text.split()]


@pytest.mark.parametrize(
    ("task", "answer"),
    [("copy", lambda s: s), ("reverse", lambda s: list(reversed(s))), ("sort", sorted)],
)
def test_targets_of_symbol_tasks_are_right(task: str, answer) -> None:
    corpus = small(task, alphabet_size=12)
    for split in SPLITS:
        for pair in getattr(corpus, split):
            symbols = numbers(pair.source)
            assert numbers(pair.target) == answer(symbols)
            assert all(0 <= symbol < 12 for symbol in symbols)
    assert {s for pair in corpus.train for s in numbers(pair.source)} == set(range(12))


def test_targets_of_addition_are_right() -> None:
    corpus = small("addition", max_length=3)
    for split in SPLITS:
        for pair in getattr(corpus, split):
            first, second = pair.source.split("+")
            assert str(int(first) + int(second)) == pair.target
            assert first == str(int(first)) and second == str(int(second))  # no leading zero


@pytest.mark.parametrize("task", ["copy", "reverse", "sort", "addition"])
def test_no_pair_is_in_two_splits(task: str) -> None:
    corpus = small(task, max_length=3, alphabet_size=9)
    sources = [pair.source for split in SPLITS for pair in getattr(corpus, split)]
    assert len(sources) == len(set(sources)) == 450


@pytest.mark.parametrize("task", ["copy", "addition"])
def test_same_seed_same_corpus(task: str) -> None:
    assert small(task, seed=5) == small(task, seed=5)
    assert small(task, seed=5).train != small(task, seed=6).train


def test_lengths_are_uniform_and_within_their_ranges() -> None:
    corpus = small("copy", min_length=3, max_length=6, test_max_length=8, train_size=4000)
    lengths = {
        split: Counter(len(pair.source.split()) for pair in getattr(corpus, split))
        for split in SPLITS
    }
    assert set(lengths["train"]) == {3, 4, 5, 6}
    assert all(850 < count < 1150 for count in lengths["train"].values())
    assert set(lengths["test"]) == {3, 4, 5, 6, 7, 8}
    assert set(lengths["test_longer"]) <= set(range(7, 13))
    assert min(lengths["test_longer"]) == 7


def test_longer_additions_have_a_longer_summand() -> None:
    corpus = small("addition", min_length=2, max_length=3, longer_max_length=4)

    def digits(pairs) -> list[list[int]]:
        return [[len(summand) for summand in pair.source.split("+")] for pair in pairs]

    assert {max(lengths) for lengths in digits(corpus.train)} == {2, 3}
    assert {max(lengths) for lengths in digits(corpus.test_longer)} == {4}
    assert min(min(lengths) for lengths in digits(corpus.train)) == 2
    assert [2, 3] in digits(corpus.train) and [3, 2] in digits(corpus.train)


@pytest.mark.parametrize("min_length", [1, 2])
def test_sums_are_numbered_once_each(min_length: int) -> None:
    sums = [
        _addition(number, min_length, length).source
        for length in range(min_length, 3)
        for number in range(_summand_pairs(min_length, length))
    ]
    least = 0 if min_length == 1 else 10
    assert sorted(sums) == sorted(f"{a}+{b}" for a in range(least, 100) for b in range(least, 100))


def test_scarce_short_sources_are_shared_by_the_splits() -> None:
    corpus = synthetic_task(
        task="reverse", alphabet_size=50, max_length=25, test_max_length=30, test_size=25000,
        train_size=25000,
    )  # fmt: skip
    ones = [
        sum(len(pair.source.split()) == 1 for pair in split)
        for split in (corpus.train, corpus.test)
    ]
    assert sum(ones) <= 50 and min(ones) >= 10
    assert (len(corpus.train), len(corpus.test)) == (25000, 25000)


def test_every_source_of_a_small_space_can_be_used() -> None:
    corpus = synthetic_task(
        task="copy",
        alphabet_size=2,
        max_length=3,
        longer_max_length=4,
        train_size=10,
        validation_size=2,
        test_size=2,
        longer_size=16,
    )
    assert sum(len(getattr(corpus, split)) for split in SPLITS) == 2 + 4 + 8 + 16


def test_more_pairs_than_sources_is_refused_with_both_numbers() -> None:
    with pytest.raises(CorpusError, match=r"only 14 different .* 1 to 3, too few for 300 in train"):
        small("copy", alphabet_size=2, max_length=3, longer_size=0)


def test_longer_test_can_be_left_out() -> None:
    corpus = small("sort", longer_size=0, longer_max_length=3)
    assert corpus.test_longer == []
    assert set(corpus.origin) == {"train", "validation", "test"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "shuffle"}, "data.task=shuffle is none of copy, reverse, sort, addition"),
        ({"task": "copy", "alphabet_size": 1}, "data.alphabet_size=1"),
        ({"task": "copy", "min_length": 0}, "data.min_length=0"),
        ({"task": "copy", "min_length": 5, "max_length": 4}, "data.min_length=5"),
        ({"task": "copy", "min_length": 5, "test_max_length": 4}, "data.test_max_length=4"),
        ({"task": "copy", "max_length": 9, "longer_max_length": 9}, "data.longer_max_length=9"),
        ({"task": "copy", "train_size": 0}, "data.train_size=0"),
        ({"task": "copy", "longer_size": -1}, "data.longer_size=-1"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        small(**arguments)


def test_recall_asks_for_the_symbols_before_the_blanks() -> None:
    corpus = small_recall(alphabet_size=9)
    for split in SPLITS:
        lag = 8 if split == "test_longer" else 4
        for pair in getattr(corpus, split):
            source = pair.source.split()
            assert source[3:] == [BLANK] * lag
            assert source[:3] == pair.target.split()
            assert all(0 <= symbol < 9 for symbol in numbers(pair.target))
    assert {s for pair in corpus.train for s in numbers(pair.target)} == set(range(9))
    assert corpus.origin["test_longer"] == "recall, 3 symbols, lag 8, seed 0"


def test_recall_never_repeats_symbols_even_after_more_blanks() -> None:
    corpus = small_recall()
    targets = [pair.target for split in SPLITS for pair in getattr(corpus, split)]
    assert len(targets) == len(set(targets)) == 450


def test_recall_can_use_every_source_and_depends_on_its_seed_alone() -> None:
    sizes = {"train_size": 200, "validation_size": 20, "test_size": 20, "longer_size": 16}
    corpus = small_recall(symbols=4, alphabet_size=4, **sizes)
    assert len({pair.target for split in SPLITS for pair in getattr(corpus, split)}) == 4**4
    assert small_recall(seed=5) == small_recall(seed=5)
    assert small_recall(seed=5).train != small_recall(seed=6).train


def test_longer_lag_can_be_chosen_or_left_out() -> None:
    longer = small_recall(longer_lag=7).test_longer
    assert {len(pair.source.split()) for pair in longer} == {10}
    corpus = small_recall(longer_size=0, longer_lag=1)
    assert corpus.test_longer == [] and set(corpus.origin) == {"train", "validation", "test"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"symbols": 0}, "data.symbols=0"),
        ({"lag": 0}, "data.lag=0"),
        ({"longer_lag": 4}, "data.longer_lag=4 must exceed data.lag=4"),
        ({"alphabet_size": 1}, "data.alphabet_size=1"),
        ({"validation_size": 0}, "data.validation_size=0"),
        ({"alphabet_size": 7}, "only 343 different sources of 3 symbols out of 7, .* 450 pairs"),
    ],
)
def test_impossible_recall_is_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        small_recall(**arguments)
