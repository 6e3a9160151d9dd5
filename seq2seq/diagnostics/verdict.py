"""Whether a recurrent layer carries a signal as far as its sequences are long: every threshold.

Lengths are the 95th percentile of the training split. Attenuation means the natural logarithm of
what is left of the transport over that length. What to change is left to `advice`.
"""

import math
from dataclasses import dataclass

from seq2seq.diagnostics.layer_report import LayerReport

# Below this, less than 5 % of a random gradient gets through. Networks that learn to copy or to
# recall lie between -3 and 0, vanilla RNNs best near -1.5, gated cells up to +3; from a factor of
# 10 on a vanilla RNN learns worse with every step of its recurrent gain.
LEAST_ATTENUATION = -3.0
MOST_ATTENUATION = 3.0
MOST_ATTENUATION_VANILLA = math.log(10)

# A vanilla RNN is chaotic once its leading exponent is above 0. Over a short sequence that harms
# once its fastest direction has grown by the same factor of 10, even where most others decay.
MOST_GROWTH = math.log(10)

# What carries must also get in. LSTMs with open gates never left the start within 500 steps where
# the input added 0.0006 to the activations (root mean square), and learnt to copy where it added
# 0.06 and, better, 1.
LEAST_DRIVE = 0.01

# An LSTM of 64 units learnt to recall symbols over a lag with 36 directions left and more, partly
# with 7, and not at all with none: the bound lies halfway between 7 and 36 in logarithm. What has
# to be remembered depends on the task and not on the width, so a wide layer needs no larger number.
LEAST_DIRECTIONS = 16
LEAST_SHARE_OF_UNITS = 0.25


@dataclass(frozen=True)
class Verdict:
    """What is to be expected of one layer.

    Args:
        kind: ``vanishing``, ``exploding`` or ``carries``.
        reason: the numbers behind it, in words.
        distance: how far outside the bounds the layer is, in natural logarithms; 0 if it carries.
    """

    kind: str
    reason: str
    distance: float

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


def judge(report: LayerReport) -> Verdict:
    """Compare a layer with the thresholds of this file."""
    lengths = report.lengths
    beside = f"{lengths.side} are {lengths.long} long"
    attenuation, slope = report.attenuation, report.slope
    too_little = max(0.0, LEAST_ATTENUATION - attenuation)
    too_much = max(0.0, attenuation - most_attenuation(report))
    drive = report.signal.drive_rms
    too_faint = max(0.0, math.log(LEAST_DRIVE / drive)) if drive else math.inf
    if too_little:
        reason = f"half-life {_steps(slope)}, {beside}"
        return Verdict("vanishing", reason, too_little + too_faint)
    if too_much:
        return Verdict("exploding", f"doubles every {_steps(slope)}, {beside}", too_much)
    if too_faint:
        reason = f"the input hardly gets in, it drives the units with {drive:.2g}, {beside}"
        return Verdict("vanishing", reason, too_faint)
    if report.vanilla:
        return _judge_growth(report, beside)
    return _judge_memory(report, beside)


def most_attenuation(report: LayerReport) -> float:
    """Upper bound of the attenuation, which is above 0: a gradient that grows."""
    return MOST_ATTENUATION_VANILLA if report.vanilla else MOST_ATTENUATION


def directions_needed(report: LayerReport) -> int:
    """How many directions a gated layer should keep over its sequences."""
    return min(LEAST_DIRECTIONS, math.ceil(LEAST_SHARE_OF_UNITS * report.hidden_size))


def _judge_growth(report: LayerReport, beside: str) -> Verdict:
    leading = report.exponents[0]
    growth = leading * report.lengths.long
    if growth > MOST_GROWTH:
        return Verdict(
            "exploding",
            f"its fastest direction doubles every {_steps(leading)}, {beside}",
            growth - MOST_GROWTH,
        )
    return Verdict("carries", f"{_left(report)}, {beside}", 0.0)


def _judge_memory(report: LayerReport, beside: str) -> Verdict:
    kept, needed = report.memory_dimension(report.lengths.long), directions_needed(report)
    directions = f"{kept}{'+' * report.all_kept(kept)} of {report.directions} directions"
    if kept < needed:
        # In the units of the attenuation: all directions missing count as much as its bound.
        missing = -LEAST_ATTENUATION * (needed - kept) / needed
        return Verdict(
            "vanishing",
            f"only {directions} last through a sequence where {needed} should, {beside}",
            missing,
        )
    return Verdict("carries", f"{_left(report)} and {directions}, {beside}", 0.0)


def _left(report: LayerReport) -> str:
    left = math.exp(report.attenuation)
    return f"{left:.0%} of a gradient is left" if left < 2 else f"a gradient grows {left:.1f}-fold"


def _steps(slope: float) -> str:
    steps = math.log(2) / abs(slope) if slope else math.inf
    return f"{steps:.1f} steps" if steps < 10 else f"{steps:.0f} steps"
