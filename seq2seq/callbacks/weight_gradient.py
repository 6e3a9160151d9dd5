"""Early against late timesteps in the gradient of the recurrent matrices during training.

The comparison is that of `diagnostics.weight_gradient`, on a batch that `layer_probe` recorded.
"""

from collections.abc import Mapping

from lightning.pytorch import LightningModule, Trainer

from seq2seq.callbacks.charts import Charts, multiline, write_scalars
from seq2seq.callbacks.layer_probe import LayerProbe, recurrent_layers
from seq2seq.diagnostics.gradient_flow import LayerFlow
from seq2seq.diagnostics.weight_gradient import THIRDS, weight_gradient_by_time
from seq2seq.models.recurrent import RecurrentLayer


class WeightGradient(LayerProbe):
    """Show which third of the timesteps each recurrent matrix learns from.

    When a batch is looked at is said in :class:`~seq2seq.callbacks.layer_probe.LayerProbe`.
    Thirds are those of each example's own timesteps, in the order of the layer's scan. TensorBoard
    gets:

    * ``weight_gradient/<layer>/early_late_cosine``: between the gradients that come from the first
      and from the last third: near 0 the early part is noise to the late one, below 0 they pull in
      opposite directions;
    * ``weight_gradient/<layer>/{early,middle,late}_share``: norm of each third's gradient over the
      sum of the three; where the gradient vanishes, the last third (in a layer with a loss at its
      end) has nearly all.

    Args:
        every_n_steps: optimizer steps from one look to the next.
        examples: examples of the batch whose gradients are added up.
    """

    def __init__(self, *, every_n_steps: int = 100, examples: int = 16) -> None:
        super().__init__(group="weight_gradient", every_n_steps=every_n_steps, examples=examples)

    def read(
        self,
        trainer: Trainer,
        step: int,
        layers: Mapping[str, RecurrentLayer],
        flows: Mapping[str, LayerFlow],
    ) -> None:
        """Compare the thirds of every layer."""
        numbers: dict[str, float] = {}
        for name, flow in flows.items():
            found = weight_gradient_by_time(flow)
            numbers[f"weight_gradient/{name}/early_late_cosine"] = found.cosine
            for third, share in found.shares.items():
                numbers[f"weight_gradient/{name}/{third}_share"] = share
        write_scalars(trainer, numbers, step)

    def tags(self, pl_module: LightningModule) -> list[str]:
        """Every TensorBoard tag that may be written in a run of this module."""
        numbers = ("early_late_cosine", *(f"{third}_share" for third in THIRDS))
        return [
            f"weight_gradient/{name}/{number}"
            for name in recurrent_layers(pl_module, self.group)
            for number in numbers
        ]

    def charts(self, pl_module: LightningModule) -> Charts:
        """The cosine and the early share of all layers, and the thirds of each."""
        every = {
            f"{number} of all layers": multiline(f"weight_gradient/.*/{number}$")
            for number in ("early_late_cosine", "early_share")
        }
        thirds = {
            f"thirds of {name}": multiline(f"weight_gradient/{name}/.*_share$")
            for name in recurrent_layers(pl_module, self.group)
        }
        return {"Recurrent weight gradient over time": {**every, **thirds}}
