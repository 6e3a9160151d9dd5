"""A bundle gives back the network it was written from, runs nothing, and says what is wrong."""

import json
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from safetensors.torch import load_file

from seq2seq.bundle import read_bundle, write_bundle
from seq2seq.checkpoint import KEY, describe, load_trained
from seq2seq.config import config_folder, register
from seq2seq.data.corpus import Pair
from seq2seq.data.tokenizer import PAD_ID, Tokenizer, train_tokenizers
from seq2seq.export import export
from seq2seq.models.encoder_decoder import EncoderDecoder, encoder_decoder
from seq2seq.models.ensemble import Ensemble
from seq2seq.trained import find_trained, load_together
from seq2seq.translate import translate
from seq2seq.translator import Translator

PAIRS = [Pair("one two", "un deux", 1), Pair("two three", "deux trois", 2)]
FILES = ["bundle.json", "source_tokenizer.json", "target_tokenizer.json", "weights.safetensors"]


def tokenizers(kind: str = "word", shared: bool = False) -> tuple[Tokenizer, Tokenizer]:
    return train_tokenizers(PAIRS, source={"kind": kind}, target={"kind": kind}, shared=shared)


def save(path: Path, *, kind: str = "word", shared: bool = False, **changes: Any) -> EncoderDecoder:
    """A checkpoint as training writes it, as far as loading a trained network reads it."""
    source, target = tokenizers(kind, shared)
    arguments = {
        "source_vocabulary_size": source.vocabulary_size,
        "target_vocabulary_size": target.vocabulary_size,
        "pad_id": PAD_ID,
        "embedding_size": 6,
        "hidden_size": 6,
        **changes,
    }
    torch.manual_seed(0)
    model = encoder_decoder(**arguments)
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": weights, KEY: describe(arguments, source, target)}, path)
    return model


def bundled(folder: Path, **changes: Any) -> Path:
    save(folder / "a.ckpt", **changes)
    write_bundle(folder / "a.ckpt", folder / "bundle")
    return folder / "bundle"


@pytest.mark.parametrize("kind", ["word", "character"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_embeddings": True, "cell": "gru"},
        {"tie_embeddings": True, "embedding_rank": 2},
        {"tie_embeddings": True, "share_embeddings": True, "embedding_rank": 2},
    ],
)
def test_a_bundle_translates_as_the_checkpoint(
    tmp_path: Path, changes: dict[str, Any], kind: str
) -> None:
    shared = bool(changes.get("share_embeddings"))
    folder = bundled(tmp_path, kind=kind, shared=shared, **changes)
    assert sorted(file.name for file in folder.iterdir()) == FILES
    expected, found = load_trained(tmp_path / "a.ckpt"), read_bundle(folder)
    assert not found.model.training
    weights = found.model.state_dict()
    assert all(torch.equal(weights[name], w) for name, w in expected.model.state_dict().items())
    assert found.source_tokenizer.state() == expected.source_tokenizer.state()
    assert found.target_tokenizer.state() == expected.target_tokenizer.state()
    sources = ["one two", "three", "unheard one"]
    outputs = [
        list(Translator(**trained._asdict(), strategy="beam_search").translate(sources))
        for trained in (expected, found)
    ]
    assert outputs[0] == outputs[1]
    tied = "decoder.output.weight" not in load_file(folder / "weights.safetensors")
    tied |= "decoder.embedding.weight" not in load_file(folder / "weights.safetensors")
    assert tied == bool(changes.get("tie_embeddings"))


@pytest.mark.parametrize("name", FILES)
def test_a_bundle_that_lacks_a_file_or_has_a_damaged_one_is_refused(
    tmp_path: Path, name: str
) -> None:
    folder = bundled(tmp_path)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="damaged"):
        read_bundle(folder)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {name}"):
        read_bundle(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 9}, "has format 9, and this version reads format 1"),
        ({"model": {"_target_": "os.system"}}, "damaged: its parts don't fit together"),
        ({"tokenizer_kinds": {}}, "damaged: its parts don't fit together"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = bundled(tmp_path)
    settings = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(settings | changes))
    with pytest.raises(ValueError, match=message):
        read_bundle(folder)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    folder = bundled(tmp_path)
    with pytest.raises(ValueError, match="exists already and isn't an empty folder"):
        write_bundle(tmp_path / "a.ckpt", folder)


def test_the_command_writes_what_seq2seq_translate_reads(tmp_path: Path) -> None:
    save(tmp_path / "a.ckpt")
    (tmp_path / "in.txt").write_text("one two\n")
    files = [f"input={tmp_path / 'in.txt'}", f"output={tmp_path / 'out.txt'}", "scores=true"]
    register()
    with hydra.initialize_config_dir(config_folder(), version_base="1.3"):
        given = f"checkpoint={tmp_path / 'a.ckpt'}"
        with pytest.raises(ValueError, match="give output=FOLDER"):
            export(hydra.compose("bundle", [given]))
        folder = export(hydra.compose("bundle", [given, f"output={tmp_path / 'shared' / 'a'}"]))
        written = []
        for source in (given, f"bundle={folder}", f"bundle=[{folder},{folder}]"):
            translate(hydra.compose("translate", [source, *files]))
            written.append((tmp_path / "out.txt").read_text())
    assert written[0] == written[1] == written[2] != ""


def test_networks_translate_together_only_with_the_same_vocabularies(tmp_path: Path) -> None:
    folder = bundled(tmp_path)
    other = save(tmp_path / "b.ckpt", cell="gru")
    together = load_together([folder, tmp_path / "b.ckpt"])
    assert isinstance(together.model, Ensemble) and not together.model.training
    for name, weight in other.state_dict().items():
        assert torch.equal(together.model.networks()[1].state_dict()[name], weight)
    assert isinstance(load_together([folder]).model, EncoderDecoder)
    save(tmp_path / "c.ckpt", kind="whitespace")
    with pytest.raises(ValueError, match=r"bundle and .*c.ckpt can't .* source tokenizers differ"):
        load_together([folder, tmp_path / "c.ckpt"])


def test_runs_files_and_bundles_are_found_alone_or_in_lists(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    best = tmp_path / "checkpoints" / "best.ckpt"
    best.touch()
    assert find_trained(run=str(tmp_path)) == [best]
    assert find_trained(run=[str(tmp_path)] * 2) == [best, best]
    assert find_trained(checkpoint="some.ckpt") == [Path("some.ckpt")]
    assert find_trained(checkpoint=["a.ckpt", "b.ckpt"]) == [Path("a.ckpt"), Path("b.ckpt")]
    for given in ({}, {"run": "a", "checkpoint": "b"}, {"run": "a", "bundle": "b"}):
        with pytest.raises(ValueError, match="either run=FOLDER .* or bundle=FOLDER"):
            find_trained(**given)
    with pytest.raises(ValueError, match=r"run=\[\] must be a path or a list of paths"):
        find_trained(run=[])
    with pytest.raises(FileNotFoundError, match=r"bundle=gone is not the folder of a bundle"):
        find_trained(bundle="gone")
