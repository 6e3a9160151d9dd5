"""The figures of a report, read back from what matplotlib was told to draw, and their files."""

import csv
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from seq2seq.sweep.combinations import combine, varied
from seq2seq.sweep.curve_figure import curves
from seq2seq.sweep.evidence import Evidence, gather
from seq2seq.sweep.gradient_figure import gradient_heat_maps
from seq2seq.sweep.importance import importance
from seq2seq.sweep.metric_figures import (
    evenly_on_logarithm,
    importance_figure,
    metric_by_key,
    sweet_spot,
)
from seq2seq.sweep.picture import Picture
from seq2seq.sweep.runs import Run

MakeRun = Callable[..., Path]

LOSS = "test/loss"
DIVERGED = {"status": "diverged", "seconds": 1.0, "step": 20, "tensor": "loss", "reason": "loss"}


@pytest.fixture(scope="module")
def runs(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[Evidence, ...]:
    """Three gains, two cells, two seeds; the loss is |gain - 1| + 0.1 seed, 1 more for the RNN."""
    folder = tmp_path_factory.mktemp("sweep")
    grid = itertools.product((0.5, 1.0, 2.0), ("gru", "rnn"), (1, 2))
    for number, (gain, cell, seed) in enumerate(grid):
        lost = (gain, cell) == (2.0, "rnn")
        make_run(
            folder / str(number),
            {"initializer.recurrent.gain": gain, "model": cell, "seed": seed},
            loss=None if lost else abs(gain - 1) + 0.1 * seed + (cell == "rnn"),
            status=DIVERGED if lost else None,
            curve={10: 3.0 + seed, 20: 2.0 + seed},
            slope=gain - 1.25,
        )
    return gather([folder]).evidence


def drawn(picture: Picture, panel: int = 0) -> list[Axes]:
    figure = Figure()
    picture.panels[panel].draw(figure)
    return figure.axes


def points(axes: Axes, index: int) -> list[tuple[float, float]]:
    line = axes.lines[index]
    return [(float(x), float(y)) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]


def combined(runs: Sequence[Evidence]) -> tuple[list[str], list]:
    keys = varied(runs)[0]
    return keys, combine(runs, keys, LOSS)


def test_the_metric_over_a_key_has_a_point_a_run_and_their_means(
    runs: tuple[Evidence, ...],
) -> None:
    picture = metric_by_key(runs, combined(runs)[1], LOSS)
    assert [panel.alt.split()[5] for panel in picture.panels] == [
        "initializer.recurrent.gain,",
        "model,",
    ]
    (axes,) = drawn(picture)
    assert len(points(axes, 0)) == 10
    assert points(axes, 1) == [
        (0.5, pytest.approx(1.15)),
        (1.0, pytest.approx(0.65)),
        (2.0, pytest.approx(1.15)),
    ]
    assert axes.lines[2].get_marker() == "x" and [x for x, _ in points(axes, 2)] == [2.0, 2.0]
    assert axes.lines[1].get_linestyle() == "-"
    (names,) = drawn(picture, 1)
    assert names.lines[1].get_linestyle() == "None"  # between names nothing lies
    assert "a cross is a run that diverged" in picture.caption


def test_the_sweet_spot_shows_metric_and_slope_over_the_number_that_moves_the_slope(
    runs: tuple[Evidence, ...],
) -> None:
    picture = sweet_spot(runs, combined(runs)[1], LOSS)
    assert picture is not None
    above, below = drawn(picture)
    gru = [(0.5, pytest.approx(0.65)), (1.0, pytest.approx(0.15)), (2.0, pytest.approx(1.15))]
    assert points(above, 0) == gru
    slopes = [(0.5, pytest.approx(-0.75)), (1.0, pytest.approx(-0.25)), (2.0, pytest.approx(0.75))]
    assert points(below, 0) == slopes
    assert points(below, 1) == slopes  # that of runs that diverged is known all the same
    assert [label for _, label in picture.swatches] == ["gru", "rnn"]
    assert "at the best gain, 1." in picture.caption


def test_without_a_slope_there_is_no_sweet_spot(make_run: MakeRun, tmp_path: Path) -> None:
    for number, gain in enumerate((1, 2)):
        make_run(tmp_path / str(number), {"initializer.recurrent.gain": gain}, loss=1.0)
    found = gather([tmp_path]).evidence
    assert sweet_spot(found, combined(found)[1], LOSS) is None


def test_curves_are_means_over_seeds_with_a_cross_where_a_run_diverged(
    runs: tuple[Evidence, ...],
) -> None:
    keys, combinations = combined(runs)
    picture = curves(combinations, keys)
    assert picture is not None
    (axes,) = drawn(picture)
    assert points(axes, 0) == [(10, 4.5), (20, 3.5)]
    assert len(axes.collections) == 6  # a band each
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert sorted(float(line.get_ydata()[0]) for line in crosses) == [3.0, 4.0]
    assert picture.swatches[0][1] == "0.5, gru"


def many(count: int) -> tuple[Evidence, ...]:
    """Runs of a search, with long curves."""
    curve = {step: {"train/loss": 3 - step / 1000} for step in range(1000)}
    return tuple(
        Evidence(
            Run(
                Path(f"{index}"),
                {"optimizer.lr": 10 ** (-index / 10), "model": ("gru", "rnn")[index % 2]},
                {"status": "finished", LOSS: 1.0 + index},
                (),
            ),
            name=f"{index}",
            curves=curve,
        )
        for index in range(count)
    )


def test_many_curves_are_coloured_by_the_number_that_was_swept() -> None:
    runs = many(30)
    keys, combinations = combined(runs)
    picture = curves(combinations, keys)
    assert picture is not None and not picture.legend
    assert picture.scale is not None and picture.scale_label == "optimizer.lr"
    assert [panel.title for panel in picture.panels] == ["model gru", "model rnn"]
    (axes,) = drawn(picture)
    assert len(axes.lines) == 15 and len({line.get_color() for line in axes.lines}) == 15
    assert len(axes.lines[0].get_xdata()) <= 300
    assert len(picture.rows) == 30 * 1000  # the data are whole


def test_without_a_logged_loss_there_are_no_curves(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(tmp_path / "0", {"seed": 1}, loss=1.0)
    found = gather([tmp_path]).evidence
    assert curves(combined(found)[1], []) is None


def test_heat_maps_have_the_same_colours_and_name_the_best_and_the_worst_run(
    runs: tuple[Evidence, ...],
) -> None:
    keys, combinations = combined(runs)
    picture = gradient_heat_maps(runs, combinations, keys, metric=LOSS)
    assert picture is not None
    titles = [panel.title.replace("\n", " ") for panel in picture.panels]
    assert "gain 1, model gru (best)" in titles
    assert "gain 0.5, model rnn (worst)" in titles
    assert "gain 2, model rnn (diverged)" in titles
    assert len(titles) == len(set(titles)) == 6
    ranges = set()
    for index, panel in enumerate(picture.panels):
        (axes,) = drawn(picture, index)
        (mesh,) = axes.collections
        ranges.add((mesh.norm.vmin, mesh.norm.vmax))
        if "best" in panel.title:  # distance 11 at slope -0.25
            assert float(mesh.get_array()[11, 0]) == pytest.approx(-0.25 * 11 / math.log(10))
    assert len(ranges) == 1


def test_no_more_than_eight_heat_maps_are_spread_over_the_number_that_was_swept(
    make_run: MakeRun, tmp_path: Path
) -> None:
    for number in range(20):
        make_run(tmp_path / str(number), {"optimizer.lr": number}, loss=5.0, slope=-0.1)
    found = gather([tmp_path]).evidence
    keys, combinations = combined(found)
    picture = gradient_heat_maps(found, combinations, keys, metric=LOSS)
    assert picture is not None
    chosen = [int(panel.title.split()[1]) for panel in picture.panels]
    assert len(chosen) == 8 and chosen == sorted(chosen)
    assert {0, 19} <= set(chosen) and max(np.diff(chosen)) <= 4


def test_importance_has_a_bar_for_each_key_and_one_for_the_seed(
    runs: tuple[Evidence, ...],
) -> None:
    known = [one for one in runs if one.status == "finished"]
    settings = [one.run.overrides for one in known]
    found = importance(settings, [one.run.columns[LOSS] for one in known], combined(runs)[0])
    picture = importance_figure(found, LOSS, left_out=2)
    (axes,) = drawn(picture)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert sorted(labels[:2]) == ["gain", "model"]
    assert labels[2:] == ["seed (noise)", "in combination"]
    assert sum(bar.get_width() for bar in axes.patches) == pytest.approx(100)
    assert "Left out: 2 runs" in picture.caption


def test_each_figure_leaves_a_picture_and_its_data(
    runs: tuple[Evidence, ...], tmp_path: Path
) -> None:
    keys, combinations = combined(runs)
    found = importance([one.run.overrides for one in runs[:10]], list(range(1, 11)), keys)
    pictures = [
        metric_by_key(runs, combinations, LOSS),
        sweet_spot(runs, combinations, LOSS),
        curves(combinations, keys),
        gradient_heat_maps(runs, combinations, keys, metric=LOSS),
        importance_figure(found, LOSS, left_out=0),
    ]
    for picture in pictures:
        assert picture is not None
        picture.write(tmp_path)
        with Image.open(tmp_path / f"{picture.name}.png") as image:
            assert min(image.size) > 300
        with (tmp_path / f"{picture.name}.csv").open(newline="") as file:
            header, *rows = csv.reader(file)
        assert tuple(header) == picture.header
        assert len(rows) == len(picture.rows) > 0
    with (tmp_path / "sweet_spot.csv").open(newline="") as file:
        last = list(csv.reader(file))[-1]
    assert last == ["11", "2", "rnn", "diverged", "", "0.75"]


def test_the_same_data_give_the_same_image(runs: tuple[Evidence, ...]) -> None:
    first, second = (metric_by_key(runs, combined(runs)[1], LOSS).images() for _ in range(2))
    assert [source for source, _ in first] == [source for source, _ in second]


@pytest.mark.parametrize(
    ("values", "logarithmic"),
    [
        ((0.5, 1.0, 1.5), False),
        ((0.1, 0.5, 0.8, 1.0, 1.2, 1.4, 1.6, 2.0, 3.0), False),
        ((1e-4, 1e-3, 1e-2), True),
        ((32, 64, 128, 256), True),
        ((1e-4, 1e-2), True),
        ((0, 1, 10, 100), False),
    ],
)
def test_an_axis_is_logarithmic_where_the_values_are_spaced_so(
    values: tuple[float, ...], logarithmic: bool
) -> None:
    runs = [Evidence(Run(Path("x"), {"x": value}, {"status": ""}, ()), "x") for value in values]
    assert evenly_on_logarithm(runs, "x") is logarithmic
