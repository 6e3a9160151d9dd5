"""Translation of lines with a trained run: order, empty lines, n-best, and what it refuses."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig

from seq2seq.checkpoint import find_checkpoint, load_trained
from seq2seq.config import config_folder, register
from seq2seq.train import train
from seq2seq.translate import translate
from seq2seq.translator import Translator

Compose = Callable[..., DictConfig]
LINES = ["3 1 2", "", "7", "1 2 3 4 5 6 7", "   ", "2 unheard"]


@pytest.fixture
def run(compose: Compose) -> Path:
    config = compose("data.longer_size=0")
    train(config)
    return Path(config.run_folder)


def translated(run: Path, tmp_path: Path, *overrides: str, text: bytes | None = None) -> list[str]:
    """Output lines for `text`, or for LINES."""
    source, output = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_bytes("".join(f"{line}\n" for line in LINES).encode() if text is None else text)
    register()
    with hydra.initialize_config_dir(config_folder(), version_base="1.3"):
        files = [f"input={source}", f"output={output}"]
        files = [one for one in files if not any(o[:7] == one[:7] for o in overrides)]
        translate(hydra.compose("translate", [f"run={run}", *files, *overrides]))
    return output.read_text(encoding="utf-8").split("\n")[:-1]


def test_lines_keep_their_order_whatever_the_batches(run: Path, tmp_path: Path) -> None:
    together = translated(run, tmp_path)
    assert len(together) == len(LINES)
    assert together[1] == together[4] == ""
    assert translated(run, tmp_path, "batch_size=1") == together
    trained = load_trained(find_checkpoint(str(run)))
    alone = Translator(**trained._asdict())
    assert together == [next(iter(alone.translate([line.strip()])))[0].text for line in LINES]


@pytest.mark.parametrize("strategy", ["beam_search", "sampling"])
def test_every_line_has_n_best_lines_with_scores(run: Path, tmp_path: Path, strategy: str) -> None:
    options = (f"decoding.strategy={strategy}", "decoding.n_best=3", "scores=true")
    lines = translated(run, tmp_path, *options)
    assert len(lines) == 3 * len(LINES)
    scores = [float(line.split("\t")[0]) for line in lines]
    if strategy == "beam_search":
        assert scores[:3] == sorted(scores[:3], reverse=True)
    assert all(score <= 0 for score in scores)


def test_line_ends_and_byte_order_mark_are_not_text(run: Path, tmp_path: Path) -> None:
    plain = translated(run, tmp_path, text=b"3 1 2\n7\n")
    assert translated(run, tmp_path, text=b"\xef\xbb\xbf3 1 2\r\n7") == plain


def test_standard_input_to_standard_output(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = translated(run, tmp_path)
    text = "".join(f"{line}\n" for line in LINES).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    with hydra.initialize_config_dir(config_folder(), version_base="1.3"):
        translate(hydra.compose("translate", [f"run={run}"]))
    assert capsys.readouterr().out.split("\n")[:-1] == expected


def test_bytes_that_are_not_utf8_are_named_with_their_line(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"in.txt, line 2: byte 0xe9 isn't UTF-8"):
        translated(run, tmp_path, text=b"fine\ncaf\xe9\n")


def test_the_input_is_not_written_over(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"in.txt is the input: it would be emptied"):
        translated(run, tmp_path, f"output={tmp_path / 'in.txt'}")
    assert len((tmp_path / "in.txt").read_text(encoding="utf-8").splitlines()) == len(LINES)


def test_each_line_may_bring_its_prefix(run: Path, tmp_path: Path) -> None:
    text = b"3 1 2\t5 5\n\n7\n1 2\t0\n"
    lines = translated(run, tmp_path, "prefixes=true", text=text)
    assert lines[0].startswith("5 5") and lines[3].startswith("0")
    assert lines[1] == ""
    assert lines[2] == translated(run, tmp_path, text=b"7\n")[0]
    for changed, message in (
        (b"3\n1\tunheard\n", "in.txt, line 2: no translation can begin with 'unheard'"),
        (b"3\t1\t2\n", "in.txt, line 1 has 3 columns: with prefixes=true a line is a source"),
    ):
        with pytest.raises(ValueError, match=message):
            translated(run, tmp_path, "prefixes=true", text=changed)
    with pytest.raises(ValueError, match=r"leave out decoding.prefix"):
        translated(run, tmp_path, "prefixes=true", "decoding.prefix=3")


def test_json_has_all_that_text_has_with_scores_and_alignments(run: Path, tmp_path: Path) -> None:
    beam = ("decoding.strategy=beam_search", "decoding.n_best=2")
    text = translated(run, tmp_path, *beam, "scores=true")
    lines = translated(run, tmp_path, *beam, "format=json", "alignments=true", "batch_size=2")
    found = [json.loads(line) for line in lines]
    assert [one["line"] for one in found] == [1, 2, 3, 4, 5, 6]
    assert [one["source"] for one in found] == [line.strip() for line in LINES]
    for index, one in enumerate(found):
        for rank, best in enumerate(one["translations"]):
            assert f"{best['score']:.4f}\t{best['text']}" == text[2 * index + rank]
            if not one["source"]:
                assert "alignment" not in best
                continue
            assert best["source_tokens"][-1] == "<eos>"
            assert best["target_tokens"] == best["text"].split() + ["<eos>"] * best["finished"]
            length = ((5 + len(best["target_tokens"])) / 6) ** 1.0
            assert best["score"] == pytest.approx(best["log_probability"] / length)
            assert len(best["alignment"]) == len(best["target_tokens"])
            for row in best["alignment"]:
                assert len(row) == len(best["source_tokens"])
                assert sum(row) == pytest.approx(1, abs=1e-4)
    plain = translated(run, tmp_path, "format=json")
    assert set(json.loads(plain[0])["translations"][0]) == {
        *("text", "score", "log_probability", "finished")
    }


def test_lines_keep_their_order_over_several_portions(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = translated(run, tmp_path, "format=json")
    monkeypatch.setattr("seq2seq.translate._LINES_AT_ONCE", 4)
    apart = translated(run, tmp_path, "format=json", "batch_size=3")
    for one, other in zip(map(json.loads, together), map(json.loads, apart), strict=True):
        assert one["line"] == other["line"] and one["source"] == other["source"]
        for first, second in zip(one["translations"], other["translations"], strict=True):
            assert first["text"] == second["text"]
            assert first["score"] == pytest.approx(second["score"], rel=1e-5)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_progress_bar_counts_every_line_and_shows_on_terminals_only(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seq2seq.translate._SECONDS_WITHOUT_BAR", 0.0)
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        translated(run, tmp_path, "batch_size=2")
        assert ("6/6" in stream.getvalue()) == stream.isatty()
        assert bool(stream.getvalue()) == stream.isatty()
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr("seq2seq.translate._SECONDS_WITHOUT_BAR", 60.0)
    translated(run, tmp_path)
    assert "6/6" not in sys.stderr.getvalue()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("format=xml",), "format='xml' must be text or json"),
        (("format=json", "scores=true"), "format=json has scores always"),
        (("alignments=true",), "alignments=true needs format=json"),
        (("decoding.top_k=5",), "decoding.top_k=5 has no meaning with strategy greedy"),
        (("decoding.prefix=unheard",), "'unheard' is not in the target vocabulary"),
    ],
)
def test_a_mistake_is_answered_with_a_sentence(
    run: Path, tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        translated(run, tmp_path, *overrides)
