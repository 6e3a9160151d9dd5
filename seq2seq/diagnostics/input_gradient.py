"""Gradient of what goes into each recurrent layer, timestep by timestep, at every training step.

``dL/dx_t`` comes with the ordinary backward pass: nothing is linearised, and its logarithm runs
parallel to that of ``dL/dh_t``, because both pass through the same gates. Squared norms of all
examples are added up on the device; nothing waits for it until they are read.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from seq2seq.diagnostics.gradient_profile import GradientProfile
from seq2seq.models.recurrent import RecurrentLayer

QUANTITY = "input"


class InputGradients:
    """Sums of squared gradient norms of the inputs, by distance from the end of each scan.

    Each layer is handed a view of its input, so that what arrives at the view is what this layer
    sends back and nothing else that reads the same tensor. Values and gradients stay as they are.

    Usage, for each batch: :meth:`start`, the forward pass, :meth:`stop`, the backward pass,
    :meth:`add`; and :meth:`profiles` as often as one likes.

    Args:
        layers: the layers to watch, by name, ``encoder/...`` or ``decoder/...``.
    """

    def __init__(self, layers: Mapping[str, RecurrentLayer]) -> None:
        self._layers = dict(layers)
        self._handles: list[RemovableHandle] = []
        self._norms: dict[str, list[Tensor | None]] = {}
        # By side: the names of its layers, and the sums `[layers + 1, distance]`, the last row of
        # which counts the examples.
        self._names: dict[str, list[str]] = {}
        self._sums: dict[str, Tensor] = {}

    def start(self) -> None:
        """Watch the next forward pass."""
        self._norms = {name: [] for name in self._layers}
        for name, layer in self._layers.items():
            hook = _watching_hook(self._norms[name])
            self._handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))

    def stop(self) -> None:
        """Watch no further forward pass."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def add(self, lengths: Mapping[str, Tensor], *, scale: Tensor | float = 1.0) -> bool:
        """Add the batch whose backward pass is over; False if no layer could be watched.

        A batch with a gradient that isn't finite counts for nothing.

        Args:
            lengths: number of real timesteps of each example, int64 ``[batch]`` on the device,
                under ``encoder`` and ``decoder``.
            scale: factor on the gradients that makes them those of each example's own loss.
        """
        norms, self._norms = self._norms, {}
        seen = False
        for side in ("encoder", "decoder"):
            whole = {
                name: _joined(parts)
                for name, parts in norms.items()
                if name.startswith(side) and any(part is not None for part in parts)
            }
            if whole:
                seen = True
                self._add_side(side, whole, lengths[side], scale)
        return seen

    def _add_side(
        self, side: str, norms: dict[str, Tensor], lengths: Tensor, scale: Tensor | float
    ) -> None:
        time = next(iter(norms.values())).size(1)
        distances = torch.arange(time, device=lengths.device)
        real = distances < lengths.unsqueeze(1)  # [batch, distance]
        order = (lengths.unsqueeze(1) - 1 - distances).clamp_min(0)
        aligned = torch.stack(
            # The end of a backward scan is the first timestep.
            [x if self._layers[name].reverse else x.gather(1, order) for name, x in norms.items()]
        )
        counted = torch.cat([(aligned * scale).square(), torch.ones_like(aligned[:1])])
        sums = counted.masked_fill(~real, 0.0).sum(1)
        sums = torch.where(sums.isfinite().all(), sums, 0.0)
        before = self._sums.get(side)
        self._names[side] = list(norms)
        self._sums[side] = sums if before is None else _sum(before, sums)

    def profiles(self, step: int, *, min_examples: int) -> list[GradientProfile]:
        """Root mean square over the examples of all batches since the last call.

        Args:
            step: optimizer steps done before the last of these batches.
            min_examples: a distance is shown if so many examples are that long; never more than
                half of them are asked for.
        """
        profiles = []
        for side, sums in self._sums.items():
            *squares, counts = sums.tolist()
            counts = [count for count in counts if count]  # as far as the longest example goes
            needed = min(min_examples, math.ceil(counts[0] / 2)) if counts else 0
            for name, layer_squares in zip(self._names[side], squares, strict=True):
                rms = tuple(
                    math.sqrt(square / count) if count >= needed else math.nan
                    for square, count in zip(layer_squares, counts, strict=False)
                )
                if rms:
                    profiles.append(GradientProfile(step, name, QUANTITY, rms))
        self._sums.clear()
        return profiles


_Hook = Callable[
    [RecurrentLayer, tuple[Any, ...], dict[str, Any]],
    tuple[tuple[Any, ...], dict[str, Any]] | None,
]


def _watching_hook(norms: list[Tensor | None]) -> _Hook:
    def hook(
        layer: RecurrentLayer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        # Never compiled into a graph, where it would outlive this batch.
        if torch.compiler.is_compiling():
            return None
        x = args[0] if args else kwargs["x"]
        if not x.requires_grad:
            return None
        call = len(norms)
        norms.append(None)

        def keep_norm(gradient: Tensor) -> None:
            # float32 would lose squares below 1e-38. Apple's GPUs have nothing wider.
            dtype = torch.float32 if gradient.device.type == "mps" else torch.float64
            norms[call] = torch.linalg.vector_norm(gradient, dim=2, dtype=dtype)

        view = x.view_as(x)
        view.register_hook(keep_norm)
        return ((view, *args[1:]), kwargs) if args else (args, {**kwargs, "x": view})

    return hook


def _joined(parts: list[Tensor | None]) -> Tensor:
    """``[batch, time]`` of one call for all timesteps, or of one call a timestep.

    Autograd sends nothing to a timestep that the loss doesn't depend on.
    """
    if len(parts) == 1 and parts[0] is not None:
        return parts[0]
    known = next(part for part in parts if part is not None)
    return torch.cat([torch.zeros_like(known) if part is None else part for part in parts], dim=1)


def _sum(first: Tensor, second: Tensor) -> Tensor:
    """Of two ``[rows, distance]``, the shorter one continued with zeros; may change either."""
    if first.size(1) < second.size(1):
        first, second = second, first
    first[:, : second.size(1)] += second
    return first
