"""Every source word has a name, and what is written for it is the word itself."""

import random
import unicodedata

import pytest
import torch

from seq2seq.data.batch import EncodedSplit
from seq2seq.data.corpus import Pair
from seq2seq.data.extended_vocabulary import check_copying, extended_ids
from seq2seq.data.tokenizer import EOS_ID, KINDS, PAD_ID, UNK_ID, Tokenizer, train_tokenizers

TRAINING = [Pair("my name is (bob), bob!", "bob (bob), is it?", 1)]
SIZES = {"bpe": 40}


def tokenizers(kind: str, *, lowercase: bool = False) -> tuple[Tokenizer, Tokenizer]:
    settings = {"kind": kind, "size": SIZES.get(kind), "lowercase": lowercase}
    return train_tokenizers(TRAINING, source=settings, target=settings, shared=kind == "bpe")


def extended(pair: Pair, kind: str, *, lowercase: bool = False) -> tuple[list[int], list[int]]:
    source, target = tokenizers(kind, lowercase=lowercase)
    sources, targets = extended_ids(
        [pair], [source.encode(pair.source)], [target.encode(pair.target)], target
    )
    return sources[0], targets[0]


def test_ids_are_those_of_the_target_and_of_first_positions() -> None:
    target = tokenizers("whitespace")[1]
    is_, size = target.encode("is")[0], target.vocabulary_size
    pair = Pair("zoe is anna zoe my", "anna zoe is karl anna", 1)
    sources, targets = extended(pair, "whitespace")
    # "my" is a word of the source vocabulary, but not of the target's.
    assert sources == [size, is_, size + 2, size, size + 4]
    assert targets == [size + 2, size, is_, UNK_ID, size + 2]


@pytest.mark.parametrize("kind", KINDS)
def test_labels_write_the_target_wherever_the_source_has_its_unknown_words(kind: str) -> None:
    rng = random.Random(3)
    words = ["bob", "is", "Zoë", "zoë", "(Zoë)", "x-ray,", "3.14", "Ж", "it?"]
    target_tokenizer = tokenizers(kind)[1]
    unknown = 0
    for _ in range(60):
        chosen = rng.choices(words, k=rng.randint(1, 7))
        source = " ".join(chosen)
        target = " ".join(rng.choices(chosen, k=rng.randint(1, 7)))
        _, labels = extended(Pair(source, target, 1), kind)
        unknown += sum(label >= target_tokenizer.vocabulary_size for label in labels)
        written = target_tokenizer.decode(labels, copied=target_tokenizer.written(source))
        if kind == "word" and UNK_ID in labels:
            continue  # in brackets, without a space, it is another word than after a space
        assert written == target
    assert unknown > 30


def test_a_word_is_copied_with_its_space() -> None:
    tokenizer = tokenizers("word")[1]
    source = "Zoe is (Zoe), Karl?"
    sources, targets = extended(Pair(source, "(Zoe) Zoe, Karl Zoe", 1), "word")
    size = tokenizer.vocabulary_size
    assert [i - size for i in sources if i >= size] == [0, 3, 6]
    assert tokenizer.decode(targets, copied=tokenizer.written(source)) == "(Zoe) Zoe, Karl Zoe"


def test_a_tokenizer_that_lowers_copies_the_case_of_the_source() -> None:
    tokenizer = tokenizers("word", lowercase=True)[1]
    source = "ZOË is Zoë, BOB"
    sources, targets = extended(Pair(source, "Bob is zoë", 1), "word", lowercase=True)
    size = tokenizer.vocabulary_size
    assert [i for i in sources if i >= size] == [size, size]
    assert tokenizer.decode(targets, copied=tokenizer.written(source)) == "bob is ZOË"
    assert tokenizer.tokens(targets, tokenizer.written(source)) == ["▁bob", "▁is", "▁ZOË"]


@pytest.mark.parametrize("kind", ["character", "bpe"])
def test_a_character_that_becomes_several_tokens_is_copied_once(kind: str) -> None:
    settings = {"kind": kind, "size": SIZES.get(kind), "lowercase": True, "normal_form": "nfd"}
    training = [Pair("bob", "bob ...", 1)]
    tokenizer, _ = train_tokenizers(training, source=settings, target=settings, shared=True)
    source = "\ud55c\u00e9 \u0130"
    ids = tokenizer.encode(source)
    for target in (source, "\u00e9", "\u0130\ud55c"):
        _, (labels,) = extended_ids(
            [Pair(source, target, 1)], [ids], [tokenizer.encode(target)], tokenizer
        )
        assert UNK_ID not in labels and max(labels) >= tokenizer.vocabulary_size
        written = tokenizer.decode(labels, copied=tokenizer.written(source))
        assert unicodedata.normalize("NFC", written) == unicodedata.normalize(
            "NFC", target.replace("\u0130", "i\u0307")
        )


def test_batches_hold_them_padded_only_for_models_that_copy() -> None:
    pairs = [Pair("zoe is", "zoe", 1), Pair("bob", "is is it?", 2)]
    both = tokenizers("whitespace")
    plain = EncodedSplit.encode(pairs, *both).batch(torch.arange(2))
    assert plain.extended_source is None and plain.extended_target is None
    batch = EncodedSplit.encode(pairs, *both, copies=True).batch(torch.arange(2))
    assert batch.extended_source is not None and batch.extended_target is not None
    size, (is_, it, bob) = both[1].vocabulary_size, both[1].encode("is it? bob")
    assert batch.extended_source.tolist() == [[size, is_, PAD_ID], [bob, PAD_ID, PAD_ID]]
    assert batch.extended_target.tolist() == [
        [size, EOS_ID, PAD_ID, PAD_ID],
        [is_, is_, it, EOS_ID],
    ]
    assert torch.equal(batch.decoder_input, plain.decoder_input)
    assert int(batch.decoder_input.max()) < size
    assert batch.labels.tolist() == [size, EOS_ID, is_, is_, it, EOS_ID]
    moved = batch.to("meta")
    assert moved.extended_source is not None and moved.extended_source.device.type == "meta"


@pytest.mark.parametrize(
    ("source", "target", "shared", "message"),
    [
        ({"kind": "word"}, {"kind": "character"}, False, "source.kind is word"),
        (
            {"kind": "word", "lowercase": True},
            {"kind": "word", "lowercase": False},
            False,
            "lowercase is True and tokenizer.target.lowercase is False",
        ),
        (
            {"kind": "character", "normal_form": "nfd"},
            {"kind": "character", "normal_form": None},
            False,
            "tokenizer.source.normal_form is nfd and tokenizer.target.normal_form is None",
        ),
        ({"kind": "bpe"}, {"kind": "bpe"}, False, "tokenizer.shared is false"),
    ],
)
def test_tokenizers_that_cut_otherwise_are_refused(source, target, shared, message) -> None:
    with pytest.raises(
        ValueError, match=f"{message}.*need the same kind, lowercase and normal_form"
    ):
        check_copying(source=source, target=target, shared=shared)
    check_copying(source=target, target=target, shared=True)


def test_tokens_without_partners_are_refused_by_their_text() -> None:
    source, target = tokenizers("word")[0], tokenizers("character")[1]
    with pytest.raises(ValueError, match="makes 2 tokens of 'bob is' and the target tokenizer 6"):
        extended_ids([Pair("bob is", "", 1)], [source.encode("bob is")], [[]], target)
