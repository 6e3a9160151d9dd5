import math

import pytest
import torch
from torch import Generator, Tensor

from seq2seq.initializers.gate_biases import chrono, recommended_bias, uniform_gate


def test_chrono_spreads_keep_times_up_to_the_longest() -> None:
    biases = chrono("ifgo", 4000, generator=Generator().manual_seed(0), longest=50)
    # f / (1 - f) = e^b is the time scale minus one: uniform over 1 .. longest - 1.
    scales = biases["f"].exp()
    assert scales.min() >= 1 and scales.max() <= 49
    assert scales.mean() == pytest.approx(25, rel=0.03)
    assert scales.std() == pytest.approx(48 / math.sqrt(12), rel=0.03)
    assert torch.equal(biases["i"], -biases["f"])
    assert not biases["g"].any() and not biases["o"].any()


def test_chrono_in_a_gru_opens_the_update_gate() -> None:
    biases = chrono("rzn", 100, generator=Generator().manual_seed(0), longest=50)
    assert (biases["z"] >= 0).all() and biases["z"].mean() > 2
    assert not biases["r"].any() and not biases["n"].any()


def test_uniform_gate_makes_the_forget_gate_uniform() -> None:
    biases = uniform_gate("ifgo", 4000, generator=Generator().manual_seed(0))
    gate = torch.sigmoid(biases["f"])
    assert gate.mean() == pytest.approx(0.5, abs=0.02)
    assert gate.std() == pytest.approx(1 / math.sqrt(12), rel=0.03)
    assert gate.min() >= 1 / 4000 - 1e-12 and gate.max() <= 1 - 1 / 4000 + 1e-12
    assert torch.equal(biases["i"], -biases["f"])


def test_the_recommended_bias_is_one_number_when_short_and_spread_when_long() -> None:
    def biases(gates: str, longest: float) -> dict[str, Tensor]:
        return recommended_bias(gates, 50, generator=Generator().manual_seed(0), longest=longest)

    for gates in ("ifgo", "rzn", "h"):
        short = biases(gates, 20)
        assert list(short) == list(gates)
        for gate, bias in short.items():
            assert (bias == (1.0 if gate in "fz" else 0.0)).all()
    long = biases("ifgo", 60)
    expected = chrono("ifgo", 50, generator=Generator().manual_seed(0), longest=60)
    assert all(torch.equal(long[gate], expected[gate]) for gate in "ifgo")
    assert biases("rzn", 60)["z"].unique().numel() == 50
    assert not biases("h", 60)["h"].any()


def test_chrono_needs_gates() -> None:
    with pytest.raises(ValueError, match="needs an LSTM or a GRU"):
        chrono("h", 8, generator=Generator(), longest=10)
