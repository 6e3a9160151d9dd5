"""Shows where the attention lies while the model translates a few sentences after each validation.

How the pictures look is said in `diagnostics.alignment_picture`.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from numpy.typing import NDArray

from seq2seq.callbacks.charts import write_picture, writers
from seq2seq.callbacks.sample_translations import evenly_spaced
from seq2seq.data.batch import EncodedSplit
from seq2seq.data.corpus import Pair
from seq2seq.data.tokenizer import BOS_ID, EOS_ID, PAD_ID, Tokenizer
from seq2seq.decoding import NoTokenPossible, greedy, length_limits
from seq2seq.diagnostics.alignment_picture import draw_alignment
from seq2seq.module import TranslationModule
from seq2seq.translator import Translator

logger = logging.getLogger(__name__)


class Alignment(NamedTuple):
    """Where the decoder looked while it wrote a translation.

    Shape:
        source: names of the source tokens, the end symbol included; target: of the tokens that the
        model wrote, with the end symbol if it came to an end; weights: ``[target, source]``.
    """

    source: list[str]
    target: list[str]
    weights: NDArray[np.float64]


class AttentionPictures(Callback):
    """Draw the alignment of the model's own greedy translation of a few validation sentences.

    The sentences are those of
    :class:`~seq2seq.callbacks.sample_translations.SampleTranslations`. TensorBoard gets
    ``attention/<number>`` after each validation; without attention, nothing.

    Args:
        count: number of sentences, spread evenly over the split.

    Raises:
        ValueError: if ``count`` is below 1.
    """

    def __init__(self, *, count: int = 2) -> None:
        if count < 1:
            raise ValueError(
                f"callbacks.attention_pictures.count={count} must be at least 1; set "
                "callbacks.attention_pictures to null for none"
            )
        self.count = count

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if there will be no pictures."""
        if not _attends(pl_module):
            logger.info("no attention pictures: the model has no attention")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw; the check before the first step has nothing worth showing."""
        if trainer.sanity_checking or not writers(trainer) or not _attends(pl_module):
            return
        assert isinstance(pl_module, TranslationModule)
        pairs = evenly_spaced(pl_module.translated["val"], self.count)
        sources = [pair.source for pair in pairs]
        try:
            with trainer.precision_plugin.forward_context():
                found = alignments(pl_module.validation_translator, sources)
        except NoTokenPossible as error:  # whether training can go on is for its loss to say
            logger.warning("no attention pictures at step %d: %s", trainer.global_step, error)
            return
        for number, (pair, alignment) in enumerate(zip(pairs, found, strict=True)):
            picture = draw_alignment(
                alignment.weights,
                source=alignment.source,
                target=alignment.target,
                title="attention: source above, translation at left",
                caption=f"reference: {pair.reference}",
            )
            write_picture(trainer, f"attention/{number}", picture, trainer.global_step)


@torch.no_grad()
def alignments(translator: Translator, sources: Sequence[str]) -> list[Alignment]:
    """Translate greedily, and look where the attention lies.

    Args:
        translator: its network has attention and is in the mode that it shall be in.
        sources: plain texts.
    """
    tokenizer = translator.source_tokenizer
    pairs = [Pair(source=source, target="", line=0) for source in sources]
    split = EncodedSplit.encode(pairs, tokenizer, translator.target_tokenizer)
    device = next(translator.model.parameters()).device
    batch = split.batch(torch.arange(len(split))).to(device)
    written = greedy(
        translator.model.step,
        translator.model.start(batch.source, batch.source_lengths),
        max_lengths=length_limits(
            batch.source_lengths,
            ratio=translator.max_length_ratio,
            constant=translator.max_length_constant,
        ),
        pad_id=PAD_ID,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        alignments=True,
    )
    found = []
    for tokens, length, (hypothesis,) in zip(
        batch.source.tolist(), batch.source_lengths.tolist(), written, strict=True
    ):
        assert hypothesis.alignment is not None
        ids = [*hypothesis.tokens, EOS_ID] if hypothesis.finished else hypothesis.tokens
        found.append(
            Alignment(
                source=_names(tokenizer, tokens[:length]),
                target=_names(translator.target_tokenizer, ids),
                # The rest are columns of padding.
                weights=hypothesis.alignment[:, :length].double().numpy(),
            )
        )
    return found


def _names(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    names = tokenizer.tokens(ids)
    # Words come with the space before them; in smaller pieces it shows where a word begins.
    return [name.lstrip("▁") or name for name in names] if tokenizer.kind == "word" else names


def _attends(pl_module: LightningModule) -> bool:
    return (
        isinstance(pl_module, TranslationModule) and pl_module.model.decoder.attention is not None
    )
