"""What is shown of the spectrum belongs to the weights of that step."""

import math
from pathlib import Path

import pytest
import torch
from toy_training import Module, fit, make_batch, read_events

from seq2seq.callbacks.spectrum import Spectrum


def test_an_orthogonal_matrix_times_a_gain_has_that_radius_and_singular_value(
    tmp_path: Path,
) -> None:
    module = Module(cell="gru")
    for layer in module.model.recurrent_layers().values():
        for gate, block in enumerate(layer.rnn.weight_hh_l0.data.chunk(3)):
            torch.nn.init.orthogonal_(block, gain=0.5 + gate)
    fit(module, tmp_path, [Spectrum()], batches=[make_batch(0)], tensorboard=True)
    events = read_events(tmp_path)
    for gate, gain in zip("rzn", (0.5, 1.5, 2.5), strict=True):
        for number in ("spectral_radius", "largest_singular_value"):
            (event,) = events.Scalars(f"spectrum/decoder/layer0/{gate}/{number}")
            assert (event.step, event.value) == (0, pytest.approx(gain, rel=1e-5))


@pytest.mark.parametrize(("radius", "dimension"), [(0.5, 0), (0.95, 6)])
def test_a_linear_network_remembers_every_direction_or_none(
    radius: float, dimension: int, tmp_path: Path
) -> None:
    module = Module(cell="rnn_tanh", hidden_size=6, attention="none", bridge="linear")
    for layer in module.model.recurrent_layers().values():
        torch.nn.init.orthogonal_(layer.rnn.weight_hh_l0.data, gain=radius)
        layer.rnn.weight_ih_l0.data.mul_(1e-3)  # so small that tanh is linear
        layer.rnn.bias_ih_l0.data.zero_()
        layer.rnn.bias_hh_l0.data.zero_()
    fit(module, tmp_path, [Spectrum()], batches=[make_batch(0)], tensorboard=True)
    events = read_events(tmp_path)
    layer = "spectrum/encoder/layer0/forward"
    assert events.Scalars(f"{layer}/leading_exponent")[0].value == pytest.approx(
        math.log(radius), abs=1e-3
    )
    assert events.Scalars(f"{layer}/memory_dimension")[0].value == dimension


def test_it_looks_again_after_so_many_steps(tmp_path: Path) -> None:
    fit(Module(), tmp_path, [Spectrum(every_n_steps=9)], tensorboard=True)
    events = read_events(tmp_path)
    radii = events.Scalars("spectrum/encoder/layer0/forward/f/spectral_radius")
    assert [event.step for event in radii] == [0, 9, 18]
    assert len({event.value for event in radii}) == 3
