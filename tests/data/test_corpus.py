import gzip
import logging
import unicodedata
from collections import defaultdict
from pathlib import Path

import pytest

from seq2seq.data.corpus import Corpus, CorpusError, Pair, cut_by_source, parallel_text, read_pairs
from seq2seq.data.public_corpora import g2p, multi30k, scan, tatoeba


def write(path: Path, text: str | bytes) -> Path:
    data = text.encode() if isinstance(text, str) else text
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_two_files(folder: Path, source: str | bytes, target: str | bytes) -> tuple[Path, Path]:
    return write(folder / "train.de", source), write(folder / "train.en", target)


def test_two_files_are_paired_line_by_line(tmp_path: Path) -> None:
    files = write_two_files(tmp_path, "eins\nzwei drei\n", "one\ntwo three\n")
    assert read_pairs(*files) == [Pair("eins", "one", 1), Pair("zwei drei", "two three", 2)]


def test_unequal_line_counts_are_refused_with_both_counts(tmp_path: Path) -> None:
    files = write_two_files(tmp_path, "a\nb\nc\n", "A\nB\n")
    with pytest.raises(CorpusError, match=r"train\.de has 3 lines but .*train\.en has 2"):
        read_pairs(*files)


def test_trailing_blank_line_on_one_side_is_refused(tmp_path: Path) -> None:
    files = write_two_files(tmp_path, "a\nb\n\n", "A\nB\n")
    with pytest.raises(CorpusError, match="3 lines but .* has 2"):
        read_pairs(*files)


def test_missing_newline_at_the_end_is_no_missing_line(tmp_path: Path) -> None:
    files = write_two_files(tmp_path, "a\nb", "A\nB\n")
    assert [pair.source for pair in read_pairs(*files)] == ["a", "b"]


@pytest.mark.parametrize("blank", ["", "   ", "\t", "\u00a0", "\r"])
def test_blank_line_on_one_side_never_shifts_later_pairs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, blank: str
) -> None:
    source = [f"s{i}" for i in range(12)]
    target = [f"t{i}" for i in range(12)]
    source[3], target[7], source[9], target[9] = blank, blank, blank, blank
    files = write_two_files(tmp_path, "\n".join(source) + "\n", "\n".join(target) + "\n")
    with caplog.at_level(logging.WARNING):
        pairs = read_pairs(*files)
    assert [pair.line for pair in pairs] == [1, 2, 3, 5, 6, 7, 9, 11, 12]
    assert all(pair.source[1:] == pair.target[1:] for pair in pairs)
    (record,) = caplog.records
    assert "dropped 3 of 12 pairs" in record.getMessage()
    assert "line 4, 8, 10)" in record.getMessage()


def test_warning_names_only_the_first_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = write_two_files(tmp_path, "a\n" + "\n" * 50, "b\n" * 51)
    read_pairs(*files)
    assert "dropped 50 of 51" in caplog.text
    assert "line 2, 3, 4, 5, 6, ...)" in caplog.text


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r"])
def test_only_a_newline_ends_a_line(tmp_path: Path, separator: str) -> None:
    files = write_two_files(tmp_path, f"a{separator}b\nc\n", "A\nC\n")
    assert [(pair.source, pair.target) for pair in read_pairs(*files)] == [
        (f"a{separator}b", "A"),
        ("c", "C"),
    ]


def test_windows_files_read_like_others(tmp_path: Path) -> None:
    files = write_two_files(tmp_path, b"\xef\xbb\xbfeins\r\nzwei\r\n", "one\ntwo\n")
    assert [pair.source for pair in read_pairs(*files)] == ["eins", "zwei"]


def test_texts_are_composed_characters(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "été")
    files = write_two_files(tmp_path, decomposed + "\n", "summer\n")
    assert read_pairs(*files)[0].source == "été"


@pytest.mark.parametrize("name", ["train.de.gz", "train.de"])
def test_gzip_is_read_whatever_its_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"eins\n"))
    target = write(tmp_path / "train.en", "one\n")
    assert read_pairs(path, target) == [Pair("eins", "one", 1)]


def test_gz_that_is_no_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv.gz"
    path.write_bytes(b"a\tb\n")
    with pytest.raises(CorpusError, match=r"train\.tsv\.gz is named \.gz but isn't gzip"):
        read_pairs(path)


def test_gzip_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv.gz"
    whole = gzip.compress("".join(f"{i}\t{i * i}\n" for i in range(1000)).encode())
    for damaged in (whole[:-20], whole[:200] + b"\0\0\0\0" + whole[204:]):
        path.write_bytes(damaged)
        with pytest.raises(CorpusError, match=r"train\.tsv\.gz is damaged or cut short gzip"):
            read_pairs(path)


def test_bytes_that_are_not_utf8_are_refused_with_file_and_line(tmp_path: Path) -> None:
    files = write_two_files(tmp_path, b"eins\nf\xfcnf\n", "one\nfive\n")
    with pytest.raises(CorpusError, match=r"train\.de, line 2: byte 0xfc isn't UTF-8"):
        read_pairs(*files)


@pytest.mark.parametrize("content", [b"", b"\n", b"\n \n", b"\xef\xbb\xbf"])
def test_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    files = write_two_files(tmp_path, content, "A\n")
    with pytest.raises(CorpusError, match=r"train\.de is empty"):
        read_pairs(*files)


def test_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="can't be read"):
        read_pairs(tmp_path)


def test_text_without_one_whole_pair_is_refused(tmp_path: Path) -> None:
    files = write_two_files(tmp_path, "a\n\n", "\nB\n")
    with pytest.raises(CorpusError, match="every one of the 2 pairs has an empty side"):
        read_pairs(*files)


def test_columns_are_counted_from_one(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.tsv", "1\tone\teins\textra\n\n2\ttwo\tzwei\n")
    assert read_pairs(path, source_column=3, target_column=2) == [
        Pair("eins", "one", 1),
        Pair("zwei", "two", 3),
    ]
    with pytest.raises(CorpusError, match="source_column is 0; columns are counted from 1"):
        read_pairs(path, source_column=0)


def test_missing_column_is_refused_with_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.tsv", "one\teins\ntwo zwei\n")
    with pytest.raises(
        CorpusError, match=r"pairs\.tsv, line 2: column 2 is missing; the line has 1 tab-separated"
    ):
        read_pairs(path)


def test_empty_column_drops_the_pair(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "pairs.tsv", "one\t\ntwo\tzwei\n")
    assert read_pairs(path) == [Pair("two", "zwei", 2)]
    assert "dropped 1 of 2" in caplog.text


def test_pattern_reads_other_layouts(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.txt", "IN: walk twice OUT: I_WALK I_WALK\n")
    pattern = r"IN: (?P<source>.*) OUT: (?P<target>.*)"
    assert read_pairs(path, pattern=pattern) == [Pair("walk twice", "I_WALK I_WALK", 1)]
    write(path, "IN: walk OUT: I_WALK\nwalk\n")
    with pytest.raises(CorpusError, match=r"pairs\.txt, line 2: doesn't match"):
        read_pairs(path, pattern=pattern)


@pytest.mark.parametrize(
    ("pattern", "message"), [("(", "no regular expression"), ("(.*) (.*)", "needs the groups")]
)
def test_unfit_pattern_is_refused(tmp_path: Path, pattern: str, message: str) -> None:
    path = write(tmp_path / "pairs.txt", "a b\n")
    with pytest.raises(CorpusError, match=message):
        read_pairs(path, pattern=pattern)


def pairs_with_translations() -> list[Pair]:
    return [Pair(f"s{i % 70}", f"t{i}", i + 1) for i in range(200)]


def test_cut_keeps_all_translations_of_a_source_on_one_side() -> None:
    pairs = pairs_with_translations()
    kept, cut = cut_by_source(pairs, 20, name="test", seed=3)
    assert not {pair.source for pair in kept} & {pair.source for pair in cut}
    assert sorted(kept + cut) == sorted(pairs)
    assert 20 <= len(cut) < 20 + 3
    assert kept == sorted(kept, key=lambda pair: pair.line)


def test_cut_is_a_draw_by_its_seed() -> None:
    pairs = pairs_with_translations()
    assert cut_by_source(pairs, 20, name="test", seed=3) == cut_by_source(
        pairs, 20, name="test", seed=3
    )
    assert (
        cut_by_source(pairs, 20, name="test", seed=3)[1]
        != cut_by_source(pairs, 20, name="test", seed=4)[1]
    )


@pytest.mark.parametrize("size", [0, -1])
def test_cut_of_nothing_is_refused(size: int) -> None:
    with pytest.raises(CorpusError, match="validation_size"):
        cut_by_source(pairs_with_translations(), size, name="validation", seed=0)


def test_cut_that_leaves_nothing_is_refused_with_the_counts() -> None:
    with pytest.raises(CorpusError, match="200 pairs with 70 different sources"):
        cut_by_source(pairs_with_translations(), 200, name="test", seed=0)


def write_pairs(path: Path, sources: range) -> Path:
    return write(path, "".join(f"s{i}\tt{i}\n" for i in sources))


def test_splits_come_from_their_files(tmp_path: Path) -> None:
    write_pairs(tmp_path / "train.tsv.gz", range(10))
    write_pairs(tmp_path / "dev.tsv", range(10, 13))
    write_pairs(tmp_path / "test.tsv", range(13, 17))
    corpus = parallel_text(
        root=str(tmp_path), train="train.tsv", validation="dev.tsv", test="test.tsv", max_length=7
    )
    assert [len(corpus.train), len(corpus.validation), len(corpus.test)] == [10, 3, 4]
    assert corpus.test_longer == ()
    assert corpus.max_length == 7
    assert corpus.origin["train"].endswith("train.tsv.gz")


def test_splits_without_a_file_are_cut_by_source(tmp_path: Path) -> None:
    write(tmp_path / "all.tsv", "".join(f"s{i % 90}\tt{i}\n" for i in range(200)))
    arguments = {"root": str(tmp_path), "train": "all.tsv", "validation_size": 20, "test_size": 30}
    corpus = parallel_text(**arguments)
    sides = defaultdict(set)
    for split in ("train", "validation", "test"):
        for pair in getattr(corpus, split):
            sides[pair.source].add(split)
    assert len(sides) == 90
    assert all(len(splits) == 1 for splits in sides.values())
    assert sum(map(len, (corpus.train, corpus.validation, corpus.test))) == 200
    assert len(corpus.validation) >= 20 and len(corpus.test) >= 30
    assert parallel_text(**arguments) == corpus
    assert parallel_text(**arguments, seed=1) != corpus


def test_only_the_missing_split_is_cut(tmp_path: Path) -> None:
    write_pairs(tmp_path / "train.tsv", range(100))
    write_pairs(tmp_path / "test.tsv", range(100, 140))
    corpus = parallel_text(
        root=str(tmp_path), train="train.tsv", test="test.tsv", validation_size=15
    )
    assert [len(corpus.train), len(corpus.validation), len(corpus.test)] == [85, 15, 40]
    assert "cut by seed 0" in corpus.origin["validation"]


def test_all_missing_files_are_named_at_once(tmp_path: Path) -> None:
    write(tmp_path / "train.de", "a\n")
    with pytest.raises(CorpusError, match=r"lacks train\.en, dev\.tsv \(looked"):
        parallel_text(
            root=str(tmp_path),
            train_source="train.de",
            train_target="train.en",
            validation="dev.tsv",
        )


@pytest.mark.parametrize(
    "files",
    [
        {"train": "a.tsv", "train_source": "a.de"},
        {"train_source": "a.de"},
        {"train": "a.tsv", "test_target": "a.en"},
    ],
)
def test_files_that_do_not_go_together_are_refused(tmp_path: Path, files: dict[str, str]) -> None:
    with pytest.raises(CorpusError, match="don't go together"):
        parallel_text(root=str(tmp_path), **files)


def test_no_training_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no training text is named"):
        parallel_text(root=str(tmp_path), test="test.tsv")


def test_impossible_max_length_is_refused() -> None:
    with pytest.raises(CorpusError, match="max_length is 0"):
        Corpus(train=[], validation=[], test=[], max_length=0)


def test_test_text_that_was_trained_on_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_pairs(tmp_path / "train.tsv", range(100))
    write_pairs(tmp_path / "dev.tsv", range(99, 120))
    write_pairs(tmp_path / "test.tsv", range(10))
    parallel_text(root=str(tmp_path), train="train.tsv", validation="dev.tsv", test="test.tsv")
    (record,) = caplog.records
    assert "test.tsv: 10 of 10 source sentences also stand in the training text" in (
        record.getMessage()
    )


@pytest.mark.parametrize(
    ("corpus", "file", "address"),
    [
        (multi30k, "test_2016_flickr.de", "github.com/multi30k/dataset"),
        (tatoeba, "fra-eng.tsv", "manythings.org/anki"),
        (g2p, "fre_dev.tsv", "github.com/sigmorphon/2021-task1"),
        (scan, "simple_train.txt", "github.com/brendenlake/SCAN"),
    ],
)
@pytest.mark.parametrize("root", [None, "no-such-folder", "."])
def test_missing_root_says_which_files_are_expected_and_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus, file: str, address: str, root
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CorpusError) as error:
        corpus(root=root)
    assert file in str(error.value)
    assert address in str(error.value)


def test_unknown_scan_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="none of simple, length, addprim_jump"):
        scan(root=str(tmp_path), split="jump")


def test_scan_is_found_in_a_checkout_of_its_repository(tmp_path: Path) -> None:
    lines = "".join(f"IN: walk {i} OUT: I_WALK\n" for i in range(30))
    write(tmp_path / "length_split" / "tasks_train_length.txt", lines)
    write(tmp_path / "length_split" / "tasks_test_length.txt", "IN: run OUT: I_RUN\n")
    corpus = scan(root=str(tmp_path), split="length", validation_size=5)
    assert [len(corpus.train), len(corpus.validation)] == [25, 5]
    assert corpus.test == [Pair("run", "I_RUN", 1)]
