"""What a recurrent cell must say about itself where PyTorch has no kernel for it.

Its parameters, the values of its gates and the state after a step. Walking through time, padding,
weight dropout and zoneout belong to `recurrent`; initializers and diagnostics read it from here.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class StepCell(nn.Module, ABC):
    """A cell as the equations of one timestep.

    Parameters are named and lie in memory as those of `nn.LSTM`: one block of rows a gate, in the
    order of :attr:`gates`. A subclass may add others, whose names hold ``_ih_l0`` or ``_hh_l0`` if
    they have a row a unit of each gate.

    All functions are pure, and work on any number of leading dimensions, of which those of the
    state may be more than those of the input: diagnostics run many timesteps or directions at once.

    Args:
        input_size: width of the input.
        hidden_size: width of the state.

    Attributes:
        gates: one letter a gate. ``g``, ``n`` and ``h`` are candidates for a new state, and pass
            ``tanh``; all others are sigmoids. ``f`` and ``z`` are near 1 where the old state stays,
            ``i`` where the new is let in.
        has_cell: whether a cell state is carried beside the hidden state.
    """

    gates: ClassVar[str]
    has_cell: ClassVar[bool] = False

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        rows = len(self.gates) * hidden_size
        self.weight_ih_l0 = nn.Parameter(torch.empty(rows, input_size))
        self.weight_hh_l0 = nn.Parameter(torch.empty(rows, hidden_size))
        self.bias_ih_l0 = nn.Parameter(torch.empty(rows))
        self.bias_hh_l0 = nn.Parameter(torch.empty(rows))
        for parameter in self.parameters():  # as `nn.LSTM` does
            nn.init.uniform_(parameter, -1 / math.sqrt(hidden_size), 1 / math.sqrt(hidden_size))

    def drive(self, x: Tensor) -> Tensor:
        """What the input adds to the gates, ``W x + b``, for all timesteps at once.

        Whatever else is done to ``W x``, ``bias_ih_l0`` is added last.

        Shape:
            x: ``[..., input]``; returns ``[..., gates * hidden]``.
        """
        return linear(x, self.weight_ih_l0, self.bias_ih_l0)

    @abstractmethod
    def gate_values(
        self, driven: Tensor, hidden: Tensor, recurrent_weight: Tensor
    ) -> dict[str, Tensor]:
        """Value of each gate by its letter, in the order of :attr:`gates`.

        Args:
            driven: from :meth:`drive`.
            hidden: the hidden state before.
            recurrent_weight: ``weight_hh_l0``, or what weight dropout leaves of it.

        Shape:
            driven: ``[..., gates * hidden]``; hidden and each value: ``[..., hidden]``.
        """

    @abstractmethod
    def next_state(
        self, gates: Mapping[str, Tensor], hidden: Tensor, cell: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden and cell state after the step, from the gates and the states before.

        The hidden state must be computed from the very tensor that is returned as cell state: its
        gradient is then the total derivative.

        Shape:
            all ``[..., hidden]``; the cell state is None for a cell without one.
        """
