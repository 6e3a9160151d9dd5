"""Shows where the attention lies while the model translates a few sentences after each validation.

How the pictures look is said in `diagnostics.alignment_picture`.
"""

import logging

from lightning import Callback, LightningModule, Trainer

from seq2seq.callbacks.charts import write_picture, writers
from seq2seq.callbacks.sample_translations import evenly_spaced
from seq2seq.decoding import NoTokenPossible
from seq2seq.diagnostics.alignment_picture import draw_alignment
from seq2seq.module import TranslationModule

logger = logging.getLogger(__name__)


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
                translator = pl_module.validation_translator
                found = list(translator.translate(sources, alignments=True))
        except NoTokenPossible as error:  # whether training can go on is for its loss to say
            logger.warning("no attention pictures at step %d: %s", trainer.global_step, error)
            return
        step = max(trainer.global_step - 1, 0)  # as Lightning counts the figures of a validation
        for number, (pair, (translation,)) in enumerate(zip(pairs, found, strict=True)):
            alignment = translation.alignment
            if alignment is None:  # an empty source
                continue
            picture = draw_alignment(
                alignment.weights,
                source=alignment.source,
                target=alignment.target,
                title="attention: source above, translation at left",
                caption=f"reference: {pair.reference}",
            )
            write_picture(trainer, f"attention/{number}", picture, step)


def _attends(pl_module: LightningModule) -> bool:
    return (
        isinstance(pl_module, TranslationModule) and pl_module.model.decoder.attention is not None
    )
