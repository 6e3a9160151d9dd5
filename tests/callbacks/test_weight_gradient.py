"""What is shown of the recurrent gradient's thirds adds up to the gradient that is trained on."""

from pathlib import Path

import pytest
from toy_training import Module, fit, make_batch, read_events

from seq2seq.callbacks.weight_gradient import WeightGradient


@pytest.mark.parametrize("input_feeding", [False, True])
def test_shares_add_up_and_the_cosine_is_one_of_two_directions(
    input_feeding: bool, tmp_path: Path
) -> None:
    module = Module(input_feeding=input_feeding)
    fit(module, tmp_path, [WeightGradient(every_n_steps=5)], tensorboard=True)
    events = read_events(tmp_path)
    for layer in module.model.recurrent_layers():
        shares = [
            [event.value for event in events.Scalars(f"weight_gradient/{layer}/{third}_share")]
            for third in ("early", "middle", "late")
        ]
        assert [sum(parts) for parts in zip(*shares, strict=True)] == pytest.approx([1.0] * 4)
        cosines = events.Scalars(f"weight_gradient/{layer}/early_late_cosine")
        assert [event.step for event in cosines] == [0, 5, 10, 15]
        assert all(-1 <= event.value <= 1 for event in cosines)


def test_without_attention_a_decaying_encoder_learns_from_its_last_third(tmp_path: Path) -> None:
    module = Module(attention="none", bridge="linear", cell="rnn_tanh", hidden_size=16)
    batches = [make_batch(0, size=16, longest=30)]
    fit(module, tmp_path, [WeightGradient()], batches=batches, tensorboard=True)
    events = read_events(tmp_path)
    shares = {
        third: events.Scalars(f"weight_gradient/encoder/layer0/forward/{third}_share")[0].value
        for third in ("early", "middle", "late")
    }
    assert shares["late"] > 0.9
    assert shares["early"] < shares["middle"] < shares["late"]
