"""What is shown of the signal is what the layers did on the batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from toy_training import Module, fit, make_batch, read_events

from seq2seq.callbacks.forward_signal import ForwardSignal
from seq2seq.data.batch import Batch


def states(module: Module, batch: Batch) -> dict[str, torch.Tensor]:
    """Real hidden states ``[real timesteps, hidden]`` of every layer, by name."""
    found: dict[str, torch.Tensor] = {}
    handles = []
    for name, layer in module.model.recurrent_layers().items():
        lengths = batch.target_lengths if name.startswith("decoder") else batch.source_lengths

        def keep(_: Any, __: Any, result: Any, name: str = name, lengths: Any = lengths) -> None:
            real = torch.arange(result.output.size(1)) < lengths.unsqueeze(1)
            found[name] = result.output.detach()[real]

        handles.append(layer.register_forward_hook(keep))
    module.training_step(batch, 0)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_the_size_of_the_states_is_that_of_the_layers_own_real_outputs(
    cell: str, tmp_path: Path
) -> None:
    module, batch = Module(cell=cell, encoder_layers=2), make_batch(0)
    expected = states(module, batch)
    fit(module, tmp_path, [ForwardSignal(examples=8)], batches=[batch], tensorboard=True)
    events = read_events(tmp_path)
    for name, hidden in expected.items():
        (event,) = events.Scalars(f"forward_signal/{name}/hidden_rms")
        assert event.step == 0
        assert event.value == pytest.approx(float(hidden.square().mean().sqrt()), rel=1e-4)


def test_a_large_forget_bias_shows_as_an_open_gate_and_a_long_horizon(tmp_path: Path) -> None:
    horizons = []
    for bias in (0.0, 4.0):
        module, folder = Module(hidden_size=8), tmp_path / f"{bias}"
        for layer in module.model.recurrent_layers().values():
            layer.rnn.bias_ih_l0.data[8:16] = bias
        fit(module, folder, [ForwardSignal()], batches=[make_batch(0)], tensorboard=True)
        events = read_events(folder)
        layer = "forward_signal/encoder/layer0/forward"
        mean = events.Scalars(f"{layer}/f_mean")[0].value
        assert mean == pytest.approx(torch.sigmoid(torch.tensor(bias)).item(), abs=0.1)
        horizons.append(events.Scalars(f"{layer}/keep_horizon")[0].value)
    assert horizons[0] < 3 < 30 < horizons[1]
