"""Graphs translate as the network does, in a program that has torch and not this package."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from seq2seq.bundle import read_bundle, write_bundle
from seq2seq.checkpoint import KEY, describe
from seq2seq.data.batch import EncodedSplit
from seq2seq.data.corpus import Pair
from seq2seq.data.sampler import EvaluationLoader
from seq2seq.data.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID, train_tokenizers
from seq2seq.graphs import export_graphs
from seq2seq.models.attention import ATTENTIONS
from seq2seq.models.encoder_decoder import EncoderDecoder, encoder_decoder
from seq2seq.models.recurrent import CELLS
from seq2seq.translator import Translator

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "graphs.md"
SOURCES = ["one two three two one", "three", "two unheard", "one one"]
NETWORKS: dict[str, dict[str, Any]] = {
    "default": {},
    "no attention": {"cell": "gru", "attention": "none", "tie_embeddings": True},
    "input feeding": {
        "cell": "rnn_relu",
        "attention": "additive",
        "input_feeding": True,
        "encoder_layers": 2,
        "bidirectional_layers": 1,
        "layer_connection": "residual",
    },
    "state before": {
        "attention": "scaled_dot",
        "decoder_hidden_size": 12,
        "input_feeding": True,
        "query_state": "previous",
        "reverse_source": True,
        "zoneout_hidden": 0.1,
        "zoneout_cell": 0.2,
    },
    "history": {"attention": "location", "coverage": True, "cell": "rnn_tanh"},
}


@pytest.fixture(autouse=True)
def _no_trace_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all that torch notes down while it exports."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)


def bundled(folder: Path, **options: Any) -> Path:
    """A bundle with graphs, of a network with weights large enough for outputs to differ."""
    kind = {"kind": "word"}
    pairs = [Pair("one two", "un deux", 1), Pair("two three", "deux trois", 2)]
    source, target = train_tokenizers(pairs, source=kind, target=kind)
    arguments = {
        "source_vocabulary_size": source.vocabulary_size,
        "target_vocabulary_size": target.vocabulary_size,
        "pad_id": PAD_ID,
        "embedding_size": 6,
        "hidden_size": 6,
        **options,
    }
    torch.manual_seed(2)
    weights = {
        f"model.{name}": 2 * w for name, w in encoder_decoder(**arguments).state_dict().items()
    }
    folder.mkdir()
    checkpoint = {"state_dict": weights, KEY: describe(arguments, source, target)}
    torch.save(checkpoint, folder / "a.ckpt")
    write_bundle(folder / "a.ckpt", folder / "bundle", graphs=True)
    return folder / "bundle"


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [("no attention", "input feeding"), ("default", "state before", "history")],
    ids=" and ".join,
)
def test_the_program_of_the_document_translates_as_the_network_does(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "program.py").write_text(program)
    networks = [(name, NETWORKS[name]) for name in names]
    folders = [str(bundled(tmp_path / name, **options)) for name, options in networks]
    pairs = [Pair(source, "", line) for line, source in enumerate(SOURCES, start=1)]
    expected = []
    for folder in folders:
        # Reading a bundle is no matter of whether graphs lie beside it.
        trained = read_bundle(Path(folder))
        translator = Translator(**trained._asdict(), max_length_ratio=0, max_length_constant=22)
        split = EncodedSplit.encode(pairs, trained.source_tokenizer, trained.target_tokenizer)
        (batch,) = EvaluationLoader(split, len(pairs))
        lines = [
            " ".join(map(str, ids[: length - 1]))  # the program adds the end symbol itself
            for ids, length in zip(
                batch.source.tolist(), batch.source_lengths.tolist(), strict=True
            )
        ]
        expected += [best for (best,) in translator.decode(batch)]
    assert len({len(hypothesis.tokens) for hypothesis in expected}) > 1
    # One process for all, as most of the time goes into importing torch.
    all_of_them = (
        "import io, runpy, sys\n"
        f"for folder in {folders}:\n"
        f"    sys.argv, sys.stdin = ['program.py', folder], io.StringIO({chr(10).join(lines)!r})\n"
        "    runpy.run_path('program.py')\n"
        "assert not [name for name in sys.modules if name.startswith('seq2seq')]\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", all_of_them],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert answer.returncode == 0, answer.stderr
    found = [json.loads(line) for line in answer.stdout.splitlines()]
    assert [one["tokens"] for one in found] == [one.tokens for one in expected]
    assert [one["log_probability"] for one in found] == pytest.approx(
        [one.log_probability for one in expected], abs=1e-5
    )


def network(**options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"source_vocabulary_size": 11, "target_vocabulary_size": 13, "pad_id": 0}
    return encoder_decoder(**sizes, embedding_size=6, hidden_size=6, **options).eval()


@pytest.mark.slow
def test_what_goes_in_and_out_is_said_by_name_and_shape(tmp_path: Path) -> None:
    told = json.loads((bundled(tmp_path / "a", encoder_layers=2) / "bundle.json").read_text())
    state = [
        {"name": "decoder.recurrent.hidden", "type": "float32", "shape": [2, "batch", 6]},
        {"name": "decoder.recurrent.cell", "type": "float32", "shape": [2, "batch", 6]},
        {"name": "memory.keys", "type": "float32", "shape": ["batch", "source_time", 6]},
        {"name": "memory.values", "type": "float32", "shape": ["batch", "source_time", 12]},
        {"name": "memory.mask", "type": "bool", "shape": ["batch", "source_time"]},
    ]
    encoder, step = told["graphs"]["encoder.pt2"], told["graphs"]["decoder_step.pt2"]
    assert [one["name"] for one in encoder["inputs"]] == ["source", "source_lengths"]
    assert encoder["outputs"] == state
    assert step["inputs"] == [{"name": "tokens", "type": "int64", "shape": ["batch"]}, *state]
    assert [one["name"] for one in step["outputs"][:2]] == ["log_probabilities", "alignment"]
    assert step["outputs"][2:] == state
    assert told["ids"] == {"padding": PAD_ID, "unknown": UNK_ID, "begin": BOS_ID, "end": EOS_ID}
    # Each holds the weights that it reads, and no others.
    for name, parts in (
        ("encoder", {"encoder", "bridge", "decoder"}),
        ("decoder_step", {"decoder"}),
    ):
        program = torch.export.load(tmp_path / "a" / "bundle" / f"{name}.pt2")
        assert {weight.split(".")[1] for weight in program.state_dict} == parts


@pytest.mark.slow
def test_what_can_not_be_exported_is_refused_in_a_sentence_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = EncoderDecoder.step

    def depends_on_values(model: EncoderDecoder, tokens: torch.Tensor, state: Any) -> Any:
        return step(model, tokens + 1 if tokens.sum() < 0 else tokens, state)

    monkeypatch.setattr(EncoderDecoder, "step", depends_on_values)
    with pytest.raises(ValueError, match=r"graphs=true, but torch.export can't .* graphs=false"):
        bundled(tmp_path / "a", attention="none", cell="gru")
    assert not (tmp_path / "a" / "bundle").exists()


def test_a_network_that_copies_is_refused() -> None:
    with pytest.raises(ValueError, match=r"graphs=true, but this network copies .* graphs=false"):
        export_graphs(network(copy_mechanism=True))


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_cell_and_attention_is_exported(cell: str, attention: str) -> None:
    for bidirectional in (False, True):
        options = {"decoder_hidden_size": 12} if bidirectional and "dot" in attention else {}
        # Compares each graph with the network.
        export_graphs(
            network(cell=cell, attention=attention, bidirectional=bidirectional, **options)
        )
