"""The public corpora as they are, where a folder of them is present."""

import gzip
import logging
from pathlib import Path

import pytest

from seq2seq.data.corpus import Corpus, parallel_text
from seq2seq.data.public_corpora import g2p, multi30k, scan, tatoeba
from seq2seq.data.torchtext_corpus import torchtext_corpus


def folder(corpora_root: Path, name: str) -> str:
    path = corpora_root / name
    if not path.is_dir():
        pytest.skip(f"no {name} in {corpora_root}")
    return str(path)


def sizes(corpus: Corpus) -> tuple[int, int, int]:
    return len(corpus.train), len(corpus.validation), len(corpus.test)


@pytest.mark.parametrize("languages", [("de", "en"), ("en", "fr")])
def test_multi30k_has_its_published_sizes(
    corpora_root: Path, caplog: pytest.LogCaptureFixture, languages: tuple[str, str]
) -> None:
    source, target = languages
    corpus = multi30k(
        root=folder(corpora_root, "multi30k"), source_language=source, target_language=target
    )
    assert sizes(corpus) == (29000, 1014, 1000)
    assert not caplog.records


def test_multi30k_pairs_belong_together(corpora_root: Path) -> None:
    train = multi30k(root=folder(corpora_root, "multi30k")).train
    assert train[0][:2] == (
        "Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche.",
        "Two young, White males are outside near many bushes.",
    )
    # Shifted pairs would have unrelated lengths.
    both = [(len(pair.source), len(pair.target)) for pair in train]
    mean = [sum(lengths[side] for lengths in both) / len(both) for side in (0, 1)]
    covariance = sum((s - mean[0]) * (t - mean[1]) for s, t in both)
    variances = [sum((lengths[side] - mean[side]) ** 2 for lengths in both) for side in (0, 1)]
    assert covariance / (variances[0] * variances[1]) ** 0.5 > 0.8


def test_tatoeba_is_cut_by_source_sentence(corpora_root: Path) -> None:
    corpus = tatoeba(root=folder(corpora_root, "tatoeba"))
    sources = [{pair.source for pair in split} for split in (corpus.train, corpus.validation)]
    sources.append({pair.source for pair in corpus.test})
    assert sum(sizes(corpus)) == 142787
    assert sum(map(len, sources)) == len(set().union(*sources)) == 98659
    assert 1000 <= len(corpus.validation) < 1100 and 1000 <= len(corpus.test) < 1100


@pytest.mark.parametrize(
    ("language", "expected"),
    [(language, (8000, 1000, 1000)) for language in ("fre", "hun", "dut", "kor")]
    + [(language, (800, 100, 100)) for language in ("ita", "ice", "gre")],
)
def test_g2p_has_its_published_sizes(
    corpora_root: Path, language: str, expected: tuple[int, int, int]
) -> None:
    assert sizes(g2p(root=folder(corpora_root, "g2p"), language=language)) == expected


@pytest.mark.parametrize(
    ("split", "train", "test"),
    [
        ("simple", 16728, 4182),
        ("length", 16990, 3920),
        ("addprim_jump", 14670, 7706),
        ("addprim_turn_left", 21890, 1208),
    ],
)
def test_scan_has_its_published_sizes(
    corpora_root: Path, split: str, train: int, test: int
) -> None:
    corpus = scan(root=folder(corpora_root, "scan"), split=split)
    assert len(corpus.train) + len(corpus.validation) == train
    assert len(corpus.test) == test
    assert not {pair.source for pair in corpus.train} & {pair.source for pair in corpus.validation}
    words = {word for pair in corpus.train for word in pair.source.split()}
    actions = {action for pair in corpus.train for action in pair.target.split()}
    assert (len(words), len(actions)) == (13, 6)


def test_other_corpora_are_parallel_text(corpora_root: Path) -> None:
    inflection = parallel_text(
        root=folder(corpora_root, "inflection"),
        train="spanish-train-high.tsv",
        validation="spanish-dev.tsv",
        test="spanish-test.tsv",
    )
    assert sizes(inflection) == (10000, 1000, 1000)
    tanaka = parallel_text(
        root=folder(corpora_root, "tanaka_enja"),
        train_source="train.en",
        train_target="train.ja",
        validation_source="dev.en",
        validation_target="dev.ja",
        test_source="test.en",
        test_target="test.ja",
    )
    assert sizes(tanaka) == (50000, 500, 500)


def test_torchtext_reads_multi30k_as_our_reader_does(
    corpora_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = Path(folder(corpora_root, "multi30k"))
    (tmp_path / "multi30k").mkdir()
    for ours, theirs in (("train", "train"), ("val", "val"), ("test_2016_flickr", "test2016")):
        for language in ("de", "en"):
            packed = (root / f"{ours}.{language}.gz").read_bytes()
            (tmp_path / "multi30k" / f"{theirs}.{language}").write_bytes(gzip.decompress(packed))
    with caplog.at_level(logging.WARNING):
        corpus = torchtext_corpus(root=str(tmp_path), dataset="Multi30k")
    expected = multi30k(root=str(root))
    assert sizes(corpus) == (29000, 1014, 1000)
    assert (corpus.train, corpus.validation, corpus.test) == (
        expected.train,
        expected.validation,
        expected.test,
    )
    assert not caplog.records
