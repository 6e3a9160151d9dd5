"""Colours and places in the drawn picture."""

import math

import numpy as np
import pytest

from seq2seq.diagnostics.heat_map import heat_map, viridis

RANGE = {"lowest": -8.0, "highest": 2.0, "title": "title"}


def has_colour(picture: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((picture == np.array(colour, dtype=np.uint8)).all(axis=2).any())


def test_the_ends_of_the_range_have_the_ends_of_viridis() -> None:
    colours = viridis(np.array([-5.0, 0.0, 1.0, 7.0]))
    assert colours.tolist() == [[68, 1, 84], [68, 1, 84], [253, 231, 37], [253, 231, 37]]


def test_brightness_grows_with_the_value() -> None:
    colours = viridis(np.linspace(0, 1, 50)).astype(float)
    brightness = colours @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(brightness) > 0).all()


def test_unknown_values_are_grey() -> None:
    assert len(set(viridis(np.array([math.nan]))[0].tolist())) == 1


def test_distance_0_is_at_the_bottom_and_the_first_step_at_the_left() -> None:
    picture = heat_map([[2.0, -8.0], [2.0, 2.0]], [0, 50], **RANGE)
    height, width, channels = picture.shape
    assert (picture.dtype, channels) == (np.uint8, 3)
    top_left, top_right = picture[height // 4, width // 4], picture[height // 4, width // 2 + 20]
    bottom_left = picture[3 * height // 4, width // 4]
    assert top_left.tolist() == [68, 1, 84]
    assert top_right.tolist() == bottom_left.tolist() == [253, 231, 37]


def test_columns_of_different_lengths_make_one_picture_of_fixed_size() -> None:
    few = heat_map([[0.0]], [0], **RANGE)
    many = heat_map([[0.0] * (1 + n % 40) for n in range(3000)], list(range(3000)), **RANGE)
    assert few.shape == many.shape


def test_the_same_value_has_the_same_colour_in_every_picture() -> None:
    first = heat_map([[0.0, 0.0]], [0], **RANGE)
    second = heat_map([[0.0, -8.0, 2.0]], [0], **RANGE)
    middle = tuple(viridis(np.array([0.8]))[0].tolist())
    assert has_colour(first, middle) and has_colour(second, middle)


@pytest.mark.parametrize(("columns", "steps"), [([], []), ([[]], [0]), ([[1.0]], [0, 1])])
def test_nothing_to_draw_is_refused(columns: list[list[float]], steps: list[int]) -> None:
    with pytest.raises(ValueError, match="a heat map needs"):
        heat_map(columns, steps, **RANGE)


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(ValueError, match="from 2.0 to 2.0"):
        heat_map([[1.0]], [0], lowest=2.0, highest=2.0, title="")
