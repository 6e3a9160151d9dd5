"""How many optimizer steps a run takes until its training loss is low enough."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from seq2seq.data.batch import Batch


class StepsToTarget(Callback):
    """Log ``train/steps_to_target`` once the mean loss of a stretch of steps reaches a target.

    Args:
        loss: nats per target token.
        every_n_steps: optimizer steps of a stretch; the figure is a multiple of it.

    Raises:
        ValueError: for values out of range.
    """

    def __init__(self, *, loss: float, every_n_steps: int = 20) -> None:
        if not loss > 0:
            raise ValueError(f"callbacks.target.loss={loss} must be above 0")
        if every_n_steps < 1:
            raise ValueError(f"callbacks.target.every_n_steps={every_n_steps} must be at least 1")
        self.loss = loss
        self.every_n_steps = every_n_steps
        self.steps: int | None = None
        """Steps that it took; None as long as the target isn't reached."""
        self._sum: Tensor | None = None
        self._batches = 0
        self._step = 0

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Add the batch's loss, and look at the mean when a stretch is over."""
        if self.steps is not None:
            return
        # Summed where it is: looking at it each step would make the device wait.
        loss = outputs["negative_log_likelihood"]
        self._sum = loss.clone() if self._sum is None else self._sum + loss
        self._batches += 1
        stepped = trainer.global_step != self._step  # else gradients are still accumulating
        self._step = trainer.global_step
        if not stepped or self._step % self.every_n_steps:
            return
        mean = float(self._sum) / self._batches
        self._sum, self._batches = None, 0
        if mean <= self.loss:
            self.steps = self._step
            pl_module.log("train/steps_to_target", torch.tensor(float(self.steps)), batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        total = None if self._sum is None else float(self._sum)
        return {"steps": self.steps, "sum": total, "batches": self._batches, "step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.steps, self._batches = state_dict["steps"], state_dict["batches"]
        self._step = state_dict["step"]
        self._sum = None if state_dict["sum"] is None else torch.tensor(state_dict["sum"])
