"""Pretrained vectors in a run: written over what was drawn, frozen or trained, and resumed."""

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from seq2seq.assembly import (
    build_datamodule,
    build_module,
    initialize_weights,
    read_vectors,
)
from seq2seq.config_checks import check_sizes
from seq2seq.data.tokenizer import PAD_ID, SPECIAL_TOKENS
from seq2seq.inspection import measure
from seq2seq.module import TranslationModule
from seq2seq.train import train

Compose = Callable[..., DictConfig]
WIDTH = 8
DIAGNOSTICS = ("callbacks.gradient_flow.every_n_steps=2", "callbacks.spectrum.every_n_steps=4")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Vectors of every second symbol of the tiny task, and of words that it doesn't have."""
    random.seed(0)
    words = [str(number) for number in range(0, 40, 2)]
    lines = [
        f"{word} {' '.join(f'{random.gauss(0, 3):.3f}' for _ in range(WIDTH))}" for word in words
    ]
    path = tmp_path / "vectors.txt"
    path.write_text("\n".join(lines))
    return path


def rows(path: Path) -> dict[str, Tensor]:
    """The file, read plainly."""
    lines = (line.split(" ") for line in path.read_text().splitlines())
    return {word: torch.tensor([float(number) for number in numbers]) for word, *numbers in lines}


def began(config: DictConfig) -> tuple[TranslationModule, tuple[str, ...]]:
    datamodule = build_datamodule(config)
    module = build_module(config, datamodule)
    vectors = read_vectors(config, module)
    done = initialize_weights(config, module, datamodule.split("train"), vectors)
    return module, tuple(done.notes)


def both(file: Path) -> tuple[str, ...]:
    return (f"pretrained_vectors.source={file}", f"pretrained_vectors.target={file}")


def test_words_of_the_file_begin_with_its_vectors_and_all_else_as_without_it(
    compose: Compose, file: Path
) -> None:
    config = compose(*both(file))
    module, notes = began(config)
    plain, _ = began(compose())
    tables = ("encoder.embedding.weight", "decoder.embedding.weight")
    weights, expected = module.model.state_dict(), plain.model.state_dict()
    for side, name in zip(("source", "target"), tables, strict=True):
        tokenizer = getattr(module.test_translator, f"{side}_tokenizer")
        found = 0
        for token, word in enumerate(tokenizer.texts()):
            known = rows(file).get(word)
            found += known is not None
            assert torch.equal(
                weights[name][token], expected[name][token] if known is None else known
            )
        known = tokenizer.vocabulary_size - len(SPECIAL_TOKENS)
        assert 0 < found < known
        assert f"{side} embedding: {found} of {known} tokens from {file}" in notes
        assert not weights[name][PAD_ID].any()
    for name in expected.keys() - set(tables):
        assert torch.equal(weights[name], expected[name]), name


def test_a_shared_table_and_a_factored_one_take_vectors_of_their_width(
    compose: Compose, file: Path
) -> None:
    shared = ("tokenizer.shared=true", "model.share_embeddings=true")
    config = compose(*shared, both(file)[1], f"model.embedding_rank={WIDTH}")
    check_sizes(config)
    module, notes = began(config)
    embedding = module.model.encoder.embedding
    assert embedding is module.model.decoder.embedding and embedding.embedding_dim == WIDTH
    token = module.test_translator.source_tokenizer.texts().index("2")
    assert torch.equal(embedding.weight[token], rows(file)["2"])
    assert any(note.startswith("shared embedding: ") for note in notes)


@pytest.mark.parametrize("freeze", [False, True])
def test_the_optimizer_gets_no_frozen_embedding(compose: Compose, file: Path, freeze: bool) -> None:
    options = (f"pretrained_vectors.source={file}", f"pretrained_vectors.freeze={freeze}")
    module, notes = began(compose(*options))
    assert any(note.endswith(", frozen") for note in notes) == freeze
    groups = module.make_optimizer(module._parameter_groups()).param_groups
    trained = {id(one) for group in groups for one in group["params"]}
    left = {name for name, one in module.model.named_parameters() if id(one) not in trained}
    assert left == ({"encoder.embedding.weight"} if freeze else set())


def test_a_frozen_embedding_stays_and_the_run_resumes_bitwise_without_its_file(
    compose: Compose, file: Path, tmp_path: Path
) -> None:
    options = (f"pretrained_vectors.source={file}", "pretrained_vectors.freeze=true")
    options += ("optimizer=adamw", "optimizer.weight_decay=0.1")
    before, _ = began(compose(*options))
    start = {name: one.clone() for name, one in before.model.state_dict().items()}
    train(compose(*options, "trainer.max_epochs=2", folder="whole"))
    train(compose(*options, folder="resumed"))
    last = tmp_path / "resumed" / "checkpoints" / "last.ckpt"
    file.unlink()
    train(compose(*options, f"ckpt_path={last}", "trainer.max_epochs=2", folder="resumed"))
    whole = tmp_path / "whole" / "checkpoints" / "last.ckpt"
    ours, theirs = (torch.load(path, weights_only=True)["state_dict"] for path in (last, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    stayed = {name for name, one in start.items() if torch.equal(ours[f"model.{name}"], one)}
    assert stayed == {"encoder.embedding.weight"}
    thawed = ("optimizer=adamw", "optimizer.weight_decay=0.1", f"ckpt_path={last}")
    with pytest.raises(ValueError, match="frozen embeddings is 'source' there and None here"):
        train(compose(*thawed, folder="other"))


@pytest.mark.slow
def test_diagnostics_see_a_frozen_network_and_leave_it_as_it_is(
    compose: Compose, file: Path, tmp_path: Path
) -> None:
    options = (*both(file), "pretrained_vectors.freeze=true", "model.input_feeding=true")
    train(compose(*options, folder="without"))
    train(compose(*options, *DIAGNOSTICS, folder="with"))
    paths = [tmp_path / run / "checkpoints" / "last.ckpt" for run in ("without", "with")]
    ours, theirs = (torch.load(path, weights_only=True)["state_dict"] for path in paths)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for table in ("gradient_flow.jsonl", "input_gradient.jsonl"):
        text = (tmp_path / "with" / table).read_text()
        assert "encoder/layer0/forward" in text and "decoder/layer0" in text
    assert len(measure(compose(*options, folder="inspected")).reports) == 3


def test_without_files_torchtext_is_not_asked_for(
    compose: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("seq2seq.pretrained", "seq2seq.data.torchtext_vectors", "torchtext"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    check_sizes(compose())
    began(compose())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["freeze=true"],
            "pretrained_vectors.freeze=true freezes embeddings that have a file, but",
        ),
        (["source=gone.txt"], "pretrained_vectors.source=gone.txt is not a file"),
        (["source=FILE", "target=FILE", "SHARE"], "there is one table for both: leave one of them"),
        (["target=FILE", "freeze=true", "TIE"], "would freeze the output layer as well"),
        (["source=FILE", "freeze=true", "TIE", "SHARE"], "would freeze the output layer as well"),
        (["source=FILE", "SIZE"], "has vectors of 8 numbers, but model.embedding_size=12: set"),
    ],
)
def test_what_cannot_be_is_refused_before_data_is_read(
    compose: Compose, file: Path, options: list[str], said: str
) -> None:
    known: dict[str, tuple[str, ...]] = {
        "SHARE": ("model.share_embeddings=true", "tokenizer.shared=true"),
        "TIE": ("model.tie_embeddings=true",),
        "SIZE": ("model.embedding_size=12",),
    }
    typed: list[Any] = []
    for option in options:
        text = f"pretrained_vectors.{option.replace('FILE', str(file))}"
        typed += known.get(option, (text,))
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        check_sizes(compose(*typed))


def test_a_source_embedding_may_be_frozen_beside_a_tied_one(compose: Compose, file: Path) -> None:
    options = (f"pretrained_vectors.source={file}", "pretrained_vectors.freeze=true")
    config = compose(*options, "model.tie_embeddings=true")
    check_sizes(config)
    module, _ = began(config)
    frozen = {name for name, one in module.model.named_parameters() if not one.requires_grad}
    assert frozen == {"encoder.embedding.weight"}
