from itertools import pairwise

import pytest
import torch
from torch import Tensor

from seq2seq.data.batch import Batch, EncodedSplit, TokenRows
from seq2seq.data.corpus import Pair
from seq2seq.data.curriculum import Curriculum
from seq2seq.data.sampler import UNITS, EvaluationLoader, LengthBucketSampler, TrainingLoader

PAIRS = 5_003
SIZES = {"sentences": 16, "target_tokens": 200}


def some_lengths(pairs: int = PAIRS) -> tuple[Tensor, Tensor]:
    """Lengths as in real text: targets spread widely, sources a little apart from them."""
    generator = torch.Generator().manual_seed(0)
    target = (torch.randn(pairs, generator=generator) * 0.5 + 2.4).exp().long() + 1
    source = (target * (1 + 0.2 * torch.randn(pairs, generator=generator))).long().clamp(min=1)
    return source, target


def some_sampler(
    unit: str,
    size: int | None = None,
    seed: int = 0,
    reshuffle: bool = True,
    curriculum: Curriculum | None = None,
) -> LengthBucketSampler:
    source, target = some_lengths()
    return LengthBucketSampler(
        source_lengths=source,
        target_lengths=target,
        size=size or SIZES[unit],
        unit=unit,
        seed=seed,
        reshuffle=reshuffle,
        curriculum=curriculum,
    )


def some_split(pairs: int = 203) -> EncodedSplit:
    source, target = some_lengths(pairs)
    return EncodedSplit(
        pairs=[Pair("", "", line) for line in range(pairs)],
        source=TokenRows([[9] * length for length in source.tolist()]),
        target=TokenRows([[9] * (length + 1) for length in target.tolist()]),
    )


class Run:
    """A loader whose epoch the test sets."""

    def __init__(self, unit: str, size: int | None = None, seed: int = 0) -> None:
        split = some_split()
        sampler = LengthBucketSampler(
            source_lengths=split.source_lengths,
            target_lengths=split.target_lengths,
            size=size or SIZES[unit],
            unit=unit,
            seed=seed,
        )
        self.epoch = 0
        self.loader = TrainingLoader(split, sampler, lambda: self.epoch)


def as_lists(batches: list[Tensor]) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


def indices(batches: list[Batch]) -> list[list[int]]:
    return [batch.index.tolist() for batch in batches]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_an_epoch_holds_every_pair_once(unit: str, epoch: int) -> None:
    batches = some_sampler(unit).batches(epoch)
    assert sorted(torch.cat(batches).tolist()) == list(range(PAIRS))


@pytest.mark.parametrize("unit", UNITS)
def test_every_epoch_has_the_same_number_of_batches(unit: str) -> None:
    sampler = some_sampler(unit)
    sizes = [sorted(len(b) for b in sampler.batches(epoch)) for epoch in range(20)]
    assert all(epoch == sizes[0] for epoch in sizes)
    assert len(sampler) == len(sizes[0])


def test_batches_by_sentences_are_full_but_one() -> None:
    sizes = sorted(len(batch) for batch in some_sampler("sentences").batches(3))
    assert sizes[0] == PAIRS % 16
    assert set(sizes[1:]) == {16}


@pytest.mark.parametrize("size", [20, 60, 200, 1000])
def test_padded_target_positions_stay_within_the_size_but_for_a_single_longer_pair(
    size: int,
) -> None:
    _, target = some_lengths()
    alone = 0
    for batch in some_sampler("target_tokens", size=size).batches(2):
        positions = int(target[batch].max()) * len(batch)
        assert positions <= size or len(batch) == 1
        alone += positions > size
    assert alone == int((target > size).sum())


def test_batches_by_target_tokens_leave_no_room_for_the_next_pair() -> None:
    _, target = some_lengths()
    batches = some_sampler("target_tokens").batches(1)
    batches.sort(key=lambda batch: (*target[batch].aminmax(), -len(batch)))
    for batch, following in pairwise(batches):
        assert int(target[following].min()) * (len(batch) + 1) > 200


@pytest.mark.parametrize("unit", UNITS)
def test_the_order_depends_on_seed_and_epoch_alone(unit: str) -> None:
    orders = {
        (seed, epoch): as_lists(some_sampler(unit, seed=seed).batches(epoch))
        for seed in (0, 1)
        for epoch in (0, 1, 2)
    }
    for (seed, epoch), order in orders.items():
        sampler = some_sampler(unit, seed=seed)
        sampler.batches(5)
        assert as_lists(sampler.batches(epoch)) == order
    assert len({str(order) for order in orders.values()}) == len(orders)


@pytest.mark.parametrize("unit", UNITS)
def test_a_pair_meets_others_in_another_epoch(unit: str) -> None:
    sampler = some_sampler(unit)
    first = {tuple(sorted(batch)) for batch in as_lists(sampler.batches(0))}
    second = {tuple(sorted(batch)) for batch in as_lists(sampler.batches(1))}
    assert len(first & second) < 0.1 * len(first)


@pytest.mark.parametrize("unit", UNITS)
def test_long_and_short_batches_alternate_by_chance(unit: str) -> None:
    _, target = some_lengths()
    longest = [float(target[batch].max()) for batch in some_sampler(unit).batches(0)]
    neighbours = torch.corrcoef(torch.tensor([longest[1:], longest[:-1]]))[0, 1]
    assert abs(neighbours) < 0.2


@pytest.mark.parametrize("unit", UNITS)
def test_little_is_padded(unit: str) -> None:
    for lengths in some_lengths():
        padded = sum(int(lengths[b].max()) * len(b) for b in some_sampler(unit).batches(0))
        assert int(lengths.sum()) / padded > 0.8


@pytest.mark.parametrize("unit", UNITS)
def test_the_same_batches_come_again_when_a_few_are_to_be_overfitted(unit: str) -> None:
    sampler = some_sampler(unit, reshuffle=False)
    assert as_lists(sampler.batches(3)) == as_lists(some_sampler(unit).batches(0))


def test_an_unknown_unit_or_a_size_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="choose one of sentences, target_tokens"):
        some_sampler("words", size=5)
    with pytest.raises(ValueError, match=r"batch.size=-1 must be at least 1"):
        some_sampler("sentences", size=-1)
    with pytest.raises(ValueError, match=r"batch.evaluation_size=0 must be at least 1"):
        EvaluationLoader(some_split(), 0)


@pytest.mark.parametrize("unit", UNITS)
def test_a_loader_goes_on_with_the_very_next_batch(unit: str) -> None:
    run = Run(unit)
    run.epoch = 2
    whole = indices(list(run.loader))
    assert len(whole) == len(run.loader)
    for position in range(1, len(whole) + 1):
        batches = iter(run.loader)
        for _ in range(position):
            next(batches)
        state = run.loader.state_dict()

        resumed = Run(unit)
        resumed.loader.load_state_dict(state)
        assert resumed.loader.state_dict() == state
        resumed.epoch = 2
        assert indices(list(resumed.loader)) == whole[position:]
        run.epoch = resumed.epoch = 3
        assert indices(list(resumed.loader)) == indices(list(run.loader))
        run.epoch = 2


def test_a_resumed_position_belongs_to_its_epoch_alone() -> None:
    run = Run("sentences")
    next(iter(run.loader))
    state = run.loader.state_dict()
    resumed = Run("sentences")
    resumed.loader.load_state_dict(state)
    resumed.epoch = 1
    assert len(list(resumed.loader)) == len(resumed.loader)


def test_an_epoch_that_was_cut_short_starts_anew() -> None:
    run = Run("sentences")
    next(iter(run.loader))
    assert len(list(run.loader)) == len(run.loader)


def test_an_iterator_asks_for_the_epoch_with_its_first_batch() -> None:
    run = Run("sentences")
    batches = iter(run.loader)
    run.epoch = 4
    expected = run.loader.batch_order.batches(4)
    assert indices(list(batches)) == as_lists(expected)


def test_going_on_in_mid_epoch_with_other_batches_is_refused() -> None:
    run = Run("sentences")
    next(iter(run.loader))
    state = run.loader.state_dict()
    message = r"after batch 1 of 13 .*: batch.size was 16 and is 8, seed was 0 and is 1; resume"
    with pytest.raises(ValueError, match=message):
        Run("sentences", size=8, seed=1).loader.load_state_dict(state)


def test_other_batches_from_the_next_epoch_on_are_fine() -> None:
    run = Run("sentences")
    for _ in run.loader:
        pass
    resumed = Run("sentences", size=8, seed=1)
    resumed.loader.load_state_dict(run.loader.state_dict())
    assert list(resumed.loader) == []
    resumed.epoch = 1
    assert len(list(resumed.loader)) == len(resumed.loader) == 26


def test_an_evaluation_covers_the_split_in_order_of_length_every_time() -> None:
    split = some_split()
    loader = EvaluationLoader(split, 16)
    batches = list(loader)
    assert len(batches) == len(loader) == 13
    order = [i for batch in indices(batches) for i in batch]
    assert sorted(order) == list(range(203))
    longer_side = torch.maximum(split.source_lengths, split.target_lengths)[order]
    assert torch.equal(longer_side, longer_side.sort().values)
    assert indices(list(loader)) == indices(batches)


def test_an_empty_split_has_no_evaluation_batches() -> None:
    nothing = EncodedSplit(pairs=[], source=TokenRows([]), target=TokenRows([]))
    assert list(EvaluationLoader(nothing, 4)) == []


@pytest.mark.parametrize(
    ("kind", "formula"),
    [
        ("linear", lambda t: 0.1 + 0.9 * t / 4),
        ("sqrt", lambda t: (0.1**2 + (1 - 0.1**2) * t / 4) ** 0.5),
    ],
)
def test_competence_grows_to_one_as_the_formula_says(kind, formula):
    curriculum = Curriculum(kind, epochs=4, start=0.1)
    for time in (0, 0.3, 1.7, 4):
        assert curriculum.competence(time) == pytest.approx(formula(time))
    assert curriculum.competence(4) == curriculum.competence(9.5) == 1


@pytest.mark.parametrize("unit", UNITS)
def test_under_a_curriculum_no_batch_has_a_longer_pair_than_its_share_allows(unit):
    curriculum = Curriculum("sqrt", epochs=3, start=0.05)
    sampler, plain = some_sampler(unit, curriculum=curriculum), some_sampler(unit)
    source, target = some_lengths()
    length = target if unit == "target_tokens" else torch.maximum(source, target)
    ranked = length.sort().values
    for epoch in range(3):
        batches = sampler.batches(epoch)
        assert len(batches) == len(sampler) == len(plain)
        assert [b.tolist() for b in batches] == [b.tolist() for b in sampler.batches(epoch)]
        for position, batch in enumerate(batches):
            share = curriculum.competence(epoch + position / len(batches))
            longest = ranked[max(int(share * PAIRS), len(batch)) - 1]
            assert length[batch].max() <= longest
            assert len(batch.unique()) == len(batch)
    # Most of what is allowed does come, near the end also what is long.
    assert len(torch.cat(batches).unique()) > PAIRS / 2
    assert length[torch.cat(batches)].max() > ranked[int(0.9 * PAIRS)]


@pytest.mark.parametrize("unit", UNITS)
def test_after_the_curriculum_every_epoch_is_as_without_one(unit):
    sampler = some_sampler(unit, curriculum=Curriculum("linear", epochs=2, start=0.01))
    for epoch in (2, 5):
        ours, plain = sampler.batches(epoch), some_sampler(unit).batches(epoch)
        assert all(torch.equal(*pair) for pair in zip(ours, plain, strict=True))


def test_a_curriculum_that_cannot_be_is_refused():
    for values, said in (
        (("cubic", 2.0, 0.1), "batch.curriculum='cubic' is unknown"),
        (("sqrt", 0.0, 0.1), "batch.curriculum_epochs=0.0 must be above 0"),
        (("sqrt", 2.0, 1.5), "batch.curriculum_start=1.5 is a share"),
    ):
        with pytest.raises(ValueError, match=said):
            Curriculum(*values)
