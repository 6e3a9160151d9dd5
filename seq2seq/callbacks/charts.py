"""What the diagnostics write to TensorBoard: their tags, and one layout of charts for all of them.

What is measured, and when, is each callback's own business.
"""

import io
import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary

Charts = dict[str, dict[str, list[Any]]]
"""Charts that gather tags, by section of the Custom Scalars tab and title."""

COMPARISON = "Compare runs"
"""The section whose charts have one tag each."""


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


class ChartLayout(Callback):
    """Lay out the Custom Scalars tab: charts that compare runs, then those of all diagnostics.

    In the first section each chart has one tag, so that each run is one line; there the training
    module's own figures stand beside what the diagnostics put there. TensorBoard joins the layouts
    of several runs by the titles of their sections.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the layout, once: of a writer's layouts TensorBoard keeps the first."""
        layout: Charts = {COMPARISON: _figures(trainer)}
        for callback in charted(trainer):
            for section, charts in callback.charts(pl_module).items():
                layout.setdefault(section, {}).update(charts)
        for writer in writers(trainer):
            writer.add_custom_scalars(layout)


def _figures(trainer: Trainer) -> dict[str, list[Any]]:
    """One chart of each figure of the training module that tells runs apart."""
    figures = {
        "training loss": "train/loss",
        "gradient norm before clipping": "train/gradient_norm",
    }
    if trainer.enable_validation:
        figures |= {"validation loss": "val/loss", "validation exact match": "val/exact_match"}
    return {title: multiline(f"{tag}$") for title, tag in figures.items()}


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
