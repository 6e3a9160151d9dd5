"""Layouts of public corpora that people keep on their own disks.

Each function names the files of one corpus as its authors publish them, and where to get them;
reading and checking is the parallel reader's. Nothing is downloaded.
"""

from pathlib import Path

from seq2seq.data.corpus import Corpus, CorpusError, parallel_text

SCAN_SPLITS = {
    "simple": "simple_split",
    "length": "length_split",
    "addprim_jump": "add_prim_split",
    "addprim_turn_left": "add_prim_split",
}


def multi30k(
    *,
    root: str | None,
    source_language: str = "de",
    target_language: str = "en",
    max_length: int | None = None,
) -> Corpus:
    """Image captions in English, German and French: 29,000 / 1,014 / 1,000 pairs.

    Source: Elliott et al. 2016, "Multi30K: Multilingual English-German Image Descriptions"; test
    is the 2016 Flickr set.

    Args:
        root: Folder with `train.LANGUAGE`, `val.LANGUAGE` and `test_2016_flickr.LANGUAGE`.
        source_language: Ending of the source files: de, en, fr (or cs, where it is there).
        target_language: Ending of the target files.
        max_length: Longest side of a training pair, in tokens; None for no limit.
    """
    return parallel_text(
        root=root,
        train_source=f"train.{source_language}",
        train_target=f"train.{target_language}",
        validation_source=f"val.{source_language}",
        validation_target=f"val.{target_language}",
        test_source=f"test_2016_flickr.{source_language}",
        test_target=f"test_2016_flickr.{target_language}",
        max_length=max_length,
        where="They are in data/task1/raw of https://github.com/multi30k/dataset.",
    )


def tatoeba(
    *,
    root: str | None,
    file: str = "fra-eng.tsv",
    source_column: int = 1,
    target_column: int = 2,
    validation_size: int = 1000,
    test_size: int = 1000,
    seed: int = 0,
    max_length: int | None = None,
) -> Corpus:
    """Short sentences from tatoeba.org, one `english<TAB>other` file, split by source sentence.

    The file is sorted by length and repeats a sentence for each of its translations, so splits
    are drawn by seed, and all translations of one sentence stay together.

    Args:
        root: Folder with the file.
        file: Its name.
        source_column: Column of the source side; 1 is English.
        target_column: Column of the target side; 2 is the other language.
        validation_size: Pairs to cut off at least for validation.
        test_size: Pairs to cut off at least for the test.
        seed: Seed of the cuts.
        max_length: Longest side of a training pair, in tokens; None for no limit.
    """
    return parallel_text(
        root=root,
        train=file,
        source_column=source_column,
        target_column=target_column,
        validation_size=validation_size,
        test_size=test_size,
        seed=seed,
        max_length=max_length,
        where=(
            "https://www.manythings.org/anki has it as fra-eng.zip; the fra.txt in it is that "
            "file (data.file=fra.txt)."
        ),
    )


def g2p(*, root: str | None, language: str = "fre", max_length: int | None = None) -> Corpus:
    """Grapheme to phoneme: words and their pronunciations, `word<TAB>phones`.

    Source: Ashby et al. 2021, "Results of the Second SIGMORPHON Shared Task on Multilingual
    Grapheme-to-Phoneme Conversion".

    Args:
        root: Folder with `LANGUAGE_train.tsv`, `LANGUAGE_dev.tsv` and `LANGUAGE_test.tsv`.
        language: Three-letter code of the language, such as fre, hun, dut, kor, ita, ice, gre.
        max_length: Longest side of a training pair, in tokens; None for no limit.
    """
    return parallel_text(
        root=root,
        train=f"{language}_train.tsv",
        validation=f"{language}_dev.tsv",
        test=f"{language}_test.tsv",
        max_length=max_length,
        where=(
            "They are in data/low, data/medium and data/high of "
            "https://github.com/sigmorphon/2021-task1."
        ),
    )


def scan(
    *,
    root: str | None,
    split: str = "simple",
    validation_size: int = 1000,
    seed: int = 0,
    max_length: int | None = None,
) -> Corpus:
    """Commands to action sequences, a test of systematic generalization.

    Source: Lake and Baroni 2018, "Generalization without Systematicity". The corpus has no
    validation split: it is cut off the training split, and so says nothing about generalization
    to the test split.

    Args:
        root: Folder with `SPLIT_train.txt` and `SPLIT_test.txt`, or a checkout of the authors'
            repository.
        split: simple, length, addprim_jump or addprim_turn_left.
        validation_size: Pairs to cut off the training split.
        seed: Seed of the cut.
        max_length: Longest side of a training pair, in tokens; None for no limit.

    Raises:
        CorpusError: If `split` is none of the four, or a file is missing or unfit.
    """
    if split not in SCAN_SPLITS:
        raise CorpusError(f"data.split={split} is none of {', '.join(SCAN_SPLITS)}.")
    train, test = f"{split}_train.txt", f"{split}_test.txt"
    authors_folder = SCAN_SPLITS[split]
    if root is not None and (Path(root).expanduser() / authors_folder).is_dir():
        train = f"{authors_folder}/tasks_train_{split}.txt"
        test = f"{authors_folder}/tasks_test_{split}.txt"
    return parallel_text(
        root=root,
        train=train,
        test=test,
        pattern=r"IN: (?P<source>.*) OUT: (?P<target>.*)",
        validation_size=validation_size,
        seed=seed,
        max_length=max_length,
        where=(
            "https://github.com/brendenlake/SCAN has them as tasks_train_*.txt and "
            "tasks_test_*.txt in a folder for each split; data.root may be a checkout of it."
        ),
    )
