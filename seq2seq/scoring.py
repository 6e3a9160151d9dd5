"""Judges a network on pairs of text: teacher-forced and free-running figures of one split.

Training's loss is computed here too, so that both kinds of figures rest on the same lines. What is
done with the figures is left to the training module and to the evaluation entry.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from seq2seq.data.batch import Batch
from seq2seq.data.corpus import Pair
from seq2seq.losses import TokenLoss, correct_tokens, cross_entropy
from seq2seq.metrics import TeacherForcedScores, TranslationScores
from seq2seq.models.copy_mechanism import CopyMixture
from seq2seq.models.encoder_decoder import EncoderDecoder, Feeding
from seq2seq.models.ensemble import Ensemble
from seq2seq.translator import Translator


class TranslatedPair(NamedTuple):
    """A pair of the corpus beside the model's own translation of its source."""

    source: str
    reference: str
    translation: str


def batch_loss(
    model: EncoderDecoder | Ensemble,
    batch: Batch,
    *,
    label_smoothing: float = 0.0,
    feeding: Feeding | None = None,
) -> tuple[TokenLoss, Tensor | CopyMixture]:
    """Teacher-forced loss of a batch, and the distribution of its target tokens behind it.

    With ``feeding``, which an ensemble doesn't take, some of the history is the model's own.
    """
    more = () if feeding is None else (feeding,)
    arguments = (batch.source, batch.source_lengths, batch.decoder_input, *more)
    features = model(*arguments, extended_source=batch.extended_source)
    # Padding never reaches the output layer, the most expensive part of the network.
    real = features.flatten(0, 1).index_select(0, batch.target_positions)
    extended_source = batch.extended_source
    if extended_source is not None:
        rows = batch.target_positions // batch.decoder_input.size(1)
        extended_source = extended_source.index_select(0, rows)
    distribution = model.distribution(real, extended_source)
    loss = cross_entropy(distribution, batch.labels, label_smoothing=label_smoothing)
    return loss, distribution


class SplitScores:
    """Both kinds of figures of one split, added up batch by batch.

    Teacher-forced, with the true history: ``loss``, ``perplexity``, ``token_accuracy``.
    Free-running, of the text that the model produces on its own: ``bleu``, ``chrf``,
    ``exact_match``, ``edit_rate``. Units are in :mod:`seq2seq.metrics`.

    Args:
        bleu_tokenizer: see :class:`~seq2seq.metrics.TranslationScores`.
        device: where the model is.
    """

    def __init__(self, *, bleu_tokenizer: str, device: torch.device) -> None:
        self._teacher_forced = TeacherForcedScores().to(device)
        self._free_running = TranslationScores(bleu_tokenizer=bleu_tokenizer)
        self._translated: dict[int, TranslatedPair] = {}

    @torch.no_grad()
    def add(self, batch: Batch, pairs: Sequence[Pair], translator: Translator) -> None:
        """Score a batch of the split ``pairs``."""
        loss, distribution = batch_loss(translator.model, batch)
        self._teacher_forced.update(
            negative_log_likelihood=loss.negative_log_likelihood,
            correct=correct_tokens(distribution, batch.labels),
            tokens=loss.tokens,
        )
        chosen = [pairs[index] for index in batch.index.tolist()]
        translated = translator.texts(batch, [pair.source for pair in chosen])
        best = [translations[0].text for translations in translated]
        # What looks like the reference has to be counted as the reference.
        references = [translator.target_tokenizer.composed(pair.target) for pair in chosen]
        self._free_running.update(hypotheses=best, references=references)
        for index, pair, text in zip(batch.index.tolist(), chosen, best, strict=True):
            self._translated[index] = TranslatedPair(pair.source, pair.target, text)

    def figures(self) -> dict[str, float]:
        """All figures by name.

        Raises:
            ValueError: if nothing was added.
        """
        computed = {**self._teacher_forced.compute(), **self._free_running.compute()}
        return {name: float(value) for name, value in computed.items()}

    def translated(self) -> list[TranslatedPair]:
        """What was added, in the order of the split."""
        return [self._translated[index] for index in sorted(self._translated)]
