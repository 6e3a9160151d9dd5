"""The translation datasets of torchtext 0.6, as they lie on disk; the only user of torchtext.

torchtext zips two files to the shorter one, breaks lines where Python does, and downloads what
it misses. So files and alignment are checked here first, its examples are compared with what
the strict reader of `corpus` finds, and nothing is ever downloaded.
"""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import ParseError

from torchtext.data import Field
from torchtext.datasets import IWSLT, WMT14, Multi30k, TranslationDataset

from seq2seq.data.corpus import Corpus, CorpusError, Pair, normalize, read_pairs, warn_of_overlap

DATASETS: dict[str, type[TranslationDataset]] = {
    "Multi30k": Multi30k,
    "IWSLT": IWSLT,
    "WMT14": WMT14,
    "TranslationDataset": TranslationDataset,
}
# The prefixes that torchtext's own `splits` expect, for train, validation and test.
PREFIXES = {
    "Multi30k": ("train", "val", "test2016"),
    "IWSLT": ("train", "IWSLT16.TED.tst2013", "IWSLT16.TED.tst2014"),
    "WMT14": (
        "train.tok.clean.bpe.32000",
        "newstest2013.tok.bpe.32000",
        "newstest2014.tok.bpe.32000",
    ),
    "TranslationDataset": ("train", "val", "test"),
}


def torchtext_corpus(
    *,
    root: str | None,
    dataset: str = "Multi30k",
    source_extension: str = ".de",
    target_extension: str = ".en",
    train: str | None = None,
    validation: str | None = None,
    test: str | None = None,
    max_length: int | None = None,
) -> Corpus:
    """Loads a translation dataset through torchtext, from the folders that torchtext makes.

    Below `root`, Multi30k lies in `multi30k`, IWSLT in `iwslt/SOURCE-TARGET` (of which the
    unpacked archive is enough: torchtext strips its markup), WMT14 in `wmt14`, and any other
    `TranslationDataset` in `root` itself.

    Args:
        root: torchtext's root folder.
        dataset: Multi30k, IWSLT, WMT14 or TranslationDataset.
        source_extension: What follows the prefix in the names of source files, such as `.de`.
        target_extension: The same for target files.
        train: Prefix of the training files; None for the dataset's own.
        validation: Prefix of the validation files; None for the dataset's own.
        test: Prefix of the test files; None for the dataset's own.
        max_length: Longest side of a training pair, in tokens; None for no limit.

    Raises:
        CorpusError: If a file is missing or unfit, two sides differ in their number of lines, or
            torchtext pairs lines in another way than they stand in the files.
    """
    if dataset not in DATASETS:
        raise CorpusError(f"data.dataset={dataset} is none of {', '.join(DATASETS)}.")
    extensions = (source_extension, target_extension)
    splits = ("train", "validation", "test")
    prefixes = dict(zip(splits, PREFIXES[dataset], strict=True))
    for split, prefix in zip(splits, (train, validation, test), strict=True):
        if prefix is not None:
            prefixes[split] = prefix
    relative = Path(getattr(DATASETS[dataset], "name", ""))
    if dataset == "IWSLT":
        languages = "-".join(extension.removeprefix(".") for extension in extensions)
        relative /= languages
        prefixes = {split: f"{prefix}.{languages}" for split, prefix in prefixes.items()}
    names = [relative / (prefixes[split] + end) for split in splits for end in extensions]
    if root is None:
        raise CorpusError(
            "data.root is not set: give data.root=FOLDER, torchtext's root folder, which holds "
            f"{', '.join(map(str, names))}."
        )
    folder = Path(root).expanduser()
    if dataset == "IWSLT":
        _strip_markup(folder / relative, prefixes, extensions)
    _check_files(folder, names)

    pairs = {
        split: _load(DATASETS[dataset], folder / relative / prefixes[split], extensions)
        for split in splits
    }
    origin = {
        split: f"torchtext {dataset}, {folder / relative / prefixes[split]}" for split in splits
    }
    for split in ("validation", "test"):
        warn_of_overlap(pairs["train"], pairs[split], origin[split])
    return Corpus(**pairs, max_length=max_length, origin=origin)


def _check_files(folder: Path, names: Sequence[Path]) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        packed = any((folder / f"{name}.gz").is_file() for name in missing)
        raise CorpusError(
            f"{folder} lacks {', '.join(map(str, missing))}; nothing is downloaded"
            + (": unpack the .gz files there first, torchtext reads plain text." if packed else ".")
        )


def _strip_markup(folder: Path, prefixes: dict[str, str], extensions: tuple[str, str]) -> None:
    """Has torchtext make plain text of an unpacked IWSLT archive, once, as its `splits` does."""
    made = all((folder / (prefixes["train"] + end)).is_file() for end in extensions)
    raw = all((folder / f"train.tags.{folder.name}{end}").is_file() for end in extensions)
    if made or not raw:
        return
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints every file name
            IWSLT.clean(str(folder))
    except (OSError, ParseError, AttributeError) as error:  # the last for an empty segment
        raise CorpusError(
            f"torchtext can't strip the markup of the IWSLT files in {folder}: {error}."
        ) from error


def _load(
    dataset: type[TranslationDataset], prefix: Path, extensions: tuple[str, str]
) -> list[Pair]:
    """Loads one split through torchtext and checks it against the strict reader."""
    source, target = (prefix.with_name(prefix.name + end) for end in extensions)
    checked = read_pairs(source, target)
    # Not sequential: torchtext leaves the text whole, tokenizers come later.
    text = Field(sequential=False)
    examples = dataset(str(prefix), extensions, (text, text)).examples
    if examples:  # torchtext keeps a byte order mark as text
        examples[0].src = examples[0].src.removeprefix("\ufeff")
        examples[0].trg = examples[0].trg.removeprefix("\ufeff")
    pairs = [
        Pair(normalize(example.src), normalize(example.trg), pair.line)
        for example, pair in zip(examples, checked, strict=False)
    ]
    if len(examples) != len(checked) or pairs != checked:
        differing = (pair.line for pair, read in zip(checked, pairs, strict=False) if pair != read)
        raise CorpusError(
            f"torchtext splits the lines of {source} and {target} otherwise than they stand, from "
            f"line {next(differing, len(pairs))} on, as it does at a lone carriage return; "
            "remove it."
        )
    return pairs
