"""Gradient norm per timestep during training: when to probe, and where the results go.

Every so many optimizer steps one batch is watched by `diagnostics.gradient_flow`; a table in the
run's folder keeps all, TensorBoard shows a thinned-out part of it. What is trained stays the same.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer

from seq2seq.callbacks.charts import (
    COMPARISON,
    Charts,
    charted,
    multiline,
    write_picture,
    write_scalars,
    writers,
)
from seq2seq.callbacks.layer_probe import LayerProbe, check_at_least_one
from seq2seq.diagnostics.gradient_flow import LayerFlow
from seq2seq.diagnostics.gradient_profile import (
    GradientProfile,
    append_gradient_flow,
    cut_gradient_flow,
    gradient_profiles,
)
from seq2seq.diagnostics.heat_map import heat_map
from seq2seq.models.recurrent import RecurrentLayer

TABLE = "gradient_flow.jsonl"


class GradientFlow(LayerProbe):
    """Probe the gradient norm at every timestep of every recurrent layer.

    Norms are those of each example's own summed loss, before clipping, and don't depend on batch
    size, gradient accumulation or loss scaling. When a probe comes is said in
    :class:`~seq2seq.callbacks.layer_probe.LayerProbe`.

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
        max_tags: more tags than this, of all diagnostics together, are refused, because
            TensorBoard's pages become slow.
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
        max_tags: int = 500,
        seed: int = 0,
        folder: str | None = None,
    ) -> None:
        super().__init__(
            group="gradient_flow", every_n_steps=every_n_steps, examples=examples, seed=seed
        )
        check_at_least_one(self.group, min_examples=min_examples, heat_map_every=heat_map_every)
        if any(distance < 0 for distance in distances):
            raise ValueError(f"distances are {list(distances)}, but none may be below 0")
        if not heat_map_lowest < heat_map_highest:
            raise ValueError(
                f"heat_map_lowest is {heat_map_lowest}, but it must be below heat_map_highest, "
                f"which is {heat_map_highest}"
            )
        self.min_examples = min_examples
        self.distances = tuple(distances)
        self.heat_map_every = heat_map_every
        self.heat_map_lowest = heat_map_lowest
        self.heat_map_highest = heat_map_highest
        self.ridge_max_length = ridge_max_length
        self.max_tags = max_tags
        self.folder = folder
        self._table: Path | None = None
        self._history: dict[tuple[str, str], list[GradientProfile]] = {}
        self._undrawn_probes = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse more tags than TensorBoard bears, before the first step."""
        super().on_fit_start(trainer, pl_module)
        own = len(self.tags(pl_module))
        tags = sum(len(callback.tags(pl_module)) for callback in charted(trainer))
        if writers(trainer) and tags > self.max_tags:
            raise ValueError(
                f"the diagnostics of {len(self._layers)} recurrent layers would write {tags} "
                f"TensorBoard tags, {own} of them the gradient flow, but max_tags is "
                f"{self.max_tags}: give fewer than {len(self.distances)} distances "
                "(callbacks.gradient_flow.distances=[0,2,8,34]), leave a group out "
                "(callbacks.spectrum=null), or raise callbacks.gradient_flow.max_tags and expect "
                "slow pages"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the table, from where a resumed run goes on."""
        super().on_train_start(trainer, pl_module)
        self._history.clear()
        self._table = None
        folder = self.folder or trainer.log_dir or trainer.default_root_dir
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._table = Path(folder) / TABLE
        # What an interrupted run probed after its checkpoint will be probed again.
        for profile in cut_gradient_flow(self._table, before_step=trainer.global_step):
            self._remember(profile)

    def read(
        self,
        trainer: Trainer,
        step: int,
        layers: Mapping[str, RecurrentLayer],
        flows: Mapping[str, LayerFlow],
    ) -> None:
        """Average over examples, and write what was found."""
        profiles = [
            profile
            for name, flow in flows.items()
            for profile in gradient_profiles(
                step,
                name,
                flow.norms(),
                flow.lengths,
                min_examples=self.min_examples,
                transported=flow.transported,
            )
        ]
        if self._table is not None:
            append_gradient_flow(self._table, profiles)
        numbers: dict[str, float] = {}
        for profile in profiles:
            self._remember(profile)
            numbers |= self._numbers(profile)
            self._write_ridge(trainer, profile)
        write_scalars(trainer, numbers, step)
        self._undrawn_probes += 1
        if self._undrawn_probes >= self.heat_map_every:
            self._draw(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the heat maps with the probes since the last drawing."""
        self._draw(trainer)

    def _remember(self, profile: GradientProfile) -> None:
        if profile.quantity != "transport":
            self._history.setdefault((profile.layer, profile.quantity), []).append(profile)

    def _numbers(self, profile: GradientProfile) -> dict[str, float]:
        name = f"{profile.layer}/{profile.quantity}"
        numbers = {
            f"gradient_flow/{name}/slope": profile.slope,
            f"gradient_flow/{name}/half_life": profile.half_life,
            f"gradient_flow/{name}/attenuation": profile.attenuation,
        }
        if profile.quantity == "hidden":
            numbers[f"gradient_flow/{name}/slope_from_start"] = profile.slope_from_start
        if profile.quantity != "transport":
            logarithms = profile.log10()
            for distance in self.distances:
                if distance < len(logarithms):
                    numbers[_norm_tag(name, distance)] = logarithms[distance]
        return numbers

    def _write_ridge(self, trainer: Trainer, profile: GradientProfile) -> None:
        logarithms = profile.log10()
        known = [number for number in logarithms if not math.isnan(number)]
        heights = [max(number - self.heat_map_lowest, 0.0) for number in known]
        short = len(logarithms) <= self.ridge_max_length
        if profile.quantity != "hidden" or not short or not heights:
            return
        for writer in writers(trainer):
            writer.add_histogram_raw(
                f"gradient_ridge/{profile.layer}/{profile.quantity}",
                min=-0.5,
                max=len(heights) - 0.5,
                num=sum(heights),
                sum=sum(d * height for d, height in enumerate(heights)),
                sum_squares=sum(d * d * height for d, height in enumerate(heights)),
                bucket_limits=[d + 0.5 for d in range(len(heights))],
                bucket_counts=heights,
                global_step=profile.step,
            )

    def _draw(self, trainer: Trainer) -> None:
        if not self._undrawn_probes:
            return
        self._undrawn_probes = 0
        if not writers(trainer):
            return
        for (layer, quantity), profiles in self._history.items():
            picture = heat_map(
                [profile.log10() for profile in profiles],
                [profile.step for profile in profiles],
                lowest=self.heat_map_lowest,
                highest=self.heat_map_highest,
                title=f"gradient norm, {layer}, {quantity} state",
            )
            tag = f"gradient_heat_map/{layer}/{quantity}"
            write_picture(trainer, tag, picture, profiles[-1].step)

    def tags(self, pl_module: LightningModule) -> list[str]:
        """Every TensorBoard tag that may be written in a run of this module."""
        found = []
        for layer, quantities in _quantities(self._layers).items():
            for quantity in (*quantities, "transport"):
                name = f"{layer}/{quantity}"
                found += [
                    f"gradient_flow/{name}/{number}"
                    for number in ("slope", "half_life", "attenuation")
                ]
                if quantity != "transport":
                    found.append(f"gradient_heat_map/{name}")
                    found += [_norm_tag(name, distance) for distance in self.distances]
            found += [
                f"gradient_flow/{layer}/hidden/slope_from_start",
                f"gradient_ridge/{layer}/hidden",
            ]
        return found

    def charts(self, pl_module: LightningModule) -> Charts:
        """Norms by distance of each layer, and slope and attenuation of all layers together.

        For comparing runs, the slope of the transport of each layer.
        """
        return {
            COMPARISON: {
                f"transport slope, {layer}": multiline(f"gradient_flow/{layer}/transport/slope$")
                for layer in self._layers
            },
            "Gradient flow": {
                f"{number} of all layers, {quantity}": multiline(
                    f"gradient_flow/.*/{quantity}/{number}$"
                )
                for quantity in ("hidden", "transport")
                for number in ("slope", "attenuation")
            },
            "Gradient norm by distance (log10)": {
                f"{layer}, {quantity} state": multiline(f"gradient_norm/{layer}/{quantity}/.*")
                for layer, quantities in _quantities(self._layers).items()
                for quantity in quantities
            },
        }


def _quantities(layers: Mapping[str, RecurrentLayer]) -> dict[str, list[str]]:
    return {
        name: ["hidden", "cell"] if layer.has_cell else ["hidden"] for name, layer in layers.items()
    }


def _norm_tag(name: str, distance: int) -> str:
    return f"gradient_norm/{name}/distance_{distance:04d}"
