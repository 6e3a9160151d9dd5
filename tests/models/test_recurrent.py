"""One recurrent layer against PyTorch's bare modules, an example at a time and without padding."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from seq2seq.models.recurrent import (
    CELLS,
    RecurrentLayer,
    RecurrentNoise,
    RecurrentState,
    recurrent_map,
    reverse_by_length,
    stack_states,
)

INPUT, HIDDEN, PROJECTION = 3, 5, 2
PROJECTED = "lstm with projection"
LENGTHS = torch.tensor([4, 1, 7, 2])
BARE = {
    "lstm": lambda: nn.LSTM(INPUT, HIDDEN),
    PROJECTED: lambda: nn.LSTM(INPUT, HIDDEN, proj_size=PROJECTION),
    "gru": lambda: nn.GRU(INPUT, HIDDEN),
    "rnn_tanh": lambda: nn.RNN(INPUT, HIDDEN, nonlinearity="tanh"),
    "rnn_relu": lambda: nn.RNN(INPUT, HIDDEN, nonlinearity="relu"),
}
# Of the others `cells/` holds the references.
every_kernel = pytest.mark.parametrize("cell", BARE)

both_directions = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
every_cell = pytest.mark.parametrize("cell", [*CELLS, PROJECTED])


class Case(NamedTuple):
    layer: RecurrentLayer
    x: Tensor
    state: RecurrentState


def make_case(cell: str, reverse: bool = False, *, batch: int = len(LENGTHS)) -> Case:
    torch.manual_seed(0)
    kind: dict[str, Any] = {"cell": cell}
    if cell == PROJECTED:
        kind = {"cell": "lstm", "projection_size": PROJECTION}
    layer = RecurrentLayer(**kind, input_size=INPUT, hidden_size=HIDDEN, reverse=reverse)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.6)
    x = torch.randn(batch, int(LENGTHS.max()), INPUT, dtype=torch.float64)
    hidden = torch.rand(1, batch, layer.output_size, dtype=torch.float64)
    memory = torch.randn(1, batch, HIDDEN, dtype=torch.float64) if layer.has_cell else None
    return Case(layer.double(), x, RecurrentState(hidden, memory))


def tensors(state: RecurrentState) -> list[Tensor]:
    return [tensor for tensor in state if tensor is not None]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@every_kernel
@both_directions
@pytest.mark.parametrize("with_state", [False, True], ids=["zeros", "state"])
def test_layer_equals_the_bare_module_run_alone_on_each_example(
    cell: str, reverse: bool, with_state: bool
) -> None:
    layer, x, state = make_case(cell, reverse)
    output, final = layer(x, LENGTHS, state if with_state else None)
    bare = BARE[cell]().double()
    bare.load_state_dict(layer.rnn.state_dict())
    for row, length in enumerate(LENGTHS.tolist()):
        alone = x[row, :length].flip(0) if reverse else x[row, :length]
        first = None
        if with_state:
            first = tuple(tensor[:, row] for tensor in tensors(state))
            first = first if layer.has_cell else first[0]
        expected, last = bare(alone, first)
        assert_close(output[row, :length], expected.flip(0) if reverse else expected)
        for ours, theirs in zip(tensors(final), last if layer.has_cell else (last,), strict=True):
            assert_close(ours[:, row], theirs)
    assert [tensor.shape for tensor in tensors(final)] == [one.shape for one in tensors(state)]


@every_cell
@both_directions
def test_without_lengths_every_timestep_is_real(cell: str, reverse: bool) -> None:
    layer, x, state = make_case(cell, reverse)
    full = torch.full((x.size(0),), x.size(1))
    output, final = layer(x, None, state)
    expected, expected_final = layer(x, full, state)
    assert_close(output, expected)
    for ours, theirs in zip(tensors(final), tensors(expected_final), strict=True):
        assert_close(ours, theirs)


@every_cell
def test_fused_equals_one_timestep_at_a_time(cell: str) -> None:
    layer, x, state = make_case(cell)
    fused = layer(x, None, state)
    steps = []
    for time in range(x.size(1)):
        output, state = layer(x[:, time : time + 1], None, state)
        steps.append(output)
    assert_close(torch.cat(steps, dim=1), fused.output, 1e-10)
    for ours, theirs in zip(tensors(state), tensors(fused.state), strict=True):
        assert_close(ours, theirs, 1e-10)


@every_cell
@both_directions
@pytest.mark.parametrize("with_state", [False, True], ids=["zeros", "state"])
def test_weight_dropout_is_the_layer_with_other_weights_fused_and_step_by_step(
    cell: str, reverse: bool, with_state: bool
) -> None:
    layer, x, state = make_case(cell, reverse)
    first = state if with_state else None
    layer.weight_dropout = 0.4
    noise = layer.draw_noise()
    other, _, _ = make_case(cell, reverse)
    with torch.no_grad():
        other.rnn.weight_hh_l0.mul_(noise.recurrent_mask)
    for lengths in (None, LENGTHS):
        fused, expected = layer(x, lengths, first, noise), other(x, lengths, first)
        real = (torch.arange(x.size(1)) < LENGTHS.unsqueeze(1)).unsqueeze(2)
        real = real if lengths is not None else torch.ones_like(real)
        assert_close(fused.output * real, expected.output * real)
        for ours, theirs in zip(tensors(fused.state), tensors(expected.state), strict=True):
            assert_close(ours, theirs)
    carried, outputs = first, []
    for step in (x.flip(1) if reverse else x).split(1, dim=1):
        output, carried = layer(step, None, carried, noise)
        outputs.append(output)
    walked = torch.cat(outputs[::-1] if reverse else outputs, dim=1)
    assert_close(walked, layer(x, None, first, noise).output, 1e-10)


@every_cell
@both_directions
@pytest.mark.parametrize("training", [False, True])
def test_zoneout_mixes_what_the_cell_proposes_with_the_state_before(
    cell: str, reverse: bool, training: bool
) -> None:
    layer, x, state = make_case(cell, reverse)
    plain, _, _ = make_case(cell, reverse)
    layer.zoneout_hidden, layer.zoneout_cell = 0.3, 0.4 if layer.has_cell else 0.0
    noise = layer.train(training).draw_steps(x, None)
    output, final = layer(x, LENGTHS, state, noise)
    for row, length in enumerate(LENGTHS.tolist()):
        order = range(length - 1, -1, -1) if reverse else range(length)
        now = [tensor[:, row : row + 1] for tensor in tensors(state)]
        for time, position in enumerate(order):
            step = x[row : row + 1, position : position + 1]
            proposed = tensors(plain(step, None, RecurrentState(*now)).state)
            kept = [0.3, 0.4]
            if training:
                assert noise is not None
                kept = [one[row, time] for one in tensors(noise._replace(recurrent_mask=None))]
            pairs = zip(kept, now, proposed, strict=False)
            now = [keep * old + (1 - keep) * new for keep, old, new in pairs]
            assert_close(output[row, position], now[0][0, 0])
        for ours, expected in zip(tensors(final), now, strict=True):
            assert_close(ours[:, row], expected[:, 0])


def test_zoneout_keeps_its_share_of_units_and_a_cell_only_where_there_is_one() -> None:
    layer = RecurrentLayer(
        cell="lstm", input_size=3, hidden_size=50, zoneout_hidden=0.1, zoneout_cell=0.5
    )
    noise = layer.draw_steps(torch.ones(20, 9, 3), RecurrentNoise(torch.ones(1)))
    assert noise.recurrent_mask is not None
    assert noise.keep_hidden.unique().tolist() == noise.keep_cell.unique().tolist() == [0, 1]
    assert float(noise.keep_hidden.mean()) == pytest.approx(0.1, abs=0.02)
    assert float(noise.keep_cell.mean()) == pytest.approx(0.5, abs=0.02)
    assert layer.eval().draw_steps(torch.ones(20, 9, 3), None) is None
    with pytest.raises(ValueError, match=r"zoneout_cell is 0.5, but cell=gru has no cell state"):
        RecurrentLayer(cell="gru", input_size=3, hidden_size=4, zoneout_cell=0.5)


@every_cell
@both_directions
def test_zoneout_ignores_padding(cell: str, reverse: bool) -> None:
    layer, x, state = make_case(cell, reverse)
    layer.zoneout_hidden = 0.3
    layer.eval()
    expected, final = layer(x, LENGTHS, state)
    real = (torch.arange(x.size(1)) < LENGTHS.unsqueeze(1)).unsqueeze(2)
    wide = nn.functional.pad(torch.where(real, x, 50.0), (0, 0, 0, 3), value=-50.0)
    output, other = layer(wide, LENGTHS, state)
    assert_close(output[:, : x.size(1)] * real, expected * real)
    for ours, theirs in zip(tensors(other), tensors(final), strict=True):
        assert_close(ours, theirs)


def test_weight_dropout_draws_in_training_only_and_keeps_the_mean_of_the_weights() -> None:
    layer = RecurrentLayer(cell="gru", input_size=3, hidden_size=64, weight_dropout=0.25)
    mask = layer.draw_noise().recurrent_mask
    assert mask.shape == layer.rnn.weight_hh_l0.shape
    assert mask.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert float(mask.mean()) == pytest.approx(1, abs=0.03)
    assert layer.eval().draw_noise() is None
    assert RecurrentLayer(cell="gru", input_size=3, hidden_size=4).draw_noise() is None


@every_cell
def test_a_step_without_state_begins_at_zero(cell: str) -> None:
    layer, x, state = make_case(cell)
    zeros = RecurrentState(*(torch.zeros_like(tensor) for tensor in tensors(state)))
    first = x[:, :1]
    assert torch.equal(layer(first).output, layer(first, None, zeros).output)
    assert_close(layer(first).output, layer(x).output[:, :1])


@every_cell
@both_directions
def test_padding_changes_no_output_no_state_and_no_gradient(cell: str, reverse: bool) -> None:
    layer, x, state = make_case(cell, reverse)
    real = (torch.arange(x.size(1)) < LENGTHS.unsqueeze(1)).unsqueeze(2)
    # The smallest padding that holds every sequence, and a wider one full of other values.
    wide = nn.functional.pad(torch.where(real, x, 50.0), (0, 0, 0, 3), value=-50.0)
    results = []
    for padded in (torch.where(real, x, 0.0), wide):
        padded.requires_grad_()
        layer.zero_grad()
        output, final = layer(padded, LENGTHS, state)
        kept = output[:, : x.size(1)] * real
        loss = kept.square().sum() + sum(tensor.cos().sum() for tensor in tensors(final))
        loss.backward()
        gradient = padded.grad[:, : x.size(1)]
        assert not gradient.masked_select(~real).any()
        assert not padded.grad[:, x.size(1) :].any()
        gradients = [parameter.grad for parameter in layer.parameters()]
        results.append([kept, *tensors(final), gradient * real, *gradients])
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs)


@every_cell
@both_directions
def test_a_scan_that_would_explode_over_padding_has_finite_gradients(
    cell: str, reverse: bool
) -> None:
    layer, _, _ = make_case(cell, reverse)
    with torch.no_grad():
        layer.rnn.weight_hh_l0.fill_(1e9)
    lengths = torch.tensor([2, 1])
    output, final = layer(torch.ones(2, 60, INPUT, dtype=torch.float64), lengths)
    (output[:, 0].sum() + final.hidden.sum()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@every_cell
@both_directions
def test_gradient_is_that_of_finite_differences(cell: str, reverse: bool) -> None:
    layer, x, state = make_case(cell, reverse, batch=2)
    lengths = torch.tensor([3, 1])
    x = x[:, :3].clone().requires_grad_()
    first = [tensor.clone().requires_grad_() for tensor in tensors(state)]
    real = (torch.arange(3) < lengths.unsqueeze(1)).unsqueeze(2)
    names = list(dict(layer.named_parameters()))

    def run(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        weights = dict(zip(names, rest[len(first) :], strict=True))
        given = RecurrentState(*rest[: len(first)])
        output, final = torch.func.functional_call(layer, weights, (x, lengths, given))
        return output * real, *tensors(final)

    assert torch.autograd.gradcheck(run, (x, *first, *layer.parameters()))


@every_cell
@both_directions
def test_bfloat16_autocast_runs_fused_and_stepwise(cell: str, reverse: bool) -> None:
    layer, x, state = make_case(cell, reverse)
    layer, x = layer.float(), x.float()
    state = RecurrentState(*(tensor.float() for tensor in tensors(state)))
    exact = layer(x, LENGTHS, state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused = layer(x, LENGTHS, state)
        step = layer(x[:, :1], None, state)
        # The state of a fused pass goes into a step, and back.
        again = layer(x, LENGTHS, layer(x[:, :1], None, fused.state).state)
    real = (torch.arange(x.size(1)) < LENGTHS.unsqueeze(1)).unsqueeze(2)
    torch.testing.assert_close(
        fused.output.float() * real, exact.output * real, atol=0.1, rtol=0.05
    )
    loss = sum(
        (each.output.float() * real[:, : each.output.size(1)]).sum() for each in (fused, again)
    )
    (loss + step.output.float().sum()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in layer.parameters())


def test_reversal_by_length_turns_each_row_alone_and_is_its_own_inverse() -> None:
    x = torch.tensor([[1, 2, 3, 0], [4, 0, 0, 0], [5, 6, 7, 8]])
    lengths = torch.tensor([3, 0, 4])
    turned = reverse_by_length(x, lengths)
    assert turned.tolist() == [[3, 2, 1, 0], [4, 0, 0, 0], [8, 7, 6, 5]]
    assert torch.equal(reverse_by_length(turned, lengths), x)
    features = x.unsqueeze(2).repeat(1, 1, 2)
    assert torch.equal(reverse_by_length(features, lengths)[..., 0], turned)


@every_cell
def test_stacked_states_come_apart_again(cell: str) -> None:
    states = [make_case(cell).state, make_case(cell).state]
    states[1] = RecurrentState(*(tensor + 1 for tensor in tensors(states[1])))
    stacked = stack_states(states)
    for index, state in enumerate(states):
        for ours, theirs in zip(tensors(stacked.layers()[index]), tensors(state), strict=True):
            assert torch.equal(ours, theirs)
    chosen = stacked.select(torch.tensor([2, 0, 2]))
    for ours, theirs in zip(tensors(chosen), tensors(stacked), strict=True):
        assert torch.equal(ours, theirs[:, [2, 0, 2]])


@pytest.mark.parametrize("training", [False, True])
def test_a_projection_comes_after_the_output_gate_and_feeds_the_recurrence(training: bool) -> None:
    layer, x, state = make_case(PROJECTED)
    layer.train(training)
    weights = dict(layer.rnn.named_parameters())
    assert weights["weight_hh_l0"].shape == (4 * HIDDEN, PROJECTION)
    assert weights["weight_hr_l0"].shape == (PROJECTION, HIDDEN)
    output, final = layer(x, None, state)
    for row in range(len(x)):
        h, c = state.hidden[0, row], state.cell[0, row]
        for time in range(x.size(1)):
            gates = weights["weight_ih_l0"] @ x[row, time] + weights["bias_ih_l0"]
            gates = gates + weights["weight_hh_l0"] @ h + weights["bias_hh_l0"]
            i, f, g, o = gates.view(4, HIDDEN)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = weights["weight_hr_l0"] @ (o.sigmoid() * c.tanh())
            assert_close(output[row, time], h)
        assert_close(final.hidden[0, row], h)
        assert_close(final.cell[0, row], c)


def test_recurrent_map_of_a_projection_turns_units_into_the_activations_of_the_next_step() -> None:
    layer, _, _ = make_case(PROJECTED)
    units = torch.randn(HIDDEN, dtype=torch.float64)
    expected = layer.rnn.weight_hh_l0 @ (layer.rnn.weight_hr_l0 @ units)
    assert_close(recurrent_map(layer.rnn) @ units, expected.detach())
    plain, _, _ = make_case("gru")
    assert torch.equal(recurrent_map(plain.rnn), plain.rnn.weight_hh_l0)


def test_a_projection_that_cannot_be_is_refused() -> None:
    sizes = {"input_size": INPUT, "hidden_size": HIDDEN}
    with pytest.raises(ValueError, match=r"projection_size is 2, but cell=gru has no projection"):
        RecurrentLayer(cell="gru", projection_size=2, **sizes)
    with pytest.raises(ValueError, match=r"projection_size is 5, .* below .* a layer has 5: "):
        RecurrentLayer(cell="lstm", projection_size=HIDDEN, **sizes)


def test_an_unknown_cell_is_refused_with_the_choices() -> None:
    with pytest.raises(
        ValueError,
        match=r"cell is 'rnn', .* lstm, gru, rnn_tanh, rnn_relu, layer_norm_lstm, .*, mgu",
    ):
        RecurrentLayer(cell="rnn", input_size=INPUT, hidden_size=HIDDEN)
