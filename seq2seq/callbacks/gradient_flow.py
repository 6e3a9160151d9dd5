"""Gradient norm per timestep during training: when to probe, and where the results go.

Every so many optimizer steps one batch is watched by `diagnostics.gradient_flow`; a table in the
run's folder keeps all, TensorBoard shows a thinned-out part of it. What is trained stays the same.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from seq2seq.data.batch import Batch
from seq2seq.diagnostics.gradient_flow import GradientRecorder, RecomputationError, layer_flow
from seq2seq.diagnostics.gradient_profile import (
    GradientProfile,
    append_gradient_flow,
    cut_gradient_flow,
    gradient_profiles,
)
from seq2seq.diagnostics.heat_map import heat_map
from seq2seq.models.recurrent import RecurrentLayer

logger = logging.getLogger(__name__)

TABLE = "gradient_flow.jsonl"


class GradientFlow(Callback):
    """Probe the gradient norm at every timestep of every recurrent layer.

    A probe is the first batch of every ``every_n_steps``-th optimizer step, counted from 0, so that
    the first one sees the initialized weights. Norms are those of each example's own summed loss,
    before clipping, and don't depend on batch size, gradient accumulation or loss scaling. In a
    distributed run the first process probes its own share. A compiled network hides its layers:
    then nothing is probed, and a line in the log says so.

    The table ``gradient_flow.jsonl`` gets one line for each probe, layer and quantity (see
    :class:`~seq2seq.diagnostics.gradient_profile.GradientProfile`). TensorBoard gets, where
    ``quantity`` is ``hidden`` or ``cell``:

    * ``gradient_flow/<layer>/<quantity>/{slope,half_life,attenuation}``, for ``transport`` too, and
      ``gradient_flow/<layer>/hidden/slope_from_start``;
    * ``gradient_norm/<layer>/<quantity>/distance_0003``: decimal logarithm of the norm that many
      steps before the end of the layer's scan;
    * ``gradient_heat_map/<layer>/<quantity>``: distance against training step;
    * ``gradient_ridge/<layer>/hidden``: a histogram whose buckets are distances and whose heights
      are decades above ``heat_map_lowest``, for short sequences.

    Args:
        every_n_steps: optimizer steps from one probe to the next.
        examples: examples of the batch that are followed, evenly spaced over it.
        min_examples: a distance is shown if so many of them are that long (at most half of them).
        distances: distances from the end that become scalars, as far as sequences are that long.
        heat_map_every: probes from one drawing of the heat maps to the next.
        heat_map_lowest: decimal logarithm of the norm with the first colour.
        heat_map_highest: decimal logarithm of the norm with the last colour.
        ridge_max_length: longest sequence for which the ridge histogram is written; TensorBoard
            redraws longer ones with 30 buckets.
        max_tags: more tags than this are refused, because TensorBoard's pages become slow.
        seed: of the random vectors whose transport is measured.
        folder: folder of the table; the logger's folder by default.

    Raises:
        ValueError: for values out of range, and at the start of training for too many tags.
    """

    def __init__(
        self,
        *,
        every_n_steps: int = 50,
        examples: int = 16,
        min_examples: int = 8,
        distances: Sequence[int] = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144),
        heat_map_every: int = 20,
        heat_map_lowest: float = -8.0,
        heat_map_highest: float = 2.0,
        ridge_max_length: int = 30,
        max_tags: int = 300,
        seed: int = 0,
        folder: str | None = None,
    ) -> None:
        for name, value in (
            ("every_n_steps", every_n_steps),
            ("examples", examples),
            ("min_examples", min_examples),
            ("heat_map_every", heat_map_every),
        ):
            if value < 1:
                raise ValueError(f"{name} is {value}, but it must be at least 1")
        if any(distance < 0 for distance in distances):
            raise ValueError(f"distances are {list(distances)}, but none may be below 0")
        if not heat_map_lowest < heat_map_highest:
            raise ValueError(
                f"heat_map_lowest is {heat_map_lowest}, but it must be below heat_map_highest, "
                f"which is {heat_map_highest}"
            )
        self.every_n_steps = every_n_steps
        self.examples = examples
        self.min_examples = min_examples
        self.distances = tuple(distances)
        self.heat_map_every = heat_map_every
        self.heat_map_lowest = heat_map_lowest
        self.heat_map_highest = heat_map_highest
        self.ridge_max_length = ridge_max_length
        self.max_tags = max_tags
        self.seed = seed
        self.folder = folder
        self._table: Path | None = None
        self._recorder: GradientRecorder | None = None
        self._lengths: dict[str, Tensor] = {}
        self._target_tokens = 0
        self._probed_step = -1
        self._history: dict[tuple[str, str], list[GradientProfile]] = {}
        self._undrawn_probes = 0
        self._blind = False
        self._said: set[str] = set()

    # --- when ----------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse more tags than TensorBoard bears, before the first step."""
        layers = recurrent_layers(pl_module)
        tags = self._possible_tags(layers)
        if _writers(trainer) and tags > self.max_tags:
            raise ValueError(
                f"gradient flow of {len(layers)} recurrent layers would write {tags} TensorBoard "
                f"tags, but max_tags is {self.max_tags}: give fewer than {len(self.distances)} "
                "distances (callbacks.gradient_flow.distances=[0,2,8,34]), or raise max_tags and "
                "expect slow pages"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the table, from where a resumed run goes on, and lay out TensorBoard's charts."""
        self._probed_step = -1
        self._blind = False
        self._history.clear()
        self._table = None
        folder = self.folder or trainer.log_dir or trainer.default_root_dir
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._table = Path(folder) / TABLE
        # What an interrupted run probed after its checkpoint will be probed again.
        kept = cut_gradient_flow(self._table, before_step=trainer.global_step)
        for profile in kept:
            self._remember(profile)
        for writer in _writers(trainer):
            writer.add_custom_scalars(_layout(recurrent_layers(pl_module)))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Watch this batch's forward pass if a probe is due."""
        step = trainer.global_step
        if (
            self._blind
            or step % self.every_n_steps
            or step == self._probed_step
            or not trainer.is_global_zero
        ):
            return
        self._probed_step = step
        size = len(batch.source_lengths)
        count = min(self.examples, size)
        rows = torch.arange(count, device=batch.source_lengths.device) * size // count
        self._lengths = {
            "encoder": batch.source_lengths[rows],
            "decoder": batch.target_lengths[rows],
        }
        self._target_tokens = batch.target_tokens
        self._recorder = GradientRecorder(recurrent_layers(pl_module), rows=rows).start()

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """The forward pass is over: watch no further."""
        if self._recorder is not None:
            self._recorder.stop()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All gradients have arrived: follow them through time and write what was found."""
        recorder = self._drop_recorder()
        if recorder is None:
            return
        if not any(recorder.calls.values()):
            self._blind = True
            self._say_once(
                "blind",
                "no recurrent layer could be watched, because the network is compiled or nothing "
                "in it is trained; there will be no profiles",
            )
            return
        profiles = self._profiles(trainer, pl_module, recorder)
        if not profiles:
            return
        for profile in profiles:
            self._remember(profile)
        if self._table is not None:
            append_gradient_flow(self._table, profiles)
        self._undrawn_probes += 1
        for writer in _writers(trainer):
            for profile in profiles:
                self._write(writer, profile)
        if self._undrawn_probes >= self.heat_map_every:
            self._draw(trainer)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Stop watching, should there have been no backward pass."""
        self._drop_recorder()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Stop watching, whatever broke."""
        self._drop_recorder()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the heat maps with the probes since the last drawing."""
        self._draw(trainer)

    def _drop_recorder(self) -> GradientRecorder | None:
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.stop()
        return recorder

    # --- what ----------------------------------------------------------------------------------

    def _profiles(
        self, trainer: Trainer, pl_module: LightningModule, recorder: GradientRecorder
    ) -> list[GradientProfile]:
        """Profiles of all layers, or none if a gradient overflowed."""
        scale = self._target_tokens * trainer.accumulate_grad_batches / _loss_scale(trainer)
        profiles: list[GradientProfile] = []
        for name, layer in recurrent_layers(pl_module).items():
            if not recorder.calls[name]:
                continue
            lengths = self._lengths["decoder" if name.startswith("decoder") else "encoder"]
            try:
                flow = layer_flow(
                    layer, recorder.calls[name], lengths=lengths, scale=scale, seed=self.seed
                )
            except FloatingPointError as error:
                self._say_once(
                    "overflow",
                    f"{error}; such probes, the first at step {self._probed_step}, are left out "
                    "(while 16-bit precision looks for its loss scale, a few are normal)",
                )
                return []
            except RecomputationError as error:
                self._say_once(name, f"{name} is left out: {error}")
                continue
            profiles += gradient_profiles(
                self._probed_step,
                name,
                flow.norms(),
                flow.lengths,
                min_examples=self.min_examples,
            )
        return profiles

    def _remember(self, profile: GradientProfile) -> None:
        if profile.quantity != "transport":
            self._history.setdefault((profile.layer, profile.quantity), []).append(profile)

    def _say_once(self, kind: str, sentence: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            logger.warning("gradient flow: %s", sentence)

    # --- where ---------------------------------------------------------------------------------

    def _write(self, writer: Any, profile: GradientProfile) -> None:
        step, name = profile.step, f"{profile.layer}/{profile.quantity}"
        numbers = {
            f"gradient_flow/{name}/slope": profile.slope,
            f"gradient_flow/{name}/half_life": profile.half_life,
            f"gradient_flow/{name}/attenuation": profile.attenuation,
        }
        if profile.quantity == "hidden":
            numbers[f"gradient_flow/{name}/slope_from_start"] = profile.slope_from_start
        logarithms = profile.log10()
        if profile.quantity != "transport":
            for distance in self.distances:
                if distance < len(logarithms):
                    tag = f"gradient_norm/{name}/distance_{distance:04d}"
                    numbers[tag] = logarithms[distance]
        for tag, number in numbers.items():
            if math.isfinite(number):
                writer.add_scalar(tag, number, step)
        if profile.quantity == "hidden" and len(logarithms) <= self.ridge_max_length:
            self._write_ridge(writer, f"gradient_ridge/{name}", logarithms, step)

    def _write_ridge(self, writer: Any, tag: str, logarithms: list[float], step: int) -> None:
        known = [number for number in logarithms if not math.isnan(number)]
        heights = [max(number - self.heat_map_lowest, 0.0) for number in known]
        if not heights:
            return
        writer.add_histogram_raw(
            tag,
            min=-0.5,
            max=len(heights) - 0.5,
            num=sum(heights),
            sum=sum(d * height for d, height in enumerate(heights)),
            sum_squares=sum(d * d * height for d, height in enumerate(heights)),
            bucket_limits=[d + 0.5 for d in range(len(heights))],
            bucket_counts=heights,
            global_step=step,
        )

    def _draw(self, trainer: Trainer) -> None:
        if not self._undrawn_probes:
            return
        self._undrawn_probes = 0
        for writer in _writers(trainer):
            for (layer, quantity), profiles in self._history.items():
                picture = heat_map(
                    [profile.log10() for profile in profiles],
                    [profile.step for profile in profiles],
                    lowest=self.heat_map_lowest,
                    highest=self.heat_map_highest,
                    title=f"gradient norm, {layer}, {quantity} state",
                )
                tag = f"gradient_heat_map/{layer}/{quantity}"
                writer.add_image(tag, picture, profiles[-1].step, dataformats="HWC")

    def _possible_tags(self, layers: dict[str, RecurrentLayer]) -> int:
        # Slope, half-life and attenuation of each quantity; norms and a heat map of each but the
        # transport; for the hidden state the slope from the start and the ridge.
        quantities = sum(2 if layer.cell == "lstm" else 1 for layer in layers.values())
        return quantities * (3 + len(self.distances) + 1) + len(layers) * (3 + 2)


def recurrent_layers(pl_module: LightningModule) -> dict[str, RecurrentLayer]:
    """The recurrent layers by name of the network that a module holds as ``model``."""
    network: Any = getattr(pl_module, "model", None)
    if not hasattr(network, "recurrent_layers"):
        raise ValueError(
            f"gradient flow needs a module whose attribute model has recurrent_layers(), but "
            f"{type(pl_module).__name__} has none: remove the callback gradient_flow"
        )
    layers: dict[str, RecurrentLayer] = network.recurrent_layers()
    return layers


def _loss_scale(trainer: Trainer) -> float:
    """What automatic mixed precision multiplies the loss by; 1 without it."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())


def _writers(trainer: Trainer) -> list[Any]:
    return [
        writer.experiment for writer in trainer.loggers if isinstance(writer, TensorBoardLogger)
    ]


def _layout(layers: dict[str, RecurrentLayer]) -> dict[str, dict[str, list[Any]]]:
    """Charts that gather many tags; TensorBoard reads each tag as a regular expression."""
    quantities = {
        layer: ["hidden", "cell"] if module.cell == "lstm" else ["hidden"]
        for layer, module in layers.items()
    }
    norms = {
        f"{layer}, {quantity} state": ["Multiline", [f"gradient_norm/{layer}/{quantity}/.*"]]
        for layer, names in quantities.items()
        for quantity in names
    }
    summaries = {
        f"{number} of all layers, {quantity}": [
            "Multiline",
            [f"gradient_flow/.*/{quantity}/{number}$"],
        ]
        for quantity in ("hidden", "transport")
        for number in ("slope", "attenuation")
    }
    return {"Gradient flow": summaries, "Gradient norm by distance (log10)": norms}
