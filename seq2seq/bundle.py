"""A trained network as a folder to hand on: weights, settings and tokenizers, and nothing to run.

`weights.safetensors` holds the weights, `bundle.json` the plain arguments of our own constructor,
`source_tokenizer.json` and `target_tokenizer.json` the vocabularies. Beside a checkpoint it lacks
what only training needs. Graphs for programs without this package may lie beside; nothing here
reads them, as loading those does run code.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_model, save_model

from seq2seq import __version__
from seq2seq.checkpoint import KEY, Trained, load_trained, read_checkpoint
from seq2seq.data.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Tokenizer
from seq2seq.graphs import export_graphs, write_graphs
from seq2seq.models.encoder_decoder import EncoderDecoder, encoder_decoder
from seq2seq.records import write_json

FORMAT = 1
# What a program needs beside the graphs.
IDS = {"padding": PAD_ID, "unknown": UNK_ID, "begin": BOS_ID, "end": EOS_ID}
_WEIGHTS = "weights.safetensors"
SETTINGS = "bundle.json"
_SIDES = ("source_tokenizer", "target_tokenizer")


def write_bundle(checkpoint: Path, folder: Path, *, graphs: bool = False) -> None:
    """Write the network of a checkpoint as a bundle.

    Args:
        checkpoint: file of a training run.
        folder: new, or empty.
        graphs: whether to add encoder and decoder step, see :mod:`seq2seq.graphs`.

    Raises:
        FileNotFoundError, ValueError: see :func:`~seq2seq.checkpoint.load_trained`; also if the
            folder holds anything, or for graphs that can't be made.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"output={folder} exists already and isn't an empty folder")
    trained = load_trained(checkpoint)
    assert isinstance(trained.model, EncoderDecoder)  # a single file is never an ensemble
    exported = export_graphs(trained.model) if graphs else {}
    folder.mkdir(parents=True, exist_ok=True)
    save_model(trained.model, str(folder / _WEIGHTS))  # tied weights are written once
    kinds = {}
    for side in _SIDES:
        state = getattr(trained, side).state()
        kinds[side] = state["kind"]
        (folder / f"{side}.json").write_text(str(state["library"]), encoding="utf-8")
    write_json(
        folder / SETTINGS,
        {
            "format": FORMAT,
            "seq2seq": __version__,
            "model": read_checkpoint(checkpoint)[KEY]["model"],
            "tokenizer_kinds": kinds,
            **({"graphs": write_graphs(exported, folder), "ids": IDS} if graphs else {}),
        },
    )
    # The library lets only its owner read the weights, and a bundle is for others.
    (folder / _WEIGHTS).chmod((folder / SETTINGS).stat().st_mode)


def read_bundle(folder: Path) -> Trained:
    """Rebuild network and tokenizers from a bundle, in evaluation mode on the CPU.

    All four files are read as data; nothing in them is imported or called by name.

    Raises:
        FileNotFoundError: if there is no such folder, or a file of it is missing.
        ValueError: if the folder isn't a bundle, or its parts don't fit together.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"bundle={folder} is not a folder")
    for name in (SETTINGS, _WEIGHTS, *(f"{side}.json" for side in _SIDES)):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"bundle={folder} has no {name}: it isn't a whole bundle")
    try:
        settings: Any = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        version = settings["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder / SETTINGS} can't be read: it is damaged ({error})") from error
    if version != FORMAT:
        raise ValueError(
            f"bundle={folder} has format {version}, and this version reads format {FORMAT}"
        )
    try:
        model = encoder_decoder(**settings["model"])
        load_model(model, folder / _WEIGHTS)
        source, target = (
            Tokenizer.from_state(
                {
                    "kind": settings["tokenizer_kinds"][side],
                    "library": (folder / f"{side}.json").read_text(encoding="utf-8"),
                }
            )
            for side in _SIDES
        )
    except Exception as error:  # tokenizers and safetensors raise nothing narrower
        raise ValueError(
            f"bundle={folder} is damaged: its parts don't fit together ({error})"
        ) from error
    return Trained(model.eval(), source, target)
