"""Figures of text count what is read, not how its letters are spelled."""

import unicodedata
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from seq2seq.data.batch import EncodedSplit
from seq2seq.data.corpus import Pair
from seq2seq.data.sampler import EvaluationLoader
from seq2seq.data.tokenizer import PAD_ID, train_tokenizers
from seq2seq.models.encoder_decoder import encoder_decoder
from seq2seq.scoring import SplitScores


@pytest.mark.parametrize("spelled", ["NFC", "NFD"])
@pytest.mark.parametrize("form", ["nfc", "nfd", "nfkd"])
def test_a_perfect_translation_is_perfect_in_every_normal_form(form: str, spelled: str) -> None:
    """Of references in any spelling; the text comes as the target tokenizer decodes it."""
    text = unicodedata.normalize(spelled, "\ud55c\uae00 caf\u00e9 \u015bwiat d\u00e9j\u00e0 vu")
    settings: dict[str, Any] = {"kind": "character", "normal_form": form}
    pairs = [Pair(text, text, line) for line in (1, 2)]
    source, target = train_tokenizers(pairs, source=settings, target=settings)
    model = encoder_decoder(
        source_vocabulary_size=source.vocabulary_size,
        target_vocabulary_size=target.vocabulary_size,
        pad_id=PAD_ID,
        embedding_size=4,
        hidden_size=4,
    )

    def texts(batch: Any, sources: list[str]) -> list[list[Any]]:
        return [[SimpleNamespace(text=target.decode(target.encode(each)))] for each in sources]

    translator: Any = SimpleNamespace(model=model, target_tokenizer=target, texts=texts)
    scores = SplitScores(bleu_tokenizer="13a", device=torch.device("cpu"))
    for batch in EvaluationLoader(EncodedSplit.encode(pairs, source, target), 2):
        scores.add(batch, pairs, translator)
    figures = scores.figures()
    assert figures["exact_match"] == 1 and figures["edit_rate"] == 0
    assert figures["bleu"] == pytest.approx(100) and figures["chrf"] == pytest.approx(100)
