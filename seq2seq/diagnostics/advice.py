"""The change of an initializer that lets its recurrent layers carry, tried before it is given.

A change is one key, or a few that go together, of the config group ``initializer``. How a network
is rebuilt with a change and measured again is the caller's; the thresholds are those of `verdict`.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from seq2seq.diagnostics.layer_report import LayerReport
from seq2seq.diagnostics.verdict import LEAST_DRIVE, Verdict, judge
from seq2seq.initializers.blocks import KEEP_GATES
from seq2seq.initializers.catalogue import GATE_BIAS_SCHEMES, SCHEMES
from seq2seq.initializers.rules import Rule, assign, rules_from_config, scheme_arguments

Changes = Mapping[str, float | str | None]

# What a recurrent gain is tuned to. A vanilla RNN learns best a little on the decaying side; gated
# cells are tuned by their gates, and by the gain only where they explode.
_TARGET_RNN, _TARGET_GATED = -1.5, 0.0
_TOLERANCE = 0.15
_TRIALS = 12
# Bounds of the search as spectral radii. Beyond 2 a tanh network is lost whatever carries in it.
_RADII = (0.05, 2.0)
# From here on the input alone drives a tanh unit into its flat part most of the time.
_LARGEST_DRIVE = 2.5
_TINY = 1e-30
_UNIT_DRIVE = 1.0  # Mishkin and Matas 2016, "All you need is a good init": unit variance


@dataclass(frozen=True)
class Advice:
    """A change that was tried.

    Args:
        reason: what it does, in words.
        changes: keys below ``initializer`` and their values; None is ``null``.
        verdicts: of each layer with the change, in the order of the layers.
    """

    reason: str
    changes: Changes
    verdicts: tuple[Verdict, ...]

    @property
    def overrides(self) -> tuple[str, ...]:
        """What to type."""
        return tuple(
            f"initializer.{key}={'null' if value is None else value}"
            for key, value in self.changes.items()
        )

    @property
    def suffices(self) -> bool:
        """Whether every layer carries with it."""
        return all(verdict.kind == "carries" for verdict in self.verdicts)


class Laboratory:
    """One network, one batch, and initializers to try on them.

    Args:
        model: the network; only the names of its parameters are read here.
        initializer: the config group as plain values, the user's own overrides included.
        longest: how long dependencies are in the data, in timesteps.
        report: sets all weights anew with some changes and measures every layer.
        attenuations: the same, the attenuation of every layer alone, which is quicker.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        initializer: Mapping[str, Any],
        longest: float,
        report: Callable[[Changes], Sequence[LayerReport]],
        attenuations: Callable[[Changes], Sequence[float]],
    ) -> None:
        self.report = report
        self.attenuations = attenuations
        calibration = initializer.get("calibration") or {}
        # A gain that the rules give a plain RNN is undone: what it is tuned to can be changed.
        self.calibrates_gain = calibration.get("method") == "transport"
        self._initializer = initializer
        self._assignments = assign(model, rules_from_config(initializer, longest=longest))

    def longest_key(self, rule: Rule) -> str:
        """Key of the number ``longest`` of a rule that takes one: its own, or that of all."""
        entry: Any = self._initializer
        for part in rule.name.split("."):
            entry = entry[part]
        return "longest" if entry.get("longest") is None else f"{rule.name}.longest"

    def rules_of(self, pattern: str, gates: str = "") -> list[Rule]:
        """The rules that set the parameters with ``pattern`` in their names, each once."""
        found: dict[str, Rule] = {}
        for assignment in self._assignments:
            if pattern in assignment.layout.name:
                for block, rule in zip(assignment.layout.blocks, assignment.rules, strict=True):
                    if not gates or block.gate in gates:
                        found.setdefault(rule.name, rule)
        return list(found.values())


def advise(laboratory: Laboratory, reports: Sequence[LayerReport]) -> Advice | None:
    """The first change with which every layer carries; or else the one that helps most.

    Args:
        laboratory: where changes are tried.
        reports: of the layers as they are.

    Returns:
        None if every layer carries already, or nothing that was tried helps.
    """
    now = [judge(report) for report in reports]
    best: Advice | None = None
    if all(verdict.kind == "carries" for verdict in now):
        return None
    for reason, changes in _candidates(laboratory, reports, now):
        try:
            verdicts = tuple(judge(report) for report in laboratory.report(changes))
        except (ValueError, FloatingPointError):
            continue  # refused by the initializer, or the network overflows: no advice
        advice = Advice(reason, changes, verdicts)
        if advice.suffices:
            return advice
        if _distance(verdicts) < _distance(best.verdicts if best else now):
            best = advice
    return best


def _distance(verdicts: Sequence[Verdict]) -> float:
    return sum(verdict.distance for verdict in verdicts)


def _candidates(
    laboratory: Laboratory, reports: Sequence[LayerReport], verdicts: Sequence[Verdict]
) -> Iterator[tuple[str, Changes]]:
    """Changes worth trying, the likeliest first."""
    vanilla = reports[0].vanilla
    bad = [r for r, verdict in zip(reports, verdicts, strict=True) if verdict.kind != "carries"]
    exploding = any(verdict.kind == "exploding" for verdict in verdicts)
    drives = [report.signal.drive_rms for report in reports if "layer0" in report.layer]
    driven = _unit_drive(laboratory, max(drives, key=lambda drive: abs(math.log(drive or _TINY))))

    def carrying(before: Changes) -> tuple[str, Changes] | None:
        if vanilla and laboratory.calibrates_gain:
            reason = f"recurrent matrices calibrated to an attenuation of {_TARGET_RNN:g}"
            return reason, {"calibration.attenuation": _TARGET_RNN}
        if vanilla or exploding:
            target = _TARGET_RNN if vanilla else _TARGET_GATED
            return _tuned_strength(laboratory, reports, target, before)
        return _longer_memory(laboratory, max(report.lengths.long for report in bad))

    if driven and not LEAST_DRIVE <= min(drives) <= max(drives) <= _LARGEST_DRIVE:
        yield driven
    alone = carrying({})
    if alone:
        yield alone
    # Whatever lets a layer carry is of no use where nothing gets in: then it takes both.
    if alone and driven and min(drives) < _UNIT_DRIVE / 2:
        reason, before = driven
        both = carrying(before)
        assert both is not None
        yield f"{reason}; {both[0]}", {**before, **both[1]}


def _unit_drive(laboratory: Laboratory, drive: float) -> tuple[str, Changes] | None:
    """Embeddings of such a size that what they add to the activations has unit variance."""
    rules = laboratory.rules_of("embedding.weight")
    knob = _knob(rules, ("scale", "gain"), otherwise="normal")
    if knob is None or not drive:
        return None
    key, value, changes = knob
    size = "larger" if drive < _UNIT_DRIVE else "smaller"
    reason = f"{size} embeddings, that drive the units with about 1 instead of {drive:.2g}"
    return reason, {**changes, key: _rounded((value or 1.0) * _UNIT_DRIVE / drive)}


def _longer_memory(laboratory: Laboratory, length: int) -> tuple[str, Changes] | None:
    """A gate that remembers with the time constant ``length``: ``sigmoid(ln T) = 1 - 1/(T + 1)``.

    Jozefowicz, Zaremba and Sutskever 2015, section 2.2, for a forget bias above 0; Tallec and
    Ollivier 2018, section 2, for its logarithm.
    """
    rules = laboratory.rules_of("bias_", gates=KEEP_GATES)
    if any(rule.name.startswith("rules") for rule in rules):
        return None  # the user's own rules come before anything that could be typed here
    reason = f"a gate that remembers for {length} steps, as long as the sequences"
    longest = float(max(length, 3))
    for rule in rules:
        if "longest" in scheme_arguments(rule.scheme):
            return reason, {laboratory.longest_key(rule): longest}
        if rule.scheme in GATE_BIAS_SCHEMES:
            return reason, {f"{rule.name}.scheme": "chrono", f"{rule.name}.longest": longest}
    return reason, {"forget_bias": _rounded(math.log(longest))}


def _tuned_strength(
    laboratory: Laboratory, reports: Sequence[LayerReport], target: float, before: Changes
) -> tuple[str, Changes] | None:
    """Recurrent matrices with which the layers' mean attenuation is ``target``, by bisection.

    Args:
        laboratory: where they are tried.
        reports: of the layers as they are.
        target: the attenuation.
        before: other changes that go with it.
    """
    knob = _knob(
        laboratory.rules_of("weight_hh"), ("gain", "scale", "spectral_radius"), "orthogonal"
    )
    if knob is None:
        return None
    key, value, changes = knob
    radii = [gate.spectral_radius for report in reports for gate in report.spectra.values()]
    radius = sum(radii) / len(radii)
    # Radius of the matrices where the number is 1; a scheme with a number of its own, or one that
    # takes the place of another, is one whose number is about the radius.
    per_unit = radius / value if value and radius and not changes else 1.0
    low, high = (bound / per_unit for bound in _RADII)
    for _ in range(_TRIALS):
        value = _rounded(math.sqrt(low * high))
        found = laboratory.attenuations({**before, **changes, key: value})
        error = sum(found) / len(found) - target
        if abs(error) < _TOLERANCE:
            break
        low, high = (low, value) if error > 0 else (value, high)
    return f"recurrent matrices tuned to an attenuation of {target:g}", {**changes, key: value}


def _knob(
    rules: Sequence[Rule], names: Sequence[str], otherwise: str
) -> tuple[str, float | None, dict[str, float | str | None]] | None:
    """Key and value of the number that scales what one rule sets, and what must change with it.

    The value is None if the scheme chooses it. A scheme that takes none of ``names`` gives way to
    ``otherwise``. None at all if several rules set these parameters, or the user's own, which have
    no key to type.
    """
    if len(rules) != 1 or rules[0].name.startswith("rules"):
        return None
    (rule,) = rules
    arguments = scheme_arguments(rule.scheme)
    for name in names:
        if name in arguments:
            default = inspect.signature(SCHEMES[rule.scheme]).parameters[name].default
            value = rule.arguments.get(name, default)
            return f"{rule.name}.{name}", value, {}
    changes: dict[str, float | str | None] = {f"{rule.name}.scheme": otherwise}
    changes |= {f"{rule.name}.{argument}": None for argument in rule.arguments}
    name = next(name for name in names if name in scheme_arguments(otherwise))
    return f"{rule.name}.{name}", 1.0, changes


def _rounded(value: float) -> float:
    """Three digits: what is printed is what was tried."""
    return float(f"{value:.3g}")
