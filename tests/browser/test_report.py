"""A report as people use it: in Chromium, from a file, on a wide screen, a phone and paper."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seq2seq.sweep.page import write_report

pytestmark = [pytest.mark.slow, pytest.mark.browser]

MakeRun = Callable[..., Path]
Shoot = Callable[[Any, str], None]


@pytest.fixture(scope="module")
def address(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a page about six gains, two cells and two seeds."""
    folder = tmp_path_factory.mktemp("sweep")
    grid = itertools.product((0.5, 0.8, 1.0, 1.2, 1.5, 20.0), ("gru", "rnn"), (1, 2))
    for number, (gain, cell, seed) in enumerate(grid):
        lost = gain == 20
        status = {"status": "failed", "seconds": 1, "reason": "no memory", "traceback": "Traced"}
        make_run(
            folder / str(number),
            {"initializer.recurrent.gain": gain, "model": cell, "seed": seed},
            loss=None if lost else abs(gain - 1) + 0.1 * seed + (cell == "rnn"),
            status=status if lost else None,
            curve={step: 3 / (1 + step / 50) + gain / 10 for step in range(0, 300, 20)},
            slope=(gain - 1.25) / 4,
        )
    return write_report([folder], metric=None, output=None).as_uri()


@pytest.fixture
def report(page: Any, address: str) -> Any:
    """The page, which may ask for nothing beyond itself and say nothing of errors."""
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    yield page
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [address]
    assert not errors


def column(page: Any, index: int) -> list[str]:
    cells = page.locator(f"#runs tbody tr td:nth-child({index})")
    return [text.split()[0] for text in cells.all_inner_texts()]


def test_every_figure_is_seen(report: Any, shoot: Shoot) -> None:
    for name in ("sweet-spot", "metric", "importance", "curves", "gradient"):
        section = report.locator(f"#{name}")
        assert section.locator("h2").is_visible()
        for image in section.locator("img").all():
            width, height = image.evaluate("image => [image.naturalWidth, image.naturalHeight]")
            assert width > 200 and height > 30
    report.set_viewport_size({"width": 1200, "height": 5000})
    shoot(report, "report")


def test_a_click_on_a_heading_sorts_the_runs_as_numbers(report: Any) -> None:
    heading = report.locator("#runs th", has_text="test/loss")
    place = 1 + report.locator("#runs th").all_inner_texts().index(heading.inner_text())
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    losses = column(report, place)
    known = [float(loss) for loss in losses if loss != "–"]
    assert known == sorted(known) and len(known) == 20
    assert losses[20:] == ["–"] * 4  # what is unknown stays last
    heading.get_by_role("button").press("Enter")
    falling = [float(loss) for loss in column(report, place) if loss != "–"]
    assert falling == sorted(known, reverse=True)
    assert column(report, place)[20:] == ["–"] * 4
    number = report.locator("#runs th", has_text="run").first
    number.get_by_role("button").click()
    assert column(report, 1) == [str(index) for index in range(24)]


def test_the_command_is_copied_from_a_page_in_a_file(report: Any) -> None:
    report.context.grant_permissions(["clipboard-read", "clipboard-write"])
    report.get_by_role("button", name="Copy").click()
    report.get_by_role("button", name="Copied").wait_for()
    copied = report.evaluate("navigator.clipboard.readText()")
    assert copied == (
        "seq2seq-train hydra.mode=RUN initializer.recurrent.gain=1.0 model=gru seed=1"
    )


def test_a_traceback_is_shown_on_demand(report: Any) -> None:
    traceback = report.get_by_text("Traced").first
    assert not traceback.is_visible()
    report.locator("#runs summary", has_text="no memory").first.click()
    assert traceback.is_visible()


def test_nothing_is_wider_than_a_phone(report: Any, shoot: Shoot) -> None:
    report.set_viewport_size({"width": 390, "height": 844})
    assert report.evaluate("document.documentElement.scrollWidth") <= 390
    table = report.locator("#runs .scroll")
    inner, outer = table.evaluate("box => [box.scrollWidth, box.clientWidth]")
    assert inner > outer  # it scrolls inside its box
    for image in report.locator("img").all():
        assert image.bounding_box()["width"] <= 390
    report.set_viewport_size({"width": 390, "height": 7000})
    shoot(report, "report_on_a_phone")


def test_without_scripts_the_tables_are_plain(browser: Any, address: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    assert page.locator("#runs tbody tr").count() == 24
    assert page.get_by_role("button").count() == 0
    context.close()


def test_on_paper_there_are_no_buttons_and_no_table_is_cut(report: Any) -> None:
    report.emulate_media(media="print")
    report.set_viewport_size({"width": 700, "height": 1000})  # A4 within its margins
    assert not report.get_by_role("button", name="Copy").is_visible()
    assert not report.get_by_role("navigation").is_visible()
    assert report.evaluate("document.documentElement.scrollWidth") <= 700
    assert report.pdf(format="A4").startswith(b"%PDF")
