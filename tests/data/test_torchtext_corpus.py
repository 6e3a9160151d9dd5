from pathlib import Path

import pytest
import torchtext.data.dataset
from torchtext.datasets import TranslationDataset

from seq2seq.data import torchtext_corpus as module
from seq2seq.data.corpus import CorpusError, Pair
from seq2seq.data.torchtext_corpus import torchtext_corpus


@pytest.fixture(autouse=True)
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("torchtext tried to download")

    monkeypatch.setattr(torchtext.data.dataset, "download_from_url", refuse)


def write_split(folder: Path, prefix: str, pairs: list[tuple[str, str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for side, extension in enumerate((".de", ".en")):
        text = "".join(pair[side] + "\n" for pair in pairs)
        (folder / (prefix + extension)).write_bytes(text.encode())


def write_layout(folder: Path, train: str, validation: str, test: str) -> None:
    write_split(folder, train, [("Guten Tag!", "Hello!"), ("zwei  Wörter", "two words")])
    write_split(folder, validation, [("drei", "three")])
    write_split(folder, test, [("vier", "four"), ("fünf", "five")])


LAYOUTS = [
    ("Multi30k", "multi30k", ("train", "val", "test2016")),
    (
        "IWSLT",
        "iwslt/de-en",
        ("train.de-en", "IWSLT16.TED.tst2013.de-en", "IWSLT16.TED.tst2014.de-en"),
    ),
    (
        "WMT14",
        "wmt14",
        (
            "train.tok.clean.bpe.32000",
            "newstest2013.tok.bpe.32000",
            "newstest2014.tok.bpe.32000",
        ),
    ),
    ("TranslationDataset", ".", ("train", "val", "test")),
]


@pytest.mark.parametrize(("dataset", "folder", "prefixes"), LAYOUTS)
def test_dataset_is_read_from_its_layout(
    tmp_path: Path, dataset: str, folder: str, prefixes: tuple[str, str, str]
) -> None:
    write_layout(tmp_path / folder, *prefixes)
    corpus = torchtext_corpus(root=str(tmp_path), dataset=dataset, max_length=9)
    assert corpus.train == [
        Pair("Guten Tag!", "Hello!", 1),
        Pair("zwei  Wörter", "two words", 2),
    ]
    assert corpus.validation == [Pair("drei", "three", 1)]
    assert corpus.test == [Pair("vier", "four", 1), Pair("fünf", "five", 2)]
    assert corpus.max_length == 9


@pytest.mark.parametrize(("dataset", "folder", "prefixes"), LAYOUTS)
def test_missing_files_are_listed_and_nothing_is_downloaded_or_made(
    tmp_path: Path, dataset: str, folder: str, prefixes: tuple[str, str, str]
) -> None:
    with pytest.raises(CorpusError) as error:
        torchtext_corpus(root=str(tmp_path), dataset=dataset)
    assert "nothing is downloaded" in str(error.value)
    for prefix in prefixes:
        for extension in (".de", ".en"):
            assert str(Path(folder) / (prefix + extension)) in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("dataset", "folder", "prefixes"), LAYOUTS)
def test_missing_root_names_the_files(
    dataset: str, folder: str, prefixes: tuple[str, str, str]
) -> None:
    with pytest.raises(CorpusError, match="data.root is not set") as error:
        torchtext_corpus(root=None, dataset=dataset)
    assert str(Path(folder) / (prefixes[2] + ".en")) in str(error.value)


def test_packed_files_are_named_as_the_cause(tmp_path: Path) -> None:
    write_layout(tmp_path, "train", "val", "test")
    (tmp_path / "val.en").rename(tmp_path / "val.en.gz")
    with pytest.raises(CorpusError, match=r"lacks val\.en; .* unpack the \.gz files"):
        torchtext_corpus(root=str(tmp_path), dataset="TranslationDataset")


def test_own_prefixes_and_extensions_are_used(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_layout(tmp_path, "a/train", "dev", "test")
    corpus = torchtext_corpus(
        root=str(tmp_path),
        dataset="TranslationDataset",
        source_extension=".en",
        target_extension=".de",
        train="a/train",
        validation="dev",
    )
    assert corpus.train[0] == Pair("Hello!", "Guten Tag!", 1)


def test_misaligned_files_are_refused_where_torchtext_is_silent(tmp_path: Path) -> None:
    write_layout(tmp_path, "train", "val", "test")
    with (tmp_path / "train.en").open("a") as file:
        file.write("one more\n")
    with pytest.raises(CorpusError, match=r"train\.de has 2 lines but .*train\.en has 3"):
        torchtext_corpus(root=str(tmp_path), dataset="TranslationDataset")


def test_blank_line_on_one_side_drops_its_pair_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_layout(tmp_path, "train", "val", "test")
    write_split(tmp_path, "train", [("a", "A"), ("", "B"), ("c", "C"), ("d", " "), ("e", "E")])
    corpus = torchtext_corpus(root=str(tmp_path), dataset="TranslationDataset")
    assert corpus.train == [Pair("a", "A", 1), Pair("c", "C", 3), Pair("e", "E", 5)]
    assert "dropped 2 of 5 pairs for an empty side (line 2, 4)" in caplog.text


def test_line_that_torchtext_breaks_in_two_is_refused(tmp_path: Path) -> None:
    write_layout(tmp_path, "train", "val", "test")
    write_split(tmp_path, "train", [("a", "A"), ("b\rb", "B"), ("c", "C")])
    with pytest.raises(CorpusError, match="from line 2 on, as it does at a lone carriage return"):
        torchtext_corpus(root=str(tmp_path), dataset="TranslationDataset")


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    write_layout(tmp_path, "train", "val", "test")
    write_split(tmp_path, "train", [("\ufeffa", "A"), ("b\u2028b", "B")])
    corpus = torchtext_corpus(root=str(tmp_path), dataset="TranslationDataset")
    assert corpus.train == [Pair("a", "A", 1), Pair("b\u2028b", "B", 2)]


def test_bytes_that_are_not_utf8_are_refused_with_file_and_line(tmp_path: Path) -> None:
    write_layout(tmp_path, "train", "val", "test")
    (tmp_path / "val.de").write_bytes(b"dr\xfcben\n")
    with pytest.raises(CorpusError, match=r"val\.de, line 1: byte 0xfc isn't UTF-8"):
        torchtext_corpus(root=str(tmp_path), dataset="TranslationDataset")


def test_iwslt_archive_is_stripped_of_its_markup(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "iwslt" / "de-en"
    folder.mkdir(parents=True)
    for language, words in (("de", ("eins", "zwei", "drei")), ("en", ("one", "two", "three"))):
        (folder / f"train.tags.de-en.{language}").write_text(
            f"<url>http://x</url>\n<talkid>1</talkid>\n {words[0]} \n"
        )
        for year, word in (("2013", words[1]), ("2014", words[2])):
            (folder / f"IWSLT16.TED.tst{year}.de-en.{language}.xml").write_text(
                f'<mteval><srcset><doc><seg id="1"> {word} </seg></doc></srcset></mteval>'
            )
    corpus = torchtext_corpus(root=str(tmp_path), dataset="IWSLT")
    assert (corpus.train, corpus.validation, corpus.test) == (
        [Pair("eins", "one", 1)],
        [Pair("zwei", "two", 1)],
        [Pair("drei", "three", 1)],
    )
    assert capsys.readouterr().out == ""


def test_unknown_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="none of Multi30k, IWSLT, WMT14, TranslationDataset"):
        torchtext_corpus(root=str(tmp_path), dataset="WMT20")


def test_examples_come_from_torchtext(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Counting(TranslationDataset):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)
            made.extend(self.examples)

    monkeypatch.setitem(module.DATASETS, "TranslationDataset", Counting)
    write_layout(tmp_path, "train", "val", "test")
    torchtext_corpus(root=str(tmp_path), dataset="TranslationDataset")
    assert [example.src for example in made] == [
        "Guten Tag!",
        "zwei  Wörter",
        "drei",
        "vier",
        "fünf",
    ]
