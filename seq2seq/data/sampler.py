"""Which pairs make up a batch, and in which order batches come.

`LengthBucketSampler` decides (by length, shuffled, from a seed and the epoch), `TrainingLoader`
and `EvaluationLoader` hand out padded batches. The training loader knows its position, so that a
run resumed in the middle of an epoch goes on with the very next batch. Padding is `batch.py`'s.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from seq2seq.data.batch import Batch, EncodedSplit
from seq2seq.data.curriculum import Curriculum

UNITS = ("sentences", "target_tokens")

# Pairs are sorted by length within pools of so many batches: large enough that little is padded,
# small enough that a pair meets others in every epoch.
_BATCHES_PER_POOL = 100

# Source lengths are blurred by up to so many tokens when pairs of equal target length are sorted.
_SOURCE_BLUR = 3


class LengthBucketSampler:
    """Batches of pairs of similar length, drawn anew in every epoch.

    The order is a function of `seed` and `epoch` alone. The number of batches, and the number of
    pairs in the batches, is the same in every epoch (Lightning counts the batches once, before the
    first): with `sentences` every batch has `size` pairs but one, with `target_tokens` the
    sequence of target lengths is cut at the same places, and what changes is which pairs of equal
    target length come where.

    While a curriculum holds pairs back, an epoch has the same number of batches, each drawn from
    those that the shortest pairs make (with `sentences` by the longer side, otherwise by target),
    so that short pairs come several times in it.

    Args:
        source_lengths: Tokens of each source. Shape: [pairs].
        target_lengths: Predicted positions of each target. Shape: [pairs].
        size: Pairs in a batch, or most target positions, padding included, in a batch (longest
            target times pairs); a single longer target makes a batch of its own.
        unit: `sentences` or `target_tokens`.
        seed: Seed of the order; each epoch has its own order.
        reshuffle: False repeats the first epoch's batches, to overfit a few of them.
        curriculum: Holds back long pairs at first; None for none.

    Raises:
        ValueError: If the unit is unknown or the size is below 1.
    """

    def __init__(
        self,
        *,
        source_lengths: Tensor,
        target_lengths: Tensor,
        size: int,
        unit: str = "sentences",
        seed: int = 0,
        reshuffle: bool = True,
        curriculum: Curriculum | None = None,
    ) -> None:
        if unit not in UNITS:
            raise ValueError(f"batch.unit={unit!r} is unknown; choose one of {', '.join(UNITS)}")
        if size < 1:
            raise ValueError(f"batch.size={size} must be at least 1")
        self.size = size
        self.unit = unit
        self.seed = seed
        self.curriculum = curriculum
        self._reshuffle = reshuffle
        self._source_lengths = source_lengths
        self._target_lengths = target_lengths
        if unit == "sentences":
            self._batch_sizes = _sizes_by_sentences(len(target_lengths), size)
        else:
            self._batch_sizes = _sizes_by_target_tokens(target_lengths, size)

    def __len__(self) -> int:
        return len(self._batch_sizes)

    def batches(self, epoch: int) -> list[Tensor]:
        """Positions in the split, [batch] each, of all batches of an epoch in order."""
        epoch = epoch if self._reshuffle else 0
        # Not seed + epoch: neighbouring seeds would then share all but one of their epochs.
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        shuffled = torch.randperm(len(self._target_lengths), generator=generator)
        source, target = self._source_lengths[shuffled], self._target_lengths[shuffled]
        held_back = self.curriculum is not None and self.curriculum.competence(epoch) < 1
        if self.unit == "sentences":
            pool = torch.arange(len(shuffled)) // (self.size * _BATCHES_PER_POOL)
            if held_back:  # the shortest of all come first
                pool = torch.zeros_like(pool)
            order = shuffled[_argsort(pool, *_by_longer_side(source, target))]
        else:
            blur = torch.randint(_SOURCE_BLUR, source.shape, generator=generator)
            order = shuffled[_argsort(target, source + blur)]
        batches = order.split_with_sizes(self._batch_sizes)
        if held_back:
            return [batches[i] for i in self._within_competence(epoch, generator)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def _within_competence(self, epoch: int, generator: torch.Generator) -> list[int]:
        """For each batch of an epoch one of the batches, sorted by length, that may come then."""
        assert self.curriculum is not None
        number, pairs = len(self._batch_sizes), len(self._target_lengths)
        last = torch.tensor(self._batch_sizes).cumsum(0)  # of each batch, counted from 1
        chosen: list[int] = []
        for batch in range(number):
            share = self.curriculum.competence(epoch + batch / number)
            allowed = max(1, int((last <= share * pairs).sum()))
            chosen.append(int(torch.randint(allowed, (), generator=generator)))
        return chosen


class TrainingLoader:
    """Padded batches in the sampler's order, from a position that a checkpoint can hold.

    Lightning saves `state_dict()` with every checkpoint and restores it when a run goes on in the
    middle of an epoch. As the length is known, it fetches no batch ahead: when a checkpoint is
    written after a batch, the position is that of the next one.

    Args:
        split: The training split.
        sampler: Order of its pairs.
        epoch: Says which epoch it is, counted from 0; asked when an epoch's first batch is.
    """

    def __init__(
        self, split: EncodedSplit, sampler: LengthBucketSampler, epoch: Callable[[], int]
    ) -> None:
        self.split = split
        # Not `sampler`: Lightning would take an attribute of that name for PyTorch's.
        self.batch_order = sampler
        self._current_epoch = epoch
        self._epoch = 0
        self._position = 0  # batches of that epoch handed out so far
        self._resumed = False

    def __len__(self) -> int:
        return len(self.batch_order)

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing here runs before the first batch is asked for. Lightning makes the
        # iterator of a run's first epoch before it knows which epoch that is.
        epoch = self._current_epoch()
        if not self._resumed or epoch != self._epoch:
            self._position = 0
        self._epoch, self._resumed = epoch, False
        for index in self.batch_order.batches(epoch)[self._position :]:
            self._position += 1
            yield self.split.batch(index)

    def state_dict(self) -> dict[str, Any]:
        """Epoch, position in it, and what the order depends on; plain data."""
        curriculum = self.batch_order.curriculum
        return {
            "epoch": self._epoch,
            "position": self._position,
            "batches": len(self),
            "order": {
                "batch.size": self.batch_order.size,
                "batch.unit": self.batch_order.unit,
                "seed": self.batch_order.seed,
                "training pairs": len(self.split),
                "target tokens": int(self.split.target_lengths.sum()),
                # Absent where it is off, as in checkpoints from before there was one.
                **({} if curriculum is None else {"batch.curriculum": str(curriculum)}),
            },
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: If that was in the middle of an epoch whose order can't be made again,
                because the data or the settings are others.
        """
        position, batches = state_dict["position"], state_dict["batches"]
        saved, here = state_dict["order"], self.state_dict()["order"]
        changed = [key for key in {**saved, **here} if saved.get(key) != here.get(key)]
        if changed and 0 < position < batches:
            raise ValueError(
                f"the checkpoint stopped after batch {position} of {batches} of an epoch, and that "
                "epoch can't go on because the batches are others now: "
                + ", ".join(f"{key} was {saved.get(key)} and is {here.get(key)}" for key in changed)
                + "; resume with the same values, or from a checkpoint at the end of an epoch"
            )
        self._epoch = state_dict["epoch"]
        self._position = position if position < batches else len(self)
        self._resumed = True


class EvaluationLoader:
    """Padded batches of a whole split, sorted by length, the same every time.

    `Batch.index` says where each pair belongs.

    Args:
        split: A split.
        batch_size: Pairs in a batch.

    Raises:
        ValueError: If the batch size is below 1.
    """

    def __init__(self, split: EncodedSplit, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch.evaluation_size={batch_size} must be at least 1")
        self.split = split
        order = _argsort(*_by_longer_side(split.source_lengths, split.target_lengths))
        self._batches = order.split_with_sizes(_sizes_by_sentences(len(split), batch_size))

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return (self.split.batch(index) for index in self._batches)


def _argsort(*keys: Tensor) -> Tensor:
    """Positions sorted by the first key, then the second, ...; ties stay in order."""
    order = torch.arange(len(keys[0]))
    for key in reversed(keys):
        order = order[torch.argsort(key[order], stable=True)]
    return order


def _by_longer_side(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Keys that keep both sides' padding low: on Multi30k 5 %; by target, then source, it's 9 %."""
    return torch.maximum(source, target), source


def _sizes_by_sentences(pairs: int, size: int) -> list[int]:
    rest = pairs % size
    return [size] * (pairs // size) + ([rest] if rest else [])


def _sizes_by_target_tokens(target_lengths: Tensor, size: int) -> list[int]:
    """Cut the sorted lengths so that longest times count stays within `size`, longest one aside."""
    sizes: list[int] = []
    count = 0
    for length in target_lengths.sort().values.tolist():  # ascending: the newest is the longest
        if count and (count + 1) * length > size:
            sizes.append(count)
            count = 0
        count += 1
    return [*sizes, count] if count else sizes
