"""Size of the states, saturation and open gates during training.

The measurement is that of `diagnostics.forward_signal`, on a batch that `layer_probe` recorded.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from seq2seq.callbacks.charts import Charts, multiline, write_scalars
from seq2seq.callbacks.layer_probe import LayerProbe, recurrent_layers
from seq2seq.diagnostics.forward_signal import forward_signal
from seq2seq.diagnostics.gradient_flow import LayerFlow
from seq2seq.models.recurrent import RecurrentLayer

# Candidates and plain states have a mean near 0, whatever happens to them.
_WITHOUT_MEAN = "gnh"


class ForwardSignal(LayerProbe):
    """Show what the signal does on its way through every recurrent layer.

    When a batch is looked at is said in :class:`~seq2seq.callbacks.layer_probe.LayerProbe`.
    TensorBoard gets, over all real timesteps, examples and units:

    * ``forward_signal/<layer>/hidden_rms``, with a cell state ``cell_rms``: root mean square of the
      state;
    * ``forward_signal/<layer>/saturated``: share of values that hardly move any more, of the gate
      (of an RNN, the state) where it is largest; for ReLU the share of units that are never active;
    * ``forward_signal/<layer>/<gate>_mean``: of each gate, LSTM ``i f o``, GRU ``r z``;
    * ``forward_signal/<layer>/keep_horizon``: steps in which the gate that remembers alone lets a
      state fall to 1/e; not for an RNN.

    Args:
        every_n_steps: optimizer steps from one look to the next.
        examples: examples of the batch that are looked at.
    """

    def __init__(self, *, every_n_steps: int = 100, examples: int = 16) -> None:
        super().__init__(group="forward_signal", every_n_steps=every_n_steps, examples=examples)

    def read(
        self,
        trainer: Trainer,
        step: int,
        layers: Mapping[str, RecurrentLayer],
        flows: Mapping[str, LayerFlow],
    ) -> None:
        """Measure every layer."""
        numbers: dict[str, float] = {}
        for name, flow in flows.items():
            layer = layers[name]
            signal = forward_signal(layer, flow.scan, lengths=flow.lengths)
            found = {
                "hidden_rms": _over_time(signal.hidden_rms, flow.lengths),
                "cell_rms": _over_time(signal.cell_rms, flow.lengths),
                "saturated": signal.most_saturated,
                "keep_horizon": signal.keep_horizon,
                **{f"{gate}_mean": mean for gate, mean in signal.gate_means.items()},
            }
            numbers |= {_tag(name, number): found[number] for number in _numbers(layer)}
        write_scalars(trainer, numbers, step)

    def tags(self, pl_module: LightningModule) -> list[str]:
        """Every TensorBoard tag that may be written in a run of this module."""
        layers = recurrent_layers(pl_module, self.group)
        return [_tag(name, number) for name, layer in layers.items() for number in _numbers(layer)]

    def charts(self, pl_module: LightningModule) -> Charts:
        """Each number of all layers together."""
        (layer, *_) = recurrent_layers(pl_module, self.group).values()
        return {
            "Forward signal": {
                f"{number} of all layers": multiline(f"forward_signal/.*/{number}$")
                for number in _numbers(layer)
            }
        }


def _numbers(layer: RecurrentLayer) -> list[str]:
    gates = [gate for gate in layer.gates if gate not in _WITHOUT_MEAN]
    means = [f"{gate}_mean" for gate in gates]
    cell = ["cell_rms"] if layer.has_cell else []
    horizon = ["keep_horizon"] if gates else []
    return ["hidden_rms", *cell, "saturated", *horizon, *means]


def _tag(layer: str, number: str) -> str:
    return f"forward_signal/{layer}/{number}"


def _over_time(rms: Sequence[float], lengths: Tensor) -> float:
    """Root mean square over all real timesteps from that of each."""
    steps = torch.arange(len(rms), device=lengths.device).unsqueeze(1)
    counts = (steps < lengths).sum(1).tolist()
    squares = sum(count * one**2 for count, one in zip(counts, rms, strict=True))
    return math.sqrt(squares / sum(counts)) if counts else math.nan
