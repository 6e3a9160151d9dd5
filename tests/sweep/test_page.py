"""The page of a report, read back from its HTML."""

import itertools
import re
import shlex
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from seq2seq.sweep.evidence import gather
from seq2seq.sweep.page import choose_metric, quoted, write_report
from seq2seq.sweep.plan import SweepPlan, write_plan

MakeRun = Callable[..., Path]

DIVERGED = {
    "status": "diverged",
    "seconds": 1.0,
    "step": 37,
    "tensor": "encoder.weight",
    "reason": "training diverged: the gradient of encoder.weight is NaN",
}
FAILED = {
    "status": "failed",
    "seconds": 0.5,
    "reason": "no <b>file</b> there\nsecond line",
    "traceback": "Traceback: <script>",
}


class Parsed(HTMLParser):
    """Everything that a test asks of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in ("meta", "img", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"{tag} is closed, but not the last one opened"

    def handle_data(self, data: str) -> None:
        if {"style", "script"} & set(self._open):
            return
        self.text += data
        if {"td", "th"} & set(self._open):
            row = self.tables[-1][-1]
            row[-1] = f"{row[-1]} {data}".strip()

    def words(self) -> str:
        return " ".join(self.text.split())


def parsed(page: Path) -> Parsed:
    return Parsed(page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a sweep of three gains and two cells with two seeds, some of whose runs were lost."""
    folder = tmp_path_factory.mktemp("multirun") / "scale & cell"
    grid = itertools.product((0.5, 1.0, 2.0), ("gru", "rnn"), (1, 2))
    lost = {(2.0, "rnn", 1): DIVERGED, (2.0, "rnn", 2): DIVERGED, (2.0, "gru", 2): FAILED}
    for number, (gain, cell, seed) in enumerate(grid):
        status = lost.get((gain, cell, seed))
        make_run(
            folder / str(number),
            {
                "experiment": "'a b'",
                "initializer.recurrent.gain": gain,
                "model": cell,
                "seed": seed,
            },
            loss=None if status else abs(gain - 1) + 0.1 * seed + (cell == "rnn"),
            status=status,
            curve={10: 3.0 + seed, 20: 2.0 + seed} if status is not FAILED else None,
            slope=gain - 1.25,
        )
    (folder / "0" / "metrics.json").write_text('{"test/loss":')
    write_plan(folder, SweepPlan("seq2seq-train", (), ("model",), 18, ".", {}))
    return write_report([folder], metric=None, output=None)


def test_the_page_needs_nothing_but_itself_and_the_files_beside_it(page: Path) -> None:
    assert page.parent.name == "report" and page.name == "index.html"
    html = page.read_text(encoding="utf-8")
    assert "://" not in re.sub(r'"data:[^"]*"', "", html)
    linked = set()
    for tag, attributes in parsed(page).tags:
        assert tag != "link" and not (tag == "script" and "src" in attributes)
        if tag == "img":
            assert attributes["src"].startswith("data:image/svg+xml;base64,")
            assert len(attributes["alt"]) > 20
        if tag == "a" and not attributes["href"].startswith("#"):
            linked.add(attributes["href"])
            assert (page.parent / attributes["href"]).stat().st_size > 0
    figures = ("sweet_spot", "metric_by_key", "importance", "curves", "gradient_norm")
    assert linked >= {f"{name}.{kind}" for name in figures for kind in ("png", "csv")}
    assert linked >= {"runs.csv", "combinations.csv"}


def test_the_headline_counts_the_runs_and_says_how_long_they_took(page: Path) -> None:
    words = parsed(page).words()
    assert "12 runs: 8 finished, 2 diverged, 1 damaged, 1 failed." in words
    assert "18 runs are planned, 12 have begun." in words
    assert f"To go on: seq2seq-train -m 'sweep.resume={page.parents[1]}'" in words
    assert "The runs that did not fail took 20 s in all, 2 s each (median)." in words


def test_the_best_run_is_told_with_a_command_that_a_shell_takes(page: Path) -> None:
    parser = parsed(page)
    best = "Best test/loss: 0.15 ± 0.071 (mean and standard deviation of 2 seeds) with gain 1"
    assert best in parser.words()
    command = re.search(r"seq2seq-train hydra.*", parser.text)
    assert command is not None
    assert shlex.split(command[0]) == [
        *("seq2seq-train", "hydra.mode=RUN", "experiment='a b'"),
        *("initializer.recurrent.gain=1.0", "model=gru", "seed=1"),
    ]
    assert "with the others at their best: gain 1 (0.15)" in parser.words()
    assert "; model gru (0.15), " in parser.words()


def test_the_table_over_seeds_has_means_deviations_and_what_was_lost(page: Path) -> None:
    header, *rows = parsed(page).tables[0]
    assert header == [
        "gain",
        "model",
        "test/loss",
        "runs",
        "diverged",
        "failed",
        "damaged",
        "slope",
    ]
    assert rows[0] == ["1", "gru", "0.15 ± 0.071", "2", "0", "0", "0", "-0.25"]
    assert ["0.5", "gru", "0.7", "2", "0", "0", "1", "-0.75"] in rows
    assert ["2", "gru", "1.1", "2", "0", "1", "0", "0.75"] in rows
    assert rows[-1] == ["2", "rnn", "–", "2", "2", "0", "0", "0.75"]


def test_the_table_of_runs_says_why_a_run_was_lost(page: Path) -> None:
    header, *rows = parsed(page).tables[-1]
    assert header[:5] == ["run", "status", "gain", "model", "seed"]
    assert [row[0] for row in rows] == [str(number) for number in range(12)]
    assert rows[0][1].startswith("damaged metrics.json, line 1: ")
    assert rows[9][1] == "failed no <b>file</b> there Traceback: <script>"
    assert rows[10][1].startswith("diverged at step 37: encoder.weight training diverged: ")
    assert rows[1][1] == "finished"


def test_numbers_are_sorted_as_numbers(page: Path) -> None:
    cells = [attributes for tag, attributes in parsed(page).tags if tag == "td"]
    assert all("data-value" in attributes for attributes in cells)
    assert {"0.5", "gru", ""} <= {attributes["data-value"] for attributes in cells}


def test_it_can_be_written_again_and_the_report_is_no_run(
    make_run: MakeRun, tmp_path: Path
) -> None:
    make_run(tmp_path / "0", {"seed": 1}, loss=1.0)
    pages = [write_report([tmp_path], metric=None, output=None) for _ in range(2)]
    assert pages[0] == pages[1]
    assert len(parsed(pages[1]).tables[-1]) == 2


def test_another_metric_turns_the_ranking_if_more_is_better(
    make_run: MakeRun, tmp_path: Path
) -> None:
    for number in range(2):
        make_run(tmp_path / str(number), {"optimizer.lr": number}, loss=number)
    output = tmp_path / "deep" / "page.html"
    assert write_report([tmp_path], metric="test/exact_match", output=output) == output
    assert "Best test/exact_match: 1 with lr 0." in parsed(output).words()
    assert (output.parent / "metric_by_key.png").is_file()


def test_an_unknown_metric_is_refused_with_the_choices(page: Path) -> None:
    with pytest.raises(ValueError, match=r"choose one of test/exact_match, test/loss$"):
        choose_metric(gather([page.parents[1]]).evidence, "test/lss")


def test_the_metric_is_what_the_sweep_was_to_make_better(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(tmp_path / "0", {"seed": 1}, loss=1.0, objective="test/exact_match")
    assert choose_metric(gather([tmp_path]).evidence, None) == "test/exact_match"


def test_a_sweep_of_which_every_run_was_lost_has_a_page(make_run: MakeRun, tmp_path: Path) -> None:
    for number in range(3):
        status = FAILED if number else DIVERGED
        make_run(tmp_path / str(number), {"optimizer.lr": number}, status=status)
    words = parsed(write_report([tmp_path], metric=None, output=None)).words()
    assert "3 runs: 2 failed, 1 diverged." in words
    assert "No run has test/loss, as none has finished." in words
    assert "Training curves: No run has logged a loss." in words
    assert "yet" not in words
    with pytest.raises(ValueError, match="no run has any figures yet; leave it out"):
        write_report([tmp_path], metric="test/loss", output=None)


def test_a_single_run_has_a_page_without_what_needs_several(
    make_run: MakeRun, tmp_path: Path
) -> None:
    folder = make_run(tmp_path / "run", {"model": "gru"}, loss=1.5, curve={1: 2.0}, slope=-0.5)
    parser = parsed(write_report([folder], metric=None, output=tmp_path / "out"))
    assert "1 run: 1 finished. The run took 2 s." in parser.words()
    assert "What matters how much: The runs differ in nothing but their seed." in parser.words()
    assert len(parser.tables) == 1
    assert (tmp_path / "out" / "index.html").is_file()


def test_several_sweeps_are_joined_and_the_best_of_each_is_told(
    make_run: MakeRun, tmp_path: Path
) -> None:
    for sweep, shift in (("a", 0.0), ("b", 1.0)):
        for number, gain in enumerate((0.5, 1.0)):
            overrides = {"initializer.recurrent.gain": gain, "optimizer.lr": shift}
            loss = shift + abs(gain - 0.5 - shift / 2)
            make_run(tmp_path / sweep / str(number), overrides, loss=loss)
    output = tmp_path / "both"
    page = write_report([tmp_path / "a", tmp_path / "b"], metric=None, output=output)
    parser = parsed(page)
    best, runs = parser.tables
    assert (
        "Lowest test/loss of all: 0 with sweep a, gain 0.5. Values compare only" in parser.words()
    )
    assert "sweep a: gain 0.5 (0), 1 (0.5). sweep b: gain 1 (1), 0.5 (1.5)." in parser.words()
    rows = [attributes.get("class") for tag, attributes in parser.tags if tag == "tr"]
    assert [name == "best" for name in rows[-4:]] == [True, False, False, True]
    assert best == [["sweep", "gain", "test/loss"], ["a", "0.5", "0"], ["b", "1", "1"]]
    assert [row[0] for row in runs] == ["run", "a/0", "a/1", "b/0", "b/1"]
    assert "They also differ in optimizer.lr." in parser.words()


def test_single_runs_are_compared_by_name(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / name, {"optimizer.lr": lr}, loss=lr)
        for name, lr in (("a", 1), ("b", 2))
    ]
    words = parsed(write_report(runs, metric=None, output=None)).words()
    assert "Best test/loss: 1 with sweep a. Run a again:" in words


def test_what_is_easiest_is_not_called_best(make_run: MakeRun, tmp_path: Path) -> None:
    for number, data in enumerate(("copy", "reverse")):
        make_run(tmp_path / str(number), {"data": data}, loss=number + 1.0)
    words = parsed(write_report([tmp_path], metric=None, output=None)).words()
    assert (
        "Lowest test/loss of all: 1 with data copy. Values compare only within one data." in words
    )
    assert "Best" not in words


def test_runs_that_were_only_measured_have_a_page_about_their_gradient(
    make_run: MakeRun, tmp_path: Path
) -> None:
    for number, gain in enumerate((0.5, 1.0, 2.0)):
        folder = make_run(
            tmp_path / str(number), {"initializer.recurrent.gain": gain}, slope=gain - 1.25
        )
        hydra = folder / ".hydra" / "hydra.yaml"
        hydra.write_text(hydra.read_text().replace("seq2seq-train", "seq2seq-inspect"))
    page = write_report([tmp_path], metric=None, output=None)
    words = parsed(page).words()
    assert "The runs were measured, not trained: none has test/loss." in words
    assert "The gradient before training" in words and (page.parent / "slope.png").is_file()
    assert not any(word in words for word in ("yet", "inspect=true", "What is not shown"))


def test_runs_with_one_seed_are_no_repetitions(make_run: MakeRun, tmp_path: Path) -> None:
    for number in range(2):
        make_run(tmp_path / str(number), {"optimizer.lr": 1}, loss=2.0)
    words = parsed(write_report([tmp_path], metric=None, output=None)).words()
    assert "Best test/loss: 2 (mean of 2 runs with the same seed)." in words
    assert "Runs with the same settings and the same seed, together: mean of test/loss" in words
    assert "Over seeds" not in words and "±" not in words


def test_null_is_a_value_and_a_loss_keeps_its_digits(make_run: MakeRun, tmp_path: Path) -> None:
    for number, clip in enumerate((None, 1.0)):
        overrides = {"trainer.gradient_clip_val": clip}
        make_run(tmp_path / str(number), overrides, loss=2.9996 - number / 1e4)
    parser = parsed(write_report([tmp_path], metric=None, output=None))
    assert "trainer.gradient_clip_val: 1, null" in parser.words()
    assert "None" not in parser.words()
    assert [row[2:4] for row in parser.tables[-1][1:]] == [["null", "2.9996"], ["1", "2.9995"]]


def test_the_command_at_the_foot_writes_the_same_page_again(
    make_run: MakeRun, tmp_path: Path
) -> None:
    make_run(tmp_path / "0", {"seed": 1}, loss=1.0)
    output = tmp_path / "a b"
    parser = parsed(write_report([tmp_path], metric="test/exact_match", output=output))
    command = ["seq2seq-report", str(tmp_path), "--metric", "test/exact_match"]
    assert shlex.split(parser.text.rpartition(": ")[2])[:6] == [*command, "--output", str(output)]


def test_a_damaged_plan_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(tmp_path / "0", {"seed": 1}, loss=1.0)
    write_plan(tmp_path, SweepPlan("seq2seq-train", (), ("seed",), 2, ".", {}))
    plan = tmp_path / "sweep.json"
    plan.write_text(plan.read_text().replace('"jobs": 2', '"jobs": "a"'))
    words = parsed(write_report([tmp_path], metric=None, output=None)).words()
    assert f"Sweep {tmp_path.name}: sweep.json is damaged" in words


@pytest.mark.parametrize("text", ["a=1", "a='b c'", "a=$HOME 'x'", "a=[1,2]", 'a="b"', "a='!x y'"])
def test_a_shell_gives_back_what_was_quoted(text: str) -> None:
    assert shlex.split(quoted(text)) == [text]
