"""Turning step-wise distributions into output sequences: greedy, beam search, sampling.

The three take the same step function and state (see `step.py`) and return the same result: for
every example a list of hypotheses. No model is imported here, and no text is made.
"""

from seq2seq.decoding.beam_search import beam_search
from seq2seq.decoding.constraints import Constraints
from seq2seq.decoding.greedy import greedy
from seq2seq.decoding.sampling import sample
from seq2seq.decoding.step import (
    Hypothesis,
    NoTokenPossible,
    SearchState,
    Step,
    length_limits,
    length_normalizer,
)

__all__ = [
    "greedy",
    "beam_search",
    "sample",
    "Constraints",
    "Hypothesis",
    "NoTokenPossible",
    "SearchState",
    "Step",
    "length_limits",
    "length_normalizer",
]
