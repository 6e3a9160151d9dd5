"""Vectors are those of the file, and nothing of how torchtext reads them is left behind."""

import gzip
import http.client
import logging
import ssl
import tempfile
import unicodedata
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torchtext.vocab import Vectors

from seq2seq.data.tokenizer import SPECIAL_TOKENS, Tokenizer, train_tokenizer
from seq2seq.data.torchtext_vectors import PretrainedVectors, check_vectors, read_vectors

TEXTS = ["Die Katze schläft (auf der Katze) .", "die <unk> ."]
WORDS = {
    "Katze": [0.5, -1.25, 3.0],
    "die": [0.25, 2.0, -0.125],
    ".": [4.0, 5.0, 6.0],
    "schläft": [7.5, 8.25, 9.0],
    "(": [1.0, 2.0, 3.0],
    "<pad>": [9.0, 9.0, 9.0],
    "unseen": [0.0, 0.0, 1.0],
}
LINES = [f"{word} {' '.join(map(str, numbers))}" for word, numbers in WORDS.items()]


@pytest.fixture(autouse=True)
def https(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is in a process in which torchtext read nothing yet, and as it was after the test."""
    monkeypatch.setattr(ssl, "_create_default_https_context", ssl.create_default_context)


def tokenizer(kind: str = "word") -> Tokenizer:
    return train_tokenizer(TEXTS, kind=kind)


def write(path: Path, lines: list[str]) -> str:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def read(path: str, tokens: Tokenizer | None = None, width: int = 3) -> PretrainedVectors:
    keys = {"key": "pretrained_vectors.source", "width_key": "model.embedding_size"}
    return read_vectors(path, tokens or tokenizer(), width=width, **keys)


def by_name(found: PretrainedVectors, tokens: Tokenizer) -> dict[str, list[float]]:
    names = tokens.tokens(found.ids.tolist())
    return dict(zip(names, found.vectors.tolist(), strict=True))


def test_every_token_gets_the_vector_that_stands_behind_its_text(tmp_path: Path) -> None:
    file = write(tmp_path / "vectors.txt", LINES)
    found = read(file)
    expected = {"▁Katze": "Katze", "▁die": "die", "▁.": ".", "▁schläft": "schläft", "▁(": "("}
    vectors = {token: WORDS[word] for token, word in expected.items()}
    assert by_name(found, tokenizer()) == vectors
    vocabulary = tokenizer().vocabulary_size - len(SPECIAL_TOKENS)
    assert found.found == f"5 of {vocabulary} tokens from {file}"
    assert found.ids.dtype == torch.int64 and found.vectors.dtype == torch.float32
    # The numbers are bitwise those that torchtext gives whoever asks it.
    theirs = Vectors(file, cache=str(tmp_path / "cache"))
    words = [tokenizer().texts()[token] for token in found.ids.tolist()]
    assert torch.equal(found.vectors, theirs.get_vecs_by_tokens(words))


def test_tokens_of_one_text_share_its_vector(tmp_path: Path) -> None:
    tokens = train_tokenizer(["( a(b", "a ( b"], kind="word")
    found = by_name(read(write(tmp_path / "v", LINES), tokens), tokens)
    assert found == {"▁(": WORDS["("], "(": WORDS["("]}


@pytest.mark.parametrize("form", [None, "nfc", "nfd"])
@pytest.mark.parametrize("spelled", ["NFC", "NFD"])
def test_a_word_is_found_in_either_spelling_of_its_letters(
    tmp_path: Path, form: str | None, spelled: str
) -> None:
    tokens = train_tokenizer([*TEXTS, "\ud55c"], kind="word", normal_form=form)
    lines = [unicodedata.normalize(spelled, line) for line in [*LINES, "\ud55c 1 1 1"]]
    found = {
        unicodedata.normalize("NFC", name): vector
        for name, vector in by_name(read(write(tmp_path / "v", lines), tokens), tokens).items()
    }
    assert found["▁schläft"] == WORDS["schläft"] and found["▁\ud55c"] == [1.0, 1.0, 1.0]
    # Where a file has both, each spelling has its own vector.
    both = write(tmp_path / "both", [*LINES, "schla\u0308ft 0 0 0"])
    plain = train_tokenizer([*TEXTS, "schla\u0308ft"], kind="word")
    found = by_name(read(both, plain), plain)
    assert found["▁schläft"] == WORDS["schläft"] and found["▁schla\u0308ft"] == [0.0, 0.0, 0.0]


def test_text_that_looks_like_a_control_token_is_text(tmp_path: Path) -> None:
    tokens = train_tokenizer(["a <pad> b"], kind="whitespace")
    found = read(write(tmp_path / "v", LINES), tokens)
    assert found.ids.tolist() == [tokens.encode("<pad>")[0]]
    assert found.ids.min() >= len(SPECIAL_TOKENS)


@pytest.mark.parametrize(
    "form",
    [
        lambda text: b"7 3\n" + text,
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text.replace(b"\n", b" \n"),
        lambda text: text + b"\n\n",
        lambda text: text.removesuffix(b"\n"),
        lambda text: gzip.compress(b"7 3\n" + text),
        lambda text: text + b". . . 1 2 3\nat name@domain.com 1 2 3\n",
        lambda text: text + b"\xff\xfe 1 2 3\n",
        lambda text: text + b"nobody not a number\n",
    ],
    ids=["header", "crlf", "space", "blank", "no newline", "gzip", "spaces", "bytes", "unread"],
)
def test_forms_that_files_have_are_read_the_same(
    tmp_path: Path, form: Callable[[bytes], bytes]
) -> None:
    expected = read(write(tmp_path / "plain", LINES))
    other = tmp_path / "other"
    other.write_bytes(form((tmp_path / "plain").read_bytes()))
    found = read(str(other))
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.vectors, expected.vectors)


def test_a_file_that_has_changed_is_read_anew_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    file = write(tmp_path / "vectors.txt", LINES)
    first = read(file)
    write(tmp_path / "vectors.txt", [line.replace("0.5", "0.75") for line in LINES])
    assert read(file).vectors.sum() - first.vectors.sum() == pytest.approx(0.25)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["temporary", "vectors.txt"]
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize("breaks", [False, True])
def test_https_logging_and_the_terminal_stay_as_they_were(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    breaks: bool,
) -> None:
    switched = []
    original = Vectors.cache

    def watched(self: Vectors, *args: object, **kwargs: object) -> None:
        original(self, *args, **kwargs)
        switched.append(ssl._create_default_https_context)
        if breaks:
            raise RuntimeError("torchtext broke")

    def download(*_: object, **__: object) -> None:
        raise AssertionError("torchtext tried to download")

    monkeypatch.setattr(Vectors, "cache", watched)
    monkeypatch.setattr(urllib.request, "urlopen", download)
    before = ssl._create_default_https_context
    level = logging.getLogger("torchtext.vocab").level
    file = write(tmp_path / "v", LINES)
    with caplog.at_level(logging.INFO):
        if breaks:
            with pytest.raises(RuntimeError, match="torchtext broke"):
                read(file)
        else:
            read(file)
    assert switched == [ssl._create_unverified_context]  # as torchtext does
    assert ssl._create_default_https_context is before is not switched[0]
    assert before().verify_mode == ssl.CERT_REQUIRED
    assert http.client.HTTPSConnection("localhost")._context.verify_mode == ssl.CERT_REQUIRED
    assert logging.getLogger("torchtext.vocab").level == level
    assert capfd.readouterr() == ("", "") and not caplog.records


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "=FILE is not a file"),
        (b"", "=FILE holds no vectors"),
        (b"400000 3\n", "=FILE holds no vectors"),
        (b"die 1 2 3 4\n", "has vectors of 4 numbers, but model.embedding_size=3: set model.emb"),
        (b"die 1 2 3 4\n", "or model.embedding_rank=4 to have them projected to 3"),
        (b"die\t1\t2\t3\n", "line 1: a word and at least 3 numbers must stand there, parted by"),
        (b"die 1 2\n", "line 1: a word and at least 3 numbers must stand there"),
        (b"die 1 2 3\nKatze 1 2\n", "line 2: 2 numbers stand behind 'Katze', but 3 in the lines"),
        (b"die 1 2 3\nKatze\n", "line 2: 0 numbers stand behind 'Katze', but 3 in the lines"),
        (b"die 1 2 3\nx 1 2 3 4\n", "line 2: 4 numbers stand behind 'x', but 3 in the lines"),
        (b"die 1 2 3\nx  1 2 3\n", "line 2: 4 numbers stand behind 'x', but 3 in the lines"),
        (b"2 3\ndie 1 x 3\n", "line 2: what stands behind 'die' isn't 3 finite numbers"),
        (b"die 1 nan 3\n", "line 1: what stands behind 'die' isn't 3 finite numbers"),
        (b"die 1 2 1e39\n", "line 1: what stands behind 'die' isn't 3 finite numbers"),
        (b"die 1 2 3\nx 1 2 3\ndie 1 2 3\n", "has 'die' twice, in line 1 and line 3"),
        (b"DIE 1 2 3\n", "has none of the 12 words of this vocabulary"),
        (b"2 3\ndie \0\1\x7f\xff\n", "is no text: unpack it, or convert word2vec's binary format"),
        (b"PK\3\4\0\0", "is no text"),
        (gzip.compress(b"die 1 2 3\n" * 9)[:20], "is damaged or cut short gzip"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    file = tmp_path / "FILE"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read(str(file))
    message = str(caught.value).replace(str(file), "FILE")
    assert said in message
    assert message.startswith("pretrained_vectors.source=FILE") and "\n" not in message


def test_what_the_beginning_shows_is_refused_before_any_tokenizer(tmp_path: Path) -> None:
    keys = {"key": "pretrained_vectors.target", "width_key": "model.embedding_rank"}
    file = write(tmp_path / "v", ["7 3", *LINES])
    check_vectors(file, width=3, **keys)
    with pytest.raises(ValueError, match=r"of 3 numbers, but model.embedding_rank=4: set .*=3$"):
        check_vectors(file, width=4, **keys)
