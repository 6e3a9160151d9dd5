"""Layer-sequential unit variance for recurrent layers: sizes of the signal, set on a batch.

Mishkin and Matas 2016, "All you need is a good init", algorithm 1: orthogonal matrices, then each
layer's are divided by the deviation of what comes out of it, until that is 1. A recurrent layer has
two matrices: the input's is treated so gate by gate, the recurrent one so that the state keeps its
size along the sequence. The order of layers is left to `calibration`.
"""

import math
from functools import partial

from seq2seq.initializers.layer_sample import LayerSample
from seq2seq.initializers.trials import LayerCalibration, Trial, nearest, search

# Bounds of the factors, so that a constant or a dead input can't blow up a matrix.
FACTORS = (0.01, 100.0)
# Bounds of the recurrent gain, as root mean square of its singular values; a matrix that was drawn
# smaller is made no smaller. Below one half little is left of the state after a few steps.
GAINS = (0.5, 2.0)


def unit_variance(
    sample: LayerSample, *, variance: float = 1.0, tolerance: float = 0.05, trials: int = 10
) -> LayerCalibration:
    """Scale both matrices of a layer.

    1. Each gate block of ``W_ih``, until the variance of ``W_ih x_t + b`` over real timesteps,
       examples and units is ``variance``.
    2. ``W_hh``, until the root mean square of ``h_t`` at two thirds of the sequence is that at one
       third.

    Args:
        sample: the layer on a batch; its weights are changed in place.
        variance: of what the input adds to the activations of each gate.
        tolerance: largest relative error of the deviation and of the ratio.
        trials: most factors that are tried for each block.
    """
    gates = [_scale_input(sample, gate, variance, tolerance, trials) for gate in sample.gates]
    recurrent = _keep_size(sample, tolerance, trials)
    parts = [*gates, recurrent]
    weight = sample.parameter("weight_ih")
    factors = [part.changed[weight] for part in gates if weight in part.changed]
    same = len(set(factors)) == 1 and len(factors) == len(gates)
    named = (
        f"{gate}: {part.changed.get(weight, 'as it is')}"
        for gate, part in zip(sample.gates, gates, strict=True)
    )
    scaled = factors[0] if same else ", ".join(named)
    if all(part.reached for part in gates):
        inputs = f"inputs {scaled}, deviation {math.sqrt(variance):.3g}"
    else:
        inputs = "; ".join(part.outcome for part in gates)
    return LayerCalibration(
        sample.name,
        tuple(trial for part in parts for trial in part.trials),
        f"{inputs}; {recurrent.outcome}",
        reached=all(part.reached for part in parts),
        changed={**({weight: scaled} if factors else {}), **recurrent.changed},
    )


def _scale_input(
    sample: LayerSample, gate: str, variance: float, tolerance: float, trials: int
) -> LayerCalibration:
    """One gate block of the input matrix, until its activations have the variance."""
    if rule := sample.fixed.get(("weight_ih", gate)):
        why = f"initializer.{rule} sets the input matrix of {gate}"
        return LayerCalibration(sample.name, (), f"left as it is: {why}", reached=False)
    block = sample.block("weight_ih", gate)
    drawn = block.clone()
    factor, tried = 1.0, []
    target = math.sqrt(variance)
    for _ in range(trials):
        block.copy_(drawn * factor)
        found = float(sample.driven(gate).std(correction=0))
        tried.append((factor, found))
        if abs(found / target - 1) <= tolerance or not found:
            break
        following = min(max(factor * target / found, FACTORS[0]), FACTORS[1])
        if following == factor:
            break
        factor = following
    factor, found = nearest(tried, target)
    block.copy_(drawn * factor)
    reached = abs(found / target - 1) <= tolerance
    outcome = f"input of {gate} times {factor:.3g}, its deviation is {found:.3g}"
    if not reached:
        outcome += f", and {target:.3g} is out of reach"
    return LayerCalibration(
        sample.name,
        tuple(Trial(f"input {gate}", x, "deviation", y, target) for x, y in tried),
        outcome,
        reached,
        {sample.parameter("weight_ih"): f"times {factor:.3g}"},
    )


def _keep_size(sample: LayerSample, tolerance: float, trials: int) -> LayerCalibration:
    """The recurrent matrix, all gates alike, with the gain at which the state keeps its size.

    Gains on both sides of the drawn one are tried, nearest first: in a gated or a saturated layer
    the growth hardly depends on the gain, or falls with it. What remains then is the scatter of the
    inputs, which no gain is to blame for, so the drawn one stays unless another at least halves the
    logarithm of the growth.
    """
    name, weight = sample.name, sample.parameter("weight_hh").detach()
    for gate in sample.gates:
        if rule := sample.fixed.get(("weight_hh", gate)):
            return _recurrent_left(name, f"initializer.{rule} sets the recurrent matrix")
    time = min(sample.longest, int(sample.lengths.max()))
    if time < 3:
        return _recurrent_left(
            name, "sequences of fewer than three timesteps have no middle to compare"
        )
    drawn = weight.clone()
    values = len(sample.gates) * drawn.size(1)  # a block may have more rows than columns
    size = float(drawn.double().square().sum().div(values).sqrt())
    if not size:
        return _recurrent_left(name, "its matrix is zero, which no gain changes")

    def measure(logarithm: float) -> float:
        weight.copy_(drawn * math.exp(logarithm))
        return _growth(sample, time)

    look = partial(
        search,
        measure,
        start=0.0,
        low=math.log(min(GAINS[0] / size, 1.0)),
        high=math.log(GAINS[1] / size),
        slope=None,
        target=0.0,
    )
    tried = look(tolerance=tolerance, trials=1)
    drawn_growth = abs(tried[0][1])
    if not _within(tried[0][1], tolerance):
        tried = look(tolerance=min(math.log1p(tolerance), drawn_growth / 2), trials=trials)
    chosen, found = nearest(tried, 0.0)
    kept = chosen == tried[0][0] or abs(found) > drawn_growth / 2
    if kept:
        chosen, found = tried[0]
    weight.copy_(drawn * math.exp(chosen))
    gains = [size * math.exp(value) for value, _ in tried]
    reached = _within(found, tolerance)
    outcome = (
        f"recurrent gain {size * math.exp(chosen):.3g}{' as drawn' if not chosen else ''}, "
        f"the state grows by a factor of {math.exp(found):.3g} in its middle third"
    )
    if not reached and len(gains) == 1:
        outcome += ", and no other gain was tried"
    elif not reached:
        near = "half as near to 1" if kept else "nearer to 1"
        outcome += f", and no gain tried from {min(gains):.3g} to {max(gains):.3g} comes {near}"
    return LayerCalibration(
        name,
        tuple(
            Trial("gain", gain, "growth", math.exp(growth), 1.0)
            for gain, (_, growth) in zip(gains, tried, strict=True)
        ),
        outcome,
        reached,
        {sample.parameter("weight_hh"): f"times {math.exp(chosen):.3g}"} if chosen else {},
    )


def _within(logarithm: float, tolerance: float) -> bool:
    return -tolerance <= math.expm1(logarithm) <= tolerance


def _recurrent_left(name: str, why: str) -> LayerCalibration:
    return LayerCalibration(name, (), f"recurrent left as it is: {why}", reached=False)


def _growth(sample: LayerSample, time: int) -> float:
    """Logarithm of the state's root mean square at two thirds of ``time`` over that at one third.

    Of the same examples, those that are real at two thirds. A state that is zero keeps its size.
    """
    early, late = math.ceil(time / 3) - 1, math.ceil(2 * time / 3) - 1
    outputs = sample.scan().outputs  # [time, batch, hidden]
    there = sample.real[late]
    before, after = (
        float(outputs[step, there].double().square().mean().sqrt()) for step in (early, late)
    )
    if not before or not after:
        return 0.0 if before == after else math.copysign(math.inf, after - before)
    return math.log(after / before)
