"""Ordered rules, parameter-name pattern -> scheme, and the one call that sets every weight.

The unit is the gate block: the first rule that matches a block sets it, and every parameter is
written exactly once. Patterns are shell globs (`fnmatch`): ``*`` is any text, dots included, ``?``
one character, ``[ih]`` one of these; they match the whole name as `model.named_parameters()` gives
it, and a tied parameter answers to all its names. The schemes themselves are pure functions,
listed in `catalogue.py`.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Generator, Tensor, nn

from seq2seq.initializers.blocks import (
    KEEP_GATES,
    Block,
    ParameterLayout,
    parameter_layouts,
)
from seq2seq.initializers.catalogue import (
    BIAS_SUM_SCHEMES,
    BLOCK_SCHEMES,
    GATE_BIAS_SCHEMES,
    SCHEMES,
)
from seq2seq.initializers.schemes import check_argument
from seq2seq.models.cells import STEP_CELLS
from seq2seq.models.recurrent import KERNEL_GATES

# Numbers that stand once in the config, for every rule whose scheme takes them.
SHARED = ("scale", "gain", "longest")
SHORTEST_SPREAD = 3.0

# Roles of parts that no preset's source knows, each with what its paper sets, or with what leaves
# the parts around it as they were; a config's own entry replaces them value by value.
PART_ROLES: Mapping[str, Mapping[str, Any]] = {
    # What these make of the table's rows and of an LSTM's units has their scale.
    "embedding_projection": {"pattern": "*embedding.projection.weight", "scheme": "lecun_normal"},
    "cell_projection": {"pattern": "*weight_hr_l*", "scheme": "lecun_normal"},
    "highway": {"pattern": "*highway.weight", "scheme": "xavier_uniform"},
    "copy_gate": {"pattern": "*copy_mechanism.gate.weight", "scheme": "xavier_uniform"},
    "highway_bias": {"pattern": "*highway.bias", "scheme": "constant", "value": -1.0},
    "norm_gain": {"pattern": "*norm_gain_*", "scheme": "constant", "value": 1.0},
    "norm_bias": {"pattern": "*norm_bias_*", "scheme": "zeros"},
}


@dataclass(frozen=True)
class Rule:
    """What to do with the parameters whose names match.

    Args:
        name: where the rule stands in the config below ``initializer``, for messages and report.
        pattern: shell glob over parameter names.
        scheme: one of `seq2seq.initializers.catalogue.SCHEMES`.
        arguments: keyword arguments of the scheme.
        gates: only these gates' blocks, one letter a gate (LSTM ``ifgo``, GRU ``rzn``, RNN ``h``,
            so that the gates also name the cell); ``""`` for all, and for parameters without gates.
        fused: groups of gates, parted by spaces, whose blocks are rows of one matrix that is drawn
            as a whole: ``ifgo rzn`` for all gates of a cell. Fans and orthogonality are then those
            of that matrix. A group acts where the cell has all its gates.
        optional: whether the rule may match nothing.

    Raises:
        ValueError: for an unknown scheme or gate, or arguments that the scheme can't use.
    """

    name: str
    pattern: str
    scheme: str
    arguments: Mapping[str, float] = field(default_factory=dict)
    gates: str = ""
    fused: str = ""
    optional: bool = False

    def __post_init__(self) -> None:
        key = f"initializer.{self.name}"
        if self.scheme not in SCHEMES:
            raise ValueError(
                f"{key}.scheme={self.scheme} is unknown; choose one of {', '.join(sorted(SCHEMES))}"
            )
        cells = [*KERNEL_GATES.values(), *(cell.gates for cell in STEP_CELLS.values())]
        known = "".join(dict.fromkeys("".join(cells)))
        if not set(self.gates) <= set(known):
            raise ValueError(f"{key}.gates={self.gates} must be letters of {known}")
        for group in self.fused.split():
            if not any(set(group) <= set(gates) for gates in cells) or len(set(group)) < max(
                2, len(group)
            ):
                raise ValueError(
                    f"{key}.fused={self.fused} must be groups of gates of one cell, parted by "
                    "spaces, such as 'ifgo rzn'"
                )
        if self.fused and self.scheme in GATE_BIAS_SCHEMES:
            raise ValueError(
                f"{key}.fused={self.fused} means nothing to the scheme {self.scheme}, which sets "
                f"all gates of a layer: set {key}.fused to null"
            )
        taken = scheme_arguments(self.scheme)
        for argument, value in self.arguments.items():
            if argument not in taken:
                takes = f"takes {', '.join(taken)}" if taken else "takes no number"
                raise ValueError(
                    f"{key}.{argument}={value} means nothing to the scheme {self.scheme}, which "
                    f"{takes}: set it to null or choose another {key}.scheme"
                )
            check_argument(argument, value, shown_as=f"{key}.{argument}")
        for argument, required in taken.items():
            if required and argument not in self.arguments:
                raise ValueError(f"{key}.scheme={self.scheme} needs a value for {key}.{argument}")

    def matches(self, layout: ParameterLayout, block: Block) -> bool:
        """Whether the rule speaks of this block."""
        if self.gates and (not block.gate or block.gate not in self.gates):
            return False
        return any(fnmatchcase(name, self.pattern) for name in layout.names)

    def fused_gates(self, layout: ParameterLayout, block: Block) -> str:
        """The gates drawn as one matrix with this block, in the order of the rows; "" if none."""
        for group in self.fused.split():
            if block.gate and block.gate in group and set(group) <= set(layout.gates):
                return "".join(gate for gate in layout.gates if gate in group)
        return ""

    def __str__(self) -> str:
        numbers = [f"{name}={value:g}" for name, value in self.arguments.items()]
        arguments = ", ".join([*numbers, f"fused={self.fused}"] if self.fused else numbers)
        return f"{self.scheme}({arguments})" if arguments else self.scheme


@dataclass(frozen=True)
class Assignment:
    """A parameter and the rule of each of its blocks, in the order of the rows."""

    layout: ParameterLayout
    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class Initialization:
    """What was set by which rule, and what is worth saying beside it, one sentence each."""

    assignments: tuple[Assignment, ...]
    notes: tuple[str, ...]


def scheme_arguments(scheme: str) -> dict[str, bool]:
    """The numbers that a scheme takes, by name: whether each must be given."""
    parameters = inspect.signature(SCHEMES[scheme]).parameters.values()
    return {
        parameter.name: parameter.default is inspect.Parameter.empty
        for parameter in parameters
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name != "generator"
    }


def rules_from_config(config: Mapping[str, Any], *, longest: float | None = None) -> list[Rule]:
    """Rules in the order in which they are tried, from the ``initializer`` group as plain values.

    First the user's own ``rules``, which must all match something; then :data:`PART_ROLES`; then
    ``forget_bias``; then what the initializer treats specially; then the named roles
    (``embedding``, ``recurrent``, ``input``, ...). All but the first are optional, since a model
    may have no attention or no such gate.

    Args:
        config: ``rules``: list of mappings with ``pattern``, ``scheme``, optional ``gates`` and
            ``fused``, and the scheme's arguments. ``forget_bias``: sum of both biases of the LSTM's
            forget gate or of the GRU's update gate, None to leave it to the rules below.
            ``special``: such mappings by name. ``scale``, ``gain``, ``longest``: for every rule
            whose scheme takes it and that has no value of its own. ``calibration``: no rule, see
            `calibration.py`. All other keys are roles, mappings like those of ``rules``; one whose
            values are all None is left out, but for :data:`PART_ROLES`.
        longest: how long dependencies are in the data, in timesteps: for every rule whose scheme
            takes it, where the config leaves it open.

    Raises:
        ValueError: for a value that has no meaning, with its key and what would be allowed.
    """
    shared = {name: config[name] for name in SHARED if config.get(name) is not None}
    for name, value in shared.items():
        check_argument(name, value, shown_as=f"initializer.{name}")
    if longest is not None:
        # A dependency over fewer steps has no time scales to spread.
        open_numbers = {"longest": max(float(longest), SHORTEST_SPREAD), **shared}
    else:
        open_numbers = shared
    roles = {f"special.{name}": value for name, value in (config.get("special") or {}).items()}
    roles |= {
        name: value
        for name, value in config.items()
        if name not in (*SHARED, *PART_ROLES, "forget_bias", "rules", "special", "calibration")
    }
    own = [
        _rule(f"rules[{index}]", entry, open_numbers, optional=False)
        for index, entry in enumerate(config.get("rules") or ())
    ]
    named = [
        _rule(name, entry, open_numbers, optional=True)
        for name, entry in roles.items()
        if not isinstance(entry, Mapping) or any(value is not None for value in entry.values())
    ]
    if config.get("forget_bias") is not None:
        # It takes the place of the bias that is recommended; all other gates are zero there.
        named = [
            replace(rule, scheme="zeros", arguments={})
            if rule.scheme == "recommended_bias"
            else rule
            for rule in named
        ]
    for name, value in shared.items():
        if not any(name in scheme_arguments(rule.scheme) for rule in (*own, *named)):
            raise ValueError(
                f"initializer.{name}={value} is used by nothing: no scheme of this initializer "
                f"takes {name}; set it to null"
            )
    return [*own, *_part_rules(config), *_forget_bias(config.get("forget_bias"), named), *named]


def initialize(
    model: nn.Module, rules: Sequence[Rule], *, seed: int, pad_id: int
) -> Initialization:
    """Set every parameter once, each block by the first rule that matches it.

    Values are drawn on the CPU in the order of `model.named_parameters()`, so that a seed means the
    same weights on every device. Call it before the optimizer is made. The storage of the
    parameters stays as it is, so recurrent modules need no `flatten_parameters`.

    Args:
        model: any module; modified in place.
        rules: in the order in which they are tried.
        seed: seed of a generator made for this call alone.
        pad_id: row of every embedding that is set to zero.

    Raises:
        ValueError: if a parameter is matched by no rule, a rule that isn't optional sets nothing,
            or a scheme can't set what its rule matches.
    """
    assignments = assign(model, rules)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for assignment in assignments:
            value = _draw(assignment, generator)
            if isinstance(assignment.layout.owner, nn.Embedding):
                value[pad_id] = 0
            parameter = assignment.layout.parameter
            parameter.copy_(value.view_as(parameter))
    return Initialization(tuple(assignments), tuple(_notes(rules, assignments)))


def assign(model: nn.Module, rules: Sequence[Rule]) -> list[Assignment]:
    """Which rule sets which block; draws and writes nothing.

    Raises:
        ValueError: as `initialize`.
    """
    assignments = []
    for layout in parameter_layouts(model):
        chosen = []
        for block in layout.blocks:
            rule = next((rule for rule in rules if rule.matches(layout, block)), None)
            if rule is None:
                raise ValueError(
                    f"no initializer rule matches the parameter {_shown(layout, block)}: add one "
                    "to initializer.rules, such as "
                    f"{{pattern: '{layout.name}', scheme: zeros}}"
                )
            chosen.append(rule)
        assignments.append(Assignment(layout, tuple(chosen)))
    _require_used(rules, assignments)
    _require_whole_sums(assignments)
    return assignments


def _part_rules(config: Mapping[str, Any]) -> Iterator[Rule]:
    for name, default in PART_ROLES.items():
        own = {key: value for key, value in (config.get(name) or {}).items() if value is not None}
        if "scheme" in own:  # the numbers of another scheme mean nothing to it
            default = {"pattern": default["pattern"]}
        yield _rule(name, {**default, **own}, {}, optional=True)


def _rule(name: str, entry: Any, shared: Mapping[str, float], *, optional: bool) -> Rule:
    if not isinstance(entry, Mapping):
        raise ValueError(f"initializer.{name}={entry} must be a mapping with pattern and scheme")
    given = {key: value for key, value in entry.items() if value is not None}
    for key in ("pattern", "scheme"):
        if key not in given:
            raise ValueError(f"initializer.{name} has no {key}: set initializer.{name}.{key}")
    pattern, scheme = given.pop("pattern"), given.pop("scheme")
    gates, fused = given.pop("gates", ""), given.pop("fused", "")
    taken = scheme_arguments(scheme) if scheme in SCHEMES else {}
    defaults = {key: value for key, value in shared.items() if key in taken}
    return Rule(name, pattern, scheme, {**defaults, **given}, gates, fused, optional)


def _forget_bias(value: float | None, roles: Sequence[Rule]) -> Iterator[Rule]:
    if value is None:
        return
    check_argument("value", value, shown_as="initializer.forget_bias")
    for rule in roles:
        if rule.scheme in GATE_BIAS_SCHEMES:
            raise ValueError(
                f"initializer.forget_bias={value} and initializer.{rule.name}.scheme={rule.scheme} "
                "both set the gate that remembers: set initializer.forget_bias to null, or "
                f"initializer.{rule.name}.scheme to zeros"
            )
    pattern = "*bias_?h_l*"
    yield Rule("forget_bias", pattern, "constant", {"value": value}, KEEP_GATES, optional=True)


def _draw(assignment: Assignment, generator: Generator) -> Tensor:
    layout = assignment.layout
    # Drawn once for several gates: by rule and the gates.
    by_gate: dict[tuple[str, str], dict[str, Tensor]] = {}
    pieces = []
    for block, rule in zip(layout.blocks, assignment.rules, strict=True):
        second = layout.local_name.startswith("bias_hh") and layout.other_bias() is not None
        try:
            if rule.scheme in BIAS_SUM_SCHEMES and second:
                piece = torch.zeros(block.shape, dtype=torch.float64)
            elif rule.scheme in GATE_BIAS_SCHEMES:
                if layout.other_bias() is None:
                    raise ValueError("it sets the biases of recurrent layers only")
                key = (rule.name, layout.gates)
                if key not in by_gate:
                    by_gate[key] = GATE_BIAS_SCHEMES[rule.scheme](
                        layout.gates, block.fan_out, generator=generator, **rule.arguments
                    )
                piece = by_gate[key][block.gate]
            elif fused := rule.fused_gates(layout, block):
                key = (rule.name, fused)
                if key not in by_gate:
                    by_gate[key] = _draw_fused(rule, block, fused, generator)
                piece = by_gate[key][block.gate]
            else:
                scheme = BLOCK_SCHEMES[rule.scheme]
                piece = scheme(block, generator=generator, **rule.arguments)
        except ValueError as error:
            raise ValueError(
                f"initializer.{rule.name}.scheme={rule.scheme} can't set "
                f"{_shown(layout, block)}: {error}"
            ) from error
        pieces.append(piece)
    return torch.cat(pieces)


def _draw_fused(rule: Rule, block: Block, gates: str, generator: Generator) -> dict[str, Tensor]:
    rows, *columns = block.shape
    whole = block._replace(
        shape=(rows * len(gates), *columns), fan_out=block.fan_out * len(gates), gate=gates
    )
    drawn = BLOCK_SCHEMES[rule.scheme](whole, generator=generator, **rule.arguments)
    return dict(zip(gates, drawn.chunk(len(gates)), strict=True))


def _require_used(rules: Sequence[Rule], assignments: Sequence[Assignment]) -> None:
    used = {id(rule) for assignment in assignments for rule in assignment.rules}
    for rule in rules:
        if rule.optional or id(rule) in used:
            continue
        layouts = [assignment.layout for assignment in assignments]
        gates = f" in the gates {rule.gates}" if rule.gates else ""
        if any(rule.matches(layout, block) for layout in layouts for block in layout.blocks):
            raise ValueError(
                f"initializer.{rule.name} is never used: rules before it set everything that its "
                f"pattern {rule.pattern!r} matches{gates}; move it up or remove it"
            )
        names = ", ".join(name for layout in layouts for name in layout.names)
        raise ValueError(
            f"initializer.{rule.name} matches nothing: no parameter fits the pattern "
            f"{rule.pattern!r}{gates}; the model's parameters are {names}"
        )


def _require_whole_sums(assignments: Sequence[Assignment]) -> None:
    """A rule that speaks of the sum of two biases must have both of them."""
    by_parameter = {assignment.layout.parameter: assignment for assignment in assignments}
    for assignment in assignments:
        other = assignment.layout.other_bias()
        if other is None:
            continue
        pairs = zip(assignment.rules, by_parameter[other].rules, strict=True)
        for block, (rule, partner) in zip(assignment.layout.blocks, pairs, strict=True):
            if rule.scheme in BIAS_SUM_SCHEMES and rule is not partner:
                raise ValueError(
                    f"initializer.{rule.name}.scheme={rule.scheme} means the sum of both biases, "
                    f"but of {_shown(assignment.layout, block)} its pattern {rule.pattern!r} "
                    f"matches only one, initializer.{partner.name} sets the other: match both "
                    "with *bias_?h_l*"
                )


def _notes(rules: Sequence[Rule], assignments: Sequence[Assignment]) -> Iterator[str]:
    used = {id(rule) for assignment in assignments for rule in assignment.rules}
    unused = [rule for rule in rules if id(rule) not in used]
    for rule in unused:
        if rule.name == "forget_bias":
            yield (
                f"initializer.forget_bias={rule.arguments['value']:g} sets nothing: no bias of "
                "a forget gate (LSTM) or an update gate (GRU) is left to it"
            )
    absent = [
        rule.name
        for rule in unused
        if rule.name not in ("forget_bias", *PART_ROLES) and not rule.name.startswith("special.")
    ]
    if absent:
        yield f"no parameters in this model for: {', '.join(absent)}"


def _shown(layout: ParameterLayout, block: Block) -> str:
    return f"{layout.name} (gate {block.gate})" if block.gate else layout.name
