"""Exact backpropagation through one recurrent layer, with the gradient kept at every timestep.

A fused kernel returns its outputs and swallows what flows between its timesteps. Here the
recurrence is linearised once around the states that it went through, and the gradient is carried
back through it step by step. What is carried, and what is read off, belongs to `gradient_flow`.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from seq2seq.models.dropout import masked
from seq2seq.models.recurrent import RecurrentLayer


class Zoneout(NamedTuple):
    """Share of each unit that stays what it was, ``[time, batch, hidden]``, of ``h`` and ``c``."""

    hidden: Tensor
    cell: Tensor


@dataclass(frozen=True)
class Linearization:
    """Derivatives of one layer's recurrence at each timestep of a batch.

    With ``dh`` and ``dc`` the total derivatives of a loss with respect to ``h_t`` and ``c_t``, the
    gradient of the pre-activations is ``d = local * dh`` (``local * dc`` for the gates ``i f g`` of
    the LSTM) and what reaches the step before is

    ========= ======================================= =======================
    cell      to ``h_{t-1}``                          to ``c_{t-1}``
    ========= ======================================= =======================
    LSTM      ``U^T d``                               ``f * dc``
    GRU       ``U^T d + z * dh``
    RNN       ``U^T d``
    ========= ======================================= =======================

    where in the LSTM ``dc`` includes the way through the output, ``o * (1 - tanh(c)^2) * dh``.

    Zoneout, with the masks ``d`` of the hidden state and ``e`` of the cell, scales GRU and RNN by
    ``1 - d`` and adds ``d`` to what is kept. In the LSTM the gates ``i f g`` get ``dc~``, the
    derivative with respect to the cell state that was proposed, and the step before
    ``U^T d + d * dh`` and ``f * dc~ + e * dc``, where ``dc~ = (1 - e) * dc + (1 - d) * o * (1 -
    tanh(c~)^2) * dh`` and ``dc`` itself has no way through the output.

    Shape:
        hidden: ``[time, batch, hidden]``, recomputed, to be held against the layer's own outputs.
        recurrent_weight: ``U``, ``[gates * hidden, hidden]``.
        local: ``[time, batch, gates, hidden]``.
        keep: ``[time, batch, hidden]``: ``f`` or ``z``; None for the RNN.
        cell_to_hidden: ``[time, batch, hidden]``: ``o * (1 - tanh(c)^2)``, under zoneout times
            ``1 - d``; None without a cell.
        zoneout: ``d`` and ``e`` of an LSTM, each ``[time, batch, hidden]``; None without.
    """

    hidden: Tensor
    recurrent_weight: Tensor
    local: Tensor
    keep: Tensor | None = None
    cell_to_hidden: Tensor | None = None
    zoneout: Zoneout | None = None

    def to_gates(self, hidden: Tensor, cell: Tensor) -> Tensor:
        """What the LSTM's gates ``i f g`` get, from the total derivatives."""
        if self.zoneout is None:
            return cell
        assert self.cell_to_hidden is not None
        return (1 - self.zoneout.cell) * cell + self.cell_to_hidden * hidden


@torch.no_grad()
def linearize(
    layer: RecurrentLayer,
    inputs: Tensor,
    previous_hidden: Tensor,
    initial_cell: Tensor | None = None,
    recurrent_mask: Tensor | None = None,
    zoneout: Zoneout | None = None,
) -> Linearization:
    """Linearise a layer around the inputs and hidden states that it went through.

    All timesteps at once, because the hidden states are known; only the LSTM's cell state is
    scanned again, elementwise. Everything is computed in the type and on the device of ``inputs``.

    Shape:
        inputs: ``[time, batch, input]`` in the order of the scan; previous_hidden:
        ``[time, batch, hidden]``, the state before each step; initial_cell: ``[batch, hidden]``,
        only for the LSTM; recurrent_mask: as in
        :class:`~seq2seq.models.recurrent.RecurrentNoise`; zoneout: of a layer that has it.
    """
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    w, u, b_w, b_u = (getattr(layer.rnn, name).detach().to(inputs) for name in names)
    u = masked(u, recurrent_mask)
    by_gate = (*inputs.shape[:2], -1, layer.hidden_size)  # [time, batch, gates, hidden]
    from_input = (inputs @ w.T + b_w).view(by_gate)
    from_hidden = (previous_hidden @ u.T + b_u).view(by_gate)
    if initial_cell is not None:
        return _linearize_lstm(from_input + from_hidden, previous_hidden, initial_cell, u, zoneout)
    if layer.cell == "gru":
        plain = _linearize_gru(from_input, from_hidden, previous_hidden, u)
    else:
        plain = _linearize_rnn(layer, from_input + from_hidden, u)
    if zoneout is None:
        return plain
    kept, changed = zoneout.hidden, 1 - zoneout.hidden
    return replace(
        plain,
        hidden=kept * previous_hidden + changed * plain.hidden,
        local=changed.unsqueeze(2) * plain.local,
        keep=kept if plain.keep is None else kept + changed * plain.keep,
    )


def _linearize_rnn(layer: RecurrentLayer, activations: Tensor, u: Tensor) -> Linearization:
    activation = activations.squeeze(2)
    if layer.cell == "rnn_relu":
        hidden = activation.relu()
        slope = (activation > 0).to(hidden)
    else:
        hidden = activation.tanh()
        slope = 1 - hidden.square()
    return Linearization(hidden, u, slope.unsqueeze(2))


def _linearize_lstm(
    activations: Tensor,
    previous_hidden: Tensor,
    initial_cell: Tensor,
    u: Tensor,
    zoneout: Zoneout | None,
) -> Linearization:
    i, f, o = (activations[:, :, gate].sigmoid() for gate in (0, 1, 3))
    g = activations[:, :, 2].tanh()
    write = i * g
    cells = torch.empty(len(i) + 1, *initial_cell.shape, dtype=u.dtype, device=u.device)
    cells[0] = initial_cell
    proposed = cells[1:] if zoneout is None else torch.empty_like(cells[1:])
    for time in range(len(i)):
        torch.addcmul(write[time], f[time], cells[time], out=proposed[time])
        if zoneout is not None:
            torch.lerp(proposed[time], cells[time], zoneout.cell[time], out=cells[time + 1])
    squashed = proposed.tanh()
    local = torch.stack(
        [
            g * i * (1 - i),
            cells[:-1] * f * (1 - f),
            i * (1 - g.square()),
            squashed * o * (1 - o),
        ],
        dim=2,
    )
    hidden, through = o * squashed, o * (1 - squashed.square())
    if zoneout is not None:
        changed = 1 - zoneout.hidden
        hidden = zoneout.hidden * previous_hidden + changed * hidden
        through = changed * through
        local[:, :, 3] *= changed
    return Linearization(hidden, u, local, f, through, zoneout)


def _linearize_gru(
    from_input: Tensor, from_hidden: Tensor, previous_hidden: Tensor, u: Tensor
) -> Linearization:
    r, z = ((from_input[:, :, gate] + from_hidden[:, :, gate]).sigmoid() for gate in (0, 1))
    inner = from_hidden[:, :, 2]
    n = (from_input[:, :, 2] + r * inner).tanh()
    candidate = (1 - z) * (1 - n.square())
    local = torch.stack(
        [candidate * inner * r * (1 - r), (previous_hidden - n) * z * (1 - z), candidate * r], dim=2
    )
    return Linearization((1 - z) * n + z * previous_hidden, u, local, z)


@torch.no_grad()
def backpropagate(
    linearization: Linearization, hidden: Tensor, cell: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Total derivatives at every timestep, from the direct ones.

    The direct derivative with respect to ``h_t`` is what arrives there from anywhere but this
    layer's own next step: later layers, attention, the bridge. Several losses, stacked along the
    first batch axis, share one pass.

    Args:
        linearization: of the layer.
        hidden: direct derivatives with respect to ``h_t``.
        cell: direct derivatives with respect to ``c_t``; zero if None, unused without a cell state.

    Shape:
        hidden, cell: ``[time, losses, batch, hidden]``, and so are both results (the second is
        None without a cell state).
    """
    u = linearization.recurrent_weight
    time, losses, batch, size = hidden.shape
    # Each step completes its own derivative in place and adds its share to the step before.
    hidden = hidden.clone()
    if linearization.cell_to_hidden is None:
        cell = None
    else:
        cell = torch.zeros_like(hidden) if cell is None else cell.clone()
    gates, zoneout = linearization.local.size(2), linearization.zoneout
    activations = hidden.new_empty(losses, batch, gates, size)
    for now in reversed(range(time)):
        before = now - 1
        local, dh = linearization.local[now], hidden[now]
        if linearization.cell_to_hidden is not None:
            assert cell is not None
            if zoneout is None:
                dc = cell[now].addcmul_(linearization.cell_to_hidden[now], dh)
            else:
                dc = (1 - zoneout.cell[now]) * cell[now] + linearization.cell_to_hidden[now] * dh
            torch.mul(local[:, :3], dc.unsqueeze(2), out=activations[:, :, :3])
            torch.mul(local[:, 3], dh, out=activations[:, :, 3])
        else:
            torch.mul(local, dh.unsqueeze(2), out=activations)
        if not now:
            break
        if linearization.keep is not None:
            carried, state = (hidden, dh) if cell is None else (cell, dc)
            carried[before].addcmul_(linearization.keep[now], state)
            if zoneout is not None and cell is not None:
                cell[before].addcmul_(zoneout.cell[now], cell[now])
                hidden[before].addcmul_(zoneout.hidden[now], dh)
        hidden[before].view(losses * batch, size).addmm_(
            activations.view(losses * batch, gates * size), u
        )
    return hidden, cell


def carried_cell(linearization: Linearization, cell: Tensor, direct: Tensor) -> Tensor:
    """The derivative with respect to ``c_t`` with ``h_t`` held: the part that doesn't pass ``h_t``.

    Together with the total derivative with respect to ``h_t`` it is the gradient of the state
    ``(h_t, c_t)`` as one vector, which products of state Jacobians carry.

    Shape:
        cell: total derivatives from :func:`backpropagate`, ``[time, batch, hidden]``; direct: the
        direct ones that went in.
    """
    assert linearization.keep is not None
    if linearization.zoneout is not None:  # nothing of it passes h_t
        return cell
    carried = direct.clone()
    carried[:-1].addcmul_(linearization.keep[1:], cell[1:])
    return carried
