"""Decoding values that can't work, or would be ignored, are refused in one sentence."""

import pytest

from seq2seq.decoding.settings import check_decoding

DEFAULTS = {
    "strategy": "greedy",
    "beam_size": 5,
    "n_best": 1,
    "length_penalty": 1.0,
    "coverage_penalty": 0.0,
    "temperature": 1.0,
    "top_k": None,
    "top_p": None,
    "block_ngram": 0,
    "min_length_ratio": 0.0,
    "min_length_constant": 0,
    "max_length_ratio": 2.0,
    "max_length_constant": 10,
    "replace_unknown": False,
    "dictionary": None,
    "attends": True,
}
BEAM = {"strategy": "beam_search"}
SAMPLING = {"strategy": "sampling"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "astar"}, "decoding.strategy='astar' is unknown: choose one of greedy, beam"),
        ({"beam_size": 0}, "beam_size=0 must be at least 1"),
        ({"n_best": 2}, "n_best=2 must be 1 with strategy greedy"),
        ({"n_best": 6, **BEAM}, "n_best=6 must be between 1 and 5 with strategy beam_search"),
        ({"n_best": 0, **SAMPLING}, "n_best=0 must be at least 1 with strategy sampling"),
        ({"length_penalty": -0.1}, "length_penalty=-0.1 must be at least 0"),
        ({"coverage_penalty": -0.1, **BEAM}, "coverage_penalty=-0.1 must be at least 0"),
        ({"coverage_penalty": 0.1}, "coverage_penalty=0.1 has no meaning with strategy greedy"),
        ({"coverage_penalty": 0.1, **BEAM, "attends": False}, "needs a model with attention"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"temperature": float("inf")}, "temperature=inf must be above 0, and finite"),
        ({"top_k": 0, **SAMPLING}, "top_k=0 must be at least 1"),
        ({"temperature": 0.5}, "temperature=0.5 has no meaning with strategy greedy"),
        ({"top_k": 5}, "top_k=5 has no meaning with strategy greedy: set decoding.strategy=sam"),
        ({"top_p": 0.0, **SAMPLING}, "top_p=0.0 must be above 0 and at most 1"),
        ({"top_p": 1.1, **SAMPLING}, "top_p=1.1 must be above 0 and at most 1"),
        ({"top_p": 0.9, **BEAM}, "top_p=0.9 has no meaning with strategy beam_search"),
        ({"block_ngram": -1}, "block_ngram=-1 must be at least 0"),
        ({"min_length_ratio": -1.0}, "min_length_ratio=-1.0 must be at least 0"),
        ({"min_length_ratio": 2.1}, "min_length_ratio=2.1 and min_length_constant=0, exceeds"),
        ({"min_length_constant": 13}, "min_length_constant=13, exceeds the maximum"),
        ({"max_length_ratio": 0.0, "max_length_constant": 0}, "leave no room for a token"),
        ({"replace_unknown": True, "attends": False}, "replace_unknown=true needs a model with"),
        ({"dictionary": "words.tsv"}, "set decoding.replace_unknown=true"),
    ],
)
def test_values_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message) as error:
        check_decoding(**(DEFAULTS | options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attends": False},
        {"min_length_ratio": 2.0, "min_length_constant": 10},
        {"max_length_ratio": 0.0, "max_length_constant": 1},
        {"top_k": 1, "top_p": 1.0, "n_best": 9, **SAMPLING},
        {"coverage_penalty": 0.2, **BEAM},
    ],
)
def test_values_at_the_edge_are_taken(options):
    check_decoding(**(DEFAULTS | options))
