"""The progress bar, and the training speed that it shows."""

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from seq2seq.data.batch import Batch


class ProgressBar(TQDMProgressBar):
    """Lightning's bar without the logger's version number, which says nothing here."""

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands behind the bar: the logged figures that ask for it."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class Throughput(Callback):
    """Log target tokens per second of training: forward, backward and update, logging included.

    Validation, checkpoints and whatever else stands between two batches don't count.

    Args:
        every_n_steps: optimizer steps over which a figure is averaged.

    Raises:
        ValueError: if ``every_n_steps`` is below 1.
    """

    def __init__(self, *, every_n_steps: int = 20) -> None:
        if every_n_steps < 1:
            raise ValueError(
                f"callbacks.throughput.every_n_steps={every_n_steps} must be at least 1"
            )
        self.every_n_steps = every_n_steps
        self.tokens = 0
        """Target tokens trained on since the start of the run."""
        self.seconds = 0.0
        """Seconds spent on them."""
        self._began = 0.0
        self._window = (0, 0.0)

    @property
    def tokens_per_second(self) -> float:
        """Mean over the whole run."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Stop the clock; log every `every_n_steps` batches."""
        self.seconds += time.perf_counter() - self._began
        self.tokens += batch.target_tokens
        if (batch_idx + 1) % self.every_n_steps:
            return
        tokens, seconds = self._window
        speed = (self.tokens - tokens) / (self.seconds - seconds)
        self._window = (self.tokens, self.seconds)
        pl_module.log("train/target_tokens_per_second", speed, prog_bar=True, batch_size=1)
