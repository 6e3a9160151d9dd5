"""Pretrained word vectors, read by torchtext 0.6 from a text file: "word v1 v2 ..." in each line.

torchtext writes a cache that it prefers to the file ever after, switches off the check of HTTPS
certificates for the whole process, skips what it doesn't understand, and holds whole files in
memory. So lines are checked and chosen here, and it reads a small file in a folder that is deleted.
Which table the vectors go to is left to the caller.
"""

import contextlib
import gzip
import io
import logging
import ssl
import tempfile
import unicodedata
import zlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import torch
from torch import Tensor
from torchtext.vocab import Vectors

from seq2seq.data.tokenizer import SPECIAL_TOKENS, Tokenizer

_LOOKED_AT = 1 << 16  # bytes that show whether a file is text
_NARROWEST = 3  # what torchtext can read
_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class PretrainedVectors:
    """The vectors of those tokens of a vocabulary that a file has.

    Args:
        ids: the tokens, int64 ``[found]``.
        vectors: float32 ``[found, width]``.
        found: how many of how many tokens of text they are, and of which file.
    """

    ids: Tensor
    vectors: Tensor
    found: str


def check_vectors(path: str, *, width: int, key: str, width_key: str) -> None:
    """Refuse a file that isn't there, isn't text, or whose first vector has another width.

    Args:
        path: the file, which may be packed by gzip.
        width: numbers in a vector.
        key: config key of the file, for messages.
        width_key: config key of the width, for messages.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if vectors of this width can't be read from it.
    """
    named = f"{key}={path}"
    if not Path(path).expanduser().is_file():
        raise FileNotFoundError(f"{named} is not a file")
    with _opened(path, named) as lines:
        if b"\0" in lines.read(_LOOKED_AT):
            raise ValueError(
                f"{named} is no text: unpack it, or convert word2vec's binary format to lines of "
                "'word v1 v2 ...'"
            )
        lines.seek(0)
        first = next(_rows(lines), None)
    if first is None:
        raise ValueError(f"{named} holds no vectors")
    if first.columns < _NARROWEST:
        raise ValueError(
            f"{named}, line {first.line}: a word and at least {_NARROWEST} numbers must stand "
            "there, parted by single spaces"
        )
    if first.columns != width:
        wide = f"{width_key}={first.columns}"
        if not width_key.endswith("rank"):
            wide += f", or model.embedding_rank={first.columns} to have them projected to {width}"
        raise ValueError(
            f"{named} has vectors of {first.columns} numbers, but {width_key}={width}: set {wide}"
        )


def read_vectors(
    path: str, tokenizer: Tokenizer, *, width: int, key: str, width_key: str
) -> PretrainedVectors:
    """Look up every token of a vocabulary in a file.

    Tokens are found by their text, in upper or lower case as it stands; if that isn't there, by its
    composed or its decomposed spelling (Unicode Standard Annex 15). `<pad>`, `<bos>`, `<eos>` and
    `<unk>` are no text. Of the lines of other words nothing is read but the number of columns.

    Args:
        path: the file, with or without word2vec's first line "number of words, width".
        tokenizer: whose vocabulary is looked up.
        width, key, width_key: see :func:`check_vectors`.

    Raises:
        FileNotFoundError, ValueError: see :func:`check_vectors`; also for a line that isn't a word
            and its vector, if a token stands there twice, or if none does.
    """
    check_vectors(path, width=width, key=key, width_key=width_key)
    named = f"{key}={path}"
    texts = {token: text for token, text in enumerate(tokenizer.texts()) if text}
    spellings = {text: _spellings(text) for text in texts.values()}
    with _opened(path, named) as lines:
        wanted = {spelling for each in spellings.values() for spelling in each}
        chosen = _choose(_rows(lines), wanted, named=named, width=width)
    if not chosen:
        raise ValueError(
            f"{named} has none of the {len(spellings):,} words of this vocabulary: is it of "
            "another language, or in lower case (then set lowercase=true in the tokenizer of this "
            "side)?"
        )
    vectors = _read_by_torchtext(chosen.values())
    places = {word: place for place, word in enumerate(chosen)}
    pairs = []
    for token, text in texts.items():
        found_as = [spelling for spelling in spellings[text] if spelling in places]
        pairs += [(token, places[spelling]) for spelling in found_as[:1]]
    tokens, order = torch.tensor(pairs).unbind(1)
    vocabulary = tokenizer.vocabulary_size - len(SPECIAL_TOKENS)
    found = f"{len(pairs):,} of {vocabulary:,} tokens from {path}"
    return PretrainedVectors(tokens, vectors[order], found)


def _spellings(text: str) -> list[bytes]:
    """Of what looks the same, the text itself first."""
    forms = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    return [spelling.encode() for spelling in dict.fromkeys((text, *forms))]


class _Row(NamedTuple):
    """A line with a word and, in so many columns, its numbers."""

    line: int
    word: bytes
    numbers: bytes
    columns: int


@contextlib.contextmanager
def _opened(path: str, named: str) -> Iterator[IO[bytes] | gzip.GzipFile]:
    """The file as it is, or unpacked; a damaged one is an error in one sentence."""
    file = Path(path).expanduser()
    with file.open("rb") as raw:
        # Known by its first bytes, whatever the name.
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        try:
            if packed:
                with gzip.open(raw) as unpacked:
                    yield unpacked
            else:
                yield raw
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{named} is damaged or cut short gzip ({error})") from error


def _rows(lines: Iterable[bytes]) -> Iterator[_Row]:
    """All lines but blank ones and word2vec's first."""
    for line, text in enumerate(lines, start=1):
        word, _, numbers = text.rstrip().partition(b" ")
        columns = numbers.count(b" ") + 1 if numbers else 0
        heading = line == 1 and columns == 1 and word.isdigit() and numbers.isdigit()
        if (word or numbers) and not heading:
            yield _Row(line, word, numbers, columns)


def _choose(
    rows: Iterable[_Row], wanted: Collection[bytes], *, named: str, width: int
) -> dict[bytes, _Row]:
    """The rows of the wanted words; the number of columns of every row is checked."""
    chosen: dict[bytes, _Row] = {}
    for row in rows:
        if row.columns != width:
            inside = row.numbers.split(b" ")[: max(0, row.columns - width)]
            if inside and all(piece and not _is_number(piece) for piece in inside):
                continue  # a word with spaces in it, as GloVe has some, and no vocabulary
            raise ValueError(
                f"{named}, line {row.line}: {row.columns} numbers stand behind {_shown(row.word)}, "
                f"but {width} in the lines before"
            )
        if row.word not in wanted:
            continue
        if row.word in chosen:
            raise ValueError(
                f"{named} has {_shown(row.word)} twice, in line {chosen[row.word].line} and line "
                f"{row.line}, and which vector is meant can't be known: remove one"
            )
        if not all(map(_is_number, row.numbers.split(b" "))):
            raise ValueError(
                f"{named}, line {row.line}: what stands behind {_shown(row.word)} isn't {width} "
                "finite numbers"
            )
        chosen[row.word] = row
    return chosen


def _is_number(text: bytes) -> bool:
    try:
        return abs(float(text)) <= _LARGEST
    except ValueError:
        return False


def _shown(word: bytes) -> str:
    return repr(word.decode(errors="replace"))


def _read_by_torchtext(rows: Iterable[_Row]) -> Tensor:
    """The vectors of these rows, in their order: float32 ``[rows, width]``."""
    with tempfile.TemporaryDirectory() as folder, _quiet_and_undone():
        file = Path(folder) / "vectors"
        file.write_bytes(b"".join(b"%b %b\n" % (row.word, row.numbers) for row in rows))
        vectors: Tensor = Vectors(str(file), cache=folder).vectors
    return vectors


@contextlib.contextmanager
def _quiet_and_undone() -> Iterator[None]:
    """Keep torchtext's progress bar and log lines away, and HTTPS as it was."""
    log = logging.getLogger("torchtext.vocab")
    level, context = log.level, ssl._create_default_https_context
    log.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        log.setLevel(level)
        ssl._create_default_https_context = context
