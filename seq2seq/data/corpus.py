"""Pairs of source and target sentences, and a strict reader of parallel text.

A corpus is three splits of pairs. The reader takes two files line by line or one file with both
sides, and refuses, in one sentence, whatever would pair the wrong sentences. Tokenization, and
the dropping of pairs that are too long in tokens, belong to later stages.
"""

import codecs
import gzip
import logging
import random
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)

LINES_SHOWN = 5
OVERLAP_WARNED = 0.1


class CorpusError(ValueError):
    """A corpus can't be read or made as asked; the message is one sentence for the user."""


class Pair(NamedTuple):
    """A source sentence and its translation.

    Attributes:
        source: Raw text of the source side.
        target: Raw text of the target side.
        line: Line number in the pair's file, counted from 1; 0 if the pair was generated.
    """

    source: str
    target: str
    line: int


@dataclass(frozen=True)
class Corpus:
    """Pairs for training, model selection and the final test.

    Args:
        train: Pairs to train on; tokenizers see only these.
        validation: Pairs for model selection.
        test: Pairs for the final figures.
        test_longer: Pairs longer than any trained on; empty where the notion makes no sense.
        max_length: Longest side of a training pair, in tokens without end-of-sentence mark;
            longer pairs are dropped after tokenization. None keeps all.
        origin: Split name to the file or the description it came from, for messages.

    Raises:
        CorpusError: If `max_length` is below 1.
    """

    train: Sequence[Pair]
    validation: Sequence[Pair]
    test: Sequence[Pair]
    test_longer: Sequence[Pair] = ()
    max_length: int | None = None
    origin: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 1:
            raise CorpusError(
                f"max_length is {self.max_length}; give at least 1 token, or null for no limit."
            )


def normalize(text: str) -> str:
    """Composes characters (Unicode NFC) and strips white space at both ends.

    Every text that meets a model goes through here: corpora, and lines to translate.
    """
    return unicodedata.normalize("NFC", text).strip()


def read_lines(path: Path) -> list[str]:
    r"""Reads the lines of a UTF-8 file, unpacking it if it is gzip.

    Only `\n` and `\r\n` end a line. Python's own notions (`str.splitlines`, universal newlines)
    also break at U+2028, U+0085 or a lone `\r`, on one side of a pair of files and not on the
    other, and so shift every later pair.

    Raises:
        CorpusError: If the file can't be read, isn't the gzip its name says, isn't UTF-8, or is
            empty.
    """
    try:
        data = path.read_bytes()
        # Known by its first bytes, whatever the name: 0x8b can't stand there in UTF-8.
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
        elif path.suffix == ".gz" and data:
            raise CorpusError(f"{path} is named .gz but isn't gzip; fetch it again or rename it.")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise CorpusError(
            f"{path} is damaged or cut short gzip ({error}); fetch it again."
        ) from error
    except FileNotFoundError as error:
        raise CorpusError(f"{path} doesn't exist.") from error
    except OSError as error:
        raise CorpusError(f"{path} can't be read: {error.strerror}.") from error
    data = data.removeprefix(codecs.BOM_UTF8)
    if not data.strip():
        raise CorpusError(f"{path} is empty.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CorpusError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} isn't UTF-8; convert the file, "
            "for example with `iconv -f latin1 -t utf-8`."
        ) from error
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def read_pairs(
    source: Path,
    target: Path | None = None,
    *,
    source_column: int = 1,
    target_column: int = 2,
    pattern: str | None = None,
) -> list[Pair]:
    r"""Reads the pairs of one split; a pair with an empty side is dropped as a pair.

    Args:
        source: File of the source side, or of both sides if there is no `target`.
        target: File of the target side, whose line i belongs to line i of `source`.
        source_column: Column of the source side in a tab-separated file of both, from 1.
        target_column: Column of the target side.
        pattern: Regular expression for the whole of a line of both sides, with the groups
            `source` and `target`; takes the place of the columns.

    Raises:
        CorpusError: If a file can't be read, if two files differ in their number of lines, if a
            line lacks a column or doesn't match, or if no pair is left.
    """
    if target is None:
        name = str(source)
        lines = read_lines(source)
        if pattern is not None:
            sides: Iterable[tuple[str, str]] = _matches(source, lines, pattern)
        else:
            sides = _columns(source, lines, source_column, target_column)
    else:
        name = f"{source} and {target}"
        source_lines, target_lines = read_lines(source), read_lines(target)
        if len(source_lines) != len(target_lines):
            raise CorpusError(
                f"{source} has {len(source_lines)} lines but {target} has {len(target_lines)}; "
                "line i of one must be the translation of line i of the other."
            )
        sides = zip(source_lines, target_lines, strict=True)

    pairs = []
    empty = []
    for line, (source_text, target_text) in enumerate(sides, start=1):
        pair = Pair(normalize(source_text), normalize(target_text), line)
        if pair.source and pair.target:
            pairs.append(pair)
        else:
            empty.append(line)
    if not pairs:
        raise CorpusError(f"{name}: every one of the {len(empty)} pairs has an empty side.")
    if empty:
        shown = ", ".join(map(str, empty[:LINES_SHOWN]))
        more = ", ..." if len(empty) > LINES_SHOWN else ""
        logger.warning(
            "%s: dropped %d of %d pairs for an empty side (line %s%s).",
            name,
            len(empty),
            len(empty) + len(pairs),
            shown,
            more,
        )
    return pairs


def _columns(
    path: Path, lines: Sequence[str], source_column: int, target_column: int
) -> Iterable[tuple[str, str]]:
    for key, column in (("source_column", source_column), ("target_column", target_column)):
        if column < 1:
            raise CorpusError(f"{key} is {column}; columns are counted from 1.")
    last = max(source_column, target_column)
    for number, line in enumerate(lines, start=1):
        fields = line.split("\t")
        if len(fields) >= last:
            yield fields[source_column - 1], fields[target_column - 1]
        elif not line.strip():
            yield "", ""
        else:
            raise CorpusError(
                f"{path}, line {number}: column {last} is missing; the line has {len(fields)} "
                f"tab-separated column{'s' if len(fields) > 1 else ''}."
            )


def _matches(path: Path, lines: Sequence[str], pattern: str) -> Iterable[tuple[str, str]]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise CorpusError(f"pattern {pattern!r} is no regular expression: {error}.") from error
    if not {"source", "target"} <= expression.groupindex.keys():
        raise CorpusError(
            f"pattern {pattern!r} needs the groups (?P<source>...) and (?P<target>...)."
        )
    for number, line in enumerate(lines, start=1):
        match = expression.fullmatch(line)
        if match is not None:
            yield match["source"] or "", match["target"] or ""
        elif not line.strip():
            yield "", ""
        else:
            raise CorpusError(f"{path}, line {number}: doesn't match the pattern {pattern!r}.")


def cut_by_source(
    pairs: Sequence[Pair], size: int, *, name: str, seed: int
) -> tuple[list[Pair], list[Pair]]:
    """Cuts a split off by seed, all translations of a source sentence staying on one side.

    Args:
        pairs: Pairs to cut from.
        size: Pairs to cut at least; the last source sentence drawn is taken whole.
        name: Name of the split that is cut, which also tells its draw from another's.
        seed: Seed of the draw.

    Returns:
        The pairs that stay and the pairs cut off, both in their first order.

    Raises:
        CorpusError: If `size` is below 1 or would leave nothing.
    """
    if size < 1:
        raise CorpusError(f"{name}_size is {size}; give at least 1 pair, or a file of its own.")
    counts = Counter(pair.source for pair in pairs)
    sources = list(counts)
    random.Random(f"{name} {seed}").shuffle(sources)
    cut: set[str] = set()
    cut_pairs = 0
    for source in sources:
        if cut_pairs >= size:
            break
        cut.add(source)
        cut_pairs += counts[source]
    if len(cut) == len(sources):
        raise CorpusError(
            f"data.{name}_size={size} would leave nothing to train on: there are {len(pairs)} "
            f"pairs with {len(sources)} different sources; make it smaller, such as "
            f"data.{name}_size={max(1, len(sources) // 10)}."
        )
    return (
        [pair for pair in pairs if pair.source not in cut],
        [pair for pair in pairs if pair.source in cut],
    )


def parallel_text(
    *,
    root: str | None,
    train: str | None = None,
    train_source: str | None = None,
    train_target: str | None = None,
    validation: str | None = None,
    validation_source: str | None = None,
    validation_target: str | None = None,
    test: str | None = None,
    test_source: str | None = None,
    test_target: str | None = None,
    source_column: int = 1,
    target_column: int = 2,
    pattern: str | None = None,
    validation_size: int = 1000,
    test_size: int = 1000,
    seed: int = 0,
    max_length: int | None = None,
    where: str | None = None,
) -> Corpus:
    """Reads parallel text: each split from one file, from two files, or cut off the training text.

    A file name finds the packed file too: `train.de` also stands for `train.de.gz`.

    Args:
        root: Folder from which file names start.
        train: File with both sides of the training text, a pair a line.
        train_source: File with its source side, a sentence a line; needs `train_target`.
        train_target: File with its target side, line by line the translations.
        validation: As `train`; with no file for it, the split is cut off the training text.
        validation_source: As `train_source`.
        validation_target: As `train_target`.
        test: As `validation`.
        test_source: As `train_source`.
        test_target: As `train_target`.
        source_column: Column of the source side in a tab-separated file of both, from 1.
        target_column: Column of the target side.
        pattern: Regular expression with the groups `source` and `target` for a whole line, in
            place of columns.
        validation_size: Pairs to cut off at least for validation if there is no file for it.
        test_size: Pairs to cut off at least for the test if there is no file for it.
        seed: Seed of the cuts.
        max_length: Longest side of a training pair, in tokens; None for no limit.
        where: Where people get the files; ends the message when they are missing.

    Raises:
        CorpusError: If a file is missing or unfit, or a cut would leave nothing to train on.
    """
    names = {
        "train": _side_files("train", train, train_source, train_target),
        "validation": _side_files("validation", validation, validation_source, validation_target),
        "test": _side_files("test", test, test_source, test_target),
    }
    if not names["train"]:
        raise CorpusError(
            "no training text is named: give data.train=PAIRS.tsv for one file with both sides, "
            "or data.train_source= and data.train_target= for two files line by line."
        )
    files = find_files(root, names, where)
    splits = {
        split: read_pairs(
            *paths, source_column=source_column, target_column=target_column, pattern=pattern
        )
        for split, paths in files.items()
    }
    origin = {split: " and ".join(map(str, paths)) for split, paths in files.items()}
    for split in ("validation", "test"):
        if split in splits:
            warn_of_overlap(splits["train"], splits[split], origin[split])
    for split, size in (("test", test_size), ("validation", validation_size)):
        if split not in splits:
            splits["train"], splits[split] = cut_by_source(
                splits["train"], size, name=split, seed=seed
            )
            origin[split] = f"{origin['train']} (cut by seed {seed})"
    return Corpus(**splits, max_length=max_length, origin=origin)


def _side_files(
    split: str, both: str | None, source: str | None, target: str | None
) -> tuple[str, ...]:
    """Returns no file name, one with both sides, or one a side."""
    if both is None and source is None and target is None:
        return ()
    if both is not None and source is None and target is None:
        return (both,)
    if both is None and source is not None and target is not None:
        return (source, target)
    raise CorpusError(
        f"data.{split}={both}, data.{split}_source={source} and data.{split}_target={target} don't "
        f"go together: give data.{split} alone, or data.{split}_source with data.{split}_target."
    )


def find_files(
    root: str | None, names: Mapping[str, Sequence[str]], where: str | None = None
) -> dict[str, tuple[Path, ...]]:
    """Finds the files of every split, packed or not, and reports all missing ones at once.

    Args:
        root: Folder from which file names start.
        names: Split name to file names; splits without any are left out of the result.
        where: Where people get the files; ends the message.

    Raises:
        CorpusError: If `root` is None or no folder, or a file is missing.
    """
    expected = ", ".join(name for split in names.values() for name in split)
    advice = f" {where}" if where else ""
    if root is None:
        raise CorpusError(
            f"data.root is not set: give data.root=FOLDER, the folder that holds {expected} "
            f"(each also as .gz).{advice}"
        )
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise CorpusError(
            f"data.root={root} is no folder: give the one that holds {expected} "
            f"(each also as .gz).{advice}"
        )
    found = {split: [_find_file(folder, name) for name in names[split]] for split in names}
    missing = [
        name
        for split in names
        for name, path in zip(names[split], found[split], strict=True)
        if path is None
    ]
    if missing:
        raise CorpusError(
            f"{folder.resolve()} lacks {', '.join(missing)} (looked for each also as .gz).{advice}"
        )
    return {
        split: tuple(path for path in paths if path is not None)
        for split, paths in found.items()
        if paths
    }


def _find_file(folder: Path, name: str) -> Path | None:
    path = folder / Path(name).expanduser()
    candidates = (path, path.with_name(path.name + ".gz"), path.with_name(path.stem))
    for candidate in candidates if path.suffix == ".gz" else candidates[:2]:
        if candidate.is_file():
            return candidate
    return None


def warn_of_overlap(train: Sequence[Pair], held_out: Sequence[Pair], name: str) -> None:
    """Warns if many held-out sources were trained on, so that scores would measure memory."""
    trained = {pair.source for pair in train}
    seen = sum(pair.source in trained for pair in held_out)
    if seen > OVERLAP_WARNED * len(held_out):
        logger.warning(
            "%s: %d of %d source sentences also stand in the training text; scores on them "
            "measure memory.",
            name,
            seen,
            len(held_out),
        )
