"""Keeps a moving average of the weights over the optimizer steps, which is judged and used.

The averaging itself, and its part of a checkpoint, are Lightning's. Training goes on with the
weights themselves.
"""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage(WeightAveraging):
    """Exponential moving average ``m_t = d_t m_{t-1} + (1 - d_t) w_t`` of the weights.

    Kingma and Ba 2015, section 7.2, after Polyak and Juditsky 1992. ``d_t = min(decay, 1 - 1/t)``
    at step t = 1, 2, ...: the plain mean of all weights until that is the longer memory, as
    Tarvainen and Valpola 2017 start it, so that the initial weights are soon forgotten.

    Validation and test are of the averaged weights, with all that looks at them (best checkpoint,
    early stopping, a plateau schedule, samples), and these are what every checkpoint holds as the
    network's; a resumed run finds the weights themselves beside them. Training figures and
    diagnostics are of the weights themselves.

    Args:
        decay: d, the share of the average that a step keeps.

    Raises:
        ValueError: if it isn't between 0 and 1.
    """

    def __init__(self, *, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(
                f"callbacks.weight_average.decay={decay} must be above 0 and below 1; null "
                "averages nothing"
            )
        super().__init__(device="cpu", use_buffers=False)
        self.decay = decay

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow the network to its device and precision: the copy was made before.

        The number of steps in it stays behind, so that no step waits for a GPU to read it.
        """
        assert self._average_model is not None
        self._average_model.module.to(pl_module.device, pl_module.dtype)  # type: ignore[arg-type]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: object, **kwargs: object
    ) -> None:
        """Take in the weights after an optimizer step.

        Torch's own update would ask the device for the number of steps.
        """
        if trainer.global_step == self._latest_update_step:
            return
        assert self._average_model is not None
        kept = min(self.decay, 1 - 1 / (int(self._average_model.n_averaged) + 1))
        averages, weights = self._average_model.module.parameters(), pl_module.parameters()
        get_ema_multi_avg_fn(kept)(list(averages), list(weights), 0)  # type: ignore[no-untyped-call]
        self._average_model.n_averaged += 1
        self._latest_update_step = trainer.global_step

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the averaged weights in place for what translates once more after it."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back before a checkpoint is written, which happens after this."""
        super().on_validation_epoch_end(trainer, pl_module)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take over both kinds of weights when a run goes on; a test takes the averaged ones."""
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
