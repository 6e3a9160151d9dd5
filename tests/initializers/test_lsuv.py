"""LSUV for recurrent layers: variances and sizes measured beside it, bounds, and what it leaves."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seq2seq.initializers.calibration import Calibration, calibrate
from seq2seq.initializers.lsuv import FACTORS, GAINS
from seq2seq.initializers.rules import initialize, rules_from_config
from seq2seq.initializers.trials import LayerCalibration
from seq2seq.models.encoder_decoder import EncoderDecoder, encoder_decoder

Preset = Callable[..., dict[str, Any]]
LONGEST = 15


class Lsuv:
    """A network calibrated by the preset, and what its first layer is given and returns."""

    def __init__(self, config: dict[str, Any], cell: str, **numbers: float) -> None:
        self.model: EncoderDecoder = encoder_decoder(
            source_vocabulary_size=12,
            target_vocabulary_size=12,
            pad_id=0,
            cell=cell,
            embedding_size=24,
            hidden_size=40,
            bidirectional=False,
            attention="none",
            bridge="copy",
        )
        self.initialization = initialize(self.model, rules_from_config(config), seed=2, pad_id=0)
        generator = torch.Generator().manual_seed(1)
        self.lengths = torch.randint(5, LONGEST + 1, (48,), generator=generator)
        self.lengths[:12] = LONGEST
        tokens = torch.randint(1, 12, (48, LONGEST), generator=generator)
        self.tokens = tokens.masked_fill(torch.arange(LONGEST) >= self.lengths[:, None], 0)
        given = {key: value for key, value in config["calibration"].items() if key != "method"}
        self.results: list[LayerCalibration] = calibrate(
            self.model,
            lambda: self.model(self.tokens, self.lengths, self.tokens),
            layers=self.model.recurrent_layers(),
            lengths={"encoder": self.lengths, "decoder": self.lengths},
            longest={"encoder": LONGEST, "decoder": LONGEST},
            calibration=Calibration("unit_variance", {**given, **numbers}),
            initialization=self.initialization,
        )

    @property
    def rnn(self) -> nn.RNNBase:
        return self.model.encoder.layers[0].forward_layer.rnn

    @property
    def real(self) -> Tensor:
        return torch.arange(LONGEST) < self.lengths[:, None]

    @torch.no_grad()
    def input_variances(self) -> list[float]:
        """Variance of ``W_ih x + b`` of each gate over real timesteps, examples and units."""
        x = self.model.encoder.embedding(self.tokens)[self.real]
        total = x @ self.rnn.weight_ih_l0.T + self.rnn.bias_ih_l0 + self.rnn.bias_hh_l0
        return [float(block.var()) for block in total.chunk(len(self.rnn.weight_ih_l0) // 40, 1)]

    @torch.no_grad()
    def growth(self) -> float:
        """Size of the state at two thirds of the sequence over that at one third."""
        output, _ = self.model.encoder.layers[0].forward_layer(
            self.model.encoder.embedding(self.tokens), self.lengths
        )
        there = self.lengths >= 10  # real at two thirds of 15
        return float(
            output[there, 9].square().mean().sqrt() / output[there, 4].square().mean().sqrt()
        )


@pytest.mark.parametrize("cell", ["rnn_tanh", "rnn_relu", "gru", "lstm"])
def test_the_input_of_each_gate_has_unit_variance(preset: Preset, cell: str) -> None:
    made = Lsuv(preset("lsuv", "embedding.scale=0.1"), cell)
    assert made.input_variances() == pytest.approx([1.0] * len(made.input_variances()), rel=0.1)
    large = Lsuv(preset("lsuv"), cell, variance=4.0, tolerance=0.01)
    assert large.input_variances() == pytest.approx([4.0] * len(large.input_variances()), rel=0.02)


@pytest.mark.parametrize("cell", ["rnn_tanh", "rnn_relu", "gru"])
def test_the_state_keeps_its_size_along_the_sequence(preset: Preset, cell: str) -> None:
    made = Lsuv(preset("lsuv"), cell, tolerance=0.04)
    assert made.results[0].reached, made.results[0].outcome
    assert made.growth() == pytest.approx(1.0, abs=0.041)
    assert f"gain {made.results[0].trials[-1].value:.3g}" in made.results[0].outcome


def test_a_state_that_grows_is_given_a_smaller_recurrent_matrix(preset: Preset) -> None:
    made = Lsuv(preset("lsuv", "recurrent.gain=1.8"), "rnn_relu")
    first, *_, last = [trial for trial in made.results[0].trials if trial.knob == "gain"]
    assert first.value == pytest.approx(1.8, rel=1e-5) and first.found > 1.3
    assert last.value < 1.6
    assert float(made.rnn.weight_hh_l0.detach().norm()) / math.sqrt(40) < 1.6


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_state_that_grows_whatever_the_gain_keeps_the_matrix_that_was_drawn(
    preset: Preset, cell: str
) -> None:
    # Gates that remember add up what comes in: the state grows at every recurrent gain.
    made = Lsuv(preset("lsuv", "forget_bias=3"), cell)
    encoder = made.results[0]
    trials = [trial for trial in encoder.trials if trial.knob == "gain"]
    assert min(trial.value for trial in trials) == pytest.approx(GAINS[0])
    assert max(trial.value for trial in trials) == pytest.approx(GAINS[1])
    assert all(trial.found > 1.1 for trial in trials)
    blocks = made.rnn.weight_hh_l0.detach().split(40)
    assert all(torch.allclose(block.T @ block, torch.eye(40), atol=1e-5) for block in blocks)
    assert made.rnn.weight_hh_l0 not in encoder.changed
    assert not encoder.reached
    assert "recurrent gain 1 as drawn" in encoder.outcome
    assert "no gain tried from 0.5 to 2 comes half as near to 1" in encoder.outcome


def test_a_gain_is_only_taken_where_it_at_least_halves_the_growth(preset: Preset) -> None:
    seen = set()
    for cell in ("rnn_tanh", "rnn_relu", "gru", "lstm"):
        for overrides in ((), ("recurrent.gain=1.6",), ("embedding.scale=3",)):
            made = Lsuv(preset("lsuv", *overrides), cell, tolerance=0.02)
            trials = [trial for trial in made.results[0].trials if trial.knob == "gain"]
            weight = made.rnn.weight_hh_l0.detach()
            gain = float(weight.norm()) / math.sqrt(len(weight))
            (own,) = (t for t in trials if t.value == pytest.approx(gain, rel=1e-5))
            first, best = (abs(math.log(t.found)) for t in (trials[0], own))
            assert own is trials[0] or best <= first / 2
            assert made.growth() == pytest.approx(own.found, rel=1e-4)
            seen.add(own is trials[0])
    assert seen == {True, False}


def test_what_was_done_to_the_inputs_is_said_also_where_the_recurrent_part_misses(
    preset: Preset,
) -> None:
    missed = Lsuv(preset("lsuv", "forget_bias=3"), "gru").results[0]
    inputs, recurrent = missed.outcome.split("; ")
    assert re.fullmatch(r"inputs (times [\d.]+|r: .*, n: times [\d.]+), deviation 1", inputs)
    assert recurrent.startswith("recurrent gain 1 as drawn") and not missed.reached
    small = Lsuv(preset("lsuv", "embedding.scale=0.00001"), "rnn_tanh").results[0]
    assert re.search("its deviation is .* out of reach; recurrent gain ", small.outcome)


def test_spread_biases_count_in_the_variance(preset: Preset) -> None:
    spread = "rules=[{pattern: '*bias_?h_l*', scheme: chrono, longest: 15}]"
    made = Lsuv(preset("lsuv", spread), "gru", tolerance=0.02)
    assert made.input_variances() == pytest.approx([1.0] * 3, rel=0.04)
    trials = [trial for trial in made.results[0].trials if trial.knob == "input z"]
    assert len(trials) > 2  # a bias that isn't scaled along takes more than one correction


def test_what_is_out_of_reach_ends_within_the_bounds_and_is_said(preset: Preset) -> None:
    made = Lsuv(preset("lsuv", "embedding.scale=0.00001"), "rnn_tanh")
    encoder = made.results[0]
    assert not encoder.reached
    assert f"input of h times {FACTORS[1]:.3g}" in encoder.outcome
    assert "1 is out of reach" in encoder.outcome
    for result in Lsuv(preset("lsuv", "recurrent.gain=50"), "lstm").results:
        for trial in result.trials:
            low, high = GAINS if trial.knob == "gain" else FACTORS
            assert low * 0.999 <= trial.value <= high * 1.001


def test_trials_and_own_rules_are_respected(preset: Preset) -> None:
    few = Lsuv(preset("lsuv", "embedding.scale=5"), "lstm", trials=1)
    counts = dict.fromkeys(("input i", "input f", "input g", "input o", "gain"), 0)
    for trial in few.results[0].trials:
        counts[trial.knob] += 1
    assert set(counts.values()) == {1}
    recurrent = "{pattern: '*weight_hh*', scheme: identity}"
    own = f"rules=[{recurrent}, {{pattern: '*weight_ih*', gates: f, scheme: zeros}}]"
    made = Lsuv(preset("lsuv", own), "lstm")
    assert torch.equal(made.rnn.weight_hh_l0.detach(), torch.eye(40).repeat(4, 1))
    assert not made.rnn.weight_ih_l0.detach()[40:80].any()
    assert "initializer.rules[0] sets the recurrent matrix" in made.results[0].outcome
    assert "initializer.rules[1] sets the input matrix of f" in made.results[0].outcome


def test_sequences_without_a_middle_keep_their_recurrent_matrix(preset: Preset) -> None:
    made = Lsuv(preset("lsuv"), "rnn_tanh")
    before = made.rnn.weight_hh_l0.clone()
    short = torch.full((48,), 2)
    results = calibrate(
        made.model,
        lambda: made.model(made.tokens[:, :2], short, made.tokens[:, :2]),
        layers=made.model.recurrent_layers(),
        lengths={"encoder": short, "decoder": short},
        longest={"encoder": 2, "decoder": 2},
        calibration=Calibration("unit_variance"),
        initialization=made.initialization,
    )
    assert torch.equal(made.rnn.weight_hh_l0, before)
    assert "fewer than three timesteps have no middle" in results[0].outcome


def test_the_weights_are_scaled_and_nothing_else(preset: Preset) -> None:
    made = Lsuv(preset("lsuv"), "gru")
    torch.manual_seed(0)
    drawn = Lsuv(preset("lsuv"), "gru", trials=1)
    for name, value in made.model.state_dict().items():
        other = drawn.model.state_dict()[name]
        if "weight_ih" in name or "weight_hh" in name:
            for block, same in zip(value.chunk(3), other.chunk(3), strict=True):
                assert (block / same).std() < 1e-4, name
        else:
            assert torch.equal(value, other), name
