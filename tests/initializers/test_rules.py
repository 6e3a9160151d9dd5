import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from seq2seq.initializers.rules import (
    PART_ROLES,
    Initialization,
    Rule,
    initialize,
    rules_from_config,
)
from seq2seq.models.cells.layer_norm_gru import LayerNormGRU
from seq2seq.models.cells.layer_norm_lstm import LayerNormLSTM

Toy = Callable[..., nn.Module]
Preset = Callable[..., dict[str, Any]]
CELLS = ("lstm", "gru", "rnn")
KEEP_ROWS = {"lstm": 1, "gru": 1}


def run(model: nn.Module, config: dict[str, Any], seed: int = 0) -> Initialization:
    return initialize(model, rules_from_config(config), seed=seed, pad_id=0)


def uniform_rule(name: str, pattern: str, **options: Any) -> Rule:
    return Rule(name, pattern, "uniform", {"scale": 0.1}, **options)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_is_written_exactly_once(
    toy: Toy, preset: Preset, cell: str, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy(cell, hidden=16, embedding=16, tied=tied)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    written: list[int] = []
    original = torch.Tensor.copy_

    def spy(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        written.append(self.data_ptr())
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "copy_", spy)
    run(model, preset("orthogonal"))
    monkeypatch.undo()
    assert written == [parameter.data_ptr() for parameter in model.parameters()]
    assert not any(parameter.isnan().any() for parameter in model.parameters())


def test_the_first_matching_rule_wins(toy: Toy) -> None:
    model = toy()
    rules = [
        Rule("rules[0]", "encoder.*weight_hh*", "identity", {"gain": 0.5}),
        uniform_rule("rules[1]", "*"),
    ]
    done = initialize(model, rules, seed=0, pad_id=0)
    by_name = {one.layout.name: {rule.name for rule in one.rules} for one in done.assignments}
    assert by_name["encoder.layers.0.backward_layer.rnn.weight_hh_l0"] == {"rules[0]"}
    assert by_name["decoder.layers.0.rnn.weight_hh_l0"] == {"rules[1]"}
    for gate in model.encoder.layers[0].forward_layer["rnn"].weight_hh_l0.chunk(4):
        assert torch.equal(gate, 0.5 * torch.eye(24))


def test_one_gate_can_be_chosen(toy: Toy, preset: Preset) -> None:
    model = toy()
    config = preset("orthogonal")
    config["rules"] = [{"pattern": "decoder.*weight_hh*", "gates": "go", "scheme": "zeros"}]
    run(model, config)
    i, f, g, o = model.decoder.layers[0]["rnn"].weight_hh_l0.chunk(4)
    assert not g.any() and not o.any()
    for gate in (i, f):
        assert torch.allclose(gate.T @ gate, torch.eye(24), atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_recurrent_matrices_are_orthogonal_in_every_gate(
    toy: Toy, preset: Preset, cell: str
) -> None:
    model = toy(cell, hidden=64)
    run(model, preset("orthogonal", "recurrent.gain=1.1"))
    for name, parameter in model.named_parameters():
        if "weight_hh" in name:
            gates = {"lstm": 4, "gru": 3, "rnn": 1}[cell]
            for block in parameter.detach().chunk(gates):
                error = block.T @ block / 1.1**2 - torch.eye(64)
                assert torch.linalg.matrix_norm(error) < 1e-5


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("name", ["orthogonal", "pytorch", "uniform"])
def test_the_forget_bias_is_the_sum_of_both_biases(
    toy: Toy, preset: Preset, cell: str, name: str
) -> None:
    model = toy(cell)
    run(model, preset(name, "forget_bias=2.5"))
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            gates = {"lstm": 4, "gru": 3}[cell]
            total = (module.bias_ih_l0 + module.bias_hh_l0).chunk(gates)[KEEP_ROWS[cell]]
            assert torch.equal(torch.sigmoid(total), torch.sigmoid(torch.full_like(total, 2.5)))


def test_the_forget_bias_leaves_the_other_gates_to_the_bias_rule(toy: Toy, preset: Preset) -> None:
    model = toy(hidden=500)
    run(model, preset("uniform", "forget_bias=1"))
    for bias in (
        model.decoder.layers[0]["rnn"].bias_ih_l0,
        model.decoder.layers[0]["rnn"].bias_hh_l0,
    ):
        for row in (0, 2, 3):
            block = bias.detach().chunk(4)[row]
            assert block.abs().max() <= 0.08 and block.std() == pytest.approx(0.046, rel=0.1)


def test_a_constant_bias_means_the_sum(toy: Toy, preset: Preset) -> None:
    model = toy("rnn")
    run(model, preset("uniform", "scale=0.1", "bias.scheme=constant", "bias.value=0.3"))
    rnn = model.decoder.layers[0]["rnn"]
    assert torch.equal(rnn.bias_ih_l0 + rnn.bias_hh_l0, torch.full((24,), 0.3))


def test_a_forget_bias_without_such_a_gate_is_said(toy: Toy, preset: Preset) -> None:
    done = run(toy("rnn"), preset("orthogonal"))
    assert any("forget_bias=1 sets nothing" in note for note in done.notes)
    assert not run(toy("gru"), preset("orthogonal")).notes


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_chrono_ties_the_gates_of_a_layer_and_writes_the_sum(
    toy: Toy, preset: Preset, cell: str
) -> None:
    model = toy(cell)
    overrides = ("forget_bias=null", "bias.scheme=chrono", "bias.longest=20")
    run(model, preset("orthogonal", *overrides))
    rnn = model.encoder.layers[0].forward_layer["rnn"]
    total = rnn.bias_ih_l0 + rnn.bias_hh_l0
    assert not rnn.bias_hh_l0.any()
    first, keep, *rest = total.chunk(4 if cell == "lstm" else 3)
    assert (keep >= 0).all() and keep.exp().max() <= 19 and keep.unique().numel() == 24
    assert torch.equal(first, -keep if cell == "lstm" else torch.zeros_like(keep))
    assert not any(gate.any() for gate in rest)
    other = model.encoder.layers[0].backward_layer["rnn"].bias_ih_l0.chunk(4)[1]
    assert not torch.equal(keep, other)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("pad_id", [0, 3])
def test_the_padding_row_of_every_embedding_is_zero(toy: Toy, tied: bool, pad_id: int) -> None:
    model = toy(tied=tied, hidden=16, embedding=16)
    initialize(model, [uniform_rule("rules[0]", "*")], seed=0, pad_id=pad_id)
    for embedding in (model.encoder.embedding, model.decoder.embedding):
        zero_rows = (embedding.weight == 0).all(dim=1).nonzero().flatten().tolist()
        assert zero_rows == [pad_id]
    # An output row is no embedding, unless it is the same tensor.
    assert bool(model.decoder.output.weight[pad_id].any()) is not tied


def test_a_tied_parameter_answers_to_both_names(toy: Toy) -> None:
    model = toy(tied=True, hidden=16, embedding=16)
    rules = [Rule("rules[0]", "decoder.output.weight", "zeros"), uniform_rule("rules[1]", "*")]
    initialize(model, rules, seed=0, pad_id=0)
    assert model.decoder.output.weight is model.decoder.embedding.weight
    assert not model.decoder.embedding.weight.any()


def test_the_seed_decides_the_weights_bitwise(toy: Toy, preset: Preset) -> None:
    models = [toy() for _ in range(3)]
    for model, seed in zip(models, (7, 7, 8), strict=True):
        torch.rand(3)  # the global generator plays no part
        run(model, preset("orthogonal"), seed=seed)
    one, same, other = (dict(model.named_parameters()) for model in models)
    assert all(torch.equal(one[name], same[name]) for name in one)
    drawn = [name for name in one if one[name].std() > 0 and "bias" not in name]
    assert len(drawn) > 10
    assert not any(torch.equal(one[name], other[name]) for name in drawn)


def test_precision_does_not_change_the_draws(toy: Toy, preset: Preset) -> None:
    single, double = toy(), toy().double()
    run(single, preset("pytorch"))
    run(double, preset("pytorch"))
    for one, other in zip(single.parameters(), double.parameters(), strict=True):
        assert torch.equal(one, other.float())


def test_global_random_state_is_untouched(toy: Toy, preset: Preset) -> None:
    model = toy()
    before = torch.random.get_rng_state()
    run(model, preset("pytorch"))
    assert torch.equal(before, torch.random.get_rng_state())


def test_an_unmatched_parameter_is_an_error_and_nothing_is_written(toy: Toy) -> None:
    model = toy()
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match=r"no initializer rule matches .*encoder\.layers\.0"):
        initialize(model, [uniform_rule("rules[0]", "*embedding*")], seed=0, pad_id=0)
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, new)


def test_an_unused_rule_of_the_user_lists_the_parameter_names(toy: Toy, preset: Preset) -> None:
    model = toy()
    config = preset("uniform")
    config["rules"] = [{"pattern": "encodr.*", "scheme": "zeros"}]
    with pytest.raises(ValueError, match=re.escape("initializer.rules[0] matches nothing")) as info:
        run(model, config)
    assert "'encodr.*'" in str(info.value)
    for name, _ in model.named_parameters():
        assert name in str(info.value)


def test_a_rule_hidden_behind_others_is_an_error(toy: Toy, preset: Preset) -> None:
    config = preset("uniform")
    config["rules"] = [
        {"pattern": "*embedding*", "scheme": "zeros"},
        {"pattern": "encoder.embedding.weight", "scheme": "normal"},
    ]
    with pytest.raises(ValueError, match=re.escape("initializer.rules[1] is never used")):
        run(toy(), config)


def test_a_gate_that_the_cell_lacks_makes_the_rule_unused(toy: Toy, preset: Preset) -> None:
    config = preset("uniform")
    config["rules"] = [{"pattern": "*weight_hh*", "gates": "f", "scheme": "zeros"}]
    run(toy("lstm"), config)
    with pytest.raises(ValueError, match=r"matches nothing: .* in the gates f"):
        run(toy("gru"), config)


def test_roles_without_parameters_are_no_error_but_noted(preset: Preset) -> None:
    done = run(nn.LSTM(4, 8), preset("orthogonal"))
    assert done.notes == (
        "no parameters in this model for: embedding, attention, bridge, output, linear_bias",
    )


def test_a_role_that_is_left_empty_is_left_out(preset: Preset) -> None:
    config = preset("pytorch")
    config["bridge"] = dict.fromkeys(config["bridge"])
    assert "bridge" not in [rule.name for rule in rules_from_config(config)]
    config["bridge"]["scheme"] = "zeros"
    with pytest.raises(ValueError, match=r"initializer\.bridge has no pattern"):
        rules_from_config(config)


@pytest.mark.parametrize(("cell", "gates"), [("lstm", 4), ("gru", 3)])
def test_fused_gates_are_orthogonal_together_and_not_alone(
    toy: Toy, preset: Preset, cell: str, gates: int
) -> None:
    model = toy(cell, hidden=32)
    run(model, preset("orthogonal", "recurrent.fused=ifgo rzn", "recurrent.gain=1.5"))
    weight = model.decoder.layers[0]["rnn"].weight_hh_l0.detach()
    assert torch.allclose(weight.T @ weight, 1.5**2 * torch.eye(32), atol=1e-5)
    for block in weight.chunk(gates):
        # A block's mean squared singular value is its share of the whole.
        assert torch.linalg.svdvals(block).square().mean() == pytest.approx(
            1.5**2 / gates, rel=0.15
        )
        assert torch.linalg.svdvals(block).std() > 0.1


@pytest.mark.parametrize(
    ("fused", "fan_outs"), [(None, (1, 1, 1)), ("rzn", (3, 3, 3)), ("rz", (2, 2, 1))]
)
def test_fused_gates_share_the_fan_out(
    toy: Toy, preset: Preset, fused: str | None, fan_outs: tuple[int, ...]
) -> None:
    model = toy("gru", hidden=64, embedding=48)
    config = preset("xavier")
    config["input"]["fused"] = fused
    run(model, config)
    blocks = model.decoder.layers[0]["rnn"].weight_ih_l0.detach().chunk(3)
    for block, fan_out in zip(blocks, fan_outs, strict=True):
        assert block.abs().max() == pytest.approx(math.sqrt(6 / (48 + 64 * fan_out)), rel=0.005)


def test_a_gate_taken_out_of_a_fused_group_leaves_the_others_as_they_were(
    toy: Toy, preset: Preset
) -> None:
    whole, without = toy("lstm"), toy("lstm")
    config = preset("orthogonal", "recurrent.fused=ifgo")
    run(whole, config)
    forget = {"pattern": "*weight_hh*", "gates": "f", "scheme": "zeros"}
    run(without, config | {"rules": [forget]})
    # The first tensor, since the draws of a seed go on from there.
    pairs = zip(
        whole.encoder.layers[0].forward_layer["rnn"].weight_hh_l0.chunk(4),
        without.encoder.layers[0].forward_layer["rnn"].weight_hh_l0.chunk(4),
        strict=True,
    )
    assert [torch.equal(one, other) for one, other in pairs] == [True, False, True, True]


def test_fused_means_nothing_without_gates(toy: Toy, preset: Preset) -> None:
    plain, fused = toy("rnn"), toy("rnn")
    run(plain, preset("orthogonal"))
    run(fused, preset("orthogonal", "recurrent.fused=ifgo rzn", "output.fused=ifgo"))
    for one, other in zip(plain.parameters(), fused.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_is_special_comes_before_the_roles_and_after_the_forget_bias(
    toy: Toy, preset: Preset
) -> None:
    config = preset("orthogonal", "forget_bias=null")
    config["special"] = {
        "gate": {"pattern": "*bias_?h_l*", "gates": "fr", "scheme": "constant", "value": 0.5}
    }

    def sums(config: dict[str, Any], cell: str) -> list[float]:
        model = toy(cell)
        done = run(model, config)
        assert not [note for note in done.notes if "special" in note]
        rnn = model.decoder.layers[0]["rnn"]
        gates = {"lstm": 4, "gru": 3, "rnn": 1}[cell]
        total = (rnn.bias_ih_l0 + rnn.bias_hh_l0).detach()
        return [float(b.mean()) for b in total.chunk(gates)]

    assert sums(config, "lstm") == [0, 0.5, 0, 0]
    assert sums(config, "gru") == [0.5, 0, 0]
    assert sums(config, "rnn") == [0]
    assert sums(config | {"forget_bias": 2.0}, "lstm") == [0, 2, 0, 0]


def test_half_of_a_bias_sum_is_refused(toy: Toy, preset: Preset) -> None:
    config = preset("uniform")
    config["rules"] = [{"pattern": "*bias_ih*", "scheme": "constant", "value": 1.0}]
    with pytest.raises(ValueError, match="means the sum of both biases, but of .* only one"):
        run(toy(), config)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("uniform", ["scale=-0.1"], "initializer.scale=-0.1 must be a finite number"),
        ("uniform", ["recurrent.scale=-1"], "initializer.recurrent.scale=-1 must be a finite"),
        (
            "uniform",
            ["recurrent.gain=1.1"],
            "initializer.recurrent.gain=1.1 means nothing to the scheme uniform, which takes scale",
        ),
        ("orthogonal", ["scale=0.5", "embedding.scheme=pytorch"], "means nothing to the scheme"),
        ("xavier", ["embedding=null"], "initializer.embedding=None must be a mapping"),
        ("pytorch", ["scale=0.5"], "initializer.scale=0.5 is used by nothing"),
        ("pytorch", ["gain=2"], "initializer.gain=2 is used by nothing"),
        (
            "orthogonal",
            ["recurrent.scheme=orthogonl"],
            "initializer.recurrent.scheme=orthogonl is unknown; choose one of antisymmetric, "
            "chrono, constant",
        ),
        (
            "orthogonal",
            ["input.scheme=uniform"],
            "initializer.input.scheme=uniform needs a value for initializer.input.scale",
        ),
        ("pytorch", ["forget_bias=.inf"], "initializer.forget_bias=inf must be a finite number"),
        (
            "orthogonal",
            ["bias.scheme=chrono", "bias.longest=20"],
            "initializer.forget_bias=1.0 and initializer.bias.scheme=chrono both set the gate",
        ),
        ("pytorch", ["recurrent.gates=x"], "initializer.recurrent.gates=x must be letters of ifgo"),
        (
            "pytorch",
            ["bias.scheme=chrono", "bias.longest=2"],
            "initializer.bias.longest=2 must be a finite number of timesteps, more than 2",
        ),
        ("pytorch", ["longest=20"], "initializer.longest=20 is used by nothing"),
        (
            "pytorch",
            ["recurrent.fused=fo rz fr"],
            "initializer.recurrent.fused=fo rz fr must be groups of gates of one cell",
        ),
        ("pytorch", ["recurrent.fused=h"], "initializer.recurrent.fused=h must be groups of gates"),
        (
            "pytorch",
            ["bias.scheme=uniform_gate", "bias.fused=ifgo"],
            "initializer.bias.fused=ifgo means nothing to the scheme uniform_gate",
        ),
        (
            "orthogonal",
            ["recurrent.scheme=rotations", "recurrent.angle=4"],
            "initializer.recurrent.angle=4 must be radians from 0 to pi",
        ),
        (
            "pytorch",
            ["special.forget.pattern='*bias*'"],
            "initializer.special.forget has no scheme",
        ),
        ("pytorch", ["recurrent.pattern=null"], "initializer.recurrent has no pattern"),
    ],
)
def test_a_setting_without_meaning_is_refused_by_its_key(
    preset: Preset, name: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        rules_from_config(preset(name, *overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["bias.scheme=orthogonal"],
            "initializer.bias.scheme=orthogonal can't set "
            "encoder.layers.0.forward_layer.rnn.bias_ih_l0 (gate i): it needs a matrix",
        ),
        (
            ["linear_bias.scheme=uniform_gate"],
            "initializer.linear_bias.scheme=uniform_gate can't set bridge.hidden.0.bias: "
            "it sets the biases of recurrent layers only",
        ),
        (
            ["input.scheme=identity"],
            "initializer.input.scheme=identity can't set "
            "encoder.layers.0.forward_layer.rnn.weight_ih_l0 (gate i): it needs a square matrix",
        ),
    ],
)
def test_a_scheme_that_does_not_fit_names_rule_and_parameter(
    toy: Toy, preset: Preset, overrides: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        run(toy(), preset("pytorch", *overrides))


def test_a_shared_number_reaches_every_rule_without_its_own(preset: Preset) -> None:
    config = preset("xavier", "gain=0.5", "recurrent.gain=1.5")
    rules = {rule.name: rule for rule in rules_from_config(config)}
    assert rules["recurrent"].arguments == {"gain": 1.5}
    assert rules["input"].arguments == rules["output"].arguments == {"gain": 0.5}
    assert rules["embedding"].arguments == {"scale": 1.0}


def test_parts_that_no_preset_knows_have_their_own_roles_and_no_shared_number() -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.highway = nn.Linear(40, 40)

    config: dict[str, Any] = {
        "gain": 3.0,
        "linear": {"pattern": "*.weight", "scheme": "xavier_uniform"},
        "linear_bias": {"pattern": "*.bias", "scheme": "zeros"},
    }
    model = Stack()
    run(model, config)
    assert (model.highway.bias == -1).all()
    assert float(model.highway.weight.std()) == pytest.approx(1 / math.sqrt(40), rel=0.1)
    run(model, {**config, "highway_bias": {"value": -3.0}})
    assert (model.highway.bias == -3).all()
    run(model, {**config, "highway_bias": {"scheme": "zeros"}})
    assert not model.highway.bias.any()


def test_layer_norm_begins_as_no_change_whatever_the_rules_say_of_other_biases() -> None:
    config: dict[str, Any] = {
        "recurrent": {"pattern": "*weight_?h_l*", "scheme": "orthogonal"},
        "bias": {"pattern": "*bias*", "scheme": "chrono", "longest": 30.0},
    }
    rnn = LayerNormLSTM(4, 8)
    run(rnn, config)
    for gain in (rnn.norm_gain_ih_l0, rnn.norm_gain_hh_l0, rnn.norm_gain_cell):
        assert (gain == 1).all()
    assert not rnn.norm_bias_cell.any()
    forget = (rnn.bias_ih_l0 + rnn.bias_hh_l0)[8:16]  # the sum, as everywhere
    assert (forget > 0).all() and not rnn.bias_hh_l0.any()
    run(
        rnn,
        {**config, "norm_gain": {"value": 0.1}, "norm_bias": {"scheme": "normal", "scale": 1.0}},
    )
    assert (rnn.norm_gain_hh_l0 == 0.1).all() and rnn.norm_bias_cell.any()


def test_a_rule_for_some_gates_reaches_the_gain_of_these_gates() -> None:
    rnn = LayerNormGRU(4, 8)
    own = {"pattern": "*norm_gain_hh*", "scheme": "constant", "value": 2.0, "gates": "z"}
    weights = {"pattern": "*", "scheme": "orthogonal"}
    run(
        rnn,
        {
            "rules": [own],
            "w": {**weights, "pattern": "*weight*"},
            "b": {"pattern": "*bias*", "scheme": "zeros"},
        },
    )
    assert rnn.norm_gain_hh_l0.tolist() == [1.0] * 8 + [2.0] * 8 + [1.0] * 8


def test_the_length_of_the_data_fills_what_the_config_leaves_open() -> None:
    config = {
        "bias": {"pattern": "*bias*", "scheme": "chrono"},
        "recurrent": {"pattern": "*weight_hh*", "scheme": "recommended_recurrent", "longest": 7.0},
        "embedding": {"pattern": "*", "scheme": "zeros"},
    }
    made = rules_from_config(config, longest=30)
    rules = {rule.name: rule.arguments for rule in made if rule.name not in PART_ROLES}
    assert rules == {"bias": {"longest": 30.0}, "recurrent": {"longest": 7.0}, "embedding": {}}
    rules = {
        rule.name: rule.arguments
        for rule in rules_from_config({**config, "longest": 9.0}, longest=30)
    }
    assert rules["bias"] == {"longest": 9.0}
    (shortest,) = (rule for rule in rules_from_config(config, longest=1) if rule.name == "bias")
    assert shortest.arguments["longest"] > 2  # or chrono would have nothing to spread
    with pytest.raises(ValueError, match=r"needs a value for initializer\.bias\.longest"):
        rules_from_config(config)
