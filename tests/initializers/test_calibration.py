"""Calibration: what it sets, measured by other means, what it leaves alone, and what it costs."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from seq2seq.assembly import (
    build_datamodule,
    build_module,
    initialize_weights,
    report_weights,
)
from seq2seq.config_checks import check_sizes
from seq2seq.initializers.calibration import (
    METHODS,
    Calibration,
    calibrate,
    calibration_from_config,
    trial_table,
)
from seq2seq.initializers.report import describe
from seq2seq.initializers.rules import Initialization, initialize, rules_from_config
from seq2seq.initializers.sweet_spot import GAINS, SHIFTS, STEEPEST
from seq2seq.initializers.trials import LayerCalibration, search
from seq2seq.inspection import measure
from seq2seq.models.cells import STEP_CELLS, StepCell
from seq2seq.models.encoder_decoder import EncoderDecoder, encoder_decoder
from seq2seq.models.recurrent import RecurrentLayer
from seq2seq.train import train

Preset = Callable[..., dict[str, Any]]
Compose = Callable[..., DictConfig]
VOCABULARY, PAD = 12, 0


@dataclass
class Task:
    """A network on one batch of random pairs, and its initialization by the rules of a preset."""

    model: EncoderDecoder
    source: Tensor
    source_lengths: Tensor
    target: Tensor
    target_lengths: Tensor
    config: dict[str, Any]
    initialization: Initialization

    def run(self) -> Tensor:
        return self.model(self.source, self.source_lengths, self.target)

    def calibrate(self, **changed: float) -> list[LayerCalibration]:
        calibration = calibration_from_config(self.config)
        assert calibration is not None
        calibration = replace(calibration, arguments={**calibration.arguments, **changed})
        return calibrate(
            self.model,
            self.run,
            layers=self.model.recurrent_layers(),
            lengths={"encoder": self.source_lengths, "decoder": self.target_lengths},
            longest={
                "encoder": int(self.source_lengths.max()),
                "decoder": int(self.target_lengths.max()),
            },
            calibration=calibration,
            initialization=self.initialization,
        )


@pytest.fixture
def task(preset: Preset) -> Callable[..., Task]:
    def build(
        cell: str = "rnn_tanh",
        *overrides: str,
        initializer: str = "calibrated",
        lengths: tuple[int, int] = (10, 14),
        target_lengths: tuple[int, int] = (9, 12),
        examples: int = 32,
        **options: Any,
    ) -> Task:
        settings = {"embedding_size": 24, "hidden_size": 48, "bidirectional": False}
        settings |= {"attention": "none", "bridge": "copy"}
        model = encoder_decoder(
            source_vocabulary_size=VOCABULARY,
            target_vocabulary_size=VOCABULARY,
            pad_id=PAD,
            cell=cell,
            **settings | options,
        )
        generator = torch.Generator().manual_seed(5)
        config = preset(initializer, *overrides)
        done = initialize(model, rules_from_config(config), seed=3, pad_id=PAD)
        sides = []
        for shortest, longest in (lengths, target_lengths):
            real = torch.randint(shortest, longest + 1, (examples,), generator=generator)
            real[:9] = longest
            tokens = torch.randint(1, VOCABULARY, (examples, longest), generator=generator)
            sides += [tokens.masked_fill(torch.arange(longest) >= real[:, None], PAD), real]
        return Task(model, *sides, config, done)

    return build


class Seen:
    """What each recurrent layer was given and returned in one pass, in float64."""

    def __init__(self, task: Task) -> None:
        self.calls: dict[str, tuple[Any, Any]] = {}
        task.model.double().eval()
        handles = [
            layer.register_forward_hook(self._keep(name))
            for name, layer in task.model.recurrent_layers().items()
        ]
        with torch.no_grad():
            task.run()
        for handle in handles:
            handle.remove()

    def _keep(self, name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: Any, result: Any) -> None:
            self.calls[name] = (args, result)

        return hook


def transport_by_autograd(layer: RecurrentLayer, x: Tensor, state: Any) -> float:
    """Logarithm of a random unit vector's root-mean-square length after the way back."""
    hidden = torch.zeros(len(x), layer.hidden_size).double() if state is None else state.hidden[0]
    first = hidden.clone().requires_grad_()
    weights = list(layer.rnn.parameters())
    cell = {"rnn_tanh": torch.rnn_tanh_cell, "rnn_relu": torch.rnn_relu_cell}[layer.cell]
    # The vector is put on h_T and read off at h_1: T - 1 steps.
    first = cell(x[:, 0], first, *weights)
    hidden = first
    for now in range(1, x.size(1)):
        hidden = cell(x[:, now], hidden, *weights)
    squares = []
    for seed in range(20):
        vector = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(seed)).double()
        vector /= vector.norm(dim=1, keepdim=True)
        (carried,) = torch.autograd.grad(hidden, first, vector, retain_graph=True)
        squares.append(carried.square().sum(1))
    return 0.5 * math.log(float(torch.stack(squares).mean()))


@pytest.mark.parametrize("width", [32, 96])
@pytest.mark.parametrize("cell", ["rnn_tanh", "rnn_relu"])
def test_the_transport_of_a_plain_rnn_comes_out_in_the_band(
    task: Callable[..., Task], cell: str, width: int
) -> None:
    made = task(cell, hidden_size=width, lengths=(14, 14), target_lengths=(14, 14))
    results = made.calibrate()
    assert all(result.reached for result in results)
    seen = Seen(made)
    for name, layer in made.model.recurrent_layers().items():
        (x, _, *state), _ = seen.calls[name]
        found = transport_by_autograd(layer, x, state[0] if state else None)
        assert -2 < found < -1, name


def leaks(layer: RecurrentLayer, call: tuple[Any, Any], lengths: Tensor) -> Tensor:
    """Logarithms of the keep gate at all real timesteps ``[timesteps, hidden]``, by definition."""
    (x, _, *state), result = call
    zeros = x.new_zeros(len(x), 1, layer.hidden_size)
    first = state[0].hidden.transpose(0, 1) if state and state[0] is not None else zeros
    before = torch.cat([first, result.output[:, :-1]], dim=1)
    rnn, size = layer.rnn, layer.hidden_size
    rows = slice(size, 2 * size)  # f and z are the second block
    activation = x @ rnn.weight_ih_l0[rows].T + before @ rnn.weight_hh_l0[rows].T
    activation = activation + rnn.bias_ih_l0[rows] + rnn.bias_hh_l0[rows]
    real = torch.arange(x.size(1)) < lengths[:, None]
    return torch.log(torch.sigmoid(activation.detach()))[real]


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_gates_of_an_lstm_leak_on_the_batch_what_chrono_means_without_input(
    task: Callable[..., Task], cell: str
) -> None:
    made = task(cell, hidden_size=64, lengths=(20, 30))
    results = made.calibrate(tolerance=0.02)
    after = Seen(made)
    for (name, layer), result in zip(made.model.recurrent_layers().items(), results, strict=True):
        lengths = made.source_lengths if name.startswith("encoder") else made.target_lengths
        longest = int(lengths.max())
        u = 1 + (torch.arange(64).double() + 0.5) / 64 * (longest - 2)
        meant = float((u / (1 + u)).log().mean())
        found = float(leaks(layer, after.calls[name], lengths).mean())
        assert result.reached
        assert result.trials[-1].target == pytest.approx(longest * meant)
        assert result.trials[-1].found == pytest.approx(longest * found, abs=1e-4)
        # The first trial, without a shift, leaks more: the logarithm is concave.
        assert result.trials[0].value == 0
        assert result.trials[0].found < longest * meant - 0.1
        if cell == "lstm":
            assert longest * found == pytest.approx(longest * meant, abs=0.03)
        else:
            assert len(result.trials) == 1
        rnn = layer.rnn
        gates = (rnn.bias_ih_l0 + rnn.bias_hh_l0).detach().chunk(4 if cell == "lstm" else 3)
        shift = gates[1] - u.log()
        assert shift.std() < 1e-6
        assert 0 < shift.mean() < SHIFTS[1] if cell == "lstm" else shift.abs().max() < 1e-6
        torch.testing.assert_close(gates[0], -u.log() if cell == "lstm" else 0 * u)
        assert not any(gate.any() for gate in gates[2:])


def test_only_the_size_of_the_recurrent_matrices_of_a_plain_rnn_changes(
    task: Callable[..., Task],
) -> None:
    made = task("rnn_tanh", encoder_layers=2, bidirectional=True, bridge="linear")
    drawn = {name: value.clone() for name, value in made.model.state_dict().items()}
    results = made.calibrate()
    for name, value in made.model.state_dict().items():
        if not name.endswith("weight_hh_l0"):
            assert torch.equal(value, drawn[name]), name
            continue
        ratio = value / drawn[name]
        assert ratio.std() < 1e-5
    gains = [layer.rnn.weight_hh_l0.detach().norm() / math.sqrt(48) for layer in layers(made)]
    nearest = [min(one.trials, key=lambda t: abs(t.found - t.target)).value for one in results]
    assert [float(gain) for gain in gains] == pytest.approx(nearest, rel=1e-5)


def layers(made: Task) -> Iterator[RecurrentLayer]:
    yield from made.model.recurrent_layers().values()


@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm"])
def test_a_layer_is_calibrated_on_what_the_calibrated_layers_before_it_give(
    task: Callable[..., Task], cell: str
) -> None:
    made = task(cell, encoder_layers=2)
    first = made.calibrate(tolerance=0.02)
    again = made.calibrate(tolerance=0.05)
    # Were a layer measured with stale inputs, the second time would not begin at the target.
    if cell == "rnn_tanh":
        assert [len(result.trials) for result in again] == [1] * 4
    else:
        for one, other in zip(first, again, strict=True):
            assert one.trials[0].found == pytest.approx(other.trials[0].found, rel=1e-5)


@pytest.mark.parametrize("cell", ["rnn_tanh", "gru"])
def test_calibration_is_repeatable_and_neither_draws_nor_drops_nor_changes_a_mode(
    task: Callable[..., Task], cell: str
) -> None:
    plain, dropping = task(cell), task(cell, embedding_dropout=0.5, output_dropout=0.5)
    dropping.model.train()
    dropping.model.bridge.eval()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, second = plain.calibrate(), dropping.calibrate()
    assert torch.equal(torch.get_rng_state(), state)
    assert [str(one.trials) for one in first] == [str(one.trials) for one in second]
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, dropping.model.state_dict()[name]), name
    modes = {name: module.training for name, module in dropping.model.named_modules()}
    assert not any(on for name, on in modes.items() if name.startswith("bridge"))
    assert all(on for name, on in modes.items() if not name.startswith("bridge"))
    assert all(parameter.grad is None for parameter in dropping.model.parameters())


def test_padding_does_not_change_what_is_set(task: Callable[..., Task]) -> None:
    for cell in ("rnn_tanh", "lstm"):
        made, padded = task(cell), task(cell)
        rubbish = torch.full((32, 7), 5)
        padded.source = torch.cat([padded.source, rubbish], dim=1)
        padded.target = torch.cat([padded.target, rubbish], dim=1)
        for one, other in zip(made.calibrate(), padded.calibrate(), strict=True):
            values = [[trial.found for trial in result.trials] for result in (one, other)]
            assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_over_a_few_steps_less_is_asked_for_and_the_outcome_says_so(
    task: Callable[..., Task],
) -> None:
    made = task("rnn_tanh", lengths=(3, 3), target_lengths=(14, 14))
    encoder, decoder = made.calibrate()
    assert encoder.trials[-1].target == pytest.approx(2 * STEEPEST)
    assert "-1.5 would be more than -0.2 a step, so -0.4 was asked for" in encoder.outcome
    assert decoder.trials[-1].target == -1.5
    assert "would be" not in decoder.outcome


@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
@pytest.mark.parametrize(("longest", "named"), [(1, "one timestep"), (2, "two timesteps")])
def test_where_there_is_nothing_to_bridge_the_layer_is_left_and_the_outcome_says_so(
    task: Callable[..., Task], cell: str, longest: int, named: str
) -> None:
    made = task(cell, lengths=(1, longest))
    before = {name: value.clone() for name, value in made.model.encoder.state_dict().items()}
    encoder, decoder = made.calibrate()
    assert not encoder.trials and not encoder.reached and not encoder.changed
    assert encoder.outcome == (
        f"left as it is: 95 % of its sequences have at most {named}, there is nothing to bridge"
    )
    for name, value in made.model.encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert decoder.reached
    three, _ = task(cell, lengths=(3, 3)).calibrate()
    assert three.trials and "2 steps" in three.outcome


def test_a_band_out_of_reach_ends_at_the_bound_and_the_outcome_says_so(
    task: Callable[..., Task],
) -> None:
    # Inputs that drive every unit into its flat part: no gain carries through there.
    made = task("rnn_tanh", "embedding.scale=30", lengths=(30, 30))
    encoder, _ = made.calibrate()
    assert not encoder.reached
    gain = encoder.trials[-1].value
    assert gain == pytest.approx(GAINS[1])
    assert "-1.5 is out of reach: no larger value is tried" in encoder.outcome
    few = task("rnn_tanh").calibrate(trials=1, tolerance=0.01)[0]
    assert few.outcome.endswith("-1.5 is out of reach: there was only one trial")
    some = task("rnn_tanh", lengths=(30, 30)).calibrate(trials=3, tolerance=1e-9)[0]
    assert some.outcome.endswith("-1.5 is out of reach: none of 3 trials came nearer")


def test_the_reason_counts_the_trials_that_were_made_and_names_the_bound_that_did_not_help(
    task: Callable[..., Task],
) -> None:
    # No unit leaves its flat part: every gain gives the smallest slope that a number can hold.
    encoder, _ = task("rnn_tanh", "embedding.scale=1000", "recurrent.gain=1.3").calibrate()
    first, last = encoder.trials
    assert last.value == pytest.approx(GAINS[1]) and last.found == pytest.approx(first.found)
    exponent = first.found / math.log(10)
    assert exponent < -30
    assert encoder.outcome == (
        f"gain 1.3: 10^{exponent:.3g} of a random gradient is left over 13 steps, and -1.5 is out "
        "of reach: none of 2 trials came nearer, up to the largest value, 2"
    )


@pytest.mark.parametrize("cell", ["rnn_tanh", "rnn_relu", "lstm", "gru"])
def test_no_value_outside_the_bounds_and_no_more_trials_than_allowed(
    task: Callable[..., Task], cell: str
) -> None:
    low, high = GAINS if cell.startswith("rnn") else SHIFTS
    for overrides in (["embedding.scale=30"], ["recurrent.gain=100"], ["embedding.scale=0.001"]):
        for result in task(cell, *overrides).calibrate(tolerance=1e-9, trials=5):
            assert 1 <= len(result.trials) <= 5
            for trial in result.trials:
                assert low * 0.999 <= trial.value <= high * 1.001


def test_what_the_user_sets_is_left_alone(task: Callable[..., Task]) -> None:
    own = "rules=[{pattern: 'encoder*weight_hh*', scheme: orthogonal, gain: 0.5}]"
    encoder, decoder = task("rnn_tanh", own).calibrate()
    assert encoder.outcome == "left as it is: initializer.rules[0] sets its recurrent matrix"
    assert decoder.reached
    made = task("lstm", "forget_bias=2")
    for result in made.calibrate():
        assert result.outcome == (
            "left as it is: initializer.forget_bias sets the gate f that remembers"
        )
    rnn = made.model.decoder.layers[0].rnn
    total = (rnn.bias_ih_l0 + rnn.bias_hh_l0).detach().chunk(4)
    assert (total[1] == 2).all() and not total[0].any()
    closed = "rules=[{pattern: '*bias_?h_l*', gates: i, scheme: constant, value: -1}]"
    made = task("lstm", closed)
    assert all(result.reached for result in made.calibrate())
    rnn = made.model.decoder.layers[0].rnn
    total = (rnn.bias_ih_l0 + rnn.bias_hh_l0).detach().chunk(4)
    assert (total[0] == -1).all() and total[1].std() > 0.1


def test_a_gain_of_the_users_is_where_the_search_of_a_plain_rnn_begins_but_stays_in_an_lstm(
    task: Callable[..., Task],
) -> None:
    encoder, _ = task("rnn_tanh", "recurrent.gain=1.7").calibrate()
    assert encoder.trials[0].value == pytest.approx(1.7) and encoder.reached
    assert len(encoder.trials) > 1
    for cell, gates in (("lstm", 4), ("gru", 3)):
        made = task(cell, "recurrent.gain=0.6")
        made.calibrate()
        for layer in layers(made):
            blocks = layer.rnn.weight_hh_l0.detach().chunk(gates)
            assert all(torch.allclose(b.T @ b, 0.36 * torch.eye(48), atol=1e-5) for b in blocks)


def test_the_target_the_tolerance_and_the_number_of_trials_act(task: Callable[..., Task]) -> None:
    strong, weak = (task("rnn_tanh").calibrate(attenuation=value)[0] for value in (-1.0, -2.0))
    assert strong.trials[-1].value > weak.trials[-1].value
    exact, rough = (task("rnn_tanh").calibrate(tolerance=value)[0] for value in (0.01, 0.5))
    assert len(exact.trials) > len(rough.trials)
    assert exact.trials[-1].found == pytest.approx(-1.5, abs=0.01)
    assert len(task("lstm").calibrate(trials=2, tolerance=1e-9)[0].trials) == 2


STEP = 3  # a training step is a forward and a backward pass, which costs about two


@pytest.mark.parametrize(
    "options",
    [
        {"cell": "rnn_tanh"},
        {"cell": "rnn_relu", "encoder_layers": 2},
        {"cell": "gru", "encoder_layers": 4},
        {"cell": "lstm", "encoder_layers": 4, "decoder_layers": 4},
        {"cell": "rnn_tanh", "bidirectional": True, "bridge": "linear"},
        {"cell": "rnn_tanh", "attention": "general", "input_feeding": True},
    ],
    ids=str,
)
def test_it_costs_less_than_ten_training_steps_on_the_same_batch(
    task: Callable[..., Task], options: dict[str, Any]
) -> None:
    made = task(**options)
    cost = {"forward": 0}

    def count(layer: RecurrentLayer, args: Any, kwargs: Any, result: Any) -> None:
        cost["forward"] += result.output.numel()

    for layer in layers(made):
        layer.register_forward_hook(count, with_kwargs=True)
    made.run()
    one_pass, cost["forward"] = cost["forward"], 0
    results = made.calibrate()
    if options["cell"].startswith("rnn"):
        # Every trial carries a random vector back, at the cost of a backward pass.
        shares = {result.layer: len(result.trials) for result in results}
        cost["forward"] += 2 * one_pass * sum(shares.values()) // len(shares)
    assert one_pass < cost["forward"] < 10 * STEP * one_pass


@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_a_decoder_with_input_feeding_is_calibrated_too(
    task: Callable[..., Task], cell: str
) -> None:
    for query in ("current", "previous"):
        made = task(cell, attention="additive", input_feeding=True, query_state=query)
        *_, decoder = made.calibrate()
        assert decoder.layer == "decoder/layer0" and decoder.reached


def test_the_table_shows_every_trial_and_what_was_set(task: Callable[..., Task]) -> None:
    made = task("rnn_tanh")
    results = made.calibrate()
    lines = trial_table(results).splitlines()
    trials = sum(len(result.trials) for result in results)
    assert lines[0].split() == ["layer", "number", "measured", "trial", "value", "found", "target"]
    assert len(lines) == 1 + trials + 1 + len(results)
    assert lines[1].split()[:4] == ["encoder/layer0/forward", "gain", "attenuation", "1"]
    assert [line.split()[0] for line in lines[-2:]] == [result.layer for result in results]
    percent = f"{math.exp(results[0].trials[-1].found):.0%} of a random gradient is left"
    assert percent in lines[-2]


def test_the_report_of_all_parameters_names_what_was_calibrated(task: Callable[..., Task]) -> None:
    made = task("lstm")
    rows = {row.parameter: row for row in describe(made.initialization, made.calibrate())}
    row = rows["decoder.layers.0.rnn.bias_ih_l0"]
    assert row.scheme.startswith("zeros; calibrated: f: ln u, u from 1 to 11, shift ")
    assert row.scheme.endswith(", i: -ln u")
    assert row.bias_sum["f"] > 1 > 0 > row.bias_sum["i"]
    assert rows["decoder.layers.0.rnn.bias_hh_l0"].scheme == "zeros; calibrated: if: zeros"
    others = [row.scheme for name, row in rows.items() if "bias_" not in name]
    assert not any("calibrated" in scheme for scheme in others)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "magic"}, "method=magic is unknown; choose one of transport, unit_variance"),
        ({"method": None}, "calibration has no method: set initializer.calibration.method"),
        (
            {"variance": 1.0},
            r"calibration.variance=1.0 means nothing to the method transport, which takes "
            r"attenuation, tolerance, trials: set it to null",
        ),
        ({"method": "unit_variance"}, "attenuation=-1.5 means nothing to the method unit_variance"),
        ({"attenuation": 0.0}, "calibration.attenuation=0.0 must be a number below 0"),
        ({"attenuation": math.nan}, "attenuation=nan must be a number below 0"),
        ({"tolerance": 0.0}, "calibration.tolerance=0.0 must be a number above 0"),
        ({"trials": 0}, "calibration.trials=0 must be a whole number from 1 up"),
    ],
)
def test_what_has_no_meaning_is_refused_in_a_sentence(
    preset: Preset, changes: dict[str, Any], sentence: str
) -> None:
    config = preset("calibrated")
    config["calibration"] |= changes
    with pytest.raises(ValueError, match=sentence):
        calibration_from_config(config)


def test_every_method_has_its_defaults_and_no_preset_but_two_calibrates(preset: Preset) -> None:
    assert calibration_from_config(preset("orthogonal")) is None
    for method in METHODS:
        entry = {"method": method, "attenuation": None, "trials": None}
        assert calibration_from_config({"calibration": entry}) == Calibration(method)
    assert calibration_from_config(preset("calibrated", "calibration=null")) is None


@pytest.mark.parametrize("function", [lambda x: x, lambda x: x**3 + x, lambda x: math.expm1(3 * x)])
def test_the_search_finds_where_a_growing_function_is_the_target(
    function: Callable[[float], float],
) -> None:
    settings: dict[str, Any] = {"start": 0.0, "low": -4.0, "high": 4.0, "slope": 1.0}
    for target in (-0.9, 0.3, 5.0):
        found = search(function, **settings, target=target, tolerance=1e-3, trials=40)
        below, above = -0.95, 4.0
        if not function(below) < target < function(above):
            continue
        assert abs(found[-1][1] - target) <= 1e-3
        assert len(found) < 40
        assert all(value == pytest.approx(function(x)) for x, value in found)


def test_the_search_goes_back_from_where_the_function_overflows() -> None:
    def overflowing(x: float) -> float:
        if x > 1:
            raise FloatingPointError
        return x

    settings: dict[str, Any] = {"low": -5.0, "high": 5.0, "target": 0.5, "tolerance": 0.01}
    found = search(overflowing, start=3.0, slope=1.0, trials=30, **settings)
    assert found[0] == (3.0, math.inf)
    assert found[-1][1] == pytest.approx(0.5, abs=0.01)
    still = search(lambda x: 0.0, start=0.0, slope=1.0, trials=30, **settings)
    assert still[-1][0] == pytest.approx(5.0) and len(still) < 30


@pytest.mark.parametrize("function", [lambda x: -x, lambda x: -(x**3), lambda x: x])
def test_without_a_slope_the_search_finds_a_falling_function_too(
    function: Callable[[float], float],
) -> None:
    settings: dict[str, Any] = {"start": 0.5, "low": -2.0, "high": 3.0, "slope": None}
    for target in (-1.5, 1.5):
        found = search(function, **settings, target=target, tolerance=1e-3, trials=40)
        assert abs(found[-1][1] - target) <= 1e-3 and len(found) < 40


def test_without_a_slope_both_sides_are_tried_to_the_bounds_and_nothing_twice() -> None:
    settings: dict[str, Any] = {"low": -0.5, "high": 1.0, "slope": None, "tolerance": 0.1}
    flat = search(lambda x: 0.0, start=0.0, target=1.0, trials=30, **settings)
    values = [value for value, _ in flat]
    assert values == pytest.approx([0, -0.1, 0.1, -0.2, 0.2, -0.4, 0.4, -0.5, 0.8, 1.0])
    assert len(search(lambda x: 0.0, start=0.0, target=1.0, trials=4, **settings)) == 4


def weights_after(config: DictConfig) -> dict[str, Tensor]:
    datamodule = build_datamodule(config)
    module = build_module(config, datamodule)
    torch.manual_seed(11)
    state = torch.get_rng_state()
    report_weights(initialize_weights(config, module, datamodule.split("train")))
    assert torch.equal(torch.get_rng_state(), state)
    return {name: value.clone() for name, value in module.model.state_dict().items()}


@pytest.mark.parametrize("model", ["rnn", "lstm", "gru", "luong2015"])
def test_a_run_begins_with_calibrated_weights_and_the_same_random_state(
    compose: Compose, model: str
) -> None:
    chosen = (f"model={model}", "initializer=calibrated")
    first = weights_after(compose(*chosen))
    ruled = weights_after(compose(*chosen, "initializer.calibration=null"))
    again = weights_after(compose(*chosen))
    changed = {name for name in first if not torch.equal(first[name], ruled[name])}
    assert changed and all("rnn" in name for name in changed)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_run_logs_the_trials_but_one_that_resumes_is_not_calibrated(
    compose: Compose, caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    chosen = ("model=rnn", "initializer=calibrated")
    with caplog.at_level("INFO"):
        train(compose(*chosen))
    assert "calibrated: times" in caplog.text
    assert re.search(r"encoder/layer0/forward +gain +attenuation +1 ", caplog.text)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    caplog.clear()
    with caplog.at_level("INFO"):
        train(compose(*chosen, f"ckpt_path={last}", "trainer.max_epochs=2", folder="resumed"))
    assert "not calibrated: the weights come from ckpt_path" in caplog.text
    assert "attenuation" not in caplog.text


def test_every_other_initializer_can_be_calibrated_too(compose: Compose) -> None:
    chosen = ("model=rnn", "initializer=orthogonal")
    with_method = compose(*chosen, "initializer.calibration.method=transport")
    without = weights_after(compose(*chosen))
    calibrated = weights_after(with_method)
    changed = {name for name in without if not torch.equal(without[name], calibrated[name])}
    assert len(changed) == 2 and all("weight_hh" in name for name in changed)


def test_a_wrong_calibration_is_refused_before_any_data_is_read(compose: Compose) -> None:
    with pytest.raises(ValueError, match="initializer.calibration.variance=2.0 means nothing"):
        check_sizes(compose("initializer=calibrated", "initializer.calibration.variance=2"))


def test_a_network_that_overflows_on_the_batch_is_refused_in_a_sentence(compose: Compose) -> None:
    config = compose("model=rnn", "initializer=calibrated", "initializer.embedding.scale=1e39")
    with pytest.raises(ValueError, match="can't be calibrated .* initializer.calibration=null"):
        weights_after(config)


def test_a_layer_that_returns_something_else_than_its_weights_say_is_refused_by_its_name(
    task: Callable[..., Task],
) -> None:
    made = task("rnn_tanh")
    layer = made.model.encoder.layers[0].forward_layer
    layer.register_forward_hook(lambda _, __, result: result._replace(output=result.output * 1.01))
    with pytest.raises(FloatingPointError, match="^encoder/layer0/forward can't be measured, the"):
        made.calibrate()


@pytest.mark.parametrize("model", ["rnn", "lstm", "gru"])
def test_every_layer_of_a_calibrated_network_carries(compose: Compose, model: str) -> None:
    copy = ("data=copy", "data.train_size=400", "data.max_length=10", "model.hidden_size=48")
    config = compose(*copy, f"model={model}", "initializer=calibrated")
    assert [verdict.kind for verdict in measure(config).verdicts] == ["carries", "carries"]


def test_the_advice_for_a_calibrated_network_is_what_calibration_does_not_undo(
    compose: Compose,
) -> None:
    chosen = ("model=rnn", "initializer=calibrated", "model.hidden_size=48")
    task = ("data.min_length=20", "data.max_length=25", "data.longer_max_length=30")
    found = measure(compose(*chosen, *task, "initializer.calibration.attenuation=-9"))
    assert {verdict.kind for verdict in found.verdicts} == {"vanishing"}
    assert found.advice is not None and found.advice.suffices
    assert found.advice.overrides == ("initializer.calibration.attenuation=-1.5",)
    flooded = measure(compose(*chosen, *task, "initializer.embedding.scale=30"))
    assert flooded.advice is not None and flooded.advice.suffices
    assert list(flooded.advice.changes) == ["embedding.scale"]


class CoupledGates(StepCell):
    """An LSTM whose input gate is what the forget gate leaves."""

    gates = "fgo"
    has_cell = True

    def gate_values(
        self, driven: Tensor, hidden: Tensor, recurrent_weight: Tensor
    ) -> dict[str, Tensor]:
        f, g, o = (driven + nn.functional.linear(hidden, recurrent_weight, self.bias_hh_l0)).chunk(
            3, dim=-1
        )
        return {"f": f.sigmoid(), "g": g.tanh(), "o": o.sigmoid()}

    def next_state(
        self, gates: Mapping[str, Tensor], hidden: Tensor, cell: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        assert cell is not None
        cell = gates["f"] * cell + (1 - gates["f"]) * gates["g"]
        return gates["o"] * cell.tanh(), cell


def test_a_cell_that_forgets_and_has_no_input_gate_gets_memories_too(
    task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STEP_CELLS, "coupled", CoupledGates)
    network = task("coupled")
    for done in network.calibrate():
        assert done.reached
        assert len(done.trials) == 1  # a shift would close the only way in
    for name, layer in network.model.recurrent_layers().items():
        forget, _, _ = (layer.rnn.bias_ih_l0 + layer.rnn.bias_hh_l0).detach().chunk(3)
        longest = 14 if name.startswith("encoder") else 12
        steps = 1 + (torch.arange(48) + 0.5) / 48 * (longest - 2)
        torch.testing.assert_close(forget, steps.log())
