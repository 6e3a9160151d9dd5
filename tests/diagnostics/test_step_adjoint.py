"""Derivatives taken by autograd a step at a time, against closed forms and finite differences.

The other tests of this folder hold every cell against unrolled references.
"""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from seq2seq.diagnostics.adjoint import KernelLinearization, linearize
from seq2seq.diagnostics.linearization import Linearization, Zoneout
from seq2seq.diagnostics.lyapunov import lyapunov_exponents
from seq2seq.diagnostics.step_adjoint import StepLinearization, linearize_steps
from seq2seq.models.cells import STEP_CELLS, StepCell
from seq2seq.models.recurrent import RecurrentLayer

TIME, BATCH, INPUT, HIDDEN = 6, 3, 4, 5


class WrittenOutLSTM(StepCell):
    """The equations of the kernel."""

    gates = "ifgo"
    has_cell = True

    def gate_values(
        self, driven: Tensor, hidden: Tensor, recurrent_weight: Tensor
    ) -> dict[str, Tensor]:
        i, f, g, o = (driven + hidden @ recurrent_weight.T + self.bias_hh_l0).chunk(4, dim=-1)
        return {"i": i.sigmoid(), "f": f.sigmoid(), "g": g.tanh(), "o": o.sigmoid()}

    def next_state(
        self, gates: Mapping[str, Tensor], hidden: Tensor, cell: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        cell = gates["f"] * cell + gates["i"] * gates["g"]
        return gates["o"] * cell.tanh(), cell


class WrittenOutGRU(StepCell):
    """The equations of the kernel."""

    gates = "rzn"

    def gate_values(
        self, driven: Tensor, hidden: Tensor, recurrent_weight: Tensor
    ) -> dict[str, Tensor]:
        recurrent = (hidden @ recurrent_weight.T + self.bias_hh_l0).chunk(3, dim=-1)
        r, z = ((driven.chunk(3, dim=-1)[k] + recurrent[k]).sigmoid() for k in (0, 1))
        return {"r": r, "z": z, "n": (driven.chunk(3, dim=-1)[2] + r * recurrent[2]).tanh()}

    def next_state(
        self, gates: Mapping[str, Tensor], hidden: Tensor, cell: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        return (1 - gates["z"]) * gates["n"] + gates["z"] * hidden, None


WRITTEN_OUT = {"lstm": WrittenOutLSTM, "gru": WrittenOutGRU}


def both(
    cell: str, *, zoneout: bool, dropout: bool
) -> tuple[KernelLinearization, StepLinearization]:
    torch.manual_seed(4)
    layer = RecurrentLayer(cell=cell, input_size=INPUT, hidden_size=HIDDEN).double()
    for parameter in layer.parameters():
        parameter.data.mul_(2)
    x = torch.randn(TIME, BATCH, INPUT, dtype=torch.float64)
    hidden = torch.rand(TIME, BATCH, HIDDEN, dtype=torch.float64)
    memory = hidden[0].exp() if layer.has_cell else None
    masks = Zoneout(*torch.rand(2, TIME, BATCH, HIDDEN, dtype=torch.float64)) if zoneout else None
    mask = torch.rand_like(layer.rnn.weight_hh_l0.detach()).round() if dropout else None
    written = WRITTEN_OUT[cell](INPUT, HIDDEN).double()
    written.load_state_dict(layer.rnn.state_dict())
    given = (x, hidden, memory, mask, masks)
    closed = linearize(layer, *given)
    assert isinstance(closed, KernelLinearization)
    return closed, linearize_steps(written, *given)


@pytest.mark.parametrize("cell", WRITTEN_OUT)
@pytest.mark.parametrize(("zoneout", "dropout"), [(False, False), (True, False), (False, True)])
def test_autograd_a_step_at_a_time_gives_what_the_closed_forms_give(
    cell: str, zoneout: bool, dropout: bool
) -> None:
    direct, memory = torch.randn(2, TIME, 2, BATCH, HIDDEN, dtype=torch.float64)
    change = torch.randn(BATCH, HIDDEN * (1 + (cell == "lstm")), 3, dtype=torch.float64)
    parts = torch.rand(2, TIME, BATCH) > 0.5

    def figures(one: Linearization) -> list[Tensor | None]:
        hidden, total = one.backpropagate(direct, memory)
        first = None if total is None else total[:, 0]
        carried = None if first is None else one.carried_cell(hidden[:, 0], first, memory[:, 0])
        return [
            *(one.hidden, hidden, total, carried),
            one.total_cell(direct[:, 0], memory[:, 0]),
            *(one.carry_forward(now, change) for now in (0, TIME - 1)),
            *(one.carry_back(now, change) for now in (0, TIME - 1)),
            one.recurrent_gradients(hidden[:, 0], first, parts),
            one.part(4, 1).backpropagate(direct[:4, :, 1:2], memory[:4, :, 1:2])[0],
            lyapunov_exponents(one, count=HIDDEN),
        ]

    closed, stepped = both(cell, zoneout=zoneout, dropout=dropout)
    for expected, found in zip(figures(closed), figures(stepped), strict=True):
        assert (expected is None) == (found is None)
        if expected is not None and found is not None:
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cell", STEP_CELLS)
def test_the_derivative_of_every_state_is_that_of_finite_differences(cell: str) -> None:
    torch.manual_seed(0)
    rnn = STEP_CELLS[cell](INPUT, HIDDEN).double()
    x = torch.randn(TIME, BATCH, INPUT, dtype=torch.float64)
    weights = torch.randn(2, TIME, BATCH, HIDDEN, dtype=torch.float64)

    def walk(
        hidden: Tensor, memory: Tensor | None, start: int
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        hiddens, memories = [], []
        for now in range(start, TIME):
            gates = rnn.gate_values(rnn.drive(x[now]), hidden, rnn.weight_hh_l0)
            hidden, memory = rnn.next_state(gates, hidden, memory)
            hiddens.append(hidden)
            memories.append(memory)
        return hiddens, memories

    with torch.no_grad():
        first = torch.randn(BATCH, HIDDEN, dtype=torch.float64)
        memory = torch.randn_like(first) if rnn.has_cell else None
        hiddens, memories = walk(first, memory, 0)
        before = torch.stack([first, *hiddens[:-1]])
        made = linearize_steps(rnn, x, before, memory, None, None)
        given = [one.unsqueeze(1) for one in weights]
        hidden_total, cell_total = made.backpropagate(*given)

        def loss_from(now: int, hidden: Tensor, memory: Tensor | None) -> Tensor:
            """Of the states after step ``now`` and all that follows."""
            total = (hidden * weights[0, now]).sum()
            later, later_memories = walk(hidden, memory, now + 1)
            total += sum((h * w).sum() for h, w in zip(later, weights[0, now + 1 :], strict=True))
            if memory is not None:
                every = [memory, *later_memories]
                total += sum((c * w).sum() for c, w in zip(every, weights[1, now:], strict=True))
            return total

        step = 1e-6
        for now in (0, 2, TIME - 1):
            direction = torch.randn(BATCH, HIDDEN, dtype=torch.float64)
            up, down = (
                loss_from(now, hiddens[now] + sign * step * direction, memories[now])
                for sign in (1, -1)
            )
            found = float((hidden_total[now, 0] * direction).sum())
            assert found == pytest.approx(float(up - down) / (2 * step), rel=1e-6, abs=1e-8)
            if memory is None or cell_total is None:
                continue
            carried = made.carried_cell(hidden_total[:, 0], cell_total[:, 0], weights[1])[now]
            up, down = (
                loss_from(now, hiddens[now], memories[now] + sign * step * direction)
                for sign in (1, -1)
            )
            found = float((carried * direction).sum())
            assert found == pytest.approx(float(up - down) / (2 * step), rel=1e-6, abs=1e-8)


def test_a_projection_has_the_jacobians_of_the_bare_module_and_all_its_exponents() -> None:
    torch.manual_seed(0)
    narrow = 2
    layer = RecurrentLayer(cell="lstm", input_size=4, hidden_size=5, projection_size=2).double()
    bare = nn.LSTM(INPUT, HIDDEN, proj_size=narrow).double()
    bare.load_state_dict(layer.rnn.state_dict())
    x = torch.randn(TIME, BATCH, INPUT, dtype=torch.float64)

    def step(state: Tensor, x: Tensor) -> Tensor:
        _, after = bare(x.unsqueeze(0), tuple(state.unsqueeze(0).split([narrow, HIDDEN], dim=1)))
        return torch.cat(after, dim=1)[0]

    states = [torch.randn(BATCH, narrow + HIDDEN, dtype=torch.float64)]
    for now in range(TIME):
        after = [step(*each) for each in zip(states[-1], x[now], strict=True)]
        states.append(torch.stack(after).detach())
    hidden, cell = torch.stack(states[:-1]).split([narrow, HIDDEN], dim=2)
    made = linearize(layer, x, hidden, cell[0])
    torch.testing.assert_close(made.hidden, torch.stack(states[1:])[..., :narrow])
    assert made.state_size == narrow + HIDDEN
    identity = torch.eye(narrow + HIDDEN, dtype=torch.float64).expand(BATCH, -1, -1)
    determinants = torch.zeros(BATCH, dtype=torch.float64)
    for now in range(TIME):
        rows = [
            torch.autograd.functional.jacobian(lambda s, x=one: step(s, x), state)
            for state, one in zip(states[now], x[now], strict=True)
        ]
        expected = torch.stack(rows)
        torch.testing.assert_close(made.carry_forward(now, identity), expected)
        torch.testing.assert_close(made.carry_back(now, identity), expected.mT)
        determinants += torch.linalg.slogdet(expected).logabsdet
    exponents = lyapunov_exponents(made, count=made.state_size)
    torch.testing.assert_close(exponents.sum(1) * TIME, determinants, rtol=0, atol=1e-8)


class Accumulator(StepCell):
    """``c_t = f * c_{t-1} + (1 - f) * W x_t`` and ``h_t = tanh(c_t)``: no ``h_{t-1}``."""

    gates = "fg"
    has_cell = True

    def gate_values(
        self, driven: Tensor, hidden: Tensor, recurrent_weight: Tensor
    ) -> dict[str, Tensor]:
        f, g = driven.chunk(2, dim=-1)
        return {"f": f.sigmoid(), "g": g}

    def next_state(
        self, gates: Mapping[str, Tensor], hidden: Tensor, cell: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        cell = torch.lerp(gates["g"], cell, gates["f"])
        return cell.tanh(), cell


def test_a_cell_that_does_not_read_its_hidden_state_has_zero_derivatives_there() -> None:
    rnn = Accumulator(INPUT, HIDDEN).double()
    x = torch.randn(TIME, BATCH, INPUT, dtype=torch.float64)
    zeros = torch.zeros(TIME, BATCH, HIDDEN, dtype=torch.float64)
    made = linearize_steps(rnn, x, zeros, zeros[0], None, None)
    direct = torch.randn(TIME, 1, BATCH, HIDDEN, dtype=torch.float64)
    hidden, cell = made.backpropagate(direct)
    assert torch.equal(hidden, direct)
    assert not made.recurrent_gradients(hidden[:, 0], cell[:, 0], torch.ones(1, TIME, BATCH)).any()
    identity = torch.eye(2 * HIDDEN, dtype=torch.float64).expand(BATCH, -1, -1)
    forward, back = made.carry_forward(1, identity), made.carry_back(1, identity)
    torch.testing.assert_close(forward, back.mT)
    keep = rnn.gate_values(made.driven[1], zeros[1], rnn.weight_hh_l0)["f"].detach()
    expected = torch.diag_embed(keep)
    torch.testing.assert_close(forward[:, HIDDEN:, HIDDEN:], expected)
    assert not forward[:, :, :HIDDEN].any()


def test_the_models_own_weights_are_left_as_they_are() -> None:
    rnn = STEP_CELLS["layer_norm_lstm"](INPUT, HIDDEN)
    zeros = torch.zeros(TIME, BATCH, HIDDEN, dtype=torch.float64)
    linearize_steps(rnn, zeros[..., :INPUT], zeros, zeros[0], None, None).backpropagate(
        zeros.unsqueeze(1)
    )
    assert all(one.requires_grad and one.grad is None for one in rnn.parameters())
    assert all(one.dtype == torch.float32 for one in rnn.parameters())
