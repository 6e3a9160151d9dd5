"""The bridge: which encoder layer and direction each decoder layer starts from."""

from typing import Any

import pytest
import torch
from torch import Tensor

from seq2seq.models.bridge import BRIDGES, Bridge
from seq2seq.models.recurrent import RecurrentState

BATCH, HIDDEN = 2, 3


def make_bridge(**options: Any) -> Bridge:
    torch.manual_seed(0)
    values = {
        "kind": "linear",
        "cell": "lstm",
        "encoder_directions": (2, 2),
        "decoder_layers": 2,
        "decoder_hidden_size": 2 * HIDDEN,
    }
    return Bridge(encoder_hidden_size=HIDDEN, **(values | options)).double()


def make_state(layers: int = 2, directions: int = 2, *, cell: bool = True) -> RecurrentState:
    torch.manual_seed(1)
    shape = (layers * directions, BATCH, HIDDEN)
    hidden = torch.randn(shape, dtype=torch.float64)
    return RecurrentState(hidden, torch.randn(shape, dtype=torch.float64) if cell else None)


def joined(final: Tensor, layer: int) -> Tensor:
    """Both directions of an encoder layer side by side: [batch, 2 * hidden]."""
    return torch.cat([final[2 * layer], final[2 * layer + 1]], dim=1)


def test_copy_joins_the_directions_of_each_layer() -> None:
    state = make_state()
    hidden, cell = make_bridge(kind="copy")(state)
    for layer in range(2):
        assert torch.equal(hidden[layer], joined(state.hidden, layer))
        assert torch.equal(cell[layer], joined(state.cell, layer))


def test_linear_maps_hidden_and_cell_of_every_direction_each_with_its_own_weights() -> None:
    bridge, state = make_bridge(decoder_hidden_size=5), make_state()
    hidden, cell = bridge(state)
    for layer in range(2):
        for ours, final, maps in (
            (hidden, state.hidden, bridge.hidden),
            (cell, state.cell, bridge.cell),
        ):
            weight, bias = maps[layer].weight, maps[layer].bias
            expected = torch.tanh(joined(final, layer) @ weight.T + bias)
            torch.testing.assert_close(ours[layer], expected, atol=1e-12, rtol=1e-12)
    assert len({id(parameter) for parameter in bridge.parameters()}) == 8


def test_the_gradient_reaches_every_layer_direction_and_the_cell() -> None:
    state = make_state()
    state = RecurrentState(state.hidden.requires_grad_(), state.cell.requires_grad_())
    hidden, cell = make_bridge()(state)
    (hidden.sum() + 2 * cell.sum()).backward()
    assert state.hidden.grad.all() and state.cell.grad.all()


@pytest.mark.parametrize(
    ("encoder_layers", "decoder_layers", "read"),
    [(3, 3, [0, 1, 2]), (3, 1, [2]), (3, 2, [1, 2]), (1, 3, [0, 0, 0]), (2, 3, [0, 0, 1])],
)
def test_layers_of_different_depths_are_matched_from_the_top(
    encoder_layers: int, decoder_layers: int, read: list[int]
) -> None:
    bridge = make_bridge(
        kind="copy", encoder_directions=[2] * encoder_layers, decoder_layers=decoder_layers
    )
    state = make_state(encoder_layers)
    for ours, final in zip(bridge(state), state, strict=True):
        assert ours.shape == (decoder_layers, BATCH, 2 * HIDDEN)
        for layer, source in enumerate(read):
            assert torch.equal(ours[layer], joined(final, source))


def test_layers_of_one_and_of_two_directions_are_each_joined_whole() -> None:
    torch.manual_seed(1)
    state = RecurrentState(torch.randn(3, BATCH, HIDDEN, dtype=torch.float64))
    bridge = make_bridge(cell="gru", encoder_directions=(2, 1), decoder_hidden_size=5)
    hidden, _ = bridge(state)
    for layer, source in enumerate((joined(state.hidden, 0), state.hidden[2])):
        linear = bridge.hidden[layer]
        expected = torch.tanh(source @ linear.weight.T + linear.bias)
        torch.testing.assert_close(hidden[layer], expected, atol=1e-12, rtol=1e-12)
    copied = make_bridge(
        kind="copy", encoder_directions=(2, 1), decoder_layers=1, decoder_hidden_size=HIDDEN
    )
    assert torch.equal(copied(state).hidden[0], state.hidden[2])
    with pytest.raises(ValueError, match=r"bridge=copy .* have 6 together .* has 3"):
        make_bridge(kind="copy", encoder_directions=(2, 1), decoder_hidden_size=HIDDEN)


def test_zero_starts_from_zeros_of_the_decoders_shape() -> None:
    hidden, cell = make_bridge(kind="zero", decoder_layers=3, decoder_hidden_size=7)(make_state())
    for tensor in (hidden, cell):
        assert tensor.shape == (3, BATCH, 7)
        assert tensor.dtype == torch.float64
        assert not tensor.any()


@pytest.mark.parametrize("kind", BRIDGES)
def test_only_the_lstm_has_a_cell_state(kind: str) -> None:
    bridge = make_bridge(kind=kind, cell="gru")
    assert bridge(make_state(cell=False)).cell is None
    assert bridge(make_state(cell=False)).hidden.shape == (2, BATCH, 2 * HIDDEN)
    assert all(name.startswith("hidden") for name, _ in bridge.named_parameters())


def test_copy_between_different_widths_is_refused_with_both() -> None:
    with pytest.raises(ValueError, match=r"bridge=copy .* have 6 together .* has 5.*linear"):
        make_bridge(kind="copy", decoder_hidden_size=5)


def test_of_projected_states_the_cell_alone_has_the_width_of_the_units() -> None:
    torch.manual_seed(0)
    state = RecurrentState(
        torch.randn(2, BATCH, 2, dtype=torch.float64), torch.randn(2, BATCH, 3, dtype=torch.float64)
    )
    one_way = {"encoder_directions": (1, 1), "projection_size": 2}
    for kind in BRIDGES:
        bridge = make_bridge(kind=kind, decoder_hidden_size=3, **one_way)
        hidden, cell = bridge(state)
        assert hidden.shape == (2, BATCH, 2)
        assert cell.shape == (2, BATCH, 3)
        for ours, final, maps in ((hidden, state.hidden, "hidden"), (cell, state.cell, "cell")):
            for layer in range(2):
                expected = {"zero": torch.zeros_like(final[layer]), "copy": final[layer]}.get(kind)
                if expected is None:
                    expected = getattr(bridge, maps)[layer](final[layer]).tanh()
                torch.testing.assert_close(ours[layer], expected)
    with pytest.raises(ValueError, match=r"bridge=copy .* have 3 together .* has 5.*linear"):
        make_bridge(kind="copy", decoder_hidden_size=5, **one_way)
    with pytest.raises(ValueError, match=r"bridge=copy .* have 4 together .* has 2.*linear"):
        make_bridge(kind="copy", projection_size=2)


def test_an_unknown_bridge_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"bridge is 'mean'.*zero, copy, linear"):
        make_bridge(kind="mean")
