"""Gradient of what goes into each recurrent layer, timestep by timestep, at every training step.

``dL/dx_t`` comes with the ordinary backward pass: nothing is linearised, and its logarithm runs
parallel to that of ``dL/dh_t``, because both pass through the same gates. Squared norms of all
examples are added up on the device; nothing waits for it until they are read.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from seq2seq.diagnostics.gradient_profile import GradientProfile
from seq2seq.models.recurrent import RecurrentLayer

QUANTITY = "input"


_PENDING = 12  # batches between two additions

# Smaller norms are made of squares that float32 can't hold.
_SMALLEST = 1e-15

_Hook = Callable[
    [RecurrentLayer, tuple[Any, ...], dict[str, Any]],
    tuple[tuple[Any, ...], dict[str, Any]] | None,
]


@dataclass(frozen=True)
class _Watched:
    """Norms ``[batch, time]`` of the layers' input gradients in one batch."""

    norms: dict[str, Tensor]
    lengths: dict[str, Tensor]
    scale: Tensor | float

    def scales(self) -> Tensor:
        """The factor of each example; infinite if a scaled loss has overflowed."""
        norm = next(iter(self.norms.values()))
        if not isinstance(self.scale, Tensor):
            return _wide(norm).new_full((len(norm),), self.scale)
        finite = torch.stack([norm.isfinite().all() for norm in self.norms.values()]).all()
        return _wide(torch.where(finite, self.scale, math.inf)).expand(len(norm))


class InputGradients:
    """Sums of squared gradient norms of the inputs, by distance from the end of each scan.

    Each layer is handed a view of its input, so that what arrives at the view is what this layer
    sends back and nothing else that reads the same tensor. Values and gradients stay as they are.

    Usage: :meth:`attach`; for each batch :meth:`start`, the forward pass, :meth:`stop`, the
    backward pass, :meth:`add`; :meth:`profiles` as often as one likes; :meth:`detach`.

    Args:
        layers: the layers to watch, by name, ``encoder/...`` or ``decoder/...``.
    """

    def __init__(self, layers: Mapping[str, RecurrentLayer]) -> None:
        self._layers = dict(layers)
        self._handles: list[RemovableHandle] = []
        self._watching = False
        self._norms: dict[str, list[Tensor | None]] = {}
        self._pending: list[_Watched] = []
        # Sums of squares `[distance + 1]` by layer, and numbers of examples by side; the first
        # entry takes what doesn't count.
        self._squares: dict[str, Tensor] = {}
        self._examples: dict[str, Tensor] = {}

    def attach(self) -> None:
        """Stand ready at every layer; that it is once for all batches saves half the time."""
        for name, layer in self._layers.items():
            hook = self._hook(name)
            self._handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))

    def detach(self) -> None:
        """Leave the layers."""
        self._watching = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def start(self) -> None:
        """Watch the next forward pass."""
        self._watching = True
        self._norms = {name: [] for name in self._layers}

    def stop(self) -> None:
        """Watch no further forward pass."""
        self._watching = False

    def add(self, lengths: Mapping[str, Tensor], *, scale: Tensor | float = 1.0) -> bool:
        """Add the batch whose backward pass is over; False if no layer could be watched.

        With a scaled loss, a batch with a gradient that isn't finite counts for nothing.

        Args:
            lengths: number of real timesteps of each example, int64 ``[batch]`` on the device,
                under ``encoder`` and ``decoder``.
            scale: factor on the gradients that makes them those of each example's own loss; a
                tensor if the loss is scaled.
        """
        norms = {
            name: _joined(parts)
            for name, parts in self._norms.items()
            if any(part is not None for part in parts)
        }
        self._norms = {}
        if not norms:
            return False
        self._pending.append(_Watched(norms, dict(lengths), scale))
        if len(self._pending) == _PENDING:
            self._add_up()
        return True

    def _add_up(self) -> None:
        """Add what is pending to the sums: a few calls for many batches."""
        pending, self._pending = self._pending, []
        scale_of_row = torch.cat([one.scales() for one in pending])
        for side in ("encoder", "decoder"):
            names = [name for name in pending[0].norms if name.startswith(side)]
            if not names:
                continue
            # All elements of all batches in a row, and the example that each belongs to.
            shapes = [one.norms[names[0]].shape for one in pending]
            length_of_row = torch.cat([one.lengths[side] for one in pending])
            examples, times = torch.tensor(shapes, device=length_of_row.device).unbind(1)
            time_of_row = times.repeat_interleave(examples, output_size=len(length_of_row))
            first_of_row = time_of_row.cumsum(0) - time_of_row
            row = torch.repeat_interleave(time_of_row, output_size=sum(map(math.prod, shapes)))
            steps = torch.arange(len(row), device=row.device) - first_of_row.index_select(0, row)
            lengths = length_of_row.index_select(0, row)
            scales = scale_of_row.index_select(0, row)
            # One more than the distance from the end of the scan; 0 for what doesn't count.
            counts = (steps < lengths) & scales.isfinite()
            forward = torch.where(counts, lengths - steps, 0)
            backward = torch.where(counts, steps + 1, 0)
            size = 1 + max(time for _, time in shapes)
            # Not bincount, for whose size a GPU would be waited for.
            found = row.new_zeros(size).index_add_(0, forward, torch.ones_like(forward))
            self._examples[side] = _sum(self._examples.get(side), found)
            for name in names:
                norms = torch.cat([one.norms[name].flatten() for one in pending])
                squares = (_wide(norms) * scales).square_().masked_fill_(~counts, 0.0)
                places = backward if self._layers[name].reverse else forward
                sums = squares.new_zeros(size).index_add_(0, places, squares)
                self._squares[name] = _sum(self._squares.get(name), sums)

    def profiles(self, step: int, *, min_examples: int) -> list[GradientProfile]:
        """Root mean square over the examples of all batches since the last call.

        Distances where it is below 1e-15 are left open, as those that few examples reach.

        Args:
            step: optimizer steps done before the last of these batches.
            min_examples: a distance is shown if so many examples are that long; never more than
                half of them are asked for.
        """
        if self._pending:
            self._add_up()
        profiles = []
        examples = {side: counts.tolist()[1:] for side, counts in self._examples.items()}
        for name, squares in self._squares.items():
            # As far as the longest example goes.
            counts = [count for count in examples[name.partition("/")[0]] if count]
            needed = min(min_examples, math.ceil(counts[0] / 2)) if counts else 0
            rms = tuple(
                math.sqrt(square / count)
                if count >= needed and square / count > _SMALLEST**2
                else math.nan
                for square, count in zip(squares.tolist()[1:], counts, strict=False)
            )
            if rms:
                profiles.append(GradientProfile(step, name, QUANTITY, rms))
        self._squares.clear()
        self._examples.clear()
        return profiles

    def _hook(self, name: str) -> _Hook:
        def hand_on_a_view(
            layer: RecurrentLayer, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            # Never compiled into a graph, where it would outlive this object.
            if torch.compiler.is_compiling() or not self._watching:
                return None
            x = args[0] if args else kwargs["x"]
            if not x.requires_grad:
                if not torch.is_grad_enabled() or not _learns(layer):
                    return None
                x = x.detach().requires_grad_()  # frozen embeddings: nothing else asks for it
            norms = self._norms[name]
            call = len(norms)
            norms.append(None)

            def keep_norm(gradient: Tensor) -> None:
                # Wider than float32 would take three times as long.
                dtype = torch.promote_types(gradient.dtype, torch.float32)
                norms[call] = torch.linalg.vector_norm(gradient, dim=2, dtype=dtype)

            view = x.view_as(x)
            view.register_hook(keep_norm)
            return ((view, *args[1:]), kwargs) if args else (args, {**kwargs, "x": view})

        return hand_on_a_view


def _learns(layer: RecurrentLayer) -> bool:
    return any(parameter.requires_grad for parameter in layer.parameters())


def _joined(parts: list[Tensor | None]) -> Tensor:
    """``[batch, time]`` of one call for all timesteps, or of one call a timestep.

    Autograd sends nothing to a timestep that the loss doesn't depend on.
    """
    if len(parts) == 1 and parts[0] is not None:
        return parts[0]
    known = next(part for part in parts if part is not None)
    return torch.cat([torch.zeros_like(known) if part is None else part for part in parts], dim=1)


def _wide(x: Tensor) -> Tensor:
    # Apple's GPUs have no float64.
    return x if x.device.type == "mps" else x.double()


def _sum(first: Tensor | None, second: Tensor) -> Tensor:
    """Of two vectors, the shorter one continued with zeros; may change either."""
    if first is None:
        return second
    if len(first) < len(second):
        first, second = second, first
    first[: len(second)] += second
    return first
