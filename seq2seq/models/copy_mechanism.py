"""The copy mechanism: source words as outputs, also those that the target vocabulary lacks.

What is mixed and how is said here. Which ids source words have is the data's business; context,
hidden state and alignment come from the decoder.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class SourceWords(NamedTuple):
    """The words of each source that may be copied, see :class:`CopyMechanism`.

    Shape:
        ids: int64 ``[batch, source_time]``, extended ids.
        first: int64 ``[batch, source_time]``, the position where each word stands first.
    """

    ids: Tensor
    first: Tensor

    @classmethod
    def of(cls, ids: Tensor) -> "SourceWords":
        """The words with these extended ids."""
        same = ids.unsqueeze(2) == ids.unsqueeze(1)
        return cls(ids, same.to(torch.uint8).argmax(dim=2))

    def select(self, rows: Tensor) -> "SourceWords":
        """The sources ``rows`` (int64 ``[rows]``) in that order; repeats are allowed."""
        return SourceWords(self.ids.index_select(0, rows), self.first.index_select(0, rows))


class CopyMixture(NamedTuple):
    """P of :class:`CopyMechanism` at several positions, in its two parts.

    Few tokens of a vocabulary are words of the source, and a loss asks for few of those: nothing is
    mixed before it is asked for.

    Shape:
        log_vocabulary: ``[rows, vocabulary]``, the logarithm of P_vocab.
        scores: ``[rows, source_time]``, see :meth:`CopyMechanism.scores`.
        extended_source: int64 ``[rows, source_time]``.
    """

    log_vocabulary: Tensor
    scores: Tensor
    extended_source: Tensor

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens of the target vocabulary."""
        return self.log_vocabulary.size(1)

    def log_probability(self, labels: Tensor) -> Tensor:
        """log P of one token a row, by its extended id: int64 ``[rows]`` to ``[rows]``."""
        beyond = labels >= self.vocabulary_size
        generated = self.log_vocabulary.gather(1, labels.masked_fill(beyond, 0).unsqueeze(1))
        generated = generated.masked_fill(beyond.unsqueeze(1), -torch.inf)
        other = self.extended_source != labels.unsqueeze(1)
        copied = self.scores.masked_fill(other, torch.finfo(self.scores.dtype).min)
        return torch.cat([generated, copied], dim=1).logsumexp(dim=1) - self._normalizer()

    def sum_over_vocabulary(self) -> Tensor:
        """The sum of log P over all tokens of the target vocabulary, ``[rows]``."""
        _, gain = self._gain()
        unnormalized = self.log_vocabulary.sum(dim=1) + gain.sum(dim=1)
        return unnormalized - self.vocabulary_size * self._normalizer()

    def log_probabilities(self) -> Tensor:
        """log P of every token, ``[rows, vocabulary + source_time]``."""
        words, gain = self._gain()
        positions = torch.arange(self.scores.size(1), device=words.device)
        own = self.vocabulary_size + positions
        beyond = self.scores.masked_fill(self.extended_source != own, -torch.inf)
        every = torch.cat([self.log_vocabulary, beyond], dim=1) - self._normalizer().unsqueeze(1)
        return every.scatter_add_(1, words, gain)

    def _normalizer(self) -> Tensor:
        """Of what P_vocab and the scores together are, with P_vocab as the unit: ``[rows]``."""
        return torch.logaddexp(self.scores.new_zeros(()), self.scores.logsumexp(dim=1))

    def _gain(self) -> tuple[Tensor, Tensor]:
        """By how much copying raises the logarithm of P_vocab: tokens and gains, of each word."""
        known = self.extended_source < self.vocabulary_size
        words = self.extended_source.masked_fill(~known, 0)
        ratio = self.scores - self.log_vocabulary.gather(1, words)
        gain = torch.logaddexp(self.scores.new_zeros(()), ratio)
        return words, gain.masked_fill(~known, 0.0)


class CopyMechanism(nn.Module):
    """Pointer-generator: every word is generated, or copied from where the attention lies.

    ``P(w) = p_gen P_vocab(w) + (1 - p_gen) sum over i with x_i = w of a_i`` (See, Liu and Manning
    2017, eq. 9), with ``p_gen = sigmoid(w_c context + w_h hidden + w_x input + b)`` (eq. 8) and the
    alignment ``a``. The end symbol of a source and its padding are never copied: P is divided by
    its sum over everything else, as it is if none of them was copied.

    Words go by *extended ids*, int64 ``[..., source_time]``: a word of the target vocabulary by its
    id there, another by ``vocabulary + i`` if the source has it first at position ``i``, and what
    is never copied by ``pad_id``. P is over ``vocabulary + source_time`` tokens.

    Args:
        context_size, hidden_size, input_size: widths of what the gate reads.
        pad_id: see above.
    """

    def __init__(
        self, *, context_size: int, hidden_size: int, input_size: int, pad_id: int
    ) -> None:
        super().__init__()
        self.gate = nn.Linear(context_size + hidden_size + input_size, 1)
        self.pad_id = pad_id

    def forward(self, context: Tensor, hidden: Tensor, x: Tensor) -> Tensor:
        """The logit of ``p_gen``, ``[batch, target_time, 1]``."""
        logit: Tensor = self.gate(torch.cat([context, hidden, x], dim=2))
        return logit

    def scores(self, gate: Tensor, alignment: Tensor, words: SourceWords) -> Tensor:
        """``log(sum a_i (1 - p_gen) / p_gen)`` of each word, where the source has it first.

        The smallest number there is stands where a word stands again, and where nothing is copied.
        By weights that underflow the words are nearly impossible, but no gradient is lost in the
        others.

        Shape:
            gate: ``[batch, target_time, 1]``; alignment and what is returned:
            ``[batch, target_time, source_time]``.
        """
        exact = torch.promote_types(alignment.dtype, torch.float32)
        alignment = alignment.to(exact)
        first = words.first.unsqueeze(1).expand_as(alignment)
        weight = torch.zeros_like(alignment).scatter_add(2, first, alignment)
        scores = weight.clamp_min(torch.finfo(exact).tiny).log() - gate.to(exact)
        positions = torch.arange(alignment.size(2), device=alignment.device)
        copied = (words.first == positions) & (words.ids != self.pad_id)
        return scores.masked_fill(~copied.unsqueeze(1), torch.finfo(exact).min)

    def mixture(self, logits: Tensor, scores: Tensor, extended_source: Tensor) -> CopyMixture:
        """P, from the logits ``[rows, vocabulary]`` of P_vocab and the scores of these rows."""
        log_vocabulary = torch.log_softmax(logits, dim=1, dtype=scores.dtype)
        return CopyMixture(log_vocabulary, scores, extended_source)
