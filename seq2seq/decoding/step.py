"""What all decoding shares: the step function, its state, the hypothesis, limits and scores.

A step function gives the log-probabilities of the next token after one more token of every row.
A row is one unfinished hypothesis. How rows are chosen is up to greedy.py, beam_search.py and
sampling.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor


class SearchState(Protocol):
    """What a step function remembers of the tokens before, one row a hypothesis."""

    def select(self, rows: Tensor) -> Self:
        """The state of `rows` (int64 [new_rows]) in that order; repeats and omissions allowed."""
        ...


StateT = TypeVar("StateT", bound=SearchState)

# step(tokens [rows] int64, state) -> (log-probabilities [rows, vocabulary] of the next token,
#                                      state after, alignment [rows, source_time] or None)
Step = Callable[[Tensor, StateT], tuple[Tensor, StateT, Tensor | None]]


@dataclass(frozen=True)
class Hypothesis:
    """One output sequence.

    Args:
        tokens: the generated ids without `<bos>` and `<eos>`.
        log_probability: sum over the predicted positions, `<eos>` included, in nats; the model's
            own, whatever the temperature.
        score: `log_probability` divided by `length_normalizer`; what beam search ranks by.
        finished: True if it ended with `<eos>`, False if it was cut at its maximum length.
        alignment: attention weights [predicted positions, source_time], on the CPU, if wanted and
            the step function gives them. The row of `<eos>` is included, and so are the columns of
            the source's padding.
    """

    tokens: list[int]
    log_probability: float
    score: float
    finished: bool
    alignment: Tensor | None = field(default=None, compare=False, repr=False)


def length_normalizer(length: int, length_penalty: float) -> float:
    """lp(Y) = ((5 + |Y|) / 6) ^ alpha, Wu et al. 2016 (GNMT), equation 14.

    |Y| counts the predicted positions, `<eos>` included. Alpha 0 is no normalisation; the larger it
    is, the more long outputs are favoured.
    """
    normalizer: float = ((5.0 + length) / 6.0) ** length_penalty
    return normalizer


def length_limits(source_lengths: Tensor, *, ratio: float, constant: int) -> Tensor:
    """Maximum lengths ceil(ratio * source length) + constant, one for each example.

    Shape:
        source_lengths [batch] int64; returns [batch] int64.

    Raises:
        ValueError: if `ratio` is negative or both values leave room for no token at all.
    """
    if ratio < 0 or ratio + constant <= 0:
        raise ValueError(
            f"The maximum output length, {ratio} * source length + {constant}, must be positive: "
            "give a ratio of at least 0 and a larger constant."
        )
    return ((ratio * source_lengths).ceil().long() + constant).clamp(min=1)


def checked_limits(
    max_lengths: Tensor, *, pad_id: int, bos_id: int, eos_id: int, length_penalty: float
) -> list[int]:
    """The limits as Python integers, after the checks that all three searches need."""
    if max_lengths.dim() != 1 or max_lengths.is_floating_point():
        raise ValueError(
            f"max_lengths must be integers [batch], not {max_lengths.dtype} of shape "
            f"{list(max_lengths.shape)}."
        )
    limits: list[int] = max_lengths.tolist()
    if limits and min(limits) < 1:
        raise ValueError(
            f"max_lengths holds {min(limits)}: every example needs room for at least one predicted "
            "token, <eos> included."
        )
    if eos_id in (pad_id, bos_id):
        raise ValueError(
            f"eos_id={eos_id} is also pad_id={pad_id} or bos_id={bos_id}, which are never "
            "generated: no output could end."
        )
    if length_penalty < 0:
        raise ValueError(
            f"length_penalty={length_penalty}: use 0 (none) or more; negative values would reward "
            "stopping early."
        )
    return limits


def without_forbidden(log_probs: Tensor, *, pad_id: int, bos_id: int) -> Tensor:
    """Log-probabilities with `<pad>` and `<bos>` made impossible; the others stay as they are."""
    allowed = log_probs.clone()  # what the step function returned stays its own
    allowed[:, pad_id] = -torch.inf
    allowed[:, bos_id] = -torch.inf
    return allowed


class NoTokenPossible(ValueError):
    """The log-probabilities of a step are NaN, or all minus infinity."""


def check_possible(best: list[float], examples: list[int], position: int) -> None:
    """Refuse steps after which no token is possible; a NaN anywhere in a row makes its best NaN.

    Args:
        best: the highest log-probability of each row.
        examples: which example each row belongs to.
        position: of the predicted token, counted from 0.
    """
    for value, example in zip(best, examples, strict=True):
        if not -torch.inf < value < torch.inf:
            raise NoTokenPossible(
                f"Decoding stopped at output position {position + 1} of example {example} of the "
                f"batch: the highest log-probability there is {value}, so no token can be chosen. "
                "The model's weights or its input are not finite, or too large."
            )


def worth_dropping(done: int, rows: int) -> bool:
    """Whether rows that are done should leave the batch: copying the state costs time as well.

    At a quarter, at most a third more rows than needed are computed. Every search asks here, so
    that a beam of 1 computes the same rows as greedy search, and so the same numbers to the bit.
    """
    return 4 * done >= rows
