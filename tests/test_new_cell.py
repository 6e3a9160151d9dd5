"""The code of docs/new_cell.md is the code of the package, and is all that a new cell needs."""

import re
from pathlib import Path

import pytest
import torch

from seq2seq.diagnostics.gradient_flow import GradientRecorder, layer_flow
from seq2seq.diagnostics.weight_gradient import recurrent_gradient_by_third
from seq2seq.initializers.rules import initialize, rules_from_config
from seq2seq.models.cells import STEP_CELLS, minimal_gated_unit
from seq2seq.models.encoder_decoder import encoder_decoder

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "new_cell.md"
CODE, TABLE = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)


def test_the_example_is_the_file_and_the_lines_of_the_table() -> None:
    assert Path(minimal_gated_unit.__file__).read_text(encoding="utf-8") == CODE
    table = Path(minimal_gated_unit.__file__).with_name("__init__.py").read_text(encoding="utf-8")
    assert set(filter(None, TABLE.splitlines())) <= set(table.splitlines())


def test_a_cell_from_the_document_alone_is_initialized_trained_and_followed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: dict[str, object] = {}
    exec(compile(CODE, DOCUMENT.name, "exec"), written)
    cell = written["MinimalGatedUnit"]
    assert cell is not STEP_CELLS["mgu"]
    monkeypatch.setitem(STEP_CELLS, "mine", cell)
    model = encoder_decoder(
        source_vocabulary_size=9,
        target_vocabulary_size=9,
        pad_id=0,
        cell="mine",
        embedding_size=6,
        hidden_size=6,
        weight_dropout=0.2,
        zoneout_hidden=0.1,
    )
    rules = rules_from_config(
        {
            "embedding": {"pattern": "*embedding.weight", "scheme": "normal", "scale": 1.0},
            "matrices": {"pattern": "*weight*", "scheme": "orthogonal"},
            "bias": {"pattern": "*bias_?h_l*", "scheme": "chrono", "longest": 30.0},
            "linear_bias": {"pattern": "*.bias", "scheme": "zeros"},
        }
    )
    initialize(model, rules, seed=0, pad_id=0)
    model = model.double()
    tokens, lengths = torch.randint(1, 9, (8, 7)), torch.full((8,), 7)
    layers = model.recurrent_layers()
    with GradientRecorder(layers, rows=torch.arange(8)) as record:
        loss = model.logits(model(tokens, lengths, tokens)).logsumexp(2).sum()
    loss.backward()
    for name, layer in layers.items():
        flow = layer_flow(layer, record.calls[name], lengths=lengths)
        assert flow.norms().keys() == {"hidden", "transport"}
        gradient = recurrent_gradient_by_third(flow).sum(0)
        torch.testing.assert_close(gradient, layer.rnn.weight_hh_l0.grad, rtol=1e-9, atol=1e-12)
