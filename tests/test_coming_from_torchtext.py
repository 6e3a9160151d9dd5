"""The page for those who come from torchtext: each of its lines is run, on both sides."""

import contextlib
import io
import logging
import random
import re
import ssl
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from omegaconf import DictConfig
from torchtext.data import BucketIterator, Field, TabularDataset
from torchtext.datasets import TranslationDataset
from torchtext.vocab import Vectors

from seq2seq.assembly import (
    build_datamodule,
    build_module,
    initialize_weights,
    read_vectors,
)
from seq2seq.config import config_folder, register
from seq2seq.config_checks import check_sizes
from seq2seq.data.batch import Batch
from seq2seq.data.corpus import CorpusError, Pair, read_pairs
from seq2seq.data.datamodule import TranslationDataModule
from seq2seq.data.tokenizer import BOS_ID, EOS_ID, PAD_ID, SPECIAL_TOKENS, Tokenizer
from seq2seq.data.tokenizer import train_tokenizer as train
from seq2seq.data.torchtext_vectors import read_vectors as read

PAGE = Path(__file__).resolve().parents[1] / "docs" / "coming_from_torchtext.md"
TEXT = PAGE.read_text(encoding="utf-8")
# What follows "scripts/train" on the page, and its two blocks of Python.
(COMMAND,) = re.findall(r"^    scripts/train (.*)$", TEXT, re.MULTILINE)
SETUP, FUNCTION = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
SMALL = "model.hidden_size=4 trainer.accelerator=cpu run_folder=run"

SOURCES = "der Hund (klein) schläft . ! wo , die Katze , und das Haus ?".split()
TARGETS = "the dog (small) sleeps . ! where , the cat , and the house ?".split()
EXTENSIONS = (".de", ".en")


def table(heading: str) -> list[list[str]]:
    """The rows below a heading of the page, as three columns without their backquotes."""
    (section,) = [part for part in TEXT.split("\n## ")[1:] if part.startswith(heading)]
    rows = [line for line in section.splitlines() if line.startswith("| ")][2:]
    return [[cell.strip(" `") for cell in row.strip("|").split(" | ")] for row in rows]


def lines(heading: str) -> Any:
    """Both sides of each row."""
    rows = [(left, right) for left, right, _ in table(heading)]
    return pytest.mark.parametrize(("left", "right"), rows, ids=lambda side: side[:30])


def sentences(words: Sequence[str], count: int) -> list[str]:
    """Of 1 to 9 words, as many in every language; the last has words of its own."""
    chosen = random.Random(0)
    made = [" ".join(chosen.choices(words, k=1 + index % 9)) for index in range(count - 1)]
    return [*made, f"{words[0]} {words[0]}2 {words[1]}2"]


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The corpus of the page in the current folder, and what the page's Python leaves behind."""
    monkeypatch.chdir(tmp_path)
    # torchtext would leave it switched off.
    monkeypatch.setattr(ssl, "_create_default_https_context", ssl.create_default_context)
    for folder in ("corpus", ".data/multi30k"):
        Path(folder).mkdir(parents=True)
        for split, count in {"train": 30, "val": 6, "dev": 5, "test": 5, "test2016": 4}.items():
            for words, end in zip((SOURCES, TARGETS), EXTENSIONS, strict=True):
                write(f"{folder}/{split}{end}", sentences(words, count))
    pairs = zip(sentences(SOURCES, 30), sentences(TARGETS, 30), strict=True)
    write("pairs.tsv", [f"{source}\t{target}" for source, target in pairs])
    write("vectors.txt", [f"{word} {index} 0.5 -1 2" for index, word in enumerate(SOURCES[::4])])
    left_behind: dict[str, Any] = {"random": random}
    exec(SETUP + FUNCTION, left_behind)
    return left_behind


def write(path: str, text: Iterable[str]) -> str:
    Path(path).write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    return path


def run(line: str, names: dict[str, Any]) -> Any:
    with contextlib.redirect_stderr(io.StringIO()):  # torchtext's progress bar
        return eval(line, names)


@cache
def composed(overrides: str) -> DictConfig:
    command = [one for one in COMMAND.split() if "data=" not in overrides or "data" not in one]
    register()
    with hydra.initialize_config_dir(config_folder(), version_base="1.3"):
        return hydra.compose("train", [*command, *SMALL.split(), *overrides.split()])


def built(overrides: str) -> TranslationDataModule:
    return build_datamodule(composed(overrides))


def words(tokenizer: Tokenizer) -> set[str]:
    return set(tokenizer.texts()[len(SPECIAL_TOKENS) :])


def theirs(examples: Iterable[Any]) -> list[tuple[str, str]]:
    return [(" ".join(one.src), " ".join(one.trg)) for one in examples]


def ours(pairs: Iterable[Pair]) -> list[tuple[str, str]]:
    return [(pair.source, pair.target) for pair in pairs]


def test_the_command_builds_what_the_setup_builds(names: dict[str, Any]) -> None:
    check_sizes(composed(""))
    data = built("")
    for name, split in (("train", "train"), ("valid", "validation"), ("test", "test")):
        assert theirs(names[name]) == ours(getattr(data.corpus, split))
    for name, tokenizer in (("SRC", data.source_tokenizer), ("TRG", data.target_tokenizer)):
        assert words(tokenizer) == set(names[name].vocab.itos) - set(SPECIAL_TOKENS)
    assert len(names["iterator"]) == len(data.train_dataloader())


@lines("Field")
def test_a_field_and_its_overrides_make_the_same_tokens(
    names: dict[str, Any], left: str, right: str
) -> None:
    field, data = run(left, names), built(right)
    for pair in data.corpus.train:
        tokens = data.source_tokenizer.tokens(data.source_tokenizer.encode(pair.source))
        shown = [one.replace("▁", " ").strip() or " " for one in tokens]
        assert shown == field.preprocess(pair.source)
    for argument, check in FIELD_ARGUMENTS.items():
        if argument in left:
            batch = next(iter(data.train_dataloader()))
            texts = [data.split("train").pairs[row].target.split() for row in batch.index]
            field.build_vocab(texts)
            check(field, data, batch, texts)


def targets_have_both_symbols(
    field: Field, data: TranslationDataModule, batch: Batch, texts: list[list[str]]
) -> None:
    expected = [[field.vocab.itos[id] for id in row] for row in field.process(texts).T]
    assert [data.target_tokenizer.tokens(row) for row in batch.target.tolist()] == expected
    for row, length in zip(batch.source.tolist(), batch.source_lengths.tolist(), strict=True):
        assert row.index(EOS_ID) == length - 1 and BOS_ID not in row
        assert row[length:] == [PAD_ID] * (len(row) - length)


def batches_know_their_lengths(
    field: Field, data: TranslationDataModule, batch: Batch, texts: list[list[str]]
) -> None:
    padded, lengths = field.process(texts)
    assert padded.shape == (len(texts), lengths.max())
    assert batch.labels.shape == (batch.target_lengths.sum(),)
    assert batch.decoder_input.shape == (len(texts), lengths.max() + 1)  # <bos> as well
    assert torch.equal(batch.target_lengths, lengths + 1)  # <eos> as well


def long_pairs_are_left_out_not_cut(
    field: Field, data: TranslationDataModule, batch: Batch, texts: list[list[str]]
) -> None:
    everything = [pair.source.split() for pair in data.corpus.train]
    assert {len(row) for row in field.pad(everything)} == {5} != {len(row) for row in everything}
    short = [pair for pair in data.corpus.train if len(pair.source.split()) <= 5]
    assert data.split("train").pairs == short != data.corpus.train


FIELD_ARGUMENTS: dict[str, Callable[..., None]] = {
    "init_token": targets_have_both_symbols,
    "include_lengths": batches_know_their_lengths,
    "fix_length": long_pairs_are_left_out_not_cut,
}


@lines("Vocab")
def test_a_vocabulary_and_its_overrides_hold_the_same_words(
    names: dict[str, Any], left: str, right: str
) -> None:
    run(left, names)
    theirs, data = names["SRC"].vocab, built(right)
    tokenizer = data.source_tokenizer
    assert words(tokenizer) == set(theirs.itos) - {"<unk>", "<pad>"}
    assert [theirs.itos[id] for id in range(2)] == ["<unk>", "<pad>"]
    assert tokenizer.tokens(range(4)) == ["<pad>", "<bos>", "<eos>", "<unk>"]
    unknown = theirs.itos[theirs.stoi["unheard"]], *tokenizer.tokens(tokenizer.encode("unheard"))
    assert unknown == ("<unk>", "<unk>")
    if "min_freq" in left or "max_size" in left:
        assert words(tokenizer) < words(built("").source_tokenizer)
    if "max_size" in left:
        assert (len(theirs), tokenizer.vocabulary_size) == (2 + 8, 4 + 8)
    if "train.trg" in left:
        assert data.target_tokenizer is tokenizer
    if "vectors" in left:
        found_words_have_the_same_vectors(theirs, data, composed(right))


def found_words_have_the_same_vectors(
    theirs: Any, data: TranslationDataModule, config: DictConfig
) -> None:
    check_sizes(config)
    module, without = build_module(config, data), build_module(config, data)
    initialize_weights(config, module, data.split("train"), read_vectors(config, module))
    initialize_weights(config, without, data.split("train"))
    tables = [one.model.encoder.embedding.weight.detach() for one in (module, without)]
    known = Path("vectors.txt").read_text().split()
    for token, text in list(enumerate(data.source_tokenizer.texts()))[len(SPECIAL_TOKENS) :]:
        vector = theirs.vectors[theirs.stoi[text]]
        assert vector.any() == (text in known)
        assert torch.equal(tables[0][token], vector if text in known else tables[1][token])
        assert tables[1][token].any()


@lines("Datasets")
def test_a_dataset_and_its_overrides_hold_the_same_pairs(
    names: dict[str, Any], left: str, right: str
) -> None:
    made, data = run(left, names), built(right)
    splits = [data.corpus.train, data.corpus.validation, data.corpus.test]
    together = Counter(pair for split in splits for pair in ours(split))
    if ".splits(" in left:
        assert [theirs(one) for one in made] == [ours(split) for split in splits]
    elif "filter_pred" in left:
        assert theirs(made) == ours(data.split("train").pairs) != ours(data.corpus.train)
    elif ".split(" in left:
        assert [len(one) for one in made] == [24, 3, 3]
        assert len(splits[0]) <= 24 and len(splits[1]) >= 3 and len(splits[2]) >= 3
        assert Counter(pair for one in made for pair in theirs(one)) == together
        sources = [{pair.source for pair in split} for split in splits]
        assert sum(map(len, sources)) == len(set.union(*sources))
    else:  # two splits have no file and are cut off the first
        assert Counter(theirs(made)) == together
        left_over = set(ours(splits[0]))
        assert [pair for pair in theirs(made) if pair in left_over] == ours(splits[0])


@lines("BucketIterator")
def test_an_iterator_and_its_overrides_make_batches_alike(
    names: dict[str, Any], left: str, right: str
) -> None:
    made, data = run(left, names), built(right)
    if left.startswith("random.seed"):
        return the_same_batches_come_again(left, right, names)
    evaluated = "valid" in left
    loader = data.val_dataloader() if evaluated else data.train_dataloader()
    found, expected = [list(loader), [batch.trg for batch in made]]
    assert sorted(torch.cat([one.index for one in found]).tolist()) == [*range(len(made.dataset))]
    lengths = [(one.target_lengths - 1).tolist() for one in found]
    pad = names["TRG"].vocab.stoi["<pad>"]
    their_lengths = [((one != pad).sum(0) - 2).tolist() for one in expected]
    assert Counter(chain(*lengths)) == Counter(chain(*their_lengths))
    if "batch_size_fn" in left:
        assert max(one[1:].numel() for one in expected) <= 40
        assert max(one.decoder_input.numel() for one in found) <= 40
        return None
    assert Counter(map(len, lengths)) == Counter(map(len, their_lengths))
    if evaluated:
        assert [max(one) for one in lengths] == sorted(max(one) for one in their_lengths)
        assert [one.index.tolist() for one in loader] == [one.index.tolist() for one in found]
        return None
    if "sort_within_batch" in left:  # one pool: the same lengths come together
        assert sorted(map(sorted, lengths)) == sorted(map(sorted, their_lengths))
    else:
        assert padding(lengths) < padding(their_lengths)
    first, second = (data.train_dataloader().batch_order.batches(epoch) for epoch in (0, 1))
    assert [one.tolist() for one in first] != [one.tolist() for one in second]


def padding(lengths: list[list[int]]) -> int:
    return sum(max(batch) * len(batch) - sum(batch) for batch in lengths)


def the_same_batches_come_again(left: str, right: str, names: dict[str, Any]) -> None:
    orders = []
    for _ in range(2):
        run(left, names)
        again = BucketIterator(names["train"], batch_size=4)
        orders.append([batch.src.tolist() for batch in again])
    assert orders[0] == orders[1]

    def order(overrides: str) -> list[list[int]]:
        return [batch.index.tolist() for batch in built(overrides).train_dataloader()]

    assert order(right) == order(right) != order("")


def longer_file(caplog: pytest.LogCaptureFixture) -> None:
    write("a.de", ["eins", "zwei"])
    write("a.en", ["one"])
    field = Field()
    assert len(TranslationDataset("a", EXTENSIONS, (field, field))) == 1
    with pytest.raises(CorpusError, match="has 2 lines but a.en has 1"):
        read_pairs(Path("a.de"), Path("a.en"))


def empty_side(caplog: pytest.LogCaptureFixture) -> None:
    write("a.de", ["eins", "", "drei"])
    write("a.en", ["one", "two", "three"])
    field = Field()
    made = TranslationDataset("a", EXTENSIONS, (field, field))
    assert theirs(made) == ours(read_pairs(Path("a.de"), Path("a.en")))
    (record,) = caplog.records
    assert "dropped 1 of 3 pairs for an empty side (line 2)" in record.getMessage()


def quotation_mark(caplog: pytest.LogCaptureFixture) -> None:
    write("a.tsv", ['"eins\tone', 'zwei"\ttwo', "drei\tthree"])
    fields = [("src", Field()), ("trg", Field())]
    made = TabularDataset("a.tsv", "tsv", fields)
    assert [one.src for one in made] == [["eins", "one", "zwei"], ["drei"]]
    read = read_pairs(Path("a.tsv"))
    assert ours(read) == [('"eins', "one"), ('zwei"', "two"), ("drei", "three")]


def control_tokens(caplog: pytest.LogCaptureFixture) -> None:
    field = Field()
    field.build_vocab([["a", "<unk>", "<pad>"]])
    assert field.vocab.itos == ["<unk>", "<pad>", "a"]
    tokenizer = train(["a <unk> <pad>"], kind="whitespace")
    assert words(tokenizer) == {"a", "<unk>", "<pad>"}
    assert tokenizer.decode(tokenizer.encode("<pad> a <unk>")) == "<pad> a <unk>"


def several_spaces(caplog: pytest.LogCaptureFixture) -> None:
    assert Field(tokenize=list).preprocess("a  b") == ["a", " ", " ", "b"]
    assert len(train(["a  b"], kind="character").encode("a  b")) == 3


def other_space(caplog: pytest.LogCaptureFixture) -> None:
    assert Field(tokenize=list).preprocess("a\tb") == ["a", "\t", "b"]
    tokenizer = train(["a b"], kind="character")
    assert tokenizer.encode("a\tb") == tokenizer.encode("a b")


def their_vectors_of(path: str, tokenizer: Tokenizer) -> torch.Tensor:
    with contextlib.redirect_stderr(io.StringIO()):
        return Vectors(path).get_vecs_by_tokens(["a"])


def our_vectors_of(path: str, tokenizer: Tokenizer) -> torch.Tensor:
    return read(path, tokenizer, width=3, key="pretrained_vectors.source", width_key="").vectors


def changed_vectors(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = train(["a"], kind="word")
    for numbers in ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]):
        path = write("a.txt", [f"a {' '.join(map(str, numbers))}"])
        assert our_vectors_of(path, tokenizer).tolist() == [numbers]
        assert their_vectors_of(path, tokenizer).tolist() == [[1.0, 2.0, 3.0]]
    assert [path.name for path in Path(".vector_cache").iterdir()] == ["a.txt.pt"]


def https(caplog: pytest.LogCaptureFixture) -> None:
    path, tokenizer = write("a.txt", ["a 1 2 3"]), train(["a"], kind="word")
    our_vectors_of(path, tokenizer)
    assert ssl._create_default_https_context().verify_mode == ssl.CERT_REQUIRED
    their_vectors_of(path, tokenizer)
    assert ssl._create_default_https_context().verify_mode == ssl.CERT_NONE


DIFFERENCES = [
    *(longer_file, empty_side, quotation_mark, control_tokens, several_spaces, other_space),
    *(changed_vectors, https),
]


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    ("what", "check"),
    [(what, check) for (what, *_), check in zip(table("What"), DIFFERENCES, strict=True)],
)
def test_a_difference_is_one(
    caplog: pytest.LogCaptureFixture, what: str, check: Callable[..., None]
) -> None:
    with caplog.at_level(logging.WARNING):
        check(caplog)


def test_every_heading_has_lines_that_are_run() -> None:
    headings = [part.splitlines()[0] for part in TEXT.split("\n## ")[1:]]
    assert headings == ["Field", "Vocab", "Datasets", "BucketIterator", "What differs"]
    assert sum(len(table(heading)) for heading in headings) == TEXT.count("\n| ") - 2 * 5
