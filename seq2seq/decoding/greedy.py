"""Greedy search, and the walk along one hypothesis a row that it shares with sampling."""

from collections.abc import Callable

import torch
from torch import Tensor

from seq2seq.decoding.constraints import Constraints
from seq2seq.decoding.step import (
    Hypothesis,
    StateT,
    Step,
    check_possible,
    checked_limits,
    length_normalizer,
    without_forbidden,
    worth_dropping,
)

# draw(log-probabilities [rows, vocabulary], hypothesis of each row, position) -> tokens [rows]
Draw = Callable[[Tensor, list[int], int], Tensor]


def greedy(
    step: Step[StateT],
    state: StateT,
    *,
    max_lengths: Tensor,
    pad_id: int,
    bos_id: int,
    eos_id: int,
    length_penalty: float = 0.0,
    constraints: Constraints | None = None,
    alignments: bool = False,
) -> list[list[Hypothesis]]:
    """Take the most probable token at every position; of equals, the one with the smaller id.

    Examples don't influence each other: the result is the same in any batch, as far as the step
    function's own rounding is.

    Args:
        step: the step function, see `step.py`.
        state: its state before the first token, one row an example.
        max_lengths: most predicted positions of each example, `<eos>` included, on the device of
            the step function; see `length_limits`.
        pad_id: never generated.
        bos_id: the first input; never generated.
        eos_id: ends a hypothesis.
        length_penalty: alpha of `length_normalizer`, only for the reported score.
        constraints: what outputs must and must not hold.
        alignments: whether to keep the attention weights.

    Shape:
        max_lengths [batch] int64; returns one hypothesis in a list for each example.

    Raises:
        ValueError: for limits or ids that can't work, or when a log-probability is NaN.
    """
    hypotheses = walk(
        step,
        state,
        draw=None,
        max_lengths=max_lengths,
        pad_id=pad_id,
        bos_id=bos_id,
        eos_id=eos_id,
        length_penalty=length_penalty,
        constraints=constraints,
        alignments=alignments,
    )
    return [[hypothesis] for hypothesis in hypotheses]


@torch.no_grad()
def walk(
    step: Step[StateT],
    state: StateT,
    *,
    draw: Draw | None,
    max_lengths: Tensor,
    pad_id: int,
    bos_id: int,
    eos_id: int,
    length_penalty: float,
    constraints: Constraints | None,
    alignments: bool,
) -> list[Hypothesis]:
    """Extend one hypothesis a row until each is finished or cut; `draw` None is greedy search."""
    limits = checked_limits(
        max_lengths, pad_id=pad_id, bos_id=bos_id, eos_id=eos_id, length_penalty=length_penalty
    )
    if constraints is not None:
        constraints.check(limits, control_ids=(pad_id, bos_id, eos_id))
    paths = [_Path() for _ in limits]
    held = list(range(len(limits)))  # the hypothesis that each row belongs to
    tokens = torch.full_like(max_lengths, bos_id, dtype=torch.int64)
    history = tokens.new_empty(len(limits), 0)  # [rows, position]
    running = held
    position = 0
    while running:
        log_probs, state, alignment = step(tokens, state)
        log_probs = without_forbidden(log_probs, pad_id=pad_id, bos_id=bos_id)
        if constraints is not None:
            constraints.apply(log_probs, history=history, examples=held, eos_id=eos_id)
        chosen, tokens = log_probs.max(dim=1)
        best = chosen.tolist()
        check_possible([best[row] for row in running], [held[row] for row in running], position)
        if draw is not None:
            tokens = draw(log_probs, held, position)
            chosen = log_probs.gather(1, tokens.unsqueeze(1)).squeeze(1)
        ids, gains = tokens.tolist(), chosen.tolist()
        for row in running:
            path = paths[held[row]]
            path.log_probability += gains[row]
            path.finished = ids[row] == eos_id
            if not path.finished:
                path.tokens.append(ids[row])
            if alignments and alignment is not None:
                path.alignment.append(alignment[row])
        position += 1
        history = torch.cat([history, tokens.unsqueeze(1)], dim=1)
        running = [
            row for row in running if not paths[held[row]].finished and position < limits[held[row]]
        ]
        if running and worth_dropping(len(held) - len(running), len(held)):
            rows = torch.tensor(running, device=tokens.device)
            state, tokens, history = state.select(rows), tokens[rows], history[rows]
            held = [held[row] for row in running]
            running = list(range(len(held)))
    return [path.hypothesis(length_penalty) for path in paths]


class _Path:
    """A hypothesis that is being written."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.log_probability = 0.0
        self.finished = False
        self.alignment: list[Tensor] = []

    def hypothesis(self, length_penalty: float) -> Hypothesis:
        length = len(self.tokens) + self.finished
        return Hypothesis(
            tokens=self.tokens,
            log_probability=self.log_probability,
            score=self.log_probability / length_normalizer(length, length_penalty),
            finished=self.finished,
            alignment=torch.stack(self.alignment).cpu() if self.alignment else None,
        )
