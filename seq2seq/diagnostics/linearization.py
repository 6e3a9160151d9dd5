"""A recurrence linearised around the states that it went through: what can be asked of one.

Cells with a kernel have their derivatives in closed form, in `adjoint`; of all others autograd
takes them a step at a time, in `step_adjoint`.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor


class Zoneout(NamedTuple):
    """Share of each unit that stays what it was, ``[time, batch, hidden]``, of ``h`` and ``c``."""

    hidden: Tensor
    cell: Tensor


class Linearization(ABC):
    """Derivatives of one layer's recurrence at each timestep of a batch.

    The total derivative with respect to ``c_t`` includes the way through the output ``h_t``, as far
    as that is computed from ``c_t``; the carried one holds ``h_t``. Beside the total one with
    respect to ``h_t`` it makes the gradient of the state ``(h_t, c_t)`` as one vector, which
    products of state Jacobians carry.

    Attributes:
        hidden: ``[time, batch, hidden]``, recomputed, to be held against the layer's own outputs.
        has_cell: whether there is a cell state.
    """

    hidden: Tensor

    @property
    @abstractmethod
    def has_cell(self) -> bool: ...

    @property
    def state_size(self) -> int:
        """Width of the state, ``h`` and, if there is one, ``c`` beside it."""
        return self.hidden.size(2) * (2 if self.has_cell else 1)

    @abstractmethod
    def part(self, length: int, row: int) -> "Linearization":
        """The first ``length`` timesteps of one example, as a batch of one."""

    @abstractmethod
    def backpropagate(
        self, hidden: Tensor, cell: Tensor | None = None, *, truncation: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Total derivatives at every timestep, from the direct ones.

        The direct derivative with respect to ``h_t`` is what arrives there from anywhere but this
        layer's own next step: later layers, attention, the bridge. Several losses, stacked along
        the first batch axis, share one pass.

        Args:
            hidden: direct derivatives with respect to ``h_t``.
            cell: direct derivatives with respect to ``c_t``; zero if None, unused without a cell
                state.
            truncation: timesteps of a chunk, out of which nothing is carried back; all if None.

        Shape:
            hidden, cell: ``[time, losses, batch, hidden]``, and so are both results (the second is
            None without a cell state).
        """

    @abstractmethod
    def carried_cell(
        self, hidden: Tensor, cell: Tensor, direct: Tensor, *, truncation: int | None = None
    ) -> Tensor:
        """The carried derivative with respect to ``c_t``, from what :meth:`backpropagate` found.

        Shape:
            hidden, cell: total derivatives, ``[time, batch, hidden]``; direct: the direct one with
            respect to ``c_t``, that they were made from.
        """

    @abstractmethod
    def total_cell(self, hidden: Tensor, carried: Tensor) -> Tensor | None:
        """The total derivative with respect to ``c_t``; None without a cell state.

        Shape:
            hidden: total derivative with respect to ``h_t``, ``[time, batch, hidden]``; carried: as
            from :meth:`carried_cell`.
        """

    @abstractmethod
    def carry_forward(self, now: int, change: Tensor) -> Tensor:
        """What small changes of the state before step ``now`` are after it: ``J dS``.

        Shape:
            change: ``[batch, state, directions]``, and so is the result.
        """

    @abstractmethod
    def carry_back(self, now: int, derivative: Tensor) -> Tensor:
        """Derivatives with respect to the state before step ``now`` from those after: ``J^T dS``.

        Shape:
            derivative: ``[batch, state, directions]``, and so is the result.
        """

    @abstractmethod
    def recurrent_gradients(self, hidden: Tensor, cell: Tensor | None, parts: Tensor) -> Tensor:
        """Gradient of the recurrent matrix from some of the timesteps, once a part.

        Shape:
            hidden, cell: total derivatives, ``[time, batch, hidden]``; parts: bool
            ``[parts, time, batch]``; returns ``[parts, gates * hidden, hidden]``.
        """
