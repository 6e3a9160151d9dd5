"""How a model's parameters divide into blocks: one block a gate, or the whole tensor.

Which gates a tensor holds is read from the recurrent module that owns it, never guessed from its
shape. What is written into a block is the business of schemes and rules.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from seq2seq.models.recurrent import gates_of

# The gates that keep the old state when they are near 1: forget (LSTM) and update (GRU).
KEEP_GATES = "fz"


class Block(NamedTuple):
    """One gate's slice of a parameter, or all of a parameter that has no gates.

    Args:
        shape: ``(rows, columns)``, or ``(rows,)`` for a bias.
        fan_in: inputs of one unit. A bias has the fans of the matrix beside it.
        fan_out: units in the block.
        kind: what the parameter belongs to: ``recurrent``, ``linear``, ``embedding`` or ``other``.
        gate: the gate's letter, ``""`` if there is none.
    """

    shape: tuple[int, ...]
    fan_in: int
    fan_out: int
    kind: str = "other"
    gate: str = ""


@dataclass(frozen=True, eq=False)
class ParameterLayout:
    """A parameter, every name it goes by, and the gates it holds.

    Args:
        names: all names in the model; tied parameters have several, the first is the one shown.
        parameter: the tensor.
        owner: the module that holds it; of a tied one the embedding, if any.
        local_name: its name within the owner, such as ``weight_hh_l0``.
        gates: one letter a gate in the order of the rows, ``""`` without gates.
    """

    names: tuple[str, ...]
    parameter: nn.Parameter
    owner: nn.Module
    local_name: str
    gates: str

    @property
    def name(self) -> str:
        """The name that `model.named_parameters()` gives."""
        return self.names[0]

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks in the order of the rows."""
        rows, *columns = self.parameter.shape or (1,)
        shape = (rows // max(1, len(self.gates)), *columns)
        fan_in = self._fan_in()
        kind = _kind(self.owner, self.local_name)
        return tuple(Block(shape, fan_in, shape[0], kind, gate) for gate in self.gates or ("",))

    def other_bias(self) -> nn.Parameter | None:
        """The second of the two bias vectors that a recurrent layer adds, if this is one."""
        for one, other in (("bias_ih", "bias_hh"), ("bias_hh", "bias_ih")):
            if gates_of(self.owner) and self.local_name.startswith(one):
                found = getattr(self.owner, self.local_name.replace(one, other))
                return found if isinstance(found, nn.Parameter) else None
        return None

    def _fan_in(self) -> int:
        weight = self.parameter
        if weight.dim() < 2:
            weight = getattr(self.owner, self.local_name.replace("bias", "weight"), weight)
        return weight[0].numel() if weight.dim() > 1 else weight.numel()


def parameter_layouts(model: nn.Module) -> list[ParameterLayout]:
    """Every parameter once, in the order of `model.named_parameters()`."""
    found: dict[nn.Parameter, ParameterLayout] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for local, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{prefix}.{local}" if prefix else local
            names: tuple[str, ...] = (name,)
            owner, local_name = module, local
            if parameter in found:
                first = found[parameter]
                names = (*first.names, name)
                if not isinstance(module, nn.Embedding):
                    owner, local_name = first.owner, first.local_name
            gates = _gates(owner, local_name)
            found[parameter] = ParameterLayout(names, parameter, owner, local_name, gates)
    return list(found.values())


def _gates(owner: nn.Module, local_name: str) -> str:
    """Those with a row a unit of each gate, such as ``weight_ih_l0``."""
    return gates_of(owner) if {"ih", "hh"} & set(local_name.split("_")) else ""


def _kind(owner: nn.Module, local_name: str) -> str:
    match owner:
        case _ if "hr" in local_name.split("_"):
            return "linear"  # the projection of an LSTM's hidden state
        case _ if gates_of(owner):
            return "recurrent"
        case nn.Linear():
            return "linear"
        case nn.Embedding():
            return "embedding"
        case _:
            return "other"
