import logging
import random

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device

from seq2seq.data.batch import EncodedSplit
from seq2seq.data.corpus import CorpusError, Pair
from seq2seq.data.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Tokenizer, train_tokenizers

WHITESPACE = {"kind": "whitespace"}


def some_pairs(count: int, seed: int = 0) -> list[Pair]:
    rng = random.Random(seed)

    def text(least: int) -> str:
        return " ".join(rng.choice("abcdefg") for _ in range(rng.randint(least, 9)))

    return [Pair(text(0), text(0), line) for line in range(1, count + 1)]


def tokenizers_of(pairs: list[Pair]) -> tuple[Tokenizer, Tokenizer]:
    return train_tokenizers(pairs, source=WHITESPACE, target=WHITESPACE)


def encoded(pairs: list[Pair], max_length: int | None = None) -> EncodedSplit:
    return EncodedSplit.encode(pairs, *tokenizers_of(pairs), max_length=max_length, origin="my.txt")


def padded(rows: list[list[int]]) -> list[list[int]]:
    longest = max(len(row) for row in rows)
    return [row + [PAD_ID] * (longest - len(row)) for row in rows]


def test_a_batch_is_what_padding_row_by_row_gives() -> None:
    pairs = some_pairs(60)
    source_tokenizer, target_tokenizer = tokenizers_of(pairs)
    split = encoded(pairs)
    for indices in ([0], [5, 3, 3, 59], list(range(60)), [7, 8]):
        batch = split.batch(torch.tensor(indices))
        sources = [[*source_tokenizer.encode(pairs[i].source), EOS_ID] for i in indices]
        targets = [[BOS_ID, *target_tokenizer.encode(pairs[i].target), EOS_ID] for i in indices]
        assert batch.source.tolist() == padded(sources)
        assert batch.source_lengths.tolist() == [len(row) for row in sources]
        assert batch.target.tolist() == padded(targets)
        assert batch.target_lengths.tolist() == [len(row) - 1 for row in targets]
        assert batch.index.tolist() == indices
        assert batch.target_tokens == sum(len(row) - 1 for row in targets)
        for tensor in (batch.source, batch.target, batch.target_positions, batch.target_lengths):
            assert tensor.dtype == torch.int64


def test_decoder_input_and_labels_are_the_target_shifted_by_one() -> None:
    split = encoded(some_pairs(20))
    batch = split.batch(torch.arange(20))
    labels = []
    for row, length in zip(batch.target.tolist(), batch.target_lengths.tolist(), strict=True):
        labels += row[1 : length + 1]
    assert batch.labels.tolist() == labels
    assert PAD_ID not in labels
    assert batch.decoder_input.shape == (20, int(batch.target_lengths.max()))
    assert (batch.decoder_input[:, 0] == BOS_ID).all()


def test_target_positions_pick_out_the_real_positions_of_any_grid() -> None:
    batch = encoded(some_pairs(20)).batch(torch.arange(20))
    rows, steps = batch.decoder_input.shape
    grid = torch.arange(steps).expand(rows, steps) < batch.target_lengths[:, None]
    assert torch.equal(batch.target_positions, grid.flatten().nonzero().squeeze(1))


def test_a_source_of_no_tokens_still_has_its_end() -> None:
    split = encoded([Pair("", "", 1), Pair("a", "b", 2)])
    batch = split.batch(torch.tensor([0]))
    assert batch.source.tolist() == [[EOS_ID]]
    assert batch.target.tolist() == [[BOS_ID, EOS_ID]]
    assert batch.source_lengths.tolist() == batch.target_lengths.tolist() == [1]


def test_too_long_pairs_are_dropped_as_pairs_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pairs = some_pairs(40)
    kept = [p for p in pairs if max(len(p.source.split()), len(p.target.split())) <= 4]
    dropped = [p.line for p in pairs if p not in kept]
    with caplog.at_level(logging.WARNING):
        split = encoded(pairs, max_length=4)
    assert list(split.pairs) == kept
    assert len(split) == len(kept)
    assert [r.getMessage() for r in caplog.records] == [
        f"my.txt: dropped {len(dropped)} of 40 pairs longer than max_length=4 tokens "
        f"(first lines: {', '.join(map(str, dropped[:5]))})"
    ]
    source_tokenizer, _ = tokenizers_of(pairs)
    batch = split.batch(torch.arange(len(kept)))
    for row, pair in enumerate(kept):
        length = int(batch.source_lengths[row])
        assert source_tokenizer.decode(batch.source[row, :length].tolist()) == pair.source


def test_generated_pairs_are_dropped_without_line_numbers(caplog: pytest.LogCaptureFixture) -> None:
    encoded([Pair("a a a", "a", 0), Pair("a", "a", 0)], max_length=2)
    assert caplog.records[0].getMessage() == (
        "my.txt: dropped 1 of 2 pairs longer than max_length=2 tokens"
    )


def test_nothing_is_said_when_no_pair_is_too_long(caplog: pytest.LogCaptureFixture) -> None:
    assert len(encoded(some_pairs(20), max_length=9)) == 20
    assert not caplog.records


def test_a_max_length_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(CorpusError, match="none of the 1 pairs has at most max_length=1 tokens"):
        encoded([Pair("a", "b c", 1)], max_length=1)


def test_unknown_rates_count_text_tokens_only() -> None:
    tokenizers = tokenizers_of([Pair("a b", "x", 1)])
    split = EncodedSplit.encode([Pair("a c", "x", 1), Pair("d b", "x y x", 2)], *tokenizers)
    assert split.unknown_rates() == (2 / 4, 1 / 4)
    assert int((split.batch(torch.arange(2)).source == UNK_ID).sum()) == 2
    assert EncodedSplit.encode([Pair("", "", 1)], *tokenizers).unknown_rates() == (0.0, 0.0)


@pytest.mark.parametrize("how", ["to", "lightning"])
def test_a_batch_moves_to_a_device_whole(how: str) -> None:
    batch = encoded(some_pairs(5)).batch(torch.arange(5))
    moved = batch.to("meta") if how == "to" else move_data_to_device(batch, torch.device("meta"))
    for name, value in vars(batch).items():
        if isinstance(value, torch.Tensor):
            assert getattr(moved, name).device.type == "meta"
            assert value.device.type == "cpu"
        else:
            assert getattr(moved, name) == value
