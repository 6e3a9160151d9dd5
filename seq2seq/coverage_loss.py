"""What is added to the loss for attending again to source positions that were attended to."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from seq2seq.models.encoder_decoder import EncoderDecoder
from seq2seq.penalty import kept_outputs


class CoverageLoss:
    """The coverage loss of See, Liu and Manning 2017, eq. 12 and 13.

    ``weight * sum_i min(a_i, c_i)`` at each target position, where ``a`` is the alignment there and
    ``c`` the sum of all alignments before; added over real target positions and divided by their
    number, as the loss is. It is at most ``weight``, and 0 if no source position is read twice.

    Any attention will do: the loss alone already spreads the alignments over the source, and
    ``model.coverage=true`` lets the attention know what it has read.

    Args:
        weight: lambda; 1 in the paper.

    Raises:
        ValueError: for a negative weight.
    """

    name = "coverage_loss"

    def __init__(self, weight: float) -> None:
        if not weight >= 0:
            raise ValueError(f"coverage_loss={weight} must be at least 0")
        self.weight = weight

    def __bool__(self) -> bool:
        return self.weight > 0

    @contextmanager
    def watching(self, model: EncoderDecoder) -> Iterator["WatchedAlignments"]:
        """Keep the alignments of one forward pass.

        Raises:
            ValueError: if the network has no attention.
            RuntimeError: on leaving, if they were hidden, as in a compiled network.
        """
        attention = model.decoder.attention
        if attention is None:
            raise ValueError("coverage_loss needs an attention, but the network has none")
        with kept_outputs(
            {"attention": attention}, lambda answer: answer.alignment, option=self.name
        ) as kept:
            yield WatchedAlignments(self.weight, kept)


class WatchedAlignments:
    """Alignments ``[batch, timesteps, source_time]``, of all timesteps together or one by one."""

    def __init__(self, weight: float, kept: dict[str, list[Tensor]]) -> None:
        self._weight = weight
        self._kept = kept

    def penalty(self, *, source_lengths: Tensor, target_lengths: Tensor) -> Tensor:
        """The loss of the batch, a scalar; ``target_lengths`` int64 ``[batch]``."""
        alignment = torch.cat(self._kept["attention"], dim=1)
        steps = torch.arange(alignment.size(1), device=alignment.device)
        # A product and not `cumsum`, which trainer.deterministic=true refuses on a GPU.
        earlier = (steps < steps.unsqueeze(1)).to(alignment)
        with torch.autocast(alignment.device.type, enabled=False):
            covered = earlier @ alignment  # before each timestep
        again = torch.minimum(alignment, covered).sum(2)  # [batch, target_time]
        real = steps < target_lengths.to(alignment.device).unsqueeze(1)
        return self._weight * again.masked_fill(~real, 0.0).sum() / real.sum()
