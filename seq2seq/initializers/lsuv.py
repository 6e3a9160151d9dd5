"""Layer-sequential unit variance for recurrent layers: sizes of the signal, set on a batch.

Mishkin and Matas 2016, "All you need is a good init", algorithm 1: orthogonal matrices, then each
layer's are divided by the deviation of what comes out of it, until that is 1. A recurrent layer has
two matrices: the input's is treated so gate by gate, the recurrent one so that the state keeps its
size along the sequence. The order of layers is left to `calibration`.
"""

import math

from seq2seq.initializers.layer_sample import LayerSample
from seq2seq.initializers.trials import LayerCalibration, Trial, nearest

# Bounds of the factors, so that a constant or a dead input can't blow up a matrix.
FACTORS = (0.01, 100.0)
# Bounds of the recurrent gain, as root mean square of its singular values.
GAINS = (0.1, 2.0)


def unit_variance(
    sample: LayerSample, *, variance: float = 1.0, tolerance: float = 0.05, trials: int = 10
) -> LayerCalibration:
    """Scale both matrices of a layer.

    1. Each gate block of ``W_ih``, until the variance of ``W_ih x_t + b`` over real timesteps,
       examples and units is ``variance``.
    2. ``W_hh``, until the root mean square of ``h_t`` at two thirds of the sequence is that at one
       third: it is divided by the ratio of the two, again and again.

    Args:
        sample: the layer on a batch; its weights are changed in place.
        variance: of what the input adds to the activations of each gate.
        tolerance: largest relative error of the deviation and of the ratio.
        trials: most factors that are tried for each block.
    """
    gates = [_scale_input(sample, gate, variance, tolerance, trials) for gate in sample.gates]
    recurrent = _keep_size(sample, tolerance, trials)
    parts = [*gates, recurrent]
    missed = [part.outcome for part in parts if not part.reached]
    weight = sample.parameter("weight_ih")
    factors = [part.changed[weight] for part in gates if weight in part.changed]
    same = len(set(factors)) == 1 and len(factors) == len(gates)
    named = (
        f"{gate}: {part.changed.get(weight, 'as it is')}"
        for gate, part in zip(sample.gates, gates, strict=True)
    )
    scaled = factors[0] if same else ", ".join(named)
    outcome = f"inputs {scaled}, deviation {math.sqrt(variance):.3g}; {recurrent.outcome}"
    return LayerCalibration(
        sample.name,
        tuple(trial for part in parts for trial in part.trials),
        "; ".join(missed) or outcome,
        reached=not missed,
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
    bias = (sample.block("bias_ih", gate) + sample.block("bias_hh", gate)).double()
    inputs = sample.real_inputs()
    drawn = block.clone()
    factor, tried = 1.0, []
    target = math.sqrt(variance)
    for _ in range(trials):
        block.copy_(drawn * factor)
        activations = inputs @ block.double().T + bias
        found = float(activations.std(correction=0))
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
    """The recurrent matrix, all gates alike, until the state neither grows nor shrinks."""
    name, weight = sample.name, sample.parameter("weight_hh").detach()
    for gate in sample.gates:
        if rule := sample.fixed.get(("weight_hh", gate)):
            why = f"initializer.{rule} sets the recurrent matrix"
            return LayerCalibration(name, (), f"recurrent left as it is: {why}", reached=False)
    time = min(sample.longest, int(sample.lengths.max()))
    if time < 3:
        why = "sequences of fewer than three timesteps have no middle to compare"
        return LayerCalibration(name, (), f"recurrent left as it is: {why}", reached=False)
    drawn = weight.clone()
    size = float(drawn.double().square().sum().div(len(drawn)).sqrt())
    gain, tried = min(max(size, GAINS[0]), GAINS[1]), []
    for _ in range(trials):
        weight.copy_(drawn * (gain / size) if size else drawn)
        try:
            ratio = _growth(sample, time)
        except FloatingPointError:
            ratio = math.inf
        tried.append((gain, ratio))
        if abs(ratio - 1) <= tolerance or not ratio:
            break
        following = min(max(gain / ratio, GAINS[0]), GAINS[1])
        if following == gain:
            break
        gain = following
    gain, ratio = nearest(tried, 1.0)
    weight.copy_(drawn * (gain / size) if size else drawn)
    reached = abs(ratio - 1) <= tolerance
    outcome = f"recurrent gain {gain:.3g}, the state grows by {ratio:.3g} in its middle third"
    if not reached:
        outcome += ", and no gain that was tried lets it keep its size"
    return LayerCalibration(
        name,
        tuple(Trial("gain", x, "growth", y, 1.0) for x, y in tried),
        outcome,
        reached,
        {sample.parameter("weight_hh"): f"times {gain / size:.3g}"} if size else {},
    )


def _growth(sample: LayerSample, time: int) -> float:
    """Root mean square of the state at two thirds of ``time`` over that at one third.

    Of the same examples, those that are real at two thirds.
    """
    early, late = math.ceil(time / 3) - 1, math.ceil(2 * time / 3) - 1
    outputs = sample.scan().outputs  # [time, batch, hidden]
    there = sample.real[late]
    before, after = (outputs[step, there].square().mean().sqrt() for step in (early, late))
    return float(after / before) if before else math.inf
