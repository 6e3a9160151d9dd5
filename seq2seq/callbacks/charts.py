"""What the diagnostics write to TensorBoard: their tags, and one layout of charts for all of them.

What is measured, and when, is each callback's own business.
"""

import io
import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary

Charts = dict[str, dict[str, list[Any]]]
"""Charts that gather tags, by section of the Custom Scalars tab and title."""


@runtime_checkable
class Charted(Protocol):
    """A callback that writes tags of its own."""

    def tags(self, pl_module: LightningModule) -> list[str]:
        """Every tag that it may write in a run of this module."""

    def charts(self, pl_module: LightningModule) -> Charts:
        """Charts of them."""


def charted(trainer: Trainer) -> list[Charted]:
    """The trainer's callbacks that write tags of their own, in order."""
    return [callback for callback in _callbacks(trainer) if isinstance(callback, Charted)]


def lay_out(trainer: Trainer, pl_module: LightningModule, caller: Charted) -> None:
    """Write the charts of all callbacks, if the caller is the first of them.

    A writer keeps one layout: a second would replace the first.
    """
    every = charted(trainer)
    if every[0] is not caller:
        return
    layout: Charts = {}
    for callback in every:
        for section, charts in callback.charts(pl_module).items():
            layout.setdefault(section, {}).update(charts)
    for writer in writers(trainer):
        writer.add_custom_scalars(layout)


def multiline(*tags: str) -> list[Any]:
    """A chart of all tags that match one of these regular expressions."""
    return ["Multiline", list(tags)]


def writers(trainer: Trainer) -> list[Any]:
    """TensorBoard's writer of each logger that has one."""
    return [
        writer.experiment for writer in trainer.loggers if isinstance(writer, TensorBoardLogger)
    ]


def write_scalars(trainer: Trainer, numbers: Mapping[str, float], step: int) -> None:
    """Write the numbers that are finite as one event, a fifth of the time of one event each."""
    values = [
        Summary.Value(tag=tag, simple_value=number)
        for tag, number in numbers.items()
        if math.isfinite(number)
    ]
    for writer in writers(trainer):
        writer.file_writer.add_summary(Summary(value=values), step)


def write_picture(trainer: Trainer, tag: str, picture: NDArray[np.uint8], step: int) -> None:
    """Write a picture as it is; TensorBoard's own way resizes it first and takes thrice the time.

    Shape:
        picture: ``[height, width, 3]``.
    """
    encoded = io.BytesIO()
    Image.fromarray(picture).save(encoded, format="PNG", compress_level=1)
    image = Summary.Image(
        height=picture.shape[0],
        width=picture.shape[1],
        colorspace=3,
        encoded_image_string=encoded.getvalue(),
    )
    for writer in writers(trainer):
        writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)


def _callbacks(trainer: Trainer) -> list[Any]:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks
