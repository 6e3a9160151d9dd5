"""Keeps `last.ckpt`, the checkpoint to resume from.

Which checkpoint is the best one is left to Lightning's own callback.
"""

import os
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint


class LastCheckpoint(Checkpoint):
    """Write ``last.ckpt`` every so many optimizer steps, and at the end of each epoch.

    Never right before a validation, but after it: Lightning takes a validation that follows the
    checkpoint for done, and a resumed run would leave it out, and with it its best checkpoint,
    early stopping and learning rate.

    Args:
        folder: where it is written; replaced as a whole, so that a run killed while it is written
            leaves the one before.
        every_n_train_steps: optimizer steps between two.

    Raises:
        ValueError: if ``every_n_train_steps`` is below 1.
    """

    def __init__(self, *, folder: str | os.PathLike[str], every_n_train_steps: int) -> None:
        if every_n_train_steps < 1:
            raise ValueError(
                f"callbacks.last_checkpoint.every_n_train_steps={every_n_train_steps} must be at "
                "least 1; set callbacks.last_checkpoint to null for none"
            )
        self.path = Path(folder) / "last.ckpt"
        self.every_n_train_steps = every_n_train_steps
        self._step = 0
        self._due = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write it now if it is due and nothing else happens between this batch and the next."""
        step = trainer.global_step
        if step == self._step or step % self.every_n_train_steps:
            return
        self._step, self._due = step, True
        every = trainer.val_check_batch  # batches of an epoch between two validations
        if not trainer.is_last_batch and (every is None or (batch_idx + 1) % every):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it in the middle of an epoch if it was due before the validation."""
        if self._due and not trainer.sanity_checking and not trainer.is_last_batch:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it after all that the epoch's end brings, except for other checkpoints."""
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        self._due = False
        trainer.save_checkpoint(self.path, weights_only=False)  # the optimizer's state as well
