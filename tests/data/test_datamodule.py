import logging
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from seq2seq.data.batch import Batch
from seq2seq.data.corpus import Corpus, CorpusError, Pair
from seq2seq.data.datamodule import TranslationDataModule
from seq2seq.data.tokenizer import train_tokenizers

WHITESPACE = {"kind": "whitespace"}


def some_pairs(count: int, seed: int, letters: str = "abcdefgh") -> list[Pair]:
    rng = random.Random(seed)

    def text() -> str:
        return " ".join(rng.choice(letters) for _ in range(rng.randint(1, 9)))

    return [Pair(text(), text(), line) for line in range(1, count + 1)]


def some_corpus(**changes: Any) -> Corpus:
    corpus = Corpus(
        train=some_pairs(47, seed=0),
        validation=some_pairs(5, seed=1),
        test=some_pairs(7, seed=2),
        origin={"train": "train.tsv", "test": "test.tsv"},
    )
    return replace(corpus, **changes)


def some_data(corpus: Corpus | None = None, **settings: Any) -> TranslationDataModule:
    tokenizers = train_tokenizers(some_corpus().train, source=WHITESPACE, target=WHITESPACE)
    return TranslationDataModule(
        corpus=some_corpus() if corpus is None else corpus,
        source_tokenizer=tokenizers[0],
        target_tokenizer=tokenizers[1],
        **({"batch_size": 5, "evaluation_batch_size": 2, "seed": 3} | settings),
    )


class Recorder(LightningModule):
    """Two weights that depend on every batch and its place; what was trained on is recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.trained: list[tuple[int, int, list[int]]] = []
        self.tested: list[list[int]] = [[], []]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.trained.append((self.current_epoch, batch_idx, batch.index.tolist()))
        return (self.weight * batch.source.sum() / 100 + self.weight**2).sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("validated", float(batch_idx), batch_size=1)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.tested[dataloader_idx] += batch.index.tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["batches trained"] = len(self.trained)


def some_trainer(folder: Path, **settings: Any) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **({"enable_checkpointing": "callbacks" in settings} | settings),
    )


def fit(folder: Path, data: dict[str, Any], saving: dict[str, Any], **settings: Any) -> Recorder:
    """One run from fresh objects, as in a new process."""
    resume = settings.pop("resume", None)
    checkpoint = ModelCheckpoint(dirpath=folder, filename="{epoch}-{step}", save_top_k=-1, **saving)
    module = Recorder()
    trainer = some_trainer(folder, callbacks=[checkpoint], **settings)
    trainer.fit(
        module,
        datamodule=some_data(**data),
        ckpt_path=resume,
        weights_only=True if resume else None,
    )
    return module


EVERY_STEP = {"every_n_train_steps": 1}
AFTER_VALIDATION = {"monitor": "validated"}
AT_EPOCH_END = {"save_on_train_epoch_end": True}
BY_TOKENS = {"batch_unit": "target_tokens", "batch_size": 40}


@pytest.mark.parametrize(
    ("data", "saving", "settings"),
    [
        ({}, EVERY_STEP, {"max_epochs": 2}),
        ({}, EVERY_STEP, {"max_epochs": 2, "accumulate_grad_batches": 3}),
        ({}, EVERY_STEP, {"max_epochs": 2, "limit_train_batches": 7}),
        ({}, EVERY_STEP, {"max_steps": 23, "val_check_interval": 4}),
        ({}, AFTER_VALIDATION, {"max_epochs": 3, "val_check_interval": 4}),
        ({}, AFTER_VALIDATION, {"max_steps": 23}),
        ({}, AT_EPOCH_END, {"max_epochs": 3}),
        ({}, AT_EPOCH_END, {"max_steps": 23, "limit_val_batches": 0}),
        (BY_TOKENS, EVERY_STEP, {"max_epochs": 2, "accumulate_grad_batches": 3}),
        (BY_TOKENS, AFTER_VALIDATION, {"max_epochs": 3}),
        (BY_TOKENS, AT_EPOCH_END, {"max_steps": 23}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_run_resumed_from_any_checkpoint_trains_on_the_same_batches(
    data: dict[str, Any], saving: dict[str, Any], settings: dict[str, Any], tmp_path: Path
) -> None:
    whole = fit(tmp_path / "whole", data, saving, **settings)
    checkpoints = sorted((tmp_path / "whole").glob("*.ckpt"))
    assert len(checkpoints) > 1
    for path in checkpoints:
        trained = torch.load(path, weights_only=True)["batches trained"]
        rest = fit(tmp_path / "rest", data, saving, resume=path, **settings)
        assert rest.trained == whole.trained[trained:], path.name
        assert torch.equal(rest.weight, whole.weight)


@pytest.mark.filterwarnings("ignore")
def test_a_run_trains_on_every_pair_once_an_epoch_in_a_new_order(tmp_path: Path) -> None:
    for number, data in enumerate(({}, BY_TOKENS)):
        run = fit(tmp_path / str(number), data, EVERY_STEP, max_epochs=3)
        epochs: list[list[int]] = [[], [], []]
        for epoch, _, index in run.trained:
            epochs[epoch] += index
        assert all(sorted(epoch) == list(range(47)) for epoch in epochs)
        assert len({str(epoch) for epoch in epochs}) == 3


@pytest.mark.filterwarnings("ignore")
def test_overfitting_repeats_the_same_batches(tmp_path: Path) -> None:
    module = Recorder()
    trainer = some_trainer(tmp_path, max_epochs=3, overfit_batches=2)
    trainer.fit(module, datamodule=some_data())
    batches = [index for _, _, index in module.trained]
    assert len(batches) == 6
    assert batches[:2] == batches[2:4] == batches[4:]


@pytest.mark.filterwarnings("ignore")
def test_tests_cover_every_pair_and_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    longer = some_pairs(4, seed=3)
    data = some_data(some_corpus(test_longer=longer))
    module = Recorder()
    some_trainer(tmp_path).test(module, datamodule=data, verbose=False)
    assert data.test_names == ["test", "test_longer"]
    assert [sorted(index) for index in module.tested] == [list(range(7)), list(range(4))]
    assert data.pairs("test_longer") == longer
    assert some_data().test_names == ["test"]
    assert len(some_data().test_dataloader()) == 1


def test_only_training_pairs_are_dropped_for_their_length() -> None:
    corpus = some_corpus(max_length=4)
    data = some_data(corpus)
    kept = [p for p in corpus.train if max(len(p.source.split()), len(p.target.split())) <= 4]
    assert data.pairs("train") == kept
    assert data.pairs("validation") == corpus.validation
    assert data.pairs("test") == corpus.test


def test_batch_index_counts_in_the_pairs_of_its_split() -> None:
    data = some_data(some_corpus(max_length=4))
    for batch in data.train_dataloader():
        for row, i in enumerate(batch.index.tolist()):
            source = batch.source[row, : batch.source_lengths[row]].tolist()
            assert data.source_tokenizer.decode(source) == data.pairs("train")[i].source


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_an_empty_split_is_refused_before_training(name: str) -> None:
    data = some_data(some_corpus(**{name: []}))
    with pytest.raises(CorpusError, match=f"the {name} split has no pairs"):
        data.setup("fit")


def test_testing_needs_no_training_pairs() -> None:
    data = some_data(some_corpus(train=[], validation=[]))
    data.setup("test")
    assert len(data.split("test")) == 7


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(CorpusError, match="choose one of train, validation, test, test_longer"):
        some_data().split("dev")


def test_unknown_tokens_are_reported_once_for_each_side_and_warned_of_when_many(
    caplog: pytest.LogCaptureFixture,
) -> None:
    validation = [Pair("a b c d", "a b c", 1), Pair("a a a a", "x a b c d e f", 2)]
    data = some_data(some_corpus(validation=validation))
    with caplog.at_level(logging.INFO, logger="seq2seq"):
        data.setup("fit")
        data.setup("fit")
    source, target = caplog.records
    assert source.levelno == logging.INFO
    assert source.getMessage() == "0.00% of the source tokens of the validation split are unknown"
    assert target.levelno == logging.WARNING
    assert target.getMessage().startswith("10.00% of the target tokens of the validation split")
    assert "tokenizer.target.size" in target.getMessage()


def test_more_than_one_device_is_refused() -> None:
    data = some_data()
    data.trainer = SimpleNamespace(world_size=2)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"set trainer\.devices=1"):
        data.setup("fit")
