"""The picture of an alignment: its colours are the weights, and every token has a name."""

import numpy as np
import pytest

from seq2seq.diagnostics.alignment_picture import draw_alignment
from seq2seq.diagnostics.heat_map import viridis

WEIGHTS = np.array([[1.0, 0.0, 0.0], [0.25, 0.5, 0.25]])
NAMES = {"source": ["ä", "b", "<eos>"], "target": ["B", "<eos>"], "title": "attention"}


def places(picture: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Rows and columns of the pixels of that colour."""
    return np.argwhere((picture == colour).all(axis=2))


def test_a_cell_has_the_colour_of_its_weight() -> None:
    # Three other numbers, whose colours the bar at the side doesn't have by chance.
    weights = np.array([[0.111, 0.333], [0.777, 0.999]])
    picture = draw_alignment(weights, source=["a", "b"], target=["x", "y"], title="")
    centres = {}
    for row in range(2):
        for column in range(2):
            found = places(picture, viridis(weights[row : row + 1, column])[0])
            assert len(found) > 300, (row, column)
            centres[row, column] = np.median(found, axis=0)
    assert centres[0, 0][0] == centres[0, 1][0] < centres[1, 0][0] == centres[1, 1][0]
    assert centres[0, 0][1] == centres[1, 0][1] < centres[0, 1][1] == centres[1, 1][1]


def test_colours_reach_from_0_to_1_whatever_the_weights() -> None:
    faint = draw_alignment(WEIGHTS / 4, **NAMES)
    assert len(places(faint, viridis(np.array([0.25]))[0])) > 300
    assert len(places(faint, viridis(np.array([1.0]))[0])) < 50  # the end of the bar alone


def test_names_are_drawn_and_long_ones_cut() -> None:
    plain = draw_alignment(WEIGHTS, **NAMES)
    other = draw_alignment(WEIGHTS, **{**NAMES, "source": ["a", "b", "<eos>"]})
    assert plain.shape == other.shape
    assert (plain != other).any()
    long = draw_alignment(WEIGHTS, **{**NAMES, "source": ["long" * 50, "b", "<eos>"]})
    assert long.shape[0] < 2 * plain.shape[0]


def test_a_long_sentence_is_cut_and_the_picture_says_so() -> None:
    names = [str(number) for number in range(200)]
    weights = np.full((200, 200), 1 / 200)
    picture = draw_alignment(weights, source=names, target=names, title="attention")
    cut = draw_alignment(
        weights[:60, :60],
        source=names[:60],
        target=names[:60],
        title="attention (first 60 of 200 tokens)",
    )
    assert (picture == cut).all()


@pytest.mark.parametrize("source", [[], ["a"], ["a", "b", "c", "d"]])
def test_names_that_do_not_fit_the_weights_are_refused(source: list[str]) -> None:
    with pytest.raises(ValueError, match=r"needs weights \[2, \d\].* but they are \[2, 3\]"):
        draw_alignment(WEIGHTS, **{**NAMES, "source": source})
