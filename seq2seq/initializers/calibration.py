"""After the rules: recurrent layers set on one batch of the task, one after the other.

The layers are taken in the order in which the signal passes them, so that each meets the inputs
that it will have. What a method does to one layer is in `sweet_spot` and `lsuv`; which batch, and
how the network runs on it, is the caller's.
"""

import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from seq2seq.diagnostics.gradient_flow import Call, GradientRecorder, RecomputationError
from seq2seq.diagnostics.layer_table import aligned
from seq2seq.initializers.layer_sample import LayerSample
from seq2seq.initializers.lsuv import unit_variance
from seq2seq.initializers.rules import Initialization
from seq2seq.initializers.sweet_spot import transport
from seq2seq.initializers.trials import LayerCalibration
from seq2seq.models.recurrent import RecurrentLayer, gates_of

METHODS: Mapping[str, Callable[..., LayerCalibration]] = {
    method.__name__: method for method in (transport, unit_variance)
}

_ALLOWED: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "attenuation": (lambda value: value < 0, "a number below 0"),
    "variance": (lambda value: value > 0, "a number above 0"),
    "tolerance": (lambda value: value > 0, "a number above 0"),
    "trials": (lambda value: value >= 1 and value == int(value), "a whole number from 1 up"),
}


@dataclass(frozen=True)
class Calibration:
    """A method and its numbers.

    Args:
        method: one of :data:`METHODS`.
        arguments: keyword arguments of the method; what is left out has the method's default.

    Raises:
        ValueError: for an unknown method, or a number that means nothing to it.
    """

    method: str
    arguments: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        key = "initializer.calibration"
        if self.method not in METHODS:
            raise ValueError(
                f"{key}.method={self.method} is unknown; choose one of {', '.join(METHODS)}"
            )
        taken = [
            parameter.name
            for parameter in inspect.signature(METHODS[self.method]).parameters.values()
            if parameter.kind is parameter.KEYWORD_ONLY
        ]
        for argument, value in self.arguments.items():
            if argument not in taken:
                raise ValueError(
                    f"{key}.{argument}={value} means nothing to the method {self.method}, which "
                    f"takes {', '.join(taken)}: set it to null or choose another {key}.method"
                )
            allowed, description = _ALLOWED[argument]
            if not math.isfinite(value) or not allowed(value):
                raise ValueError(f"{key}.{argument}={value} must be {description}")


def calibration_from_config(config: Mapping[str, Any]) -> Calibration | None:
    """What the key ``calibration`` of the ``initializer`` group asks for; None for nothing.

    Raises:
        ValueError: as :class:`Calibration`, and if no method is named.
    """
    entry = config.get("calibration") or {}
    given = {name: value for name, value in entry.items() if value is not None}
    if not given:
        return None
    if "method" not in given:
        raise ValueError(
            "initializer.calibration has no method: set initializer.calibration.method to one of "
            f"{', '.join(METHODS)}, or initializer.calibration=null"
        )
    return Calibration(given.pop("method"), given)


def calibrate(
    model: nn.Module,
    run: Callable[[], object],
    *,
    layers: Mapping[str, RecurrentLayer],
    lengths: Mapping[str, Tensor],
    longest: Mapping[str, int],
    calibration: Calibration,
    initialization: Initialization,
) -> list[LayerCalibration]:
    """Set the recurrent layers of a model in place, each on what the ones before it give it.

    Dropout is off meanwhile, nothing random is drawn, and the model's modes are afterwards as
    before. What ``initializer.rules`` of the user's own or ``forget_bias`` set stays as it is.

    Args:
        model: the network, its weights set by the rules.
        run: passes one batch through the network.
        layers: its recurrent layers by name, ``encoder/...`` or ``decoder/...``, in the order in
            which the signal passes them.
        lengths: number of real timesteps of each example of the batch, int64 ``[batch]``, and
        longest: timesteps to be bridged, both under ``encoder`` and ``decoder``.
        calibration: method and numbers.
        initialization: which rule set what.

    Raises:
        FloatingPointError: if the network overflows on the batch as it is, or a layer returns
            something else than its weights say, as with inputs so large that rounding decides.
    """
    method = METHODS[calibration.method]
    fixed = _set_by_the_user(initialization)
    results = []
    with _evaluating(model):
        for name, layer in layers.items():
            part = name.partition("/")[0]
            sample = LayerSample(
                name=name,
                layer=layer,
                calls=_record(run, name, layer, len(lengths[part])),
                lengths=lengths[part],
                longest=longest[part],
                fixed=fixed.get(layer.rnn, {}),
            )
            try:
                results.append(method(sample, **calibration.arguments))
            except RecomputationError as error:
                raise FloatingPointError(f"{name} can't be measured, {error}") from error
    return results


def trial_table(results: Sequence[LayerCalibration]) -> str:
    """Every trial in its order, then what was set and why, for a terminal or a log."""
    rows = [["layer", "number", "measured", "trial", "value", "found", "target"]]
    for result in results:
        counts = Counter[str]()
        for trial in result.trials:
            counts[trial.knob] += 1
            numbers = (f"{x:.3g}" for x in (trial.value, trial.found, trial.target))
            rows.append(
                [result.layer, trial.knob, trial.quantity, str(counts[trial.knob]), *numbers]
            )
    outcomes = aligned([[one.layer, one.outcome] for one in results], text_columns=2)
    return f"{aligned(rows, text_columns=3)}\n\n{outcomes}" if len(rows) > 1 else outcomes


def _record(run: Callable[[], object], name: str, layer: RecurrentLayer, rows: int) -> list[Call]:
    with (
        torch.enable_grad(),
        GradientRecorder({name: layer}, rows=torch.arange(rows)) as recorder,
    ):
        run()
    return recorder.calls[name]


def _set_by_the_user(
    initialization: Initialization,
) -> dict[nn.Module, dict[tuple[str, str], str]]:
    """Rule by parameter and gate, of each recurrent module: what calibration leaves alone."""
    found: dict[nn.Module, dict[tuple[str, str], str]] = {}
    for assignment in initialization.assignments:
        layout = assignment.layout
        if gates_of(layout.owner):
            name = layout.local_name.removesuffix("_l0")
            for block, rule in zip(layout.blocks, assignment.rules, strict=True):
                if rule.name == "forget_bias" or rule.name.startswith("rules["):
                    found.setdefault(layout.owner, {})[name, block.gate] = rule.name
    return found


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout; afterwards every module is in its own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
