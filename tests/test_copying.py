"""What copying is for: words that occur once, and that no vocabulary can hold."""

import random

import pytest
import torch

from seq2seq.data.batch import EncodedSplit
from seq2seq.data.corpus import Pair
from seq2seq.data.sampler import LengthBucketSampler
from seq2seq.data.tokenizer import PAD_ID, UNK_ID, train_tokenizers
from seq2seq.models.encoder_decoder import encoder_decoder
from seq2seq.scoring import batch_loss
from seq2seq.translator import Translator

FRAMES = [
    ("call {name} at {number} today", "the number of {name} is {number}"),
    ("{name} lives near {number} street", "{number} street is where {name} lives"),
    ("did {name} see {number} ?", "{number} was seen by {name}"),
]


def make_pairs(count: int, seed: int) -> list[Pair]:
    """Names and numbers of which hardly one comes twice, in another order on the other side."""
    rng = random.Random(seed)
    pairs = []
    for line in range(1, count + 1):
        words = {
            "name": "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=6)).capitalize(),
            "number": str(rng.randint(10000, 99999)),
        }
        source, target = rng.choice(FRAMES)
        pairs.append(Pair(source.format(**words), target.format(**words), line))
    return pairs


def share_right(*, copies: bool, steps: int) -> float:
    """Of unseen pairs, after so many steps of training."""
    pairs, unseen = make_pairs(2000, seed=1), make_pairs(200, seed=2)
    settings = {"kind": "whitespace", "min_frequency": 5}
    source, target = train_tokenizers(pairs, source=settings, target=settings)
    torch.manual_seed(0)
    model = encoder_decoder(
        source_vocabulary_size=source.vocabulary_size,
        target_vocabulary_size=target.vocabulary_size,
        pad_id=PAD_ID,
        embedding_size=32,
        hidden_size=64,
        copy_mechanism=copies,
    )
    split = EncodedSplit.encode(pairs, source, target, copies=copies)
    sampler = LengthBucketSampler(
        source_lengths=split.source_lengths, target_lengths=split.target_lengths, size=32
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(steps):
        epoch, place = divmod(step, len(sampler))
        loss, _ = batch_loss(model, split.batch(sampler.batches(epoch)[place]))
        optimizer.zero_grad()
        (loss.sum / loss.tokens).backward()
        optimizer.step()
    translator = Translator(model=model.eval(), source_tokenizer=source, target_tokenizer=target)
    found = translator.translate([pair.source for pair in unseen])
    right = [best.text == pair.target for pair, (best,) in zip(unseen, found, strict=True)]
    assert UNK_ID in source.encode(unseen[0].source)
    return sum(right) / len(right)


@pytest.mark.slow
def test_unknown_words_are_copied_by_a_model_that_copies_and_by_no_other() -> None:
    assert share_right(copies=True, steps=240) > 0.97
    assert share_right(copies=False, steps=240) == 0.0
