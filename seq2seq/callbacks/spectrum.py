"""Spectrum of the recurrent matrices and Lyapunov exponents of the layers during training.

What they mean is said in `diagnostics.spectrum` and `diagnostics.lyapunov`.
"""

from collections.abc import Mapping

from lightning.pytorch import LightningModule, Trainer

from seq2seq.callbacks.charts import Charts, multiline, write_scalars
from seq2seq.callbacks.layer_probe import LayerProbe, check_at_least_one, recurrent_layers
from seq2seq.diagnostics.gradient_flow import LayerFlow
from seq2seq.diagnostics.leading_exponents import leading_exponents
from seq2seq.diagnostics.spectrum_by_squaring import quick_gate_spectra
from seq2seq.models.recurrent import RecurrentLayer, recurrent_map


class Spectrum(LayerProbe):
    """Show how one step of each layer stretches a signal, and what lasts through a sequence.

    The most expensive group, and the slowest to change: an LSTM layer of 1024 units takes 4 s of
    one CPU core, one of 256 a tenth of a second. On a GPU the matrices stay where they are. When it
    looks is said in :class:`~seq2seq.callbacks.layer_probe.LayerProbe`. TensorBoard gets:

    * ``spectrum/<layer>/<gate>/spectral_radius`` and ``.../largest_singular_value`` of each gate's
      block of the recurrent matrix, with a projection of the product of both;
    * ``spectrum/<layer>/leading_exponent``: the largest Lyapunov exponent along the longest of the
      recorded examples, in natural logarithms per step: below 0 every change of the state decays,
      above 0 the layer is chaotic;
    * ``spectrum/<layer>/memory_dimension``: directions of which a twentieth is left at the end of
      that example, at most ``exponents``.

    Args:
        every_n_steps: optimizer steps from one look to the next.
        examples: examples of the batch among which the longest is followed.
        exponents: directions that are followed.
    """

    def __init__(
        self, *, every_n_steps: int = 1000, examples: int = 16, exponents: int = 32
    ) -> None:
        super().__init__(group="spectrum", every_n_steps=every_n_steps, examples=examples)
        check_at_least_one(self.group, exponents=exponents)
        self.exponents = exponents

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
            spectra = quick_gate_spectra(recurrent_map(layer.rnn), layer.gates)
            for gate, (radius, value) in spectra.items():
                numbers[f"spectrum/{name}/{gate}/spectral_radius"] = radius
                numbers[f"spectrum/{name}/{gate}/largest_singular_value"] = value
            leading = leading_exponents(flow, count=self.exponents)
            numbers[f"spectrum/{name}/leading_exponent"] = leading.exponents[0]
            numbers[f"spectrum/{name}/memory_dimension"] = leading.memory_dimension
        write_scalars(trainer, numbers, step)

    def tags(self, pl_module: LightningModule) -> list[str]:
        """Every TensorBoard tag that may be written in a run of this module."""
        return [
            f"spectrum/{name}/{number}"
            for name, layer in recurrent_layers(pl_module, self.group).items()
            for number in (
                *(f"{gate}/spectral_radius" for gate in layer.gates),
                *(f"{gate}/largest_singular_value" for gate in layer.gates),
                "leading_exponent",
                "memory_dimension",
            )
        ]

    def charts(self, pl_module: LightningModule) -> Charts:
        """Each number of all layers and gates together."""
        return {
            "Spectrum": {
                f"{number} of all layers": multiline(f"spectrum/.*/{number}$")
                for number in (
                    "spectral_radius",
                    "largest_singular_value",
                    "leading_exponent",
                    "memory_dimension",
                )
            }
        }
