"""TensorBoard as people see it: a sweep of two runs in Chromium, our content in every tab."""

import itertools
import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

expect = pytest.importorskip("playwright.sync_api").expect

pytestmark = [pytest.mark.slow, pytest.mark.browser]

# Runs whose attention has something to show after a few seconds.
SWEEP = (
    *("data=reverse", "data.train_size=3000", "data.max_length=9", "data.longer_size=0"),
    *("data.validation_size=60", "data.test_size=60", "model=lstm_attention"),
    *("model.hidden_size=32", "model.embedding_size=32", "optimizer.lr=0.01"),
    *("batch.size=50", "trainer.max_epochs=5", "trainer.accelerator=cpu", "threads=1"),
    *("trainer.log_every_n_steps=5", "trainer.enable_progress_bar=false"),
    *("callbacks.gradient_flow.every_n_steps=10", "callbacks.gradient_flow.min_examples=2"),
    *("callbacks.update_ratio.every_n_steps=20", "callbacks.gradient_flow.heat_map_every=6"),
    "initializer.recurrent.gain=0.5,1.5",
    *("hydra.sweep.dir=sweep", "--multirun"),
)
RUNS = ("0_gain=0.5", "1_gain=1.5")
ENCODER = "encoder/layer0/forward"


class Board(NamedTuple):
    """A TensorBoard that serves a sweep.

    Args:
        address: of its page.
        sweep: the sweep's folder.
    """

    address: str
    sweep: Path


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    folder = tmp_path_factory.mktemp("tensorboard")
    command = [sys.executable, "-m", "seq2seq.train", *SWEEP]
    trained = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    serve = ("--logdir", "sweep/tensorboard", "--host", "127.0.0.1", "--port", "0")
    more = ("--samples_per_plugin", "images=100,scalars=5000")
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", *serve, *more],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert server.stdout is not None
        found = (re.search(r"at (http://\S+)", line) for line in server.stdout)
        address = next(match[1].rstrip("/") for match in found if match)
        wait_until_read(address)
        yield Board(address, folder / "sweep")
    finally:
        server.terminate()
        server.wait(timeout=20)


def wait_until_read(address: str) -> None:
    """TensorBoard reads events while it serves: the last of them are the figures of the test."""
    give_up = time.monotonic() + 60
    while True:
        with urllib.request.urlopen(f"{address}/data/plugin/scalars/tags", timeout=20) as answer:
            tags = json.load(answer)
        if all("hp/loss" in tags.get(run, {}) for run in RUNS):
            return
        assert time.monotonic() < give_up, f"TensorBoard has read no more than {tags}"
        time.sleep(0.1)


@pytest.fixture
def tab(board: Board, page: Any) -> Iterator[Any]:
    """Opens a tab of TensorBoard by its name; the page may complain of nothing."""
    complaints: list[str] = []

    def listen(message: Any) -> None:
        if message.type == "error":
            complaints.append(message.text)

    page.on("console", listen)
    page.on("pageerror", lambda error: complaints.append(str(error)))

    def opened(name: str) -> Any:
        page.goto(f"{board.address}/#{name}")
        return page

    yield opened
    assert not complaints


def expect_runs(names: Any) -> None:
    """The runs that can be chosen are called by what was swept."""
    expect(names).to_have_text([re.compile(rf"\s*{re.escape(run)}\s*") for run in RUNS])


def expect_lines(card: Any, count: int) -> None:
    """So many lines are drawn through several points each (pale ones, before smoothing, too)."""
    drawn = card.locator("path.line")
    expect(drawn).not_to_have_count(0)
    through_points = re.compile(r"^M[^L]+L[^L]+L")
    for line in drawn.all()[-count:]:
        expect(line).to_have_attribute("d", through_points)
    assert drawn.count() % count == 0


def test_scalars_hold_the_curves_of_both_runs(tab: Any, shoot: Any) -> None:
    page = tab("scalars")
    found = page.locator("tf-category-paginated-view").first  # what the filter lets through
    expect_runs(page.locator("tf-runs-selector .item-label-container"))
    wanted = ("train/loss", "val/exact_match", f"gradient_flow/{ENCODER}/transport/slope")
    page.locator("tf-tag-filterer input").fill(f"^({'|'.join(wanted)})$")
    for tag in wanted:
        card = found.locator("tf-scalar-card", has_text=f"tag: {tag}")
        expect_lines(card, len(RUNS))
    shoot(page, "tensorboard_scalars")


def test_time_series_hold_curves_and_pictures(tab: Any, shoot: Any) -> None:
    page = tab("timeseries")
    found = page.locator("metrics-filtered-view")
    rows = page.locator("runs-data-table tb-data-table-content-row")
    expect_runs(rows)
    wanted = page.locator("metrics-tag-filter-component input")
    wanted.fill("^(train/loss|val/loss|attention/0)$")
    wanted.press("Escape")  # closes the list of tags that fit
    page.locator("metrics-main-view button", has_text="Settings").first.click()  # closes them
    for tag in ("train/loss", "val/loss"):
        card = found.locator("scalar-card", has_text=re.compile(tag.replace("/", r"\s*/")))
        expect(card.locator("line-chart canvas")).to_be_visible()
        lines = card.locator("tb-data-table-content-row")
        expect(lines).to_have_count(len(RUNS))
        for line, run in zip(lines.all(), RUNS, strict=True):
            expect(line).to_contain_text(re.compile(rf"{re.escape(run)}\s+0?\.\d+"))
    pictures = found.locator("image-card img")
    expect(pictures).to_have_count(len(RUNS))
    expect_loaded(pictures)
    shoot(page, "tensorboard_time_series")


def expect_loaded(pictures: Any) -> None:
    """Images really arrived: what an <img> shows has a size."""
    for picture in pictures.all():
        picture.evaluate("img => img.decode()")
        assert picture.evaluate("img => img.naturalWidth") > 300


def test_images_hold_attention_and_heat_maps(tab: Any, shoot: Any) -> None:
    page = tab("images")
    found = page.locator("tf-category-paginated-view").first  # what the filter lets through
    for tags, name in (
        (["attention/0", "attention/1"], "attention"),
        ([f"gradient_heat_map/{ENCODER}/{state}" for state in ("cell", "hidden")], "heat_maps"),
    ):
        page.locator("tf-tag-filterer input").fill(f"^({'|'.join(tags)})$")
        cards = found.locator("tf-image-loader")
        expect(cards).to_have_count(len(tags) * len(RUNS))
        for card, (tag, run) in zip(cards.all(), itertools.product(tags, RUNS), strict=True):
            expect(card).to_contain_text(f"tag: {tag}")
            expect(card).to_contain_text(run)
        expect_loaded(cards.locator("img"))
        shoot(page, f"tensorboard_images_{name}")


def test_histograms_hold_the_ridges_of_every_layer(tab: Any, shoot: Any) -> None:
    page = tab("histograms")
    layers = ("decoder/layer0", "encoder/layer0/backward", ENCODER)
    cards = page.locator("tf-histogram-loader:visible")
    expect(cards).to_have_count(len(layers) * len(RUNS))
    for card, (layer, run) in zip(cards.all(), itertools.product(layers, RUNS), strict=True):
        expect(card).to_contain_text(f"tag: gradient_ridge/{layer}/hidden")
        expect(card).to_contain_text(run)
        ridges = card.locator("path.outline")
        expect(ridges.nth(10)).to_have_attribute("d", re.compile("^M.+L.+L"))
    shoot(page, "tensorboard_histograms")


def test_hparams_hold_what_was_swept_and_the_test_figures(
    tab: Any, board: Board, shoot: Any
) -> None:
    page = tab("hparams")
    cells = page.locator("tf-hparams-table-view vaadin-grid-cell-content")
    shown = ("loss", "exact_match", "token_accuracy", "bleu", "chrf")
    for number, (run, gain) in enumerate(zip(RUNS, (0.5, 1.5), strict=True)):
        expect(cells.get_by_text(run, exact=True)).to_be_visible()
        expect(cells.get_by_text(f"{gain:#.5g}", exact=True)).to_be_visible()
        figures = json.loads((board.sweep / str(number) / "metrics.json").read_text())
        for figure in shown:
            value = f"{figures[f'test/{figure}']:#.5g}"
            expect(cells.get_by_text(value, exact=True).first).to_be_attached()
    texts = [text.strip() for text in cells.all_inner_texts()]
    headings = ["Trial ID", "Show Metrics", "initializer.recurrent.gain", "seed"]
    headings += [f"hp/{figure}" for figure in shown]
    assert texts[: len(headings)] == headings
    assert not {"-1.0000", "NaN", "hp_metric"} & set(texts)
    shoot(page, "tensorboard_hparams")


def test_text_holds_sample_translations_and_initial_weights(tab: Any, shoot: Any) -> None:
    page = tab("text")
    found = page.locator("tf-category-paginated-view").first  # what the filter lets through
    wanted = page.locator("tf-tag-filterer input")
    wanted.fill("initialization")
    for number in range(len(RUNS)):
        card = found.locator("tf-text-loader").nth(number)
        expect(
            card.locator("td", has_text=re.compile("^encoder.embedding.weight$"))
        ).to_be_visible()
    wanted.fill("samples")
    for number, run in enumerate(RUNS):
        card = found.locator("tf-text-loader").nth(number)
        expect(card).to_contain_text("tag: samples/text_summary")
        expect(card).to_contain_text(run)
        table = card.locator("table table").first  # within the one that shows all steps
        expect(table.locator("th")).to_have_text(["source", "reference", "translation"])
        source, reference, translation = table.locator("td").all_inner_texts()[:3]
        assert reference.split() == source.split()[::-1]
        assert translation.split()
    shoot(page, "tensorboard_text")


def test_custom_scalars_compare_the_runs_chart_by_chart(tab: Any, shoot: Any) -> None:
    page = tab("custom_scalars")
    sections = page.locator("tf-category-paginated-view")
    expect(sections.first).to_contain_text("Compare runs")
    titles = (
        *("training loss", "gradient norm before clipping"),
        *("validation loss", "validation exact match"),
        *(f"transport slope, {layer}" for layer in (ENCODER, "decoder/layer0")),
        "update over weight of the recurrent matrices",
    )
    cards = sections.first.locator("tf-custom-scalar-multi-line-chart-card")
    for title in titles:
        card = cards.filter(has=page.get_by_text(title, exact=True))
        expect(card).to_contain_text(f"Matches ({len(RUNS)})")  # one line for each run
        card.scroll_into_view_if_needed()
        expect_lines(card, len(RUNS))
    for title in ("Gradient flow", "Forward signal", "Optimizer step"):
        expect(sections.filter(has_text=title)).not_to_have_count(0)
    page.locator("tf-custom-scalar-multi-line-chart-card").first.scroll_into_view_if_needed()
    shoot(page, "tensorboard_custom_scalars")
