"""Token ids of a split in flat arrays, and padded batches cut out of them.

A split is encoded once; after that a batch is a few vectorised operations. Which pairs make up a
batch, and in which order batches come, is left to `sampler.py`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Self

import torch
from torch import Tensor

from seq2seq.data.corpus import CorpusError, Pair
from seq2seq.data.extended_vocabulary import extended_ids
from seq2seq.data.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Tokenizer

logger = logging.getLogger(__name__)

_LINES_SHOWN = 5


@dataclass
class Batch:
    """Padded pairs; right padding with `PAD_ID`.

    Args:
        source: Token ids with `<eos>` at the end. Shape: [batch, source_time].
        source_lengths: Tokens of each source, `<eos>` included. Shape: [batch].
        target: `<bos> y1 .. yn <eos>` of each pair. Shape: [batch, target_time + 1].
        target_lengths: Predicted positions of each target: `y1 .. yn <eos>`. Shape: [batch].
        target_positions: Flat positions `row * target_time + step` of all predicted positions, in
            order. Shape: [target_tokens].
        index: Position of each pair in its `EncodedSplit`. Shape: [batch].
        target_tokens: The sum of `target_lengths`; a Python number, so that no device has to be
            waited for.
        extended_source: Ids of the source's tokens in the extended vocabulary, see
            `extended_vocabulary.py`, `PAD_ID` where nothing may be copied; None for models that
            don't copy. Shape: [batch, source_time].
        extended_target: The same of `y1 .. yn <eos>`. Shape: [batch, target_time].
    """

    source: Tensor
    source_lengths: Tensor
    target: Tensor
    target_lengths: Tensor
    target_positions: Tensor
    index: Tensor
    target_tokens: int
    extended_source: Tensor | None = None
    extended_target: Tensor | None = None

    @property
    def decoder_input(self) -> Tensor:
        """What the decoder reads under teacher forcing: [batch, target_time]."""
        return self.target[:, :-1]

    @property
    def labels(self) -> Tensor:
        """What it predicts at `target_positions`: [target_tokens]."""
        target = self.target[:, 1:] if self.extended_target is None else self.extended_target
        return target.flatten()[self.target_positions]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch with every tensor on `device`."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        return Batch(
            source=move(self.source),
            source_lengths=move(self.source_lengths),
            target=move(self.target),
            target_lengths=move(self.target_lengths),
            target_positions=move(self.target_positions),
            index=move(self.index),
            target_tokens=self.target_tokens,
            extended_source=None if self.extended_source is None else move(self.extended_source),
            extended_target=None if self.extended_target is None else move(self.extended_target),
        )


class TokenRows:
    """Rows of token ids of different lengths, one after the other in one int32 array.

    Args:
        rows: The token ids of every row.
    """

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self.lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)  # [rows]
        self.starts = self.lengths.cumsum(0) - self.lengths  # [rows]
        self.tokens = torch.tensor(list(chain.from_iterable(rows)), dtype=torch.int32)

    def padded(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Some rows, right-padded to the longest of them: tokens [batch, time], lengths [batch]."""
        lengths = self.lengths[index]
        steps = torch.arange(int(lengths.max()))
        real = steps < lengths[:, None]  # [batch, time]
        places = (self.starts[index][:, None] + steps)[real]
        tokens = torch.full(real.shape, PAD_ID, dtype=torch.int64)
        tokens[real] = self.tokens[places].long()
        return tokens, lengths


class EncodedSplit:
    """One split of a corpus as token ids.

    Args:
        pairs: The pairs, in the order of `Batch.index`.
        source: Their sources, each `x1 .. xn <eos>`.
        target: Their targets, each `<bos> y1 .. yn <eos>`.
        extended: Sources `x1 .. xn <pad>` and targets `y1 .. yn <eos>` in the extended vocabulary,
            for models that copy.
    """

    def __init__(
        self,
        *,
        pairs: Sequence[Pair],
        source: TokenRows,
        target: TokenRows,
        extended: tuple[TokenRows, TokenRows] | None = None,
    ) -> None:
        self.pairs = pairs
        self._source = source
        self._target = target
        self._extended = extended

    @classmethod
    def encode(
        cls,
        pairs: Sequence[Pair],
        source_tokenizer: Tokenizer,
        target_tokenizer: Tokenizer,
        *,
        max_length: int | None = None,
        origin: str = "corpus",
        copies: bool = False,
    ) -> Self:
        """Encode all pairs at once.

        Args:
            pairs: Pairs of text.
            source_tokenizer: Tokenizer of the sources.
            target_tokenizer: Tokenizer of the targets.
            max_length: Most tokens on either side, `<eos>` not counted; longer pairs are dropped
                with one warning. For training only: a score must cover every pair of its split.
            origin: Where the pairs come from, for messages.
            copies: Whether batches are for a model that copies words of the source.

        Raises:
            CorpusError: If no pair is short enough.
            ValueError: If there is no copying between these tokenizers.
        """
        sources = source_tokenizer.encode_batch([pair.source for pair in pairs])
        targets = target_tokenizer.encode_batch([pair.target for pair in pairs])
        if max_length is not None:
            kept = [
                i for i in range(len(pairs)) if max(len(sources[i]), len(targets[i])) <= max_length
            ]
            if len(kept) < len(pairs):
                _report_dropped(pairs, kept, max_length=max_length, origin=origin)
                pairs = [pairs[i] for i in kept]
                sources, targets = [sources[i] for i in kept], [targets[i] for i in kept]
        extended = None
        if copies:
            # Never copied, the end symbol is named like padding.
            ids, labels = extended_ids(pairs, sources, targets, target_tokenizer)
            extended = (
                TokenRows([[*row, PAD_ID] for row in ids]),
                TokenRows([[*row, EOS_ID] for row in labels]),
            )
        return cls(
            pairs=pairs,
            source=TokenRows([[*row, EOS_ID] for row in sources]),
            target=TokenRows([[BOS_ID, *row, EOS_ID] for row in targets]),
            extended=extended,
        )

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def source_lengths(self) -> Tensor:
        """Tokens of each source, `<eos>` included: [pairs]."""
        return self._source.lengths

    @property
    def target_lengths(self) -> Tensor:
        """Predicted positions of each target, `<eos>` included: [pairs]."""
        return self._target.lengths - 1

    def unknown_rates(self) -> tuple[float, float]:
        """Share of `<unk>` among the tokens of the text, copies aside: source, target."""
        target = self._target if self._extended is None else self._extended[1]
        return _unknown_rate(self._source.tokens), _unknown_rate(target.tokens)

    def batch(self, index: Tensor) -> Batch:
        """The pairs at these positions, padded.

        Args:
            index: Positions in the split, int64. Shape: [batch].
        """
        source, source_lengths = self._source.padded(index)
        target, lengths = self._target.padded(index)
        target_lengths = lengths - 1
        predicted = torch.arange(target.shape[1] - 1) < target_lengths[:, None]
        target_positions = predicted.flatten().nonzero().squeeze(1)
        extended: list[Tensor | None] = [None, None]
        if self._extended is not None:
            extended = [rows.padded(index)[0] for rows in self._extended]
        return Batch(
            source=source,
            source_lengths=source_lengths,
            target=target,
            target_lengths=target_lengths,
            target_positions=target_positions,
            index=index,
            target_tokens=len(target_positions),
            extended_source=extended[0],
            extended_target=extended[1],
        )


def _unknown_rate(tokens: Tensor) -> float:
    text = int((tokens >= UNK_ID).sum())
    return int((tokens == UNK_ID).sum()) / text if text else 0.0


def _report_dropped(
    pairs: Sequence[Pair], kept: Sequence[int], *, max_length: int, origin: str
) -> None:
    if not kept:
        raise CorpusError(
            f"{origin}: none of the {len(pairs)} pairs has at most max_length={max_length} tokens "
            "on both sides; raise data.max_length or choose another tokenizer"
        )
    kept_set = set(kept)
    lines = [str(pair.line) for i, pair in enumerate(pairs) if i not in kept_set and pair.line]
    shown = f" (first lines: {', '.join(lines[:_LINES_SHOWN])})" if lines else ""
    logger.warning(
        "%s: dropped %d of %d pairs longer than max_length=%d tokens%s",
        origin,
        len(pairs) - len(kept),
        len(pairs),
        max_length,
        shown,
    )
