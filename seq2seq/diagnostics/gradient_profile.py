"""Gradient norm against distance: averages over examples, and the few numbers that sum them up.

Also the table that keeps the profiles of a run, one line of JSON each: what TensorBoard shows is
thinned out, the table is whole. Where the norms come from is the business of `gradient_flow`.
Only the averages need torch, so that a table can be read without it.
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Below this a float32 gradient is gone: the smallest normal float32 is 1.2e-38.
SMALLEST_NORM = 1e-38


@dataclass(frozen=True)
class GradientProfile:
    """Root-mean-square gradient norm of one layer by distance, at one training step.

    Args:
        step: optimizer steps done before.
        layer: name of the recurrent layer.
        quantity: ``hidden`` or ``cell``, the total derivative with respect to that state, or
            ``transport``, what is left of a unit vector without any loss.
        from_end: by distance from the end of the layer's own scan; index 0 is the last real
            timestep. NaN where too few examples are that long.
        from_start: by distance from the start of the scan; empty for ``transport``.
    """

    step: int
    layer: str
    quantity: str
    from_end: tuple[float, ...]
    from_start: tuple[float, ...] = ()

    @property
    def slope(self) -> float:
        """Change of the natural logarithm per step back from the end; negative if it vanishes."""
        return log_slope(self.from_end)

    @property
    def slope_from_start(self) -> float:
        """Change of the natural logarithm per step on from the start."""
        return log_slope(self.from_start)

    @property
    def half_life(self) -> float:
        """Steps back in which the norm halves; negative if it grows: minus the steps to double."""
        return math.log(2) / -self.slope if self.slope else math.inf

    @property
    def attenuation(self) -> float:
        """Natural logarithm of the norm at the farthest distance over the norm at distance 0."""
        known = [norm for norm in self.from_end if not math.isnan(norm)]
        if not known:
            return math.nan
        return math.log(max(known[-1], SMALLEST_NORM)) - math.log(max(known[0], SMALLEST_NORM))

    def log10(self) -> list[float]:
        """Decimal logarithm of ``from_end``, with a floor where float32 has underflowed."""
        return [math.log10(n) if n > SMALLEST_NORM else _floor(n) for n in self.from_end]


def _floor(norm: float) -> float:
    return norm if math.isnan(norm) else math.log10(SMALLEST_NORM)


def log_slope(norms: Sequence[float], *, first: int = 2) -> float:
    """Least-squares slope of the natural logarithm per step; NaN with fewer than three points.

    The first distances are left out: there the loss itself still comes in. So is underflow.
    """
    points = [
        (distance, math.log(norm))
        for distance, norm in enumerate(norms)
        if distance >= first and norm > SMALLEST_NORM
    ]
    if len(points) < 3:
        return math.nan
    middle = sum(distance for distance, _ in points) / len(points)
    spread = sum((distance - middle) ** 2 for distance, _ in points)
    return sum((distance - middle) * log for distance, log in points) / spread


def root_mean_square(
    norms: "Tensor",
    lengths: "Tensor",
    *,
    from_end: bool,
    min_examples: int,
    counted: "Tensor | None" = None,
) -> tuple[float, ...]:
    """Root mean square over the examples that are real at each distance.

    Args:
        norms: in the order of the scan.
        lengths: number of real timesteps.
        from_end: align by distance from each example's own last timestep, not from the first.
        min_examples: NaN where fewer examples are that long.
        counted: so many of the aligned timesteps of each example count; all real ones if None.

    Shape:
        norms: ``[rows, time]``; lengths, counted: int64 ``[rows]``; returns as many values as the
        longest example has timesteps that count.
    """
    import torch

    from seq2seq.models.recurrent import reverse_by_length

    aligned = reverse_by_length(norms, lengths) if from_end else norms
    counted = lengths if counted is None else counted
    real = torch.arange(norms.size(1)) < counted.unsqueeze(1)
    count = real.sum(0)
    # The largest norm is taken out first: the square of an exploding one would overflow.
    largest = torch.where(real, aligned, 0).amax().clamp_min(SMALLEST_NORM)
    squares = torch.where(real, aligned / largest, 0).square().sum(0)
    mean = largest * (squares / count).sqrt()
    return tuple(mean.masked_fill(count < min_examples, math.nan)[: int(counted.max())].tolist())


def gradient_profiles(
    step: int,
    layer: str,
    norms: "dict[str, Tensor]",
    lengths: "Tensor",
    *,
    min_examples: int,
    transported: "Tensor | None" = None,
) -> list[GradientProfile]:
    """One profile for each quantity of one layer.

    Args:
        step: optimizer steps done before.
        layer: name of the layer.
        norms: ``[rows, time]`` in the order of the scan, by quantity.
        lengths: number of real timesteps of each example.
        min_examples: a distance is shown if so many examples are that long; never more than half
            of the examples are asked for.
        transported: timesteps from the end over which the transport of each example is carried
            back, where it ends before the sequence does.
    """
    lengths = lengths.cpu()
    reach = None if transported is None else transported.cpu()
    needed = min(min_examples, math.ceil(len(lengths) / 2))

    def aligned(quantity: str, from_end: bool) -> tuple[float, ...]:
        return root_mean_square(
            norms[quantity],
            lengths,
            from_end=from_end,
            min_examples=needed,
            counted=reach if quantity == "transport" else None,
        )

    return [
        GradientProfile(
            step,
            layer,
            quantity,
            aligned(quantity, from_end=True),
            () if quantity == "transport" else aligned(quantity, from_end=False),
        )
        for quantity in norms
    ]


def append_gradient_flow(path: Path, profiles: Iterable[GradientProfile]) -> None:
    """Add profiles to a table, one line each, and hand them to the operating system at once."""
    lines = "".join(json.dumps(_row(profile)) + "\n" for profile in profiles)
    with path.open("a", encoding="utf-8") as file:
        file.write(lines)


def read_gradient_flow(path: str | Path) -> list[GradientProfile]:
    """All profiles of a table; a last line that a killed run left unfinished is passed over.

    Raises:
        ValueError: for any other line that is no profile.
    """
    profiles = []
    with Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                break
            try:
                row = json.loads(line)
                profile = GradientProfile(
                    step=row["step"],
                    layer=row["layer"],
                    quantity=row["quantity"],
                    from_end=_numbers(row["from_end"]),
                    from_start=_numbers(row["from_start"]),
                )
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number} is no gradient profile: {error}; the table is written "
                    "by training and not meant to be edited"
                ) from error
            profiles.append(profile)
    return profiles


def cut_gradient_flow(path: Path, *, before_step: int) -> list[GradientProfile]:
    """Keep the rows of earlier steps only, for a run that goes on from there, and return them.

    The file is replaced in one move, so that a run killed meanwhile leaves a whole one.
    """
    if not path.exists():
        return []
    kept = [profile for profile in read_gradient_flow(path) if profile.step < before_step]
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    append_gradient_flow(partial, kept)
    os.replace(partial, path)
    return kept


def _row(profile: GradientProfile) -> dict[str, object]:
    return {
        "step": profile.step,
        "layer": profile.layer,
        "quantity": profile.quantity,
        "slope": _json_number(profile.slope),
        "half_life": _json_number(profile.half_life),
        "attenuation": _json_number(profile.attenuation),
        "slope_from_start": _json_number(profile.slope_from_start),
        "from_end": [_json_number(norm) for norm in profile.from_end],
        "from_start": [_json_number(norm) for norm in profile.from_start],
    }


def _json_number(number: float) -> float | None:
    """Six digits; JSON has no NaN or infinity."""
    return float(f"{number:.6g}") if math.isfinite(number) else None


def _numbers(values: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(math.nan if value is None else float(value) for value in values)
