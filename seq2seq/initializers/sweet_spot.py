"""Calibration of one layer so that a signal lasts as long as the task's sequences, and no longer.

A plain RNN gets the recurrent gain with which the transport falls by a target over the sequence. A
gated layer gets memories from one step to the sequence's length, and gates that leak on real input
what they should: tuning its transport too was measured to be worse (docs/calibration.md). Running
the layer is left to `layer_sample`, the order of layers and the tables to `calibration`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from seq2seq.initializers.layer_sample import LayerSample
from seq2seq.initializers.trials import LayerCalibration, Trial, nearest, search

# No plain RNN is asked to lose more than this a step: over a few steps the whole attenuation would
# take a gain at which it learns worse than at 1.
STEEPEST = -0.2
# Bounds of the recurrent gain of a plain RNN, as root mean square of its singular values.
GAINS = (0.8, 2.0)
# Bounds of the shift of the gate that remembers: a factor of 20 in the length of its memory.
SHIFTS = (-3.0, 3.0)


def transport(
    sample: LayerSample, *, attenuation: float = -1.5, tolerance: float = 0.2, trials: int = 8
) -> LayerCalibration:
    """Let the layer carry over the length of its sequences, and forget what is older.

    Args:
        sample: the layer on a batch; its weights are changed in place.
        attenuation: of a plain RNN: what the logarithm of the transport should fall by.
        tolerance: of the attenuation, and of the gates' leak in the same units.
        trials: most values that are tried.
    """
    if sample.longest < 3:
        at_most = "one timestep" if sample.longest < 2 else "two timesteps"
        return _left_alone(
            sample.name, f"95 % of its sequences have at most {at_most}, there is nothing to bridge"
        )
    if sample.keep_gate is None:
        return _tune_gain(sample, attenuation, tolerance, trials)
    return _spread_memories(sample, tolerance, trials)


def _tune_gain(
    sample: LayerSample, wanted: float, tolerance: float, trials: int
) -> LayerCalibration:
    """Recurrent matrix of a plain RNN, times the gain with which its transport falls by a target.

    The transport of a random vector falls by about ln(gain) a step less what the units' own slopes
    take, which depends on how strongly the input drives them: a fixed gain can't know it. A target
    somewhat below 0 learns better than 0 (docs/calibration.md).
    """
    name = sample.name
    if rule := sample.fixed.get(("weight_hh", "h")):
        return _left_alone(name, f"initializer.{rule} sets its recurrent matrix")
    steps = sample.longest - 1
    target = max(wanted, STEEPEST * steps)
    weight = sample.parameter("weight_hh")
    drawn = weight.detach().clone()
    size = float(drawn.double().square().sum().div(len(drawn)).sqrt())
    if not size:
        return _left_alone(name, "its recurrent matrix is zero, which no gain changes")

    def measure(logarithm: float) -> float:
        _write(weight, drawn * (math.exp(logarithm) / size))
        return sample.attenuation()

    low, high = map(math.log, GAINS)
    tried = search(
        measure,
        start=math.log(size),
        low=low,
        high=high,
        slope=steps,
        target=target,
        tolerance=tolerance,
        trials=trials,
    )
    chosen, found = nearest(tried, target)
    _write(weight, drawn * (math.exp(chosen) / size))
    gain = math.exp(chosen)
    reached = abs(found - target) <= tolerance
    left = f"gain {gain:.3g}: {_share(found)} of a random gradient is left over {steps} steps"
    made = tuple(Trial("gain", math.exp(x), "attenuation", y, target) for x, y in tried)
    if target > wanted:
        left += (
            f"; {wanted:g} would be more than {STEEPEST:g} a step, so {target:.3g} was asked for"
        )
    if not reached:
        left += f", and {target:.3g} is out of reach: {_obstacle(made, gain, GAINS)}"
    return LayerCalibration(
        name,
        made,
        left,
        reached,
        {weight: f"times {gain / size:.3g}"},
    )


def _spread_memories(sample: LayerSample, tolerance: float, trials: int) -> LayerCalibration:
    """Biases of a gated layer: memories of 1 to T steps, that last as long on real input.

    As `chrono` (Tallec and Ollivier 2018, eq. 16), ``b_f = ln u + s``, ``b_i = -ln u``, in the GRU
    ``b_z = ln u``, with ``u`` evenly spaced over (1, T - 1). Without input the gates leak
    ``T mean(ln f) = T mean(ln u / (1 + u))``; with it they leak more, because the logarithm is
    concave. In the LSTM the shift ``s`` makes up for that. In the GRU, and wherever no gate ``i``
    is the way in, it would close that way as far as it keeps the state, and was measured not to
    help: the leak is measured and no more.
    """
    name, keep = sample.name, sample.keep_gate
    assert keep is not None
    for parameter in ("bias_ih", "bias_hh"):
        if rule := sample.fixed.get((parameter, keep)):
            return _left_alone(name, f"initializer.{rule} sets the gate {keep} that remembers")
    spread = memory_biases(sample.layer.hidden_size, sample.longest)
    sample.block("bias_hh", keep).zero_()
    own = any((parameter, "i") in sample.fixed for parameter in ("bias_ih", "bias_hh"))
    shifts = keep == "f" and "i" in sample.gates
    writes = shifts and not own
    if writes:
        sample.block("bias_ih", "i").copy_(-spread)
        sample.block("bias_hh", "i").zero_()

    def measure(shift: float) -> float:
        sample.block("bias_ih", keep).copy_(spread + shift)
        return sample.leak()

    target = sample.longest * float(torch.nn.functional.logsigmoid(spread).mean())
    tried = search(
        measure,
        start=0.0,
        low=SHIFTS[0],
        high=SHIFTS[1],
        slope=sample.longest * float(torch.sigmoid(-spread).mean()),
        target=target,
        tolerance=tolerance,
        trials=trials if shifts else 1,
    )
    shift, found = nearest(tried, target)
    sample.block("bias_ih", keep).copy_(spread + shift)
    reached = not shifts or abs(found - target) <= tolerance
    longest = sample.longest - 1
    made = tuple(Trial("shift", x, "leak", y, target) for x, y in tried)
    shifted = f"shift {shift:.3g}" if shifts else "no shift without a gate i"
    biases = f"{keep}: ln u, u from 1 to {longest}, {shifted}"
    left = (
        f"memories of 1 to {longest} steps, {shifted}: the gates leak {found:.3g} over "
        f"{sample.longest} steps, without input {target:.3g}"
    )
    if not reached:
        left += f", which is out of reach: {_obstacle(made, shift, SHIFTS)}"
    return LayerCalibration(
        name,
        made,
        left,
        reached,
        {
            sample.parameter("bias_ih"): f"{biases}, i: -ln u" if writes else biases,
            sample.parameter("bias_hh"): f"{'if' if writes else keep}: zeros",
        },
    )


def memory_biases(size: int, longest: int) -> Tensor:
    """``ln u`` for ``u`` evenly spaced over (1, longest - 1), float64 ``[size]``.

    What `chrono` draws, without its scatter: units are interchangeable before training.
    """
    steps = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    return torch.log(1 + steps * (longest - 2))


def _left_alone(name: str, why: str) -> LayerCalibration:
    return LayerCalibration(name, (), f"left as it is: {why}", reached=False)


def _obstacle(made: Sequence[Trial], chosen: float, bounds: tuple[float, float]) -> str:
    low, high = bounds
    if math.isclose(chosen, low):
        return "no smaller value is tried"
    if math.isclose(chosen, high):
        return "no larger value is tried"
    if len(made) == 1:
        return "there was only one trial"
    reason = f"none of {len(made)} trials came nearer"
    if any(math.isclose(trial.value, high) for trial in made):
        return f"{reason}, up to the largest value, {high:g}"
    if any(math.isclose(trial.value, low) for trial in made):
        return f"{reason}, down to the smallest value, {low:g}"
    return reason


def _share(logarithm: float) -> str:
    """As a percentage where that says something, otherwise as a power of ten."""
    if -5 < logarithm < 5:
        return f"{math.exp(logarithm):.0%}"
    return f"10^{logarithm / math.log(10):.3g}"


def _write(parameter: torch.nn.Parameter, value: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(value)
