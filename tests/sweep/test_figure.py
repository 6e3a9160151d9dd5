"""The picture of a sweep, read back from what matplotlib was told to draw."""

import io
import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from seq2seq.sweep.figure import draw
from seq2seq.sweep.runs import Run


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that was saved."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, *args: Any, **kwargs: Any) -> None:
        figures.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def run(
    gain: float, scheme: str, seed: int, loss: float | None, profile: tuple[float, ...] = ()
) -> Run:
    overrides = {"gain": gain, "scheme": scheme, "seed": seed}
    status = "finished" if loss is not None else "diverged"
    return Run(Path(str(seed)), overrides, {"status": status, "test/loss": loss}, profile)


RUNS = [
    *(run(1.0, "normal", 1, 2.0), run(1.0, "normal", 2, 8.0), run(0.5, "normal", 1, 1.0)),
    *(run(2.0, "normal", 1, None), run(1.0, "orthogonal", 1, 0.5)),
]


def test_a_line_is_the_mean_over_seeds_in_the_order_of_the_axis(drawn: list[Figure]) -> None:
    png = draw(RUNS, kind="lines", x="gain", y=["test/loss"], lines="scheme")
    (axes,) = drawn[0].axes
    normal, lost, orthogonal, *_ = axes.lines
    assert (list(normal.get_xdata()), list(normal.get_ydata())) == ([0.5, 1.0], [1.0, 5.0])
    assert (list(lost.get_xdata()), lost.get_marker()) == ([2.0], "x")
    assert list(orthogonal.get_ydata()) == [0.5]
    with Image.open(io.BytesIO(png)) as picture:
        width, height = picture.size
    assert width > height > 300


def test_on_a_logarithmic_axis_the_mean_is_geometric(drawn: list[Figure]) -> None:
    draw(RUNS, kind="lines", x="gain", y=["test/loss"], lines="scheme", logarithmic=["test/loss"])
    (axes,) = drawn[0].axes
    assert list(axes.lines[0].get_ydata()) == pytest.approx([1.0, 4.0])
    assert axes.get_yscale() == "log"


def test_a_run_that_failed_has_a_mark_of_its_own_at_the_upper_edge(drawn: list[Figure]) -> None:
    failed = Run(Path("9"), {"gain": 2.0, "scheme": "normal"}, {"status": "failed"}, ())
    draw([*RUNS, failed], kind="lines", x="gain", y=["test/loss"])
    (axes,) = drawn[0].axes
    assert [(line.get_marker(), list(line.get_xdata())) for line in axes.lines[1:]] == [
        ("x", [2.0]),
        ("+", [2.0]),
    ]


def test_numbers_on_a_logarithmic_axis_do_not_overlap(drawn: list[Figure]) -> None:
    runs = [run(gain, "normal", 1, 1.0) for gain in (0.1, 0.3, 1.0, 1.1, 3.0, 10.0)]
    draw(runs, kind="lines", x="gain", y=["test/loss"], logarithmic=["gain"])
    (axes,) = drawn[0].axes
    shown = [label.get_text() for label in axes.get_xticklabels()]
    assert shown == ["0.1", "0.3", "1", "", "3", "10"]


def test_panels_and_rows_make_a_grid(drawn: list[Figure]) -> None:
    draw(RUNS, kind="lines", x="gain", y=["test/loss", "seed"], panels="scheme")
    assert len(drawn[0].axes) == 4


def test_a_matrix_holds_the_means_and_leaves_out_what_is_unknown(drawn: list[Figure]) -> None:
    draw(RUNS, kind="matrix", x="gain", y=["test/loss"], lines="scheme")
    (axes,) = drawn[0].axes
    assert [[text.get_text() for text in axes.texts][i : i + 3] for i in (0, 3)] == [
        ["1", "5", "-"],
        ["-", "0.5", "-"],
    ]


def test_a_profile_is_the_geometric_mean_of_the_shares_left(drawn: list[Figure]) -> None:
    runs = [run(1.0, "normal", seed, 1.0, (1.0, share)) for seed, share in ((1, 0.1), (2, 0.4))]
    draw(runs, kind="profile", lines="scheme")
    (axes,) = drawn[0].axes
    assert list(axes.lines[0].get_ydata()) == pytest.approx([1.0, math.sqrt(0.04)])


@pytest.mark.parametrize(
    ("figure", "sentence"),
    [
        ({"kind": "pie"}, "figure.kind=pie must be one of lines, matrix, profile"),
        ({"kind": "lines"}, "needs figure.x"),
        ({"kind": "matrix", "x": "gain", "y": ["test/loss"]}, "needs figure.lines"),
        ({"kind": "profile"}, "inspect=true"),
        ({"kind": "lines", "x": "gain", "y": ["scheme"]}, "figure.y=scheme holds no numbers"),
        (
            {"kind": "lines", "x": "gain", "y": ["test/loss"], "logarithmic": ["seed"]},
            "figure.logarithmic=seed is neither",
        ),
        (
            {"kind": "lines", "x": "gian", "y": ["test/loss"]},
            "figure.x=gian is known of no run; choose one of gain, scheme, seed, status, test/loss",
        ),
    ],
)
def test_a_mistake_is_named(figure: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        draw(RUNS, **figure)


def test_a_logarithmic_axis_needs_values_above_zero() -> None:
    runs = [run(gain, "normal", 1, 1.0) for gain in (0.0, 1.0)]
    with pytest.raises(ValueError, match=r"figure.logarithmic=gain: some values are not above 0"):
        draw(runs, kind="lines", x="gain", y=["test/loss"], logarithmic=["gain"])


def test_the_legend_knows_the_lines_of_every_panel(drawn: list[Figure]) -> None:
    runs = [run(1.0, "normal", 1, 1.0), run(2.0, "orthogonal", 2, 1.0), run(3.0, "lost", 3, None)]
    draw(runs, kind="lines", x="gain", y=["test/loss"], lines="scheme", panels="seed")
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["normal", "orthogonal", "lost"]
