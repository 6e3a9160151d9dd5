"""What a checkpoint holds beside the weights, and how a trained network comes back from it.

A checkpoint is plain numbers, strings and tensors. The network is rebuilt by our own constructor
from its plain arguments and nothing in the file is ever imported or called by name.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from seq2seq.data.tokenizer import Tokenizer
from seq2seq.models.encoder_decoder import EncoderDecoder, encoder_decoder
from seq2seq.models.ensemble import Ensemble

KEY = "seq2seq"
FORMAT = 1
_WEIGHTS = "model."


class Trained(NamedTuple):
    """A trained network, or several together, with tokenizers: raw text in, raw text out."""

    model: EncoderDecoder | Ensemble
    source_tokenizer: Tokenizer
    target_tokenizer: Tokenizer


def describe(
    model_arguments: Mapping[str, Any],
    source_tokenizer: Tokenizer,
    target_tokenizer: Tokenizer,
    training_arguments: Mapping[str, Any] | None = None,
    gradient_arguments: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The plain data that a checkpoint keeps under :data:`KEY`.

    A run goes on only with what decides how a batch changes the weights; how long it goes on, what
    it measures and where it runs is free.

    Args:
        model_arguments: the arguments of :func:`~seq2seq.models.encoder_decoder.encoder_decoder`.
        source_tokenizer, target_tokenizer: trained tokenizers.
        training_arguments: how weights follow a gradient, and what they see: optimizer, schedule,
            noise, averages, own tokens, frozen embeddings; by config key.
        gradient_arguments: of what the gradient is and how it is cut, by config key. Older
            checkpoints, which don't have them, go on with any.
    """
    return {
        "format": FORMAT,
        "model": dict(model_arguments),
        "training": dict(training_arguments or {}),
        "gradient": dict(gradient_arguments or {}),
        "source_tokenizer": source_tokenizer.state(),
        "target_tokenizer": target_tokenizer.state(),
    }


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint file without running any code that it may carry.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file isn't a checkpoint of this package.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the file in it, such as checkpoints/last.ckpt")
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch's reader trips over, the file is at fault
        raise ValueError(
            f"{path} can't be read as a checkpoint: it is damaged, or holds other things than "
            "numbers, texts and tensors; nothing in it was run"
        ) from error
    described = checkpoint.get(KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(described, dict) or "format" not in described:
        raise ValueError(f"{path} is not a checkpoint of seq2seq: it has no entry {KEY!r}")
    if described["format"] != FORMAT:
        raise ValueError(
            f"{path} has checkpoint format {described['format']}, and this version reads "
            f"format {FORMAT}"
        )
    return dict(checkpoint)


def load_trained(path: Path) -> Trained:
    """Rebuild network and tokenizers from a checkpoint file, in evaluation mode on the CPU.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_checkpoint`; also if the parts of the file
            don't fit together.
    """
    checkpoint = read_checkpoint(path)
    described = checkpoint[KEY]
    try:
        model = encoder_decoder(**described["model"])
        weights = {
            name.removeprefix(_WEIGHTS): tensor
            for name, tensor in checkpoint["state_dict"].items()
            if name.startswith(_WEIGHTS)
        }
        model.load_state_dict(weights)
        return Trained(
            model.eval(),
            Tokenizer.from_state(described["source_tokenizer"]),
            Tokenizer.from_state(described["target_tokenizer"]),
        )
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(f"{path} is damaged: its parts don't fit together ({error})") from error


def check_resumable(path: Path, description: Mapping[str, Any]) -> int:
    """Refuse a checkpoint that was trained otherwise than this run trains.

    Network, tokenizers, and all that decides how a batch changes the weights, see :func:`describe`.

    Args:
        path: the checkpoint.
        description: this run's, from :func:`describe`.

    Returns:
        The optimizer steps that were done before it.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_checkpoint`; the message of a difference
            names the keys with both values. Also if the file holds weights alone.
    """
    checkpoint = read_checkpoint(path)
    if "optimizer_states" not in checkpoint:
        raise ValueError(
            f"ckpt_path={path} holds weights to translate with, and nothing that a run could go on "
            "from: resume from the last.ckpt or best.ckpt beside it"
        )
    stored = checkpoint[KEY]
    # Of the model, what was written before an option existed was trained with its default.
    for otherwise, parts, defaults in (
        ("with another model", ("model",), _model_defaults()),
        ("otherwise", ("training", "gradient"), {}),
    ):
        ours, theirs = dict(defaults), dict(defaults)
        for part in parts:
            ours |= description[part]
            theirs |= stored.get(part, description[part])
        different = [
            f"{key} is {theirs.get(key)!r} there and {ours.get(key)!r} here"
            for key in sorted({*ours, *theirs})
            if ours.get(key) != theirs.get(key)
        ]
        if different:
            raise ValueError(
                f"ckpt_path={path} was trained {otherwise}: {'; '.join(different)}. Resume with "
                "the overrides of that run"
            )
    for side in ("source_tokenizer", "target_tokenizer"):
        if stored[side] != description[side]:
            raise ValueError(
                f"ckpt_path={path} was trained with another {side.replace('_', ' ')}: resume with "
                "the data and tokenizer overrides of that run"
            )
    return int(checkpoint.get("global_step", 0))


def _model_defaults() -> dict[str, Any]:
    return {
        parameter.name: parameter.default
        for parameter in inspect.signature(encoder_decoder).parameters.values()
        if parameter.default is not inspect.Parameter.empty
    }


def find_checkpoint(run: str) -> Path:
    """The best checkpoint of a run, or the last where none was judged yet.

    Args:
        run: folder of a training run.

    Raises:
        FileNotFoundError: if there is no such folder, or no checkpoint in it.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise FileNotFoundError(f"run={run} is not a folder: give the folder of a training run")
    for name in ("best.ckpt", "last.ckpt"):
        path = folder / "checkpoints" / name
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"run={run} has no checkpoints/best.ckpt and no checkpoints/last.ckpt: give the folder of "
        "a training run that has come that far"
    )


def chosen_device(accelerator: str) -> torch.device:
    """The device to run on: ``cpu``, ``gpu``, or ``auto`` for a GPU where there is one.

    Raises:
        ValueError: for another word, or ``gpu`` without a GPU.
    """
    if accelerator not in ("auto", "cpu", "gpu"):
        raise ValueError(f"accelerator={accelerator!r} must be auto, cpu or gpu")
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError("accelerator=gpu, but torch finds no CUDA GPU: use accelerator=cpu")
    gpu = accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")
