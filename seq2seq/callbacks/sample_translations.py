"""Shows what the model makes of a few sentences after each validation."""

import logging
from collections.abc import Sequence

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from seq2seq.module import TranslationModule
from seq2seq.scoring import TranslatedPair

logger = logging.getLogger(__name__)


class SampleTranslations(Callback):
    """Print and log the same few pairs of the validation split after each validation.

    Args:
        count: number of pairs, spread evenly over the split.

    Raises:
        ValueError: if ``count`` is below 1.
    """

    def __init__(self, *, count: int = 4) -> None:
        if count < 1:
            raise ValueError(
                f"callbacks.sample_translations.count={count} must be at least 1; set "
                "callbacks.sample_translations to null for none"
            )
        self.count = count

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the samples; the check before the first step has nothing worth showing."""
        if trainer.sanity_checking or not isinstance(pl_module, TranslationModule):
            return
        samples = evenly_spaced(pl_module.translated["val"], self.count)
        if trainer.is_global_zero:
            logger.info("\n%s", _text(samples, step=trainer.global_step))
        for writer in trainer.loggers:
            if isinstance(writer, TensorBoardLogger):
                # As Lightning counts the figures of a validation.
                step = max(trainer.global_step - 1, 0)
                writer.experiment.add_text("samples", _markdown(samples), step)


def evenly_spaced(pairs: Sequence[TranslatedPair], count: int) -> list[TranslatedPair]:
    """So many of the pairs, spread evenly, or all if there are fewer."""
    count = min(count, len(pairs))
    return [pairs[index * len(pairs) // count] for index in range(count)]


def _text(samples: list[TranslatedPair], *, step: int) -> str:
    lines = [f"samples of the validation split after {step} steps"]
    for pair in samples:
        mark = "=" if pair.translation == pair.reference else "x"
        lines += [
            f"    source       {pair.source}",
            f"    reference    {pair.reference}",
            f"  {mark} translation  {pair.translation}",
            "",
        ]
    return "\n".join(lines)


def _markdown(samples: list[TranslatedPair]) -> str:
    rows = ["| source | reference | translation |", "| --- | --- | --- |"]
    for pair in samples:
        cells = (text.replace("|", "\\|").replace("<", "&lt;") for text in pair)
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)
