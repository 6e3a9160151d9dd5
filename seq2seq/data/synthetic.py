"""Generated tasks with a known answer: copy, reverse, sort, addition and recall.

Every source is drawn without replacement over all splits, so that no split repeats another's,
and the longer test split asks for lengths, or lags, that training never shows. Symbols are integers
apart by spaces; addition is a task on characters.
"""

import random
from collections.abc import Callable, Iterable, Mapping
from itertools import islice

from seq2seq.data.corpus import Corpus, CorpusError, Pair

SYMBOL_TASKS: Mapping[str, Callable[[list[int]], list[int]]] = {
    "copy": lambda symbols: symbols,
    "reverse": lambda symbols: symbols[::-1],
    "sort": sorted,
}
TASKS = (*SYMBOL_TASKS, "addition")

BLANK = "_"


def synthetic_task(
    *,
    task: str,
    alphabet_size: int = 20,
    min_length: int = 1,
    max_length: int = 10,
    test_max_length: int | None = None,
    longer_max_length: int | None = None,
    train_size: int = 20000,
    validation_size: int = 1000,
    test_size: int = 1000,
    longer_size: int = 1000,
    seed: int = 0,
) -> Corpus:
    """Generates a task's splits.

    Lengths are drawn uniformly. There are few short sources: once a length has been used up,
    pairs of other lengths take the place of its pairs, in every split alike.

    Args:
        task: copy, reverse, sort or addition.
        alphabet_size: Number of different symbols, 0 to `alphabet_size` - 1; addition always
            uses decimal digits.
        min_length: Fewest symbols of a source, or fewest digits of a summand.
        max_length: Most symbols of a source, or most digits of the longer summand.
        test_max_length: The same for the test split; None for `max_length`.
        longer_max_length: The same for the longer test split, which starts at `max_length` + 1;
            None for twice `max_length`.
        train_size: Pairs to train on.
        validation_size: Pairs for model selection.
        test_size: Pairs for the test.
        longer_size: Pairs for the longer test; 0 for none.
        seed: Seed of the draw.

    Raises:
        CorpusError: If an argument is out of range, or there are too few different sources.
    """
    test_max_length = max_length if test_max_length is None else test_max_length
    longer_max_length = 2 * max_length if longer_max_length is None else longer_max_length
    if task not in TASKS:
        raise CorpusError(f"data.task={task} is none of {', '.join(TASKS)}.")
    _check_alphabet(alphabet_size)
    if not 1 <= min_length <= max_length:
        raise CorpusError(
            f"data.min_length={min_length} and data.max_length={max_length}: give lengths from "
            "1 up, the least first."
        )
    if test_max_length < min_length:
        raise CorpusError(
            f"data.test_max_length={test_max_length} is below data.min_length={min_length}."
        )
    if longer_size > 0 and longer_max_length <= max_length:
        raise CorpusError(
            f"data.longer_max_length={longer_max_length} must exceed data.max_length={max_length}; "
            "data.longer_size=0 leaves the longer test out."
        )
    sizes = _sizes(train_size, validation_size, test_size, longer_size)
    lengths = {
        "train": range(min_length, max_length + 1),
        "validation": range(min_length, max_length + 1),
        "test": range(min_length, test_max_length + 1),
        "test_longer": range(max_length + 1, longer_max_length + 1),
    }

    def count(length: int) -> int:
        if task == "addition":
            return _summand_pairs(min_length, length)
        return int(alphabet_size**length)

    generator = random.Random(f"{task} {seed}")
    splits: dict[str, list[Pair]] = {split: [] for split in sizes}
    for length, slots in _draw_lengths(task, sizes, lengths, count, generator).items():
        numbers = _draw_distinct(count(length), len(slots), generator)
        for split, number in zip(slots, numbers, strict=True):
            if task == "addition":
                splits[split].append(_addition(number, min_length, length))
            else:
                symbols = _symbols(number, alphabet_size, length)
                splits[split].append(_pair(symbols, SYMBOL_TASKS[task](symbols)))
    for pairs in splits.values():
        generator.shuffle(pairs)
    origin = {
        split: f"{task}, lengths {lengths[split][0]} to {lengths[split][-1]}, seed {seed}"
        for split in sizes
        if splits[split]
    }
    return Corpus(**splits, max_length=None, origin=origin)


def recall(
    *,
    symbols: int = 5,
    lag: int = 20,
    longer_lag: int | None = None,
    alphabet_size: int = 8,
    train_size: int = 10000,
    validation_size: int = 500,
    test_size: int = 500,
    longer_size: int = 500,
    seed: int = 0,
) -> Corpus:
    """Generates the recall task: symbols, then blanks; the target is the symbols again.

    The lag is the same for every pair of a split, so that each symbol has to last for that many
    timesteps of nothing new. After the copying task of Arjovsky, Shah and Bengio 2016, "Unitary
    evolution recurrent neural networks", with a decoder in place of the outputs after the lag.
    No symbols are drawn twice, in whatever split, though the blanks of the longer test would
    make another source of them.

    Args:
        symbols: How many symbols are to be remembered.
        lag: Blanks after them.
        longer_lag: Blanks in the longer test split; None for twice `lag`.
        alphabet_size: Number of different symbols, 0 to `alphabet_size` - 1.
        train_size: Pairs to train on.
        validation_size: Pairs for model selection.
        test_size: Pairs for the test.
        longer_size: Pairs for the longer test; 0 for none.
        seed: Seed of the draw.

    Raises:
        CorpusError: If an argument is out of range, or there are too few different sources.
    """
    longer_lag = 2 * lag if longer_lag is None else longer_lag
    _check_alphabet(alphabet_size)
    for key, value in (("symbols", symbols), ("lag", lag)):
        if value < 1:
            raise CorpusError(f"data.{key}={value}: give at least 1.")
    if longer_size > 0 and longer_lag <= lag:
        raise CorpusError(
            f"data.longer_lag={longer_lag} must exceed data.lag={lag}; data.longer_size=0 leaves "
            "the longer test out."
        )
    sizes = _sizes(train_size, validation_size, test_size, longer_size)
    size, available = sum(sizes.values()), int(alphabet_size**symbols)
    if size > available:
        raise CorpusError(
            f"recall has only {available} different sources of {symbols} symbols out of "
            f"{alphabet_size}, too few for {size} pairs in all: ask for fewer pairs, or for a "
            "larger data.symbols or data.alphabet_size."
        )
    generator = random.Random(f"recall {seed}")
    numbers = iter(_draw_distinct(available, size, generator))
    lags = {split: longer_lag if split == "test_longer" else lag for split in sizes}
    splits: dict[str, list[Pair]] = {split: [] for split in sizes}
    for split, pairs in splits.items():
        for number in islice(numbers, sizes[split]):
            drawn = _symbols(number, alphabet_size, symbols)
            pairs.append(_pair([*drawn, *[BLANK] * lags[split]], drawn))
    origin = {
        split: f"recall, {symbols} symbols, lag {lags[split]}, seed {seed}"
        for split, size in sizes.items()
        if size
    }
    return Corpus(**splits, max_length=None, origin=origin)


def _check_alphabet(alphabet_size: int) -> None:
    if alphabet_size < 2:
        raise CorpusError(f"data.alphabet_size={alphabet_size}: at least 2 symbols are needed.")


def _sizes(
    train_size: int, validation_size: int, test_size: int, longer_size: int
) -> dict[str, int]:
    """Pairs of each split; only the longer test may have none."""
    sizes = {
        "train": train_size,
        "validation": validation_size,
        "test": test_size,
        "test_longer": longer_size,
    }
    for split, size in sizes.items():
        if size < (0 if split == "test_longer" else 1):
            name = split.replace("test_longer", "longer")
            raise CorpusError(f"data.{name}_size={size}: give at least 1 pair.")
    return sizes


def _draw_lengths(
    task: str,
    sizes: Mapping[str, int],
    lengths: Mapping[str, range],
    count: Callable[[int], int],
    generator: random.Random,
) -> dict[int, list[str]]:
    """Draws a length for every pair of every split; returns the splits to serve at each length.

    The splits take turns in random order, so that all get their share of the scarce short
    sources.
    """
    slots = [split for split, size in sizes.items() for _ in range(size)]
    generator.shuffle(slots)
    left = {length: count(length) for split in sizes for length in lengths[split]}
    drawn: dict[int, list[str]] = {length: [] for length in sorted(left)}
    for split in slots:
        open_lengths = [length for length in lengths[split] if left[length] > 0]
        if not open_lengths:
            span = lengths[split]
            raise CorpusError(
                f"{task} has only {sum(map(count, span))} different sources of length {span[0]} to "
                f"{span[-1]}, too few for {sizes[split]} in {split} beside the other splits "
                f"({len(slots)} pairs in all): ask for fewer pairs, or for longer ones."
            )
        length = generator.choice(open_lengths)
        left[length] -= 1
        drawn[length].append(split)
    return drawn


def _draw_distinct(limit: int, size: int, generator: random.Random) -> list[int]:
    """Draws `size` different numbers below `limit`, which may exceed a machine word."""
    if limit <= 10 * size:
        return generator.sample(range(limit), size)
    numbers: dict[int, None] = {}  # a set in the order of the draw
    while len(numbers) < size:
        numbers[generator.randrange(limit)] = None
    return list(numbers)


def _symbols(number: int, alphabet_size: int, length: int) -> list[int]:
    """Writes `number` in base `alphabet_size`: one sequence for each number."""
    symbols = []
    for _ in range(length):
        number, symbol = divmod(number, alphabet_size)
        symbols.append(symbol)
    return symbols


def _pair(source: Iterable[int | str], target: Iterable[int]) -> Pair:
    return Pair(" ".join(map(str, source)), " ".join(map(str, target)), 0)


def _summands(min_length: int, length: int) -> tuple[int, int, int]:
    """Returns the least summand, how many have up to `length` digits, and how many have fewer."""
    least = 0 if min_length == 1 else 10 ** (min_length - 1)
    fewer = 0 if length == min_length else 10 ** (length - 1) - least
    return least, 10**length - least, fewer


def _summand_pairs(min_length: int, length: int) -> int:
    """Counts the pairs of summands of which the longer has `length` digits."""
    _, upto, fewer = _summands(min_length, length)
    return upto**2 - fewer**2


def _addition(number: int, min_length: int, length: int) -> Pair:
    """Returns the sum numbered `number` among those whose longer summand has `length` digits.

    In the square of all summands up to `length` digits, these are the rows of the long first
    summands, then what the short ones' rows have to the right of the square of fewer digits.
    """
    least, upto, fewer = _summands(min_length, length)
    rows = upto - fewer
    if number < rows * upto:
        first, second = fewer + number // upto, number % upto
    else:
        number -= rows * upto
        first, second = number // rows, fewer + number % rows
    first, second = least + first, least + second
    return Pair(f"{first}+{second}", str(first + second), 0)
