"""The corpus as Lightning wants it: encoded splits and the loaders of each stage.

Reading text is `corpus.py`'s work, training tokenizers `tokenizer.py`'s: both arrive here ready.
"""

import logging
from collections.abc import Sequence

from lightning import LightningDataModule

from seq2seq.data.batch import EncodedSplit
from seq2seq.data.corpus import Corpus, CorpusError, Pair
from seq2seq.data.curriculum import Curriculum
from seq2seq.data.sampler import EvaluationLoader, LengthBucketSampler, TrainingLoader
from seq2seq.data.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test", "test_longer")

# What a stage can't do without; training ends with a test, so a missing one shows at the start.
_NEEDED = {
    "fit": ("train", "validation", "test"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": (),
}

_UNKNOWN_WARNED = 0.05


class TranslationDataModule(LightningDataModule):
    """Training, validation and test batches of one corpus, for one device.

    Each split is encoded once, when it is first asked for. Training pairs longer than
    `corpus.max_length` tokens are dropped; the other splits keep every pair, so that a score
    covers all of them.

    Args:
        corpus: Pairs of text.
        source_tokenizer: Trained on the training sources.
        target_tokenizer: Trained on the training targets.
        batch_size: Size of a training batch, in `batch_unit`.
        batch_unit: `sentences`, or `target_tokens`: target positions, padding included.
        evaluation_batch_size: Sentences in a validation or test batch.
        seed: Seed of the order of training pairs.
        curriculum: Holds back long training pairs at first; None for none.
        copies: Whether batches are for a model that copies words of the source.
    """

    def __init__(
        self,
        *,
        corpus: Corpus,
        source_tokenizer: Tokenizer,
        target_tokenizer: Tokenizer,
        batch_size: int = 128,
        batch_unit: str = "sentences",
        evaluation_batch_size: int = 256,
        seed: int = 0,
        curriculum: Curriculum | None = None,
        copies: bool = False,
    ) -> None:
        super().__init__()
        self.corpus = corpus
        self.source_tokenizer = source_tokenizer
        self.target_tokenizer = target_tokenizer
        self.batch_size = batch_size
        self.batch_unit = batch_unit
        self.evaluation_batch_size = evaluation_batch_size
        self.seed = seed
        self.curriculum = curriculum
        self.copies = copies
        self._splits: dict[tuple[str, bool], EncodedSplit] = {}
        self._unknown_reported = False

    def in_other_batches(
        self,
        *,
        batch_size: int,
        batch_unit: str,
        evaluation_batch_size: int,
        seed: int,
        curriculum: Curriculum | None = None,
        copies: bool = False,
    ) -> "TranslationDataModule":
        """The same corpus for another run: what is encoded here needn't be encoded there."""
        other = TranslationDataModule(
            corpus=self.corpus,
            source_tokenizer=self.source_tokenizer,
            target_tokenizer=self.target_tokenizer,
            batch_size=batch_size,
            batch_unit=batch_unit,
            evaluation_batch_size=evaluation_batch_size,
            seed=seed,
            curriculum=curriculum,
            copies=copies,
        )
        other._splits = self._splits
        return other

    @property
    def test_names(self) -> list[str]:
        """The test splits that the corpus has, in the order of `test_dataloader`."""
        return ["test", "test_longer"] if self.corpus.test_longer else ["test"]

    def split(self, name: str) -> EncodedSplit:
        """One of `SPLITS` as token ids.

        Raises:
            CorpusError: If the split is unknown or has no pairs.
        """
        if name not in SPLITS:
            raise CorpusError(f"split {name!r} is unknown; choose one of {', '.join(SPLITS)}")
        if (name, self.copies) not in self._splits:
            pairs: Sequence[Pair] = getattr(self.corpus, name)
            origin = self._origin(name)
            if not pairs:
                raise CorpusError(f"{origin}: the {name} split has no pairs; give it at least one")
            self._splits[name, self.copies] = EncodedSplit.encode(
                pairs,
                self.source_tokenizer,
                self.target_tokenizer,
                max_length=self.corpus.max_length if name == "train" else None,
                origin=origin,
                copies=self.copies,
            )
        return self._splits[name, self.copies]

    def pairs(self, name: str) -> Sequence[Pair]:
        """The text of a split: `Batch.index` counts in it."""
        return self.split(name).pairs

    def setup(self, stage: str) -> None:
        """Encode what the stage needs; say how much of the validation text is unknown.

        Raises:
            ValueError: If there is more than one device.
            CorpusError: If a split that the stage needs is empty.
        """
        if self.trainer is not None and self.trainer.world_size > 1:
            raise ValueError(
                f"trainer.devices gives {self.trainer.world_size} processes, but batches are made "
                "for one and each would train on the same pairs; set trainer.devices=1"
            )
        for name in _NEEDED[stage]:
            self.split(name)
        if stage == "fit" and not self._unknown_reported:
            self._report_unknown()
            self._unknown_reported = True

    def train_dataloader(self) -> TrainingLoader:
        split = self.split("train")
        overfit = getattr(self.trainer, "overfit_batches", 0) > 0  # set outside Trainer's class
        sampler = LengthBucketSampler(
            source_lengths=split.source_lengths,
            target_lengths=split.target_lengths,
            size=self.batch_size,
            unit=self.batch_unit,
            seed=self.seed,
            reshuffle=not overfit,
            curriculum=self.curriculum,
        )
        return TrainingLoader(split, sampler, self._current_epoch)

    def val_dataloader(self) -> EvaluationLoader:
        return EvaluationLoader(self.split("validation"), self.evaluation_batch_size)

    def test_dataloader(self) -> list[EvaluationLoader]:
        return [
            EvaluationLoader(self.split(name), self.evaluation_batch_size)
            for name in self.test_names
        ]

    def _current_epoch(self) -> int:
        return self.trainer.current_epoch if self.trainer is not None else 0

    def _origin(self, name: str) -> str:
        return self.corpus.origin.get(name, name)

    def _report_unknown(self) -> None:
        rates = zip(("source", "target"), self.split("validation").unknown_rates(), strict=True)
        for side, rate in rates:
            message = f"{rate:.2%} of the {side} tokens of the validation split are unknown"
            if rate > _UNKNOWN_WARNED:
                logger.warning(
                    "%s; a larger tokenizer.%s.size, a smaller min_frequency or tokenizer=bpe "
                    "lowers that",
                    message,
                    side,
                )
            else:
                logger.info("%s", message)
