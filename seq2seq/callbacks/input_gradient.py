"""Gradient norm of each recurrent layer's input by distance, at every training step.

The cheap companion of the probe in `gradient_flow`: it rides on the ordinary backward pass. The
measurement is that of `diagnostics.input_gradient`.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from seq2seq.callbacks.charts import Charts, multiline, write_scalars
from seq2seq.callbacks.layer_probe import check_at_least_one, recurrent_layers
from seq2seq.data.batch import Batch
from seq2seq.diagnostics.gradient_profile import append_gradient_flow, cut_gradient_flow
from seq2seq.diagnostics.input_gradient import QUANTITY, InputGradients

logger = logging.getLogger(__name__)

TABLE = "input_gradient.jsonl"

_NUMBERS = ("slope", "attenuation")


class InputGradient(Callback):
    """Follow the gradient of each layer's input at every timestep, on every example.

    Norms are those of each example's own summed loss, before clipping, and don't depend on batch
    size, gradient accumulation or loss scaling; their root mean square is over all examples since
    the last line was written. In a distributed run the first process watches its own share. A
    compiled network hides its layers: then nothing is watched, and a line in the log says so.

    The table ``input_gradient.jsonl`` gets one line for each time and layer, as
    ``gradient_flow.jsonl`` with the quantity ``input``. TensorBoard gets
    ``gradient_flow/<layer>/input/{slope,attenuation}``.

    Args:
        every_n_steps: optimizer steps from one that is watched to the next.
        log_every_n_steps: optimizer steps from one line to the next, the first at step 0.
        min_examples: a distance is shown if so many examples are that long (at most half of them).
        folder: folder of the table; the logger's folder by default.

    Raises:
        ValueError: for values below 1.
    """

    def __init__(
        self,
        *,
        every_n_steps: int = 1,
        log_every_n_steps: int = 100,
        min_examples: int = 8,
        folder: str | None = None,
    ) -> None:
        check_at_least_one(
            "input_gradient",
            every_n_steps=every_n_steps,
            log_every_n_steps=log_every_n_steps,
            min_examples=min_examples,
        )
        self.every_n_steps = every_n_steps
        self.log_every_n_steps = log_every_n_steps
        self.min_examples = min_examples
        self.folder = folder
        self._table: Path | None = None
        self._gradients: InputGradients | None = None
        self._batch: Batch | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the table, from where a resumed run goes on."""
        self._table = None
        self._detach()
        layers = recurrent_layers(pl_module, "input_gradient")
        if not trainer.is_global_zero:
            return
        self._gradients = InputGradients(layers)
        self._gradients.attach()
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = Path(self.folder or trainer.log_dir or trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self._table = folder / TABLE
        cut_gradient_flow(self._table, before_step=trainer.global_step)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Watch this batch's forward pass."""
        if self._gradients is not None and trainer.global_step % self.every_n_steps == 0:
            self._batch = batch
            self._gradients.start()

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """The forward pass is over: watch no further."""
        self._stop()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add up what arrived; nothing here waits for a GPU."""
        batch, self._batch = self._batch, None
        if batch is None or self._gradients is None:
            return
        lengths = {"encoder": batch.source_lengths, "decoder": batch.target_lengths}
        scale = batch.target_tokens * trainer.accumulate_grad_batches
        seen = self._gradients.add(lengths, scale=scale / _loss_scale(trainer, pl_module.device))
        if not seen:
            self._detach()
            logger.warning(
                "input gradient: no recurrent layer could be watched, because the network is "
                "compiled or nothing before its recurrent layers is trained"
            )

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Write the profiles if they are due."""
        step = trainer.global_step
        if self._gradients is None or step % self.log_every_n_steps:
            return
        profiles = self._gradients.profiles(step, min_examples=self.min_examples)
        if self._table is not None:
            append_gradient_flow(self._table, profiles)
        numbers = {
            _tag(profile.layer, number): float(getattr(profile, number))
            for profile in profiles
            for number in _NUMBERS
        }
        write_scalars(trainer, numbers, step)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Stop watching, should there have been no backward pass."""
        self._stop()
        self._batch = None

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Stop watching, whatever broke."""
        self._detach()
        self._batch = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the layers."""
        self._detach()

    def _detach(self) -> None:
        gradients, self._gradients = self._gradients, None
        if gradients is not None:
            gradients.detach()

    def _stop(self) -> None:
        if self._gradients is not None:
            self._gradients.stop()

    def tags(self, pl_module: LightningModule) -> list[str]:
        """Every TensorBoard tag that may be written in a run of this module."""
        layers = recurrent_layers(pl_module, "input_gradient")
        return [_tag(name, number) for name in layers for number in _NUMBERS]

    def charts(self, pl_module: LightningModule) -> Charts:
        """Each number of all layers together."""
        return {
            "Gradient flow": {
                f"{number} of all layers, {QUANTITY}": multiline(
                    f"gradient_flow/.*/{QUANTITY}/{number}$"
                )
                for number in _NUMBERS
            }
        }


def _tag(layer: str, number: str) -> str:
    return f"gradient_flow/{layer}/{QUANTITY}/{number}"


def _loss_scale(trainer: Trainer, device: torch.device) -> Tensor | float:
    """What automatic mixed precision multiplies the loss by, on the device; 1 without it."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None:
        return 1.0
    scale: Tensor = scaler.scale(torch.ones((), device=device))
    return scale
