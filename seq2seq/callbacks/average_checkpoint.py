"""Keeps `average.ckpt`, the mean of the weights that the last validations were of.

An average over all optimizer steps is `weight_average.py`'s.
"""

import os
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor


class AverageCheckpoint(Checkpoint):
    """Write ``average.ckpt`` after each validation: the plain mean over the last n of them.

    Junczys-Dowmunt, Dwojak and Sennrich 2016; Vaswani et al. 2017, section 6.1, who
    average the last 5 or 20 checkpoints. Of the weights that are trained, also where a moving
    average is what validations are of. Until there were n validations it is the mean over those
    there were.

    Training, validation and test know nothing of it. The n weights travel in every checkpoint that
    a run can go on from, which grows by as much.

    Args:
        folder: where it is written; replaced as a whole.
        validations: n.

    Raises:
        ValueError: if there is nothing to average.
    """

    def __init__(self, *, folder: str | os.PathLike[str], validations: int) -> None:
        if validations < 2:
            raise ValueError(
                f"callbacks.average_checkpoint.validations={validations} must be at least 2; null "
                "averages nothing"
            )
        self.path = Path(folder) / "average.ckpt"
        self.validations = validations
        self.recent: dict[int, dict[str, Tensor]] = {}
        """Weights by the optimizer steps that were done, oldest first."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the weights in, and write the mean."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        # A run that goes on from here may validate here once more.
        self.recent.pop(trainer.global_step, None)
        self.recent[trainer.global_step] = {
            name: value.detach().cpu().clone() for name, value in pl_module.state_dict().items()
        }
        self._forget()
        checkpoint = {"state_dict": mean(self.recent), "global_step": trainer.global_step}
        pl_module.on_save_checkpoint(checkpoint)
        trainer.strategy.save_checkpoint(checkpoint, self.path)

    def _forget(self) -> None:
        for step in sorted(self.recent)[: -self.validations]:
            del self.recent[step]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        return {"recent": self.recent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the weights; how many are kept may have changed."""
        self.recent = dict(state_dict["recent"])
        self._forget()


def mean(recent: dict[int, dict[str, Tensor]]) -> dict[str, Tensor]:
    """Of each tensor by its name, in its own type; the sum is taken in float64."""
    newest = recent[max(recent)]
    return {
        name: torch.stack([weights[name].double() for weights in recent.values()]).mean(0).to(value)
        for name, value in newest.items()
    }
