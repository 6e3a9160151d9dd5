"""Size of an optimizer step beside the weights, by group of parameters, during training."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from seq2seq.callbacks.charts import COMPARISON, Charts, multiline, write_scalars
from seq2seq.callbacks.layer_probe import check_at_least_one
from seq2seq.data.batch import Batch
from seq2seq.diagnostics.update_ratio import parameter_group, update_ratios


class UpdateRatio(Callback):
    """Show ``||dW|| / ||W||`` of every ``every_n_steps``-th optimizer step, counted from 0.

    TensorBoard gets ``update_ratio/<group>``, where the groups are the roles of an initializer:
    ``embedding``, ``recurrent``, ``input``, ``bias``, ``attention``, ``bridge``, ``output``,
    ``linear_bias``. About 1e-3 is usual early on with Adam; above 0.1 a step throws away what was
    learned, below 1e-5 nothing moves. A step that 16-bit precision skips shows as 0. Weights that
    were all zero, as biases at the first step, have no ratio.

    Args:
        every_n_steps: optimizer steps from one look to the next. For such a step the weights are
            held twice.

    Raises:
        ValueError: if ``every_n_steps`` is below 1.
    """

    def __init__(self, *, every_n_steps: int = 100) -> None:
        check_at_least_one("update_ratio", every_n_steps=every_n_steps)
        self.every_n_steps = every_n_steps
        self._before: dict[str, Tensor] = {}
        self._step = 0

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Remember the weights if the step is due."""
        if trainer.global_step % self.every_n_steps or not trainer.is_global_zero:
            return
        self._step = trainer.global_step
        self._before = {
            name: weight.detach().clone() for name, weight in _trained(pl_module).items()
        }

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Compare them with what the step made of them."""
        before, self._before = self._before, {}
        if not before:
            return
        ratios = update_ratios(before, _trained(pl_module).items())
        numbers = {f"update_ratio/{group}": ratio for group, ratio in ratios.items()}
        write_scalars(trainer, numbers, self._step)

    def tags(self, pl_module: LightningModule) -> list[str]:
        """Every TensorBoard tag that may be written in a run of this module."""
        groups = dict.fromkeys(parameter_group(name) for name in _trained(pl_module))
        return [f"update_ratio/{group}" for group in groups]

    def charts(self, pl_module: LightningModule) -> Charts:
        """All groups together; for comparing runs, the recurrent matrices."""
        return {
            COMPARISON: {
                "update over weight of the recurrent matrices": multiline("update_ratio/recurrent$")
            },
            "Optimizer step": {"update over weight, by group": multiline("update_ratio/.*")},
        }


def _trained(pl_module: LightningModule) -> dict[str, Tensor]:
    return {
        name: weight.detach()
        for name, weight in pl_module.named_parameters()
        if weight.requires_grad
    }
