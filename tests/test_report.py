"""`seq2seq-report` as it is typed: what it answers, and how quickly."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from seq2seq.report import main

MakeRun = Callable[..., Path]


def test_it_writes_the_page_and_prints_where_it_is(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "sweep" / "0", {"seed": 1}, loss=1.0)
    main([str(tmp_path / "sweep")])
    page = tmp_path / "sweep" / "report" / "index.html"
    assert capsys.readouterr().out == f"{page}\n"
    assert page.is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["missing"], "error: missing: there is no such folder"),
        (["file"], "error: file is a file: name the folder of a sweep or of a run"),
        (["empty"], "error: empty holds no runs: there is no .hydra/overrides.yaml below it"),
        (
            ["sweep", "--metric", "test/lss"],
            "error: --metric test/lss is a figure of no run; choose one of "
            "test/exact_match, test/loss",
        ),
        (["sweep", "--output", "file/page.html"], "error: --output: file is a file, not a folder"),
    ],
)
def test_a_mistake_is_answered_with_a_sentence(
    make_run: MakeRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("file").touch()
    make_run(tmp_path / "sweep" / "0", {"seed": 1}, loss=1.0)
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == sentence


def test_it_starts_without_torch(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(tmp_path / "0", {"seed": 1}, loss=1.0, curve={1: 1.0}, slope=-0.5)
    code = (
        "import sys; from seq2seq.report import main; main([sys.argv[1]]);"
        "print([name for name in ('torch', 'lightning') if name in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert answer.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_a_sweep_that_was_trained_has_every_figure(tmp_path: Path) -> None:
    overrides = (
        *("data=copy", "data.train_size=400", "data.longer_size=0", "data.test_size=20"),
        *("data.min_length=8", "data.max_length=8", "model=rnn", "model.hidden_size=16"),
        *("trainer=short", "trainer.max_steps=12", "trainer.log_every_n_steps=2", "threads=1"),
        *("callbacks.gradient_flow.every_n_steps=4", "batch.size=20", "inspect=true"),
        *("initializer.recurrent.gain=0.5,1,1.5", "seed=1,2", "hydra.sweep.dir=sweep", "-m"),
    )
    for command in (("seq2seq.train", *overrides), ("seq2seq.report", "sweep")):
        subprocess.run([sys.executable, "-m", *command], cwd=tmp_path, check=True)
    report = tmp_path / "sweep" / "report"
    figures = ("sweet_spot", "metric_by_key", "importance", "curves", "gradient_norm")
    assert {f"{name}.png" for name in figures} <= {path.name for path in report.iterdir()}
    assert "6 runs: 6 finished." in (report / "index.html").read_text()
