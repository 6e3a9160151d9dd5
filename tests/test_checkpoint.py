"""What a checkpoint holds, what comes back from it, and which files are refused."""

import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from omegaconf import DictConfig

from seq2seq.assembly import build_datamodule, build_module
from seq2seq.checkpoint import (
    KEY,
    check_resumable,
    chosen_device,
    describe,
    find_checkpoint,
    load_trained,
    read_checkpoint,
)
from seq2seq.data.corpus import Pair
from seq2seq.data.tokenizer import PAD_ID, Tokenizer, train_tokenizers
from seq2seq.models.encoder_decoder import EncoderDecoder, encoder_decoder
from seq2seq.train import train
from seq2seq.translator import Translator

PAIRS = [Pair("one two", "un deux", 1), Pair("two three", "deux trois", 2)]


def tokenizers(kind: str = "word") -> tuple[Tokenizer, Tokenizer]:
    return train_tokenizers(PAIRS, source={"kind": kind}, target={"kind": kind})


def arguments(**changes: Any) -> dict[str, Any]:
    source, target = tokenizers()
    sizes = {
        "source_vocabulary_size": source.vocabulary_size,
        "target_vocabulary_size": target.vocabulary_size,
        "pad_id": PAD_ID,
        "embedding_size": 4,
        "hidden_size": 6,
    }
    return sizes | changes


def save(path: Path, gradient: Mapping[str, Any] | None = None, **changes: Any) -> EncoderDecoder:
    """A checkpoint as training writes it, as far as loading a trained network reads it."""
    torch.manual_seed(0)
    model = encoder_decoder(**arguments(**changes))
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    described = describe(arguments(**changes), *tokenizers(), gradient_arguments=gradient)
    torch.save({"state_dict": weights, "optimizer_states": [], KEY: described}, path)
    return model


class Evil:
    """Unpickling this runs a command."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize(
    "options",
    [
        ("optimizer=adam", "scheduler=plateau"),
        ("optimizer=sgd", "scheduler=halving", "callbacks=early_stopping"),
        ("optimizer=adamw", "scheduler=inverse_square_root", "tokenizer=character"),
    ],
    ids=["adam", "sgd", "adamw"],
)
def test_every_checkpoint_of_a_real_run_holds_plain_data_and_gives_the_same_network(
    compose: Callable[..., DictConfig], tmp_path: Path, options: tuple[str, ...]
) -> None:
    train(compose("callbacks.last_checkpoint.every_n_train_steps=4", *options))
    files = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [file.name for file in files] == ["best.ckpt", "last.ckpt"]
    assert find_checkpoint(str(tmp_path / "run")) == files[0]
    for file in files:
        checkpoint = torch.load(file, weights_only=True)
        assert checkpoint["optimizer_states"] and checkpoint["callbacks"] and checkpoint["loops"]
        trained = load_trained(file)
        assert not trained.model.training
        weights = trained.model.state_dict()
        assert checkpoint["state_dict"].keys() == {f"model.{name}" for name in weights}
        assert all(
            torch.equal(checkpoint["state_dict"][f"model.{name}"], tensor)
            for name, tensor in weights.items()
        )


def test_a_loaded_network_translates_as_the_trained_one(
    compose: Callable[..., DictConfig], tmp_path: Path
) -> None:
    config = compose()
    datamodule = build_datamodule(config)
    module = build_module(config, datamodule)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, datamodule)
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    trained = load_trained(tmp_path / "some.ckpt")
    texts = [pair.source for pair in datamodule.pairs("test")]
    ours = Translator(
        model=module.model.eval(),
        source_tokenizer=datamodule.source_tokenizer,
        target_tokenizer=datamodule.target_tokenizer,
        strategy="beam_search",
    )
    theirs = Translator(
        model=trained.model,
        source_tokenizer=trained.source_tokenizer,
        target_tokenizer=trained.target_tokenizer,
        strategy="beam_search",
    )
    assert list(theirs.translate(texts)) == list(ours.translate(texts))


def test_a_loaded_network_gives_bitwise_the_same_outputs(tmp_path: Path) -> None:
    model = save(tmp_path / "a.ckpt", input_feeding=True, bridge="zero").eval()
    trained = load_trained(tmp_path / "a.ckpt")
    source, lengths = torch.tensor([[4, 5, 2], [5, 2, 0]]), torch.tensor([3, 2])
    target = torch.tensor([[1, 4], [1, 5]])
    assert torch.equal(trained.model(source, lengths, target), model(source, lengths, target))
    assert trained.source_tokenizer.encode("two one") == tokenizers()[0].encode("two one")
    assert trained.target_tokenizer.decode([4, 5]) == tokenizers()[1].decode([4, 5])


def test_a_pickle_that_would_run_a_command_is_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    plain, inside = tmp_path / "plain.ckpt", tmp_path / "inside.ckpt"
    plain.write_bytes(pickle.dumps(Evil(trace)))
    torch.save({KEY: {"format": 1, "model": Evil(trace)}}, inside)
    for path in (plain, inside):
        with pytest.raises(ValueError, match=f"{path.name} can't be read as a checkpoint"):
            read_checkpoint(path)
        assert not trace.exists()
    # The file is dangerous indeed: read without protection it runs.
    torch.load(inside, weights_only=False)
    assert trace.exists()


def test_files_that_are_no_checkpoint_of_ours_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "whole.ckpt")
    content = (tmp_path / "whole.ckpt").read_bytes()
    broken = {
        "truncated.ckpt": content[: len(content) // 2],
        "empty.ckpt": b"",
        "text.ckpt": b"a text, and a long one, too\n" * 50,
    }
    for name, data in broken.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name} can't be read as a checkpoint"):
            read_checkpoint(tmp_path / name)
    for foreign in ({"state_dict": {}}, [1, 2], torch.zeros(2), {KEY: 3}, {KEY: {}}):
        torch.save(foreign, tmp_path / "foreign.ckpt")
        with pytest.raises(ValueError, match="foreign.ckpt is not a checkpoint of seq2seq"):
            read_checkpoint(tmp_path / "foreign.ckpt")
    with pytest.raises(FileNotFoundError, match="there is no checkpoint .*missing.ckpt"):
        read_checkpoint(tmp_path / "missing.ckpt")


def test_another_format_is_refused_with_both_numbers(tmp_path: Path) -> None:
    torch.save({KEY: {"format": 99}}, tmp_path / "new.ckpt")
    with pytest.raises(ValueError, match="format 99, and this version reads format 1"):
        read_checkpoint(tmp_path / "new.ckpt")


@pytest.mark.parametrize("damage", ["weight", "shape", "argument", "tokenizer"])
def test_a_checkpoint_whose_parts_do_not_fit_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.ckpt"
    save(path)
    checkpoint = torch.load(path, weights_only=True)
    match damage:
        case "weight":
            del checkpoint["state_dict"]["model.decoder.output.bias"]
        case "shape":
            checkpoint["state_dict"]["model.decoder.output.bias"] = torch.zeros(2)
        case "argument":
            checkpoint[KEY]["model"]["_target_"] = "os.system"
        case "tokenizer":
            checkpoint[KEY]["source_tokenizer"] = {"kind": "word", "library": "{}"}
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match="a.ckpt"):
        load_trained(path)


def test_a_checkpoint_of_the_same_network_can_be_resumed(tmp_path: Path) -> None:
    save(tmp_path / "a.ckpt")
    check_resumable(tmp_path / "a.ckpt", describe(arguments(), *tokenizers()))


def test_a_checkpoint_from_before_an_option_resumes_where_the_option_is_off(
    tmp_path: Path,
) -> None:
    save(tmp_path / "a.ckpt")  # without most arguments, as if they had not been there
    here = describe(arguments(layer_connection="none", bidirectional=True), *tokenizers())
    check_resumable(tmp_path / "a.ckpt", here)
    here = describe(arguments(layer_connection="residual"), *tokenizers())
    with pytest.raises(ValueError, match="layer_connection is 'none' there and 'residual' here"):
        check_resumable(tmp_path / "a.ckpt", here)


def test_resuming_another_network_names_every_differing_key_with_both_values(
    tmp_path: Path,
) -> None:
    save(tmp_path / "a.ckpt", cell="gru")
    here = describe(arguments(hidden_size=8), *tokenizers())
    with pytest.raises(ValueError, match="a.ckpt was trained with another model") as error:
        check_resumable(tmp_path / "a.ckpt", here)
    message = str(error.value)
    assert "hidden_size is 6 there and 8 here" in message
    assert "cell is 'gru' there and " in message
    assert "embedding_size" not in message


def test_a_run_goes_on_with_another_loss_only_from_where_none_was_written_down(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.ckpt"
    save(path, gradient={"label_smoothing": 0.1, "coverage_loss": 0.0})
    here = describe(
        *(arguments(), *tokenizers()),
        gradient_arguments={"label_smoothing": 0.1, "coverage_loss": 1.0},
    )
    with pytest.raises(ValueError, match="trained otherwise: coverage_loss is 0.0 there and 1.0"):
        check_resumable(path, here)
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint[KEY]["gradient"]
    torch.save(checkpoint, path)
    check_resumable(path, here)


def test_resuming_with_another_vocabulary_says_which_side(tmp_path: Path) -> None:
    save(tmp_path / "a.ckpt")
    source, target = tokenizers()
    other = Tokenizer.from_state(tokenizers("whitespace")[1].state())
    with pytest.raises(ValueError, match="trained with another target tokenizer"):
        check_resumable(tmp_path / "a.ckpt", describe(arguments(), source, other))
    check_resumable(tmp_path / "a.ckpt", describe(arguments(), source, target))


def test_a_run_means_its_best_checkpoint_or_else_its_last(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run=.*gone is not a folder"):
        find_checkpoint(str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match="has no checkpoints/best.ckpt and no"):
        find_checkpoint(str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    for name in ("last.ckpt", "best.ckpt"):
        (tmp_path / "checkpoints" / name).touch()
        assert find_checkpoint(str(tmp_path)).name == name


def test_a_device_that_is_not_there_is_refused() -> None:
    assert chosen_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="accelerator='tpu' must be auto, cpu or gpu"):
        chosen_device("tpu")
    if not torch.cuda.is_available():
        assert chosen_device("auto") == torch.device("cpu")
        with pytest.raises(ValueError, match="no CUDA GPU: use accelerator=cpu"):
            chosen_device("gpu")
