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

from seq2seq.diagnostics.gradient_profile import GradientProfile
from seq2seq.sweep.combinations import combine, varied
from seq2seq.sweep.curve_figure import curves
from seq2seq.sweep.evidence import Evidence, gather
from seq2seq.sweep.gradient_figure import gradient_heat_maps
from seq2seq.sweep.importance import importance
from seq2seq.sweep.metric_figures import (
    evenly_on_logarithm,
    importance_figure,
    metric_by_key,
    slope_at_start,
    sweet_spot,
)
from seq2seq.sweep.picture import Picture
from seq2seq.sweep.runs import Run, Value

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
    with pytest.raises(ValueError, match="slope of the gradient is not known: inspect=true"):
        sweet_spot(found, combined(found)[1], LOSS)


def made(name: str, *, loss: float | None = 1.0, **columns: Value) -> Evidence:
    """A run from its overrides, whose dots are written as two underscores."""
    known = {"status": "finished", LOSS: loss, "slope": None, "half_life": None}
    overrides = {key.replace("__", "."): value for key, value in columns.items()}
    values = {key: overrides.pop(key) for key in known if key in overrides}
    return Evidence(Run(Path(name), overrides, {**known, **values}, ()), name=name)


def several_sweeps() -> list[Evidence]:
    """The learning rate differs from sweep to sweep only, and the third has no gain."""
    kinds = (("a", 0.1), ("b", 0.2))
    runs = [
        made(
            f"{sweep}/{gain}", sweep=sweep, gain=gain, lr=lr, loss=10 * lr + gain, slope=-lr - gain
        )
        for sweep, lr in kinds
        for gain in (0.5, 1.0)
    ]
    return [*runs, made("c/0", sweep="c", gain=None, lr=0.3, slope=-5.0, loss=9.0)]


def test_the_sweet_spot_is_over_what_differs_within_a_sweep_a_line_for_each() -> None:
    found = several_sweeps()
    combinations = combine(found, ["sweep", "gain", "lr"], LOSS)
    picture = sweet_spot(found, combinations, LOSS)
    above, _ = drawn(picture)
    assert points(above, 0) == [(0.5, 1.5), (1.0, 2.0)]
    assert points(above, 1) == [(0.5, 2.5), (1.0, 3.0)]
    assert [label for _, label in picture.swatches] == ["a", "b"]
    assert "Left out: 1 run whose gain is no number." in picture.caption
    assert "dashed" not in picture.caption


def test_the_best_place_of_the_sweet_spot_is_among_the_runs_that_it_shows() -> None:
    found = [one for one in several_sweeps() if one.run.overrides["sweep"] != "b"]
    found.append(made("d/0", sweep="d", gain=None, lr=0.4, loss=0.1, slope=-5.0))
    picture = sweet_spot(found, combine(found, ["sweep", "gain", "lr"], LOSS), LOSS)
    assert "The dashed line is at the best gain, 0.5." in picture.caption
    assert "The best median, 1.5, is at 0.5." in picture.panels[0].alt


def test_means_are_over_runs_of_one_sweep() -> None:
    found = several_sweeps()
    picture = metric_by_key(found, combine(found, ["sweep", "gain"], LOSS), LOSS)
    (axes,) = drawn(picture, 1)
    means = {(x, y) for line in axes.lines[1:] for x, y in zip(*line.get_data(), strict=True)}
    assert means == {(0, 1.5), (1, 2.0), (0, 2.5), (1, 3.0), (2, 9.0)}
    assert [label for _, label in picture.swatches] == ["a", "b", "c"]
    (over_sweeps,) = drawn(picture)
    assert [points(over_sweeps, line + 1) for line in range(3)] == [
        [(0, 1.75)],
        [(1, 2.75)],
        [(2, 9.0)],
    ]
    assert not any("best" in panel.alt for panel in picture.panels)


def test_without_a_metric_the_slope_is_shown_with_the_half_life_where_it_vanishes() -> None:
    found = [
        made(f"{gain}", gain=gain, loss=None, slope=gain - 1.25, half_life=0.7 / (1.25 - gain))
        for gain in (0.5, 1.0, 2.0)
    ]
    combinations = combine(found, ["gain"], LOSS)
    with pytest.raises(ValueError, match="no run has test/loss"):
        sweet_spot(found, combinations, LOSS)
    above, below = drawn(slope_at_start(found, combinations))
    assert points(above, 0) == [(0.5, -0.75), (1.0, -0.25), (2.0, 0.75)]
    assert [x for x, _ in points(below, 0)] == [0.5, 1.0]


def test_nothing_is_said_of_what_is_not_drawn(make_run: MakeRun, tmp_path: Path) -> None:
    for number, lr in enumerate((1.0, 2.0, 500.0)):
        lost = number == 2
        status = DIVERGED if lost else None
        make_run(
            *(tmp_path / str(number), {"optimizer.lr": lr}),
            curve=None if lost else {10: 2.0, 20: lr},
            status=status,
        )
    make_run(tmp_path / "3", {"optimizer.lr": 1.0, "seed": 2}, status=DIVERGED)
    found = gather([tmp_path]).evidence
    picture = curves(combined(found)[1], ["optimizer.lr"])
    assert picture is not None
    assert [label for _, label in picture.swatches] == ["1", "2"]
    assert "cross" not in picture.caption


def test_a_run_without_a_curve_does_not_stretch_the_colours() -> None:
    runs = [*many(30), made("30", optimizer__lr=1e9, model="gru", status="failed")]
    picture = curves(combined(runs)[1], ["optimizer.lr", "model"])
    assert picture is not None and picture.scale is not None
    assert picture.scale.norm.vmax == 1.0


def probed(name: str, steps: Sequence[int], *, long: int, last: int, **columns: Value) -> Evidence:
    """A run whose gradient was kept at some steps, and its loss at the last one."""
    norms = tuple(math.exp(-0.1 * distance) for distance in range(long))
    flow = tuple(GradientProfile(step, "encoder", "hidden", norms) for step in steps)
    one = made(name, **columns)
    return Evidence(one.run, name=name, flow=flow, curves={last: {"train/loss": 1.0}})


def test_heat_maps_end_at_the_last_step_and_share_their_distances() -> None:
    runs = [
        probed("0", (0, 50), long=12, last=60, lr=1, loss=1.0),
        probed("1", (0,), long=6, last=60, lr=2, loss=2.0),
    ]
    picture = gradient_heat_maps(runs, combined(runs)[1], ["lr"], metric=LOSS)
    assert picture is not None
    (first,), (second,) = drawn(picture), drawn(picture, 1)
    assert first.get_xlim() == (0, 60)
    assert list(second.get_xticks()) == [0]
    assert first.get_ylim() == second.get_ylim() == (-0.5, 11.5)


@pytest.mark.parametrize(
    ("seeds", "names"), [((1, 2), ["seed 1", "seed 2"]), ((1, 1), ["run 0", "run 1"])]
)
def test_heat_maps_of_one_combination_name_what_tells_them_apart(
    seeds: tuple[int, int], names: list[str]
) -> None:
    runs = [
        probed(f"{i}", (0, 5), long=9, last=9, lr=1, seed=seed, loss=1.0 + i)
        for i, seed in enumerate(seeds)
    ]
    combinations = combine(runs, ["lr"], LOSS)
    picture = gradient_heat_maps(runs, combinations, ["lr"], metric=LOSS)
    assert picture is not None
    assert [panel.title for panel in picture.panels] == [
        f"lr 1, {name} ({remark})" for name, remark in zip(names, ("best", "worst"), strict=True)
    ]


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
