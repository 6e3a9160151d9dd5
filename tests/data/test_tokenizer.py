import gzip
import json
import os
import random
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from seq2seq.data.corpus import Pair
from seq2seq.data.tokenizer import (
    BOS_ID,
    EOS_ID,
    KINDS,
    NORMAL_FORMS,
    PAD_ID,
    SPECIAL_TOKENS,
    UNK_ID,
    Tokenizer,
    train_tokenizer,
    train_tokenizers,
)

ROOT = Path(__file__).parents[2]
SIZES = {"word": None, "character": None, "whitespace": None, "bpe": 200}

PIECES = [
    *["l'homme", "d\u2019été", "aujourd'hui", "«", "»", "(a)", "[b]", "{c}", "3.5", "1,000", "50%"],
    *[
        "日本語です。",
        "「猫」",
        "👩\u200d👩\u200d👧",
        "❤\ufe0flove",
        "🇫🇷",
        "e\u0301te\u0301",
        "\u0301x",
        "नमस्ते",
    ],
    *[
        '"quoted"',
        "don't",
        "a--b",
        "x_y",
        "...",
        "<eos>",
        "<pad>",
        "<unk>",
        "▁",
        "▁▁a▁",
        "İstanbul",
    ],
    *[
        "Ω",
        "\u200b",
        "\ufeff",
        "\x00",
        "a\\b",
        "$1",
        "http://a.b/c?d=e",
        "ΣΑΣ",
        "שלום",
        "مرحبا",
        "한국어",
    ],
]
SPACES = [" ", "  ", "\t", "\u00a0", "\u202f", "\u3000", ""]


def some_texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [
        "".join(rng.choice(PIECES) + rng.choice(SPACES) for _ in range(rng.randint(1, 8)))
        for _ in range(count)
    ]


def with_single_spaces(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_gives_the_text_back_up_to_white_space(kind: str) -> None:
    texts = some_texts(300)
    tokenizer = train_tokenizer(texts, kind=kind, size=SIZES[kind])
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == with_single_spaces(text)


@pytest.mark.parametrize("kind", ["word", "character", "bpe"])
def test_text_of_known_tokens_in_a_new_order_decodes_to_itself(kind: str) -> None:
    tokenizer = train_tokenizer([f" {p} {p}" for p in PIECES], kind=kind, size=SIZES[kind])
    for text in some_texts(300, seed=1):
        ids = tokenizer.encode(text)
        if UNK_ID not in ids:
            assert tokenizer.decode(ids) == with_single_spaces(text)


@pytest.mark.parametrize("kind", ["word", "character", "bpe"])
@pytest.mark.parametrize("language", ["de", "en", "fr"])
def test_real_sentences_decode_to_themselves(kind: str, language: str, corpora_root: Path) -> None:
    path = corpora_root / "multi30k" / f"val.{language}.gz"
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()
    tokenizer = train_tokenizer(lines, kind=kind, size=1000 if kind == "bpe" else None)
    decoded = [tokenizer.decode(ids) for ids in tokenizer.encode_batch(lines)]
    assert decoded == [with_single_spaces(line) for line in lines]


def test_words_are_parted_from_punctuation_and_keep_the_space_before_them() -> None:
    text = "Hello, world! It's 3.5 (or 4)."
    tokenizer = train_tokenizer([text], kind="word")
    assert tokenizer.tokens(tokenizer.encode(text)) == (
        ["▁Hello", ",", "▁world", "!", "▁It", "'", "s", "▁3", ".", "5"]
        + ["▁(", "or", "▁4", ")", "."]
    )


def test_a_word_is_the_same_token_at_the_start_and_later() -> None:
    tokenizer = train_tokenizer(["so so"], kind="word")
    first, second = tokenizer.encode("so so")
    assert first == second


def test_characters_include_the_space() -> None:
    tokenizer = train_tokenizer(["a b"], kind="character")
    assert tokenizer.tokens(tokenizer.encode("b  a")) == ["b", "▁", "a"]


def test_whitespace_kind_leaves_punctuation_on_its_token() -> None:
    tokenizer = train_tokenizer(["a, b"], kind="whitespace")
    assert tokenizer.tokens(tokenizer.encode("a,\tb")) == ["a,", "b"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SPECIAL_TOKENS)
def test_a_control_token_spelled_in_the_text_stays_text(kind: str, name: str) -> None:
    texts = [f"a {name} b", f"  {name}  {name}", f"x{name}y", name] * 3
    tokenizer = train_tokenizer(texts, kind=kind, size=SIZES[kind])
    for text in texts:
        ids = tokenizer.encode(text)
        assert min(ids) > UNK_ID
        assert tokenizer.decode(ids) == with_single_spaces(text)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SPECIAL_TOKENS)
def test_a_control_token_first_seen_after_training_is_only_unknown(kind: str, name: str) -> None:
    tokenizer = train_tokenizer(["some text"], kind=kind, size=SIZES[kind])
    for text in (name, f"  {name}", f"text  {name}  text", f"\t {name} "):
        assert not {PAD_ID, BOS_ID, EOS_ID} & set(tokenizer.encode(text))


@pytest.mark.parametrize("kind", KINDS)
def test_control_tokens_have_the_first_four_ids(kind: str) -> None:
    tokenizer = train_tokenizer(["some text"], kind=kind, size=SIZES[kind])
    assert tokenizer.tokens(range(4)) == list(SPECIAL_TOKENS)
    assert (PAD_ID, BOS_ID, EOS_ID, UNK_ID) == (0, 1, 2, 3)


def test_control_tokens_are_dropped_from_text_except_unknown() -> None:
    tokenizer = train_tokenizer(["big cat"], kind="word")
    ids = tokenizer.encode("big dog cat")
    assert ids[1] == UNK_ID
    padded = [BOS_ID, *ids, EOS_ID, PAD_ID]
    assert tokenizer.decode(padded) == "big <unk> cat"
    assert tokenizer.tokens(padded) == (["<bos>", "▁big", "<unk>", "▁cat"] + ["<eos>", "<pad>"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["", " ", "\t\u00a0"])
def test_text_of_nothing_has_no_tokens(kind: str, text: str) -> None:
    tokenizer = train_tokenizer(["some text"], kind=kind, size=SIZES[kind])
    assert tokenizer.encode(text) == []
    assert tokenizer.encode_batch([text, "some"])[0] == []
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_encoded_like_each_text_alone(kind: str) -> None:
    texts = some_texts(50)
    tokenizer = train_tokenizer(texts[:25], kind=kind, size=SIZES[kind])
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


@pytest.mark.parametrize("kind", KINDS)
def test_lowercase_makes_case_disappear(kind: str) -> None:
    tokenizer = train_tokenizer(["Été CHAT"], kind=kind, size=SIZES[kind], lowercase=True)
    assert tokenizer.encode("ÉTÉ chat") == tokenizer.encode("été Chat")
    assert tokenizer.decode(tokenizer.encode("ÉTÉ Chat")) == "été chat"


@pytest.mark.parametrize("form", NORMAL_FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_text_is_brought_into_a_normal_form_of_unicode(kind: str, form: str) -> None:
    texts = ["Cafe\u0301 caf\u00e9", "\ud55c\uae00 \ufb01n \u2460"]
    settings = {"kind": kind, "size": SIZES[kind]}
    trained = train_tokenizer(texts, normal_form=form, lowercase=True, **settings)
    for tokenizer in (trained, Tokenizer.from_state(trained.state())):
        for text in texts:
            expected = unicodedata.normalize(form.upper(), text.lower())
            ids = tokenizer.encode(text)
            decoded = tokenizer.decode(ids)
            assert decoded == unicodedata.normalize("NFC", expected)
            assert tokenizer.encode(decoded) == ids
            if kind == "character":
                assert len(ids) == len(expected)
    assert train_tokenizer(texts, normal_form=None, **settings).state() == (
        train_tokenizer(texts, **settings).state()
    )


def test_a_normal_form_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tokenizer.target.normal_form='NFD' is unknown"):
        train_tokenizer(["a"], kind="word", normal_form="NFD", side="target")


def test_vocabulary_is_ordered_by_frequency_then_code_point() -> None:
    rng = random.Random(3)
    texts = [" ".join(rng.choice("abcdefghijklmno") for _ in range(9)) for _ in range(20)]
    counts = Counter(token for text in texts for token in text.split())
    expected = sorted(counts, key=lambda token: (-counts[token], token))
    tokenizer = train_tokenizer(texts, kind="whitespace")
    assert tokenizer.tokens(range(4, tokenizer.vocabulary_size)) == expected


def test_size_and_min_frequency_keep_the_frequent_tokens() -> None:
    texts = ["a a a b b c"]
    by_size = train_tokenizer(texts, kind="whitespace", size=6)
    assert by_size.tokens(range(by_size.vocabulary_size))[4:] == ["a", "b"]
    by_frequency = train_tokenizer(texts, kind="whitespace", min_frequency=3)
    assert by_frequency.tokens(range(by_frequency.vocabulary_size))[4:] == ["a"]
    assert by_frequency.encode("a b c") == [4, UNK_ID, UNK_ID]


def test_bpe_joins_the_most_frequent_pairs_within_words() -> None:
    tokenizer = train_tokenizer(["low low low lower lowest."] * 3, kind="bpe", size=16)
    assert tokenizer.vocabulary_size <= 16
    assert tokenizer.tokens(tokenizer.encode("low lowly")) == ["▁low", "▁low", "l", "<unk>"]


TRAIN_AND_PRINT_STATE = """
import random, sys
from seq2seq.data.tokenizer import train_tokenizer
rng = random.Random(0)
texts = ["".join(rng.choice("abcdefghij ") for _ in range(30)) for _ in range(2000)]
for kind, size in [("word", 900), ("character", 9), ("whitespace", 900), ("bpe", 300)]:
    sys.stdout.write(train_tokenizer(texts, kind=kind, size=size).state()["library"])
"""


def test_training_is_the_same_in_every_process_whatever_the_hash_seed_and_threads() -> None:
    outputs = set()
    for hash_seed, threads in [("0", "1"), ("1", "4"), ("2", "3")]:
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "RAYON_NUM_THREADS": threads}
        result = subprocess.run(
            [sys.executable, "-c", TRAIN_AND_PRINT_STATE],
            capture_output=True,
            check=True,
            cwd=ROOT,
            env=environment,
        )
        outputs.add(result.stdout)
    assert len(outputs) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_state_is_plain_data_and_rebuilds_the_same_tokenizer(kind: str) -> None:
    texts = some_texts(50)
    tokenizer = train_tokenizer(texts, kind=kind, size=SIZES[kind])
    state = tokenizer.state()
    assert all(type(value) in (str, int, bool) for value in state.values())
    again = Tokenizer.from_state(json.loads(json.dumps(state)))
    assert again.state() == state
    assert again.vocabulary_size == tokenizer.vocabulary_size
    for text in some_texts(50, seed=5):
        ids = tokenizer.encode(text)
        assert again.encode(text) == ids
        assert again.decode(ids) == tokenizer.decode(ids)


def test_state_of_a_foreign_tokenizer_is_refused() -> None:
    state = train_tokenizer(["some text"], kind="word").state()
    state["library"] = str(state["library"]).replace("  <pad>", "<pad>")
    with pytest.raises(ValueError, match="doesn't begin with <pad> <bos> <eos> <unk>"):
        Tokenizer.from_state(state)


PAIRS = [Pair("ein Hund", "a dog", 1), Pair("eine Katze", "a cat", 2)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_shared_tokenizer_knows_both_sides(kind: str) -> None:
    settings = {"kind": kind, "size": SIZES[kind]}
    source, target = train_tokenizers(PAIRS, source=settings, target=settings, shared=True)
    assert source is target
    for pair in PAIRS:
        assert UNK_ID not in source.encode(pair.source) + source.encode(pair.target)


def test_tokenizers_of_their_own_know_only_their_side() -> None:
    settings = {"kind": "word"}
    source, target = train_tokenizers(PAIRS, source=settings, target=settings, shared=False)
    assert target.encode("a dog") == [4, 6]
    assert source.encode("a dog") == [UNK_ID, UNK_ID]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "words"}, "choose one of word, character, whitespace, bpe"),
        ({"kind": "word", "size": 4}, "tokenizer.target.size=4 is too small"),
        ({"kind": "word", "min_frequency": 0}, "min_frequency=0 must be at least 1"),
        ({"kind": "word", "min_frequency": 9}, "min_frequency=9 leaves no token"),
        ({"kind": "bpe"}, "tokenizer.target.size is not set"),
        ({"kind": "bpe", "size": 7}, "different characters and 4 control tokens are added"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_tokenizers(PAIRS, source={"kind": "word"}, target=settings)


def test_a_shared_tokenizer_with_two_settings_is_refused() -> None:
    with pytest.raises(ValueError, match="kind is 'word' for the source and 'bpe' for the target"):
        train_tokenizers(PAIRS, source={"kind": "word"}, target={"kind": "bpe"}, shared=True)


@pytest.mark.parametrize("texts", [[], ["", " \t"]])
def test_empty_training_text_is_refused(texts: list[str]) -> None:
    with pytest.raises(ValueError, match="the training text is empty"):
        train_tokenizer(texts, kind="word")


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "tokenizer").glob("*.yaml")))
def test_every_shipped_tokenizer_config_trains(path: Path) -> None:
    config = OmegaConf.create({"tokenizer": OmegaConf.load(path)})
    pairs = [Pair(*pair[:2], line=0) for pair in PAIRS * 2]
    settings = OmegaConf.to_container(config.tokenizer, resolve=True)
    source, target = train_tokenizers(pairs, **settings)
    assert source.decode(source.encode("ein Hund")) == "ein Hund"
    assert target.decode(target.encode("a dog")) == "a dog"


@pytest.mark.parametrize("name", KINDS)
def test_setting_the_source_sets_the_target(name: str) -> None:
    config = OmegaConf.create(
        {"tokenizer": OmegaConf.load(ROOT / "conf" / "tokenizer" / f"{name}.yaml")}
    )
    changed = {"kind": "bpe", "size": 99, "min_frequency": 7, "lowercase": True}
    changed["normal_form"] = "nfd"
    config.tokenizer.source = changed
    assert OmegaConf.to_container(config.tokenizer.target, resolve=True) == changed


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("word", [" Hello", " Zebra", "!", " foo"]),
        ("whitespace", ["Hello", "Zebra!", "foo"]),
        ("character", list("Hello Zebra! foo")),
    ],
)
def test_what_is_written_are_the_texts_own_words_whatever_the_vocabulary(kind, expected):
    texts = ["hello world! bar", "foo bar"]
    tokenizer = train_tokenizer(texts, kind=kind)
    lowering = train_tokenizer(texts, kind=kind, lowercase=True)
    text = "Hello  Zebra! foo"
    assert tokenizer.written(text) == tokenizer.pieces(text)
    assert lowering.written(text) == expected
    assert lowering.pieces(text) == [word.lower() for word in expected]
    assert len(lowering.encode(text)) == len(expected)


@pytest.mark.parametrize(
    ("text", "settings", "expected"),
    [
        ("\ud55c\u00e9", {"normal_form": "nfd"}, ["\u1112", "\u1161", "\u11ab", "e", "\u0301"]),
        ("e\u0301x", {"normal_form": "nfc"}, ["\u00e9", "x"]),
        ("\u0130X", {"lowercase": True}, ["i", "\u0307", "X"]),
        ("a\u00bd", {"kind": "word", "normal_form": "nfkc"}, [" a1", "\u2044", "2"]),
    ],
)
def test_a_character_that_becomes_several_tokens_is_written_once(text, settings, expected):
    tokenizer = train_tokenizer(["abc"], **{"kind": "character", **settings})
    assert tokenizer.written(text) == expected


@pytest.mark.parametrize("form", [None, *NORMAL_FORMS])
@pytest.mark.parametrize("kind", KINDS)
def test_what_all_tokens_write_is_the_text_again(kind: str, form: str | None) -> None:
    """Cased as it is; and what they are looked up as is the normalised text."""
    settings = {"kind": kind, "size": SIZES[kind], "normal_form": form}
    tokenizer = train_tokenizer(["abc the", *PIECES], **settings, lowercase=True)
    separator = " " if kind == "whitespace" else ""
    for text in [*some_texts(40, seed=2), *PIECES, "\ufb01n \u2460", "\u1e69 A\u0328\u0301"]:
        written, pieces = tokenizer.written(text), tokenizer.pieces(text)
        assert len(written) == len(pieces) == len(tokenizer.encode(text))
        for id_, piece in zip(tokenizer.encode(text), pieces, strict=True):
            assert id_ == UNK_ID or tokenizer.tokens([id_]) == [piece.replace(" ", "▁")]
        again = separator.join(written).strip()
        assert tokenizer.encode(again) == tokenizer.encode(text)
        if form is None and "İ" not in text:
            assert again == with_single_spaces(text)


@pytest.mark.parametrize(
    ("kind", "text", "words", "expected"),
    [
        ("word", "hello Zoe, Wien", ["Anna", "Bob"], "hello Anna, Bob"),
        ("whitespace", "lo Zoe Wien", ["Anna", "Bob"], "lo Anna Bob"),
        ("character", "heXo", ["ll"], "hello"),
    ],
)
def test_unknown_tokens_are_written_as_given(kind, text, words, expected):
    tokenizer = train_tokenizer(["hello, lo"], kind=kind)
    assert tokenizer.decode(tokenizer.encode(text), words) == expected
