"""Embeddings that begin with pretrained vectors, and stay as they are if frozen.

Files are read in `data/torchtext_vectors.py`. Vectors go over the weights that the initializer has
drawn, and once trained the weights are all that a checkpoint needs.
"""

from collections.abc import Iterable, Mapping
from typing import TypedDict

import torch
from torch import nn

from seq2seq.data.tokenizer import Tokenizer
from seq2seq.data.torchtext_vectors import PretrainedVectors, check_vectors, read_vectors
from seq2seq.models.embedding import FactoredEmbedding
from seq2seq.models.encoder_decoder import EncoderDecoder

_KEY = "pretrained_vectors"


def check_pretrained(
    files: Mapping[str, str], *, freeze: bool, model: EncoderDecoder, resumed: bool = False
) -> None:
    """Refuse files that can't be used for the model.

    Args:
        files: by side, ``source`` or ``target``.
        freeze: whether the embeddings that have a file don't train.
        model: of the sizes that are meant.
        resumed: whether weights come from a checkpoint, so that no file is needed.

    Raises:
        FileNotFoundError, ValueError: naming the key, its value and the rule.
    """
    if freeze and not files:
        raise ValueError(
            f"{_KEY}.freeze=true freezes embeddings that have a file, but {_KEY}.source and "
            f"{_KEY}.target are null: set one, or {_KEY}.freeze=false"
        )
    if len(files) > 1 and model.encoder.embedding is model.decoder.embedding:
        raise ValueError(
            f"{_KEY}.source and {_KEY}.target are both set, but with model.share_embeddings=true "
            "there is one table for both: leave one of them null"
        )
    output = getattr(model.decoder.output, "weight", None)
    if freeze and any(_embedding(model, side).weight is output for side in files):
        raise ValueError(
            f"{_KEY}.freeze=true would freeze the output layer as well, which uses this embedding: "
            f"set model.tie_embeddings=false, or {_KEY}.freeze=false"
        )
    for side, path in files.items():
        if not resumed:
            check_vectors(path, **_expected(model, side))


def read_pretrained(
    files: Mapping[str, str], model: EncoderDecoder, tokenizers: Mapping[str, Tokenizer]
) -> dict[str, PretrainedVectors]:
    """Read the vectors of each side that has a file.

    Raises:
        FileNotFoundError, ValueError: see :func:`~seq2seq.data.torchtext_vectors.read_vectors`.
    """
    return {
        side: read_vectors(path, tokenizers[side], **_expected(model, side))
        for side, path in files.items()
    }


@torch.no_grad()
def write_pretrained(model: EncoderDecoder, vectors: Mapping[str, PretrainedVectors]) -> list[str]:
    """Write vectors into the tables, in place; say how many, one sentence a side."""
    shared = model.encoder.embedding is model.decoder.embedding
    notes = []
    for side, one in vectors.items():
        weight = _embedding(model, side).weight
        weight[one.ids.to(weight.device)] = one.vectors.to(weight)
        frozen = "" if weight.requires_grad else ", frozen"
        notes.append(f"{'shared' if shared else side} embedding: {one.found}{frozen}")
    return notes


def freeze_embeddings(model: EncoderDecoder, sides: Iterable[str]) -> None:
    """Leave these sides' tables out of training; what a projection makes of them still learns."""
    for side in sides:
        _embedding(model, side).weight.requires_grad_(False)


def _embedding(model: EncoderDecoder, side: str) -> nn.Embedding:
    return model.encoder.embedding if side == "source" else model.decoder.embedding


class _Expected(TypedDict):
    """The width of a side's table, and the keys for messages."""

    width: int
    key: str
    width_key: str


def _expected(model: EncoderDecoder, side: str) -> _Expected:
    embedding = _embedding(model, side)
    size = "rank" if isinstance(embedding, FactoredEmbedding) else "size"
    return _Expected(
        width=embedding.embedding_dim,
        key=f"{_KEY}.{side}",
        width_key=f"model.embedding_{size}",
    )
