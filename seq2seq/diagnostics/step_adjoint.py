"""Exact backpropagation through a cell that is written out, whatever its equations are.

The states before every step are known, so that autograd takes the derivatives of one step at a
time, at its own previous state: products with a step's Jacobian, which itself is never built.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from seq2seq.diagnostics.linearization import Linearization, Zoneout
from seq2seq.models.cells import StepCell
from seq2seq.models.dropout import masked


def cell_like(cell: StepCell, like: Tensor) -> StepCell:
    """The cell in the type and on the device of ``like``, its weights apart from the model's."""
    return deepcopy(cell).requires_grad_(False).to(like)


@dataclass(frozen=True)
class StepLinearization(Linearization):
    """Derivatives of a :class:`~seq2seq.models.cells.step_cell.StepCell`, by autograd.

    Args:
        cell: the cell, in the type of the tensors.

    Shape:
        driven: what the inputs add, ``[time, batch, gates * hidden]``; recurrent_weight:
        ``[gates * hidden, hidden]``; previous_hidden, previous_cell: states before each step,
        ``[time, batch, hidden]``, the second None without a cell state, and wider where the first
        is projected; hidden: after it; zoneout: of a layer that has it.
    """

    cell: StepCell
    recurrent_weight: Tensor
    driven: Tensor
    previous_hidden: Tensor
    previous_cell: Tensor | None
    hidden: Tensor
    zoneout: Zoneout | None = None

    @property
    def has_cell(self) -> bool:
        """As the cell says."""
        return self.previous_cell is not None

    @property
    def state_size(self) -> int:
        """Both may differ in width."""
        return sum(one.size(-1) for one in self._states_before(0))

    def part(self, length: int, row: int) -> "StepLinearization":
        """The first ``length`` timesteps of one example, as a batch of one."""
        here = (slice(length), slice(row, row + 1))
        zoneout = self.zoneout
        return replace(
            self,
            driven=self.driven[here],
            previous_hidden=self.previous_hidden[here],
            previous_cell=None if self.previous_cell is None else self.previous_cell[here],
            hidden=self.hidden[here],
            zoneout=None if zoneout is None else Zoneout(*(one[here] for one in zoneout)),
        )

    def backpropagate(
        self, hidden: Tensor, cell: Tensor | None = None, *, truncation: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """One vector-Jacobian product a step, of all losses together."""
        hidden = hidden.clone()
        if self.has_cell:
            assert self.previous_cell is not None
            width = self.previous_cell.size(-1)
            cell = hidden.new_zeros(*hidden.shape[:-1], width) if cell is None else cell.clone()
        else:
            cell = None
        for now in reversed(range(len(hidden))):
            arrived = None if cell is None else cell[now]
            before, total = self._back(now, hidden[now], arrived)
            if cell is not None and total is not None:
                cell[now] = total
            if now % (truncation or len(hidden)):
                hidden[now - 1] += before[0]
                if cell is not None:
                    cell[now - 1] += before[1]
        return hidden, cell

    def carried_cell(
        self, hidden: Tensor, cell: Tensor, direct: Tensor, *, truncation: int | None = None
    ) -> Tensor:
        """The total one, less what passes ``h_t``."""
        return cell - self._through_output(hidden)

    def total_cell(self, hidden: Tensor, carried: Tensor) -> Tensor | None:
        """The way through ``h_t`` is added."""
        return carried + self._through_output(hidden) if self.has_cell else None

    def carry_forward(self, now: int, change: Tensor) -> Tensor:
        """The derivative of ``J^T u``, which is linear in ``u``.

        Forward-mode differentiation would compile its rules first, which takes seconds.
        """
        changes = self._parts(change)
        before, after = self._step(now, changes[0])
        with torch.enable_grad():
            u = [torch.zeros_like(one).requires_grad_() for one in after]
            # Zero times u, for a state before that the step doesn't read.
            back = [
                one + 0 * u[0].sum() for one in _derivatives(after, before, u, create_graph=True)
            ]
        return torch.cat(_derivatives(back, u, changes), dim=2).movedim(0, 2)

    def carry_back(self, now: int, derivative: Tensor) -> Tensor:
        """By automatic differentiation in reverse mode."""
        hidden, *cell = self._parts(derivative)
        before, _ = self._back(now, hidden, cell[0] if cell else None)
        return torch.cat(before, dim=2).movedim(0, 2)

    def recurrent_gradients(self, hidden: Tensor, cell: Tensor | None, parts: Tensor) -> Tensor:
        """Of all timesteps at once, which don't depend on each other any more."""
        weight = self.recurrent_weight.clone().requires_grad_()
        _, after = replace(self, recurrent_weight=weight)._step(slice(None), self.hidden)
        arrived = [hidden]
        if cell is not None:
            arrived.append(cell - self._through_output(hidden))
        gradients: list[Tensor] = []
        for part in parts:
            chosen = [one * part.unsqueeze(2) for one in arrived]
            gradients += _derivatives(after, [weight], chosen, retain_graph=True)
        return torch.stack(gradients)

    def _parts(self, state: Tensor) -> tuple[Tensor, ...]:
        """``h`` and ``c`` with the directions first, from ``[batch, state, directions]``."""
        widths = [one.size(-1) for one in self._states_before(0)]
        return torch.split(state.movedim(2, 0), widths, dim=2)

    def _states_before(self, now: int | slice) -> tuple[Tensor, ...]:
        if self.previous_cell is None:
            return (self.previous_hidden[now],)
        return self.previous_hidden[now], self.previous_cell[now]

    def _after(self, now: int | slice, before: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Hidden and, if there is one, cell state after the step, from those before."""
        gates = self.cell.gate_values(self.driven[now], before[0], self.recurrent_weight)
        proposed = self.cell.next_state(gates, before[0], before[1] if self.has_cell else None)
        after = tuple(one for one in proposed if one is not None)
        if self.zoneout is None:
            return after
        kept = (self.zoneout.hidden[now], self.zoneout.cell[now])
        mixed = zip(after, before, kept, strict=False)
        return tuple(keep * old + (1 - keep) * new for new, old, keep in mixed)

    def _back(
        self, now: int, hidden: Tensor, cell: Tensor | None
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Derivatives of the states before, and the total one of the cell state after."""
        arrived = [hidden] if cell is None else [hidden, cell]
        before, after = self._step(now, hidden)
        # The cell state after is asked for too: the hidden one is computed from it.
        found = _derivatives(after, [*before, *after[1:]], arrived)
        return found[: len(before)], found[len(before)] if cell is not None else None

    def _step(
        self, now: int | slice, like: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """States before and after, once for every direction or loss of ``like``, with a graph."""
        before = tuple(
            one.expand(*like.shape[:-1], -1).clone().requires_grad_()
            for one in self._states_before(now)
        )
        with torch.enable_grad():
            return before, self._after(now, before)

    def _through_output(self, hidden: Tensor) -> Tensor:
        """What reaches ``c_t`` through ``h_t``, ``[time, batch, hidden]``."""
        _, after = self._step(slice(None), self.hidden)
        return _derivatives(after[:1], after[1:], [hidden])[0]


def _derivatives(
    results: Sequence[Tensor], states: Sequence[Tensor], arrived: Sequence[Tensor], **graph: bool
) -> tuple[Tensor, ...]:
    """Vector-Jacobian products, zero for what the results don't depend on."""
    return torch.autograd.grad(
        results, states, arrived, allow_unused=True, materialize_grads=True, **graph
    )


@torch.no_grad()
def linearize_steps(
    cell: StepCell,
    inputs: Tensor,
    previous_hidden: Tensor,
    initial_cell: Tensor | None,
    recurrent_mask: Tensor | None,
    zoneout: Zoneout | None,
) -> StepLinearization:
    """As :func:`~seq2seq.diagnostics.adjoint.linearize`; only a cell state is scanned again."""
    cell = cell_like(cell, inputs)
    linearization = StepLinearization(
        cell=cell,
        recurrent_weight=masked(cell.weight_hh_l0, recurrent_mask),
        driven=cell.drive(inputs),
        previous_hidden=previous_hidden,
        previous_cell=None,
        hidden=previous_hidden,
        zoneout=zoneout,
    )
    if initial_cell is None:
        (hidden,) = linearization._after(slice(None), (previous_hidden,))
        return replace(linearization, hidden=hidden)
    linearization = replace(linearization, previous_cell=previous_hidden)
    cells, hiddens = [initial_cell], []
    for now in range(len(inputs)):
        hidden, after = linearization._after(now, (previous_hidden[now], cells[-1]))
        hiddens.append(hidden)
        cells.append(after)
    return replace(
        linearization, previous_cell=torch.stack(cells[:-1]), hidden=torch.stack(hiddens)
    )
