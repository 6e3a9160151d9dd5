"""Each shipped preset, on every cell, against what its heading promises."""

import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from seq2seq.diagnostics.spectrum import gate_blocks
from seq2seq.initializers.catalogue import BLOCK_SCHEMES, SCHEMES
from seq2seq.initializers.report import describe
from seq2seq.initializers.rules import initialize, rules_from_config
from seq2seq.models.encoder_decoder import encoder_decoder
from seq2seq.models.recurrent import CELLS as MODEL_CELLS
from seq2seq.models.recurrent import gates_of

Toy = Callable[..., nn.Module]
Preset = Callable[..., dict[str, Any]]
NAMES = sorted(
    path.stem for path in (Path(__file__).parents[2] / "conf" / "initializer").glob("*.yaml")
)
CELLS = ("lstm", "gru", "rnn")


def build(toy: Toy, config: dict[str, Any], **sizes: Any) -> nn.Module:
    model = toy(**sizes)
    initialize(model, rules_from_config(config), seed=0, pad_id=0)
    return model


def recurrent_radii(model: nn.Module, config: dict[str, Any]) -> Iterator[float]:
    done = initialize(model, rules_from_config(config), seed=0, pad_id=0)
    for row in describe(done):
        yield from row.spectral_radius.values()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", NAMES)
def test_every_preset_sets_every_cell(toy: Toy, preset: Preset, name: str, cell: str) -> None:
    model = toy(cell)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    done = initialize(model, rules_from_config(preset(name)), seed=0, pad_id=0)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    absent = [note for note in done.notes if "no parameters" in note]
    assert absent in ([], ["no parameters in this model for: bias"])  # special rules took them


# Every preset meets every cell and every attention, and every cell every attention.
@pytest.mark.parametrize(
    ("name", "cell", "attention"),
    [
        (name, cell, ("none", "additive", "general", "dot")[(first + index) % 4])
        for first, name in enumerate(NAMES)
        for index, cell in enumerate(MODEL_CELLS)
    ],
)
def test_every_preset_sets_the_real_encoder_decoder_role_by_role(
    preset: Preset, name: str, cell: str, attention: str
) -> None:
    model = encoder_decoder(
        source_vocabulary_size=11,
        target_vocabulary_size=13,
        pad_id=0,
        cell=cell,
        embedding_size=8,
        hidden_size=8,
        encoder_layers=2,
        decoder_hidden_size=16,
        attention=attention,
        bridge="linear",
    )
    done = initialize(model, rules_from_config(preset(name)), seed=0, pad_id=0)
    for assignment in done.assignments:
        full, (*_, owner, local) = assignment.layout.name, assignment.layout.name.split(".")
        expected = {
            "rnn": {"weight_hh_l0": "recurrent", "weight_ih_l0": "input"}.get(local, "bias"),
            "embedding": "embedding",
            "output": "output",
        }.get(owner, "bridge" if full.startswith("bridge") else "attention")
        if local.startswith("norm"):
            expected = "norm_bias" if "bias" in local else "norm_gain"
        if local == "bias":
            expected = "linear_bias"
        rules = {rule.name for rule in assignment.rules}
        general = {rule for rule in rules if rule != "forget_bias" and "special." not in rule}
        assert general <= {expected}, full
        assert general or expected in ("bias", "attention"), full
    absent = [note for note in done.notes if note.startswith("no parameters")]
    for note in absent:
        roles = set(note.removeprefix("no parameters in this model for: ").split(", "))
        # `special` rules may take all that a role would have set.
        assert roles <= {"attention", "bias"} if attention != "additive" else roles <= {"bias"}
    if attention == "none":
        assert any("attention" in note for note in absent)


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_begins_with_its_command(name: str) -> None:
    path = Path(__file__).parents[2] / "conf" / "initializer" / f"{name}.yaml"
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# scripts/train ")
    assert f"initializer={name}" in first.split()


H, E, V = 96, 64, 150  # hidden, embedding, vocabulary
UNIFORM, ROOT = 1 / math.sqrt(3), 1 / math.sqrt(H)


def glorot(fan_in: int, fan_out: int) -> float:
    return math.sqrt(2 / (fan_in + fan_out))


class Expected(NamedTuple):
    """Standard deviations, by gate where they differ, and bias sums by gate; None: drawn."""

    recurrent: float | dict[str, float]
    input: float | dict[str, float]
    embedding: float
    output: float
    bias: dict[str, float | None] = {}  # noqa: RUF012 - never changed; gates not named: 0


def per_gate(lstm: float, r: float, n: float, plain: float) -> dict[str, float]:
    return dict.fromkeys("ifgo", lstm) | {"r": r, "z": r, "n": n, "h": plain}


def fused(scale: Callable[[int], float], gru: str = "rzn") -> dict[str, float]:
    """By the number of gates that are drawn as one matrix."""
    return per_gate(scale(4), scale(len(gru)), scale(3 if "n" in gru else 1), scale(1))


DRAWN = dict.fromkeys("ifgorznh")
LINEAR = glorot(H, V)
KEEP = {"f": 1.0, "z": 1.0}


def everywhere(deviation: float, bias: dict[str, float | None] = DRAWN) -> Expected:
    return Expected(deviation, deviation, deviation, deviation, bias)


FUSED_INPUT = fused(lambda gates: glorot(E, gates * H))
PER_GATE_INPUT = glorot(E, H)
EXPECTED = {
    "bahdanau2014": Expected(ROOT, 0.01, 0.01, 0.01),
    # The rules of these two; what calibration does afterwards is in test_calibration.py.
    "calibrated": Expected(per_gate(0.3 * ROOT, ROOT, ROOT, 1.3 * ROOT), PER_GATE_INPUT, 1, LINEAR),
    "lsuv": Expected(ROOT, ROOT, 1, LINEAR),
    "chrono": Expected(ROOT, PER_GATE_INPUT, 1, LINEAR, {"f": None, "i": None, "z": None}),
    "echo_state": Expected(math.nan, 0.1, 1, LINEAR),
    "fairseq_default": everywhere(0.1 * UNIFORM),
    "gnmt": everywhere(0.04 * UNIFORM),
    "irnn": Expected(ROOT, 0.001, 1, 0.001),
    "joeynmt_default": Expected(glorot(H, H), PER_GATE_INPUT, 0.01, LINEAR, {"f": 2.0}),
    "keras": Expected(
        fused(lambda gates: ROOT / math.sqrt(gates)),
        FUSED_INPUT,
        0.05 * UNIFORM,
        LINEAR,
        {"f": 1.0},
    ),
    "luong2015": everywhere(0.1 * UNIFORM),
    "marian_default": Expected(
        fused(lambda gates: glorot(H, gates * H), gru="rz"),
        fused(lambda gates: glorot(E, gates * H), gru="rz"),
        1 / math.sqrt(E),
        ROOT,
    ),
    "mean_field": Expected(
        per_gate(0.00316, 0.00316, 0.00316, ROOT), 0.00316, 1, LINEAR, {"f": 5.0, "z": 5.0}
    ),
    "nematus_default": Expected(ROOT, 0.01, 0.01, 0.01),
    "normal": everywhere(0.01, {}),
    "np_rnn": Expected(math.nan, math.sqrt(2) * math.exp(1.2 / (H - 2.4)) / H, 1, LINEAR),
    "opennmt_default": everywhere(0.1 * UNIFORM),
    "orthogonal": Expected(ROOT, PER_GATE_INPUT, 1, LINEAR, KEEP),
    "pytorch": Expected(ROOT * UNIFORM, ROOT * UNIFORM, 1, ROOT * UNIFORM, DRAWN),
    "recommended": Expected(
        per_gate(ROOT, ROOT, ROOT, 1.3 * ROOT), PER_GATE_INPUT, 1, LINEAR, KEEP
    ),
    "sockeye_default": Expected(
        fused(lambda gates: 1.414 * ROOT / math.sqrt(gates)), FUSED_INPUT, glorot(E, V), LINEAR
    ),
    "sutskever2014": everywhere(0.08 * UNIFORM),
    "tensorflow_nmt_default": everywhere(0.1 * UNIFORM, {"f": 1.0, "r": 1.0, "z": 1.0}),
    "ugi": Expected(ROOT, PER_GATE_INPUT, 1, LINEAR, {"f": None, "i": None, "z": None}),
    "uniform": everywhere(0.08 * UNIFORM),
    "xavier": Expected(glorot(H, H), PER_GATE_INPUT, 1, LINEAR),
}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", NAMES)
def test_every_preset_draws_by_the_formulas_of_its_source(
    toy: Toy, preset: Preset, name: str, cell: str
) -> None:
    model = build(toy, preset(name), cell=cell, hidden=H, embedding=E, vocabulary=V)
    expected = EXPECTED[name]
    rnn = model.decoder.layers[0]["rnn"]
    gates = gates_of(rnn)

    def check(tensor: Tensor, deviation: float, what: str) -> None:
        assert tensor.detach().std() == pytest.approx(deviation, rel=0.06), what

    for tensor, by_gate in (
        (rnn.weight_hh_l0, expected.recurrent),
        (rnn.weight_ih_l0, expected.input),
    ):
        for gate, block in gate_blocks(tensor, gates).items():
            deviation = by_gate[gate] if isinstance(by_gate, dict) else by_gate
            if not math.isnan(deviation):
                check(block, deviation, f"{gate} of {tuple(tensor.shape)}")
    check(model.decoder.embedding.weight[1:], expected.embedding, "embedding")
    check(model.decoder.output.weight, expected.output, "output")
    for gate, total in gate_blocks((rnn.bias_ih_l0 + rnn.bias_hh_l0).detach(), gates).items():
        value = expected.bias.get(gate, 0.0)
        if value is None:
            assert total.unique().numel() == H, gate
        else:
            assert (total == value).all(), gate
    drawn = [parameter for name, parameter in model.named_parameters() if name.endswith(".bias")]
    assert all(bool(bias.any()) == (expected.bias is DRAWN) for bias in drawn)


def decoder_blocks(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    rnn = model.decoder.layers[0]["rnn"]
    yield from gate_blocks(rnn.weight_hh_l0.detach().double(), gates_of(rnn)).items()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("name", "overrides", "gain"),
    [
        ("bahdanau2014", [], {}),
        ("chrono", [], {}),
        ("chrono", ["recurrent.gain=0.3"], dict.fromkeys("ifgorznh", 0.3)),
        ("nematus_default", [], {}),
        ("recommended", [], {"h": 1.3}),
        ("recommended", ["longest=60"], {"h": 1.3} | dict.fromkeys("ifgo", 0.3)),
        ("recommended", ["longest=60", "recurrent.gain=0.8"], dict.fromkeys("ifgorznh", 0.8)),
        ("ugi", [], {}),
        ("keras", ["recurrent.fused=null"], {}),
    ],
)
def test_a_preset_is_orthogonal_gate_by_gate_where_it_says_so(
    toy: Toy, preset: Preset, name: str, overrides: list[str], gain: dict[str, float], cell: str
) -> None:
    for gate, block in decoder_blocks(build(toy, preset(name, *overrides), cell=cell)):
        values = torch.linalg.svdvals(block)
        assert torch.allclose(values, torch.full_like(values, gain.get(gate, 1.0)), atol=1e-5), gate


@pytest.mark.parametrize(("cell", "gates"), [("lstm", 4), ("gru", 3)])
@pytest.mark.parametrize(("name", "gain"), [("keras", 1.0), ("sockeye_default", 1.414)])
def test_a_fused_preset_is_orthogonal_over_all_gates(
    toy: Toy, preset: Preset, name: str, gain: float, cell: str, gates: int
) -> None:
    model = build(toy, preset(name), cell=cell, hidden=256)
    weight = model.decoder.layers[0]["rnn"].weight_hh_l0.detach().double()
    assert torch.allclose(weight.T @ weight, gain**2 * torch.eye(256).double(), atol=1e-5)
    for _, block in decoder_blocks(model):
        root_mean_square = torch.linalg.svdvals(block).square().mean().sqrt()
        assert root_mean_square == pytest.approx(gain / math.sqrt(gates), rel=0.02)


@pytest.mark.parametrize("cell", CELLS)
def test_recurrent_matrices_of_known_form(toy: Toy, preset: Preset, cell: str) -> None:
    for _, block in decoder_blocks(build(toy, preset("irnn"), cell=cell)):
        assert torch.equal(block, torch.eye(24).double())
    for _, block in decoder_blocks(build(toy, preset("np_rnn"), cell=cell)):
        values = torch.linalg.eigvalsh(block)
        assert values[-1] == pytest.approx(1.0, abs=1e-5) and 0.15 < values[0] < 0.3
    for _, block in decoder_blocks(build(toy, preset("echo_state"), cell=cell)):
        assert torch.linalg.eigvals(block).abs().max() == pytest.approx(1.1, abs=1e-5)
        assert ((block != 0).sum(dim=1) == 15).all()


def keep_gate(model: nn.Module) -> Tensor:
    rnn = model.decoder.layers[0]["rnn"]
    total = (rnn.bias_ih_l0 + rnn.bias_hh_l0).detach()
    return torch.sigmoid(total.chunk(len(gates_of(rnn)))[1])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_gate_values_at_the_start_are_those_of_the_headings(
    toy: Toy, preset: Preset, cell: str
) -> None:
    def gate(name: str, *overrides: str) -> Tensor:
        return keep_gate(build(toy, preset(name, *overrides), cell=cell, hidden=500))

    chrono, ugi = gate("chrono", "longest=50"), gate("ugi")
    assert chrono.min() >= 0.5 and chrono.max() <= 1 - 1 / 50
    assert (1 / (1 - chrono)).mean() == pytest.approx(26, rel=0.06)  # memories of 2 to 50 steps
    assert ugi.mean() == pytest.approx(0.5, abs=0.04)
    assert ugi.std() == pytest.approx(1 / math.sqrt(12), rel=0.06)
    assert gate("mean_field").unique().tolist() == pytest.approx([0.9933], abs=1e-4)
    assert gate("keras").mean() == pytest.approx(0.731 if cell == "lstm" else 0.5, abs=1e-3)
    assert gate("joeynmt_default").mean() == pytest.approx(
        0.881 if cell == "lstm" else 0.5, abs=1e-3
    )
    assert gate("recommended").unique().tolist() == pytest.approx([0.731], abs=1e-3)
    assert torch.equal(gate("recommended", "longest=50").sort()[0] > 0.5, torch.ones(500) > 0)
    assert gate("recommended", "longest=50").std() > 0.05


@pytest.mark.parametrize("longest", ["20", "50"])
def test_a_forget_bias_takes_the_place_of_the_recommended_one(
    toy: Toy, preset: Preset, longest: str
) -> None:
    model = build(toy, preset("recommended", f"longest={longest}", "forget_bias=3"))
    biases = [p.detach() for name, p in model.named_parameters() if "bias_ih_l0" in name]
    assert biases
    for bias in biases:
        i, f, g, o = bias.chunk(4)
        assert torch.equal(f, torch.full_like(f, 3.0))
        assert not any(gate.any() for gate in (i, g, o))


@pytest.mark.parametrize("name", ["chrono", "ugi"])
def test_a_forget_bias_beside_drawn_ones_is_refused(preset: Preset, name: str) -> None:
    with pytest.raises(ValueError, match="both set the gate that remembers"):
        rules_from_config(preset(name, "forget_bias=1"))


def test_the_alignment_of_bahdanau2014_has_its_own_scales(preset: Preset) -> None:
    model = encoder_decoder(
        source_vocabulary_size=11,
        target_vocabulary_size=13,
        pad_id=0,
        cell="gru",
        embedding_size=8,
        hidden_size=64,
        attention="additive",
        input_feeding=True,
        query_state="previous",
    )
    initialize(model, rules_from_config(preset("bahdanau2014")), seed=0, pad_id=0)
    attention = model.decoder.attention
    assert attention is not None and not attention.energy.weight.any()
    for projection in (attention.query_projection, attention.key_projection):
        assert projection.weight.detach().std() == pytest.approx(0.001, rel=0.05)
    vector = model.decoder.attention_vector
    assert vector is not None and vector.weight.detach().std() == pytest.approx(0.01, rel=0.05)


def test_the_documentation_names_every_preset_and_every_scheme() -> None:
    text = (Path(__file__).parents[2] / "docs" / "initializers.md").read_text(encoding="utf-8")
    missing = [name for name in (*NAMES, *SCHEMES) if f"`{name}`" not in text]
    assert not missing


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_override_of_every_scheme_in_the_documentation_works(
    toy: Toy, preset: Preset, scheme: str
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "initializers.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith(f"| `{scheme}` |"))
    (override,) = [cell for cell in row.split(" | ") if re.search(r"\w=", cell) and cell[0] == "`"]
    overrides = override.strip("` |").replace("initializer.", "").split()
    done = initialize(toy(), rules_from_config(preset("pytorch", *overrides)), seed=0, pad_id=0)
    used = {rule.scheme for assignment in done.assignments for rule in assignment.rules}
    assert scheme in used


@pytest.mark.slow
def test_the_numbers_of_the_documentation_are_those_of_its_command() -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, str(root / "scripts" / "initializer_table.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = (root / "docs" / "initializers.md").read_text(encoding="utf-8").splitlines()
    rows = [row for row in printed.splitlines() if row.startswith("| `")]
    assert len(rows) == len(NAMES) + len(BLOCK_SCHEMES)
    for row in rows:
        name, *numbers = row.strip("| ").split(" | ")
        found = [line for line in lines if line.startswith(f"| {name.split('(')[0]} |")]
        assert any(line.endswith(f"| {' | '.join(numbers)} |") for line in found), row


# The heading's formula, times the excess of about 3 % that a random matrix has at this width.
@pytest.mark.parametrize(
    ("name", "overrides", "promised"),
    [
        ("pytorch", [], 0.58),
        ("uniform", [], 0.74),
        ("uniform", ["scale=0.04"], 0.37),
        ("normal", [], 0.16),
        ("normal", ["scale=0.0625"], 1.0),
        ("xavier", [], 1.0),
        ("xavier", ["recurrent.gain=0.5"], 0.5),
    ],
)
def test_spectral_radius_per_gate_at_256_units_is_near_the_promised_one(
    toy: Toy, preset: Preset, name: str, overrides: list[str], promised: float
) -> None:
    radii = list(recurrent_radii(toy("lstm", hidden=256), preset(name, *overrides)))
    assert len(radii) == 12
    assert sum(radii) / 12 == pytest.approx(1.03 * promised, rel=0.03)
    assert all(radius == pytest.approx(promised, rel=0.15) for radius in radii)


@pytest.mark.parametrize("gain", [0.5, 1.0, 1.1])
def test_the_orthogonal_preset_has_exactly_the_gain_as_spectral_radius(
    toy: Toy, preset: Preset, gain: float
) -> None:
    radii = list(recurrent_radii(toy("lstm"), preset("orthogonal", f"recurrent.gain={gain}")))
    assert radii == pytest.approx([gain] * 12, abs=1e-5)


def similar(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two samples have the same moments and extremes (uniforms fill their interval)."""
    ours, theirs = ours.detach().double(), theirs.detach().double()
    n = min(ours.numel(), theirs.numel())
    deviation = theirs.std()
    means = abs(ours.mean() - theirs.mean()) < 6 * deviation / math.sqrt(n)
    deviations = abs(ours.std() / deviation - 1) < 6 / math.sqrt(n)
    largest = abs(ours.abs().max() / theirs.abs().max() - 1) < max(0.25, 6 / math.sqrt(n))
    return bool(means and deviations and largest)


@pytest.mark.parametrize("cell", CELLS)
def test_the_pytorch_preset_draws_from_the_law_of_a_fresh_module(
    toy: Toy, preset: Preset, cell: str
) -> None:
    sizes = {"cell": cell, "hidden": 160, "embedding": 120, "vocabulary": 400}
    fresh = dict(toy(**sizes).named_parameters())
    for name, parameter in build(toy, preset("pytorch"), **sizes).named_parameters():
        assert similar(parameter, fresh[name]), name
        if "rnn" in name:
            assert parameter.abs().max() <= 1 / math.sqrt(160)
        elif "embedding" in name:
            assert not parameter[0].any()
        elif name == "bridge.hidden.0.bias":
            assert parameter.abs().max() <= 1 / math.sqrt(320)


def test_the_pytorch_preset_leaves_both_biases_random_so_that_their_sum_is_triangular(
    toy: Toy, preset: Preset
) -> None:
    rnn = build(toy, preset("pytorch"), hidden=1000).decoder.layers[0]["rnn"]
    total = (rnn.bias_ih_l0 + rnn.bias_hh_l0).detach()
    assert total.var() == pytest.approx(2 / 3 / 1000, rel=0.08)


@pytest.mark.parametrize("cell", CELLS)
def test_the_uniform_preset_is_one_interval_everywhere(toy: Toy, preset: Preset, cell: str) -> None:
    model = build(toy, preset("uniform", "scale=0.1"), cell=cell)
    for name, parameter in model.named_parameters():
        assert parameter.abs().max() <= 0.1, name
        assert parameter.std() > 0.03, name


def test_the_orthogonal_preset_opens_the_gate_that_remembers(toy: Toy, preset: Preset) -> None:
    for cell, gates in (("lstm", 4), ("gru", 3)):
        rnn = build(toy, preset("orthogonal"), cell=cell).decoder.layers[0]["rnn"]
        total = (rnn.bias_ih_l0 + rnn.bias_hh_l0).detach().chunk(gates)
        assert [float(block.mean()) for block in total] == [0.0, 1.0, *[0.0] * (gates - 2)]
        assert torch.sigmoid(total[1]).mean() == pytest.approx(0.731, abs=1e-3)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_on_short_sequences_recommended_is_orthogonal_to_the_bit(
    toy: Toy, preset: Preset, cell: str
) -> None:
    models = [
        build(toy, preset(name, *overrides), cell=cell)
        for name, *overrides in (("recommended", "longest=20"), ("orthogonal",))
    ]
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)
