"""Beam search with length normalisation and n-best lists, exact when the beam is wide enough.

Ranking runs in float64 on the CPU over a few candidates a row; only the choice of these candidates
touches the whole vocabulary.
"""

from typing import NamedTuple

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


@torch.no_grad()
def beam_search(
    step: Step[StateT],
    state: StateT,
    *,
    max_lengths: Tensor,
    pad_id: int,
    bos_id: int,
    eos_id: int,
    beam_size: int = 5,
    n_best: int = 1,
    length_penalty: float = 0.0,
    coverage_penalty: float = 0.0,
    source_lengths: Tensor | None = None,
    constraints: Constraints | None = None,
    alignments: bool = False,
) -> list[list[Hypothesis]]:
    """Keep the `beam_size` most probable extensions of every example at every position.

    Those that end with `<eos>` leave the beam and are ranked by s(Y, X) of Wu et al. 2016, equation
    14: log-probability / lp(Y) + cp(X, Y), see `length_normalizer` and `coverage_score`; the others
    go on. An example is done when none of its unfinished hypotheses can still enter the n best:
    log-probabilities only fall and cp is never above 0, so the most that one can reach is its
    present log-probability / lp(maximum length). A beam that holds every prefix is therefore an
    exhaustive search, and a beam of 1 is greedy search.

    Hypotheses that are cut at the maximum length are ranked among the finished ones. Ties go to the
    hypothesis that ended first, then to the one ahead in the beam, where equals stand in the order
    of their parents and token ids. Examples don't influence each other.

    Args:
        step: the step function, see `step.py`.
        state: its state before the first token, one row an example.
        max_lengths: most predicted positions of each example, `<eos>` included, on the device of
            the step function; see `length_limits`.
        pad_id: never generated.
        bos_id: the first input; never generated.
        eos_id: ends a hypothesis.
        beam_size: extensions kept of each example.
        n_best: hypotheses returned of each example, at most `beam_size`.
        length_penalty: alpha; 0 ranks by log-probability.
        coverage_penalty: beta; 0 leaves the attention out of the ranking.
        source_lengths: positions of each source that are to be covered; needed by
            `coverage_penalty` alone, and so are the alignments of the step function.
        constraints: what outputs must and must not hold.
        alignments: whether to keep the attention weights.

    Shape:
        max_lengths and source_lengths [batch] int64; returns for each example up to `n_best`
        distinct hypotheses, best first; fewer only where no more exist.

    Raises:
        ValueError: as `greedy`, if `beam_size`, `n_best` or `coverage_penalty` is out of range, or
            if there is nothing that coverage can be measured by.
    """
    if beam_size < 1:
        raise ValueError(f"beam_size={beam_size}: use at least 1 (greedy search).")
    if not 1 <= n_best <= beam_size:
        raise ValueError(
            f"n_best={n_best} must lie between 1 and beam_size={beam_size}: a beam yields no more."
        )
    coverage = None
    if coverage_penalty:
        coverage = _Coverage(coverage_penalty, source_lengths)
    limits = checked_limits(
        max_lengths, pad_id=pad_id, bos_id=bos_id, eos_id=eos_id, length_penalty=length_penalty
    )
    if constraints is not None:
        constraints.check(limits, control_ids=(pad_id, bos_id, eos_id))
    device = max_lengths.device
    trace = _Trace()
    ranked = [_Ranking(n_best, length_penalty) for _ in limits]
    held = list(range(len(limits)))  # the example that each row of `scores` belongs to
    scores = torch.zeros(len(limits), 1, dtype=torch.float64)  # [examples, width]; dead slots -inf
    tokens = torch.full_like(max_lengths, bos_id, dtype=torch.int64)
    history = tokens.new_empty(len(limits), 0)  # [rows, position]
    position = 0
    while held:
        log_probs, state, alignment = step(tokens, state)
        log_probs = without_forbidden(log_probs, pad_id=pad_id, bos_id=bos_id)
        width = log_probs.size(0) // len(held)
        if constraints is not None:
            examples = [example for example in held for _ in range(width)]
            constraints.apply(log_probs, history=history, examples=examples, eos_id=eos_id)
        values, candidates = best_tokens(log_probs, min(beam_size, log_probs.size(1)))
        totals, parents, chosen = _extend(scores, values, candidates, beam_size, held, position)
        trace.append(held, parents, chosen, alignment if alignments else None)
        if coverage is not None:
            coverage.extend(alignment, parents)

        ended = (chosen == eos_id) & (totals > -torch.inf)
        for row, slot in ended.nonzero().tolist():
            ranked[held[row]].add(
                float(totals[row, slot]),
                position,
                slot,
                finished=True,
                coverage=coverage.score(held[row], row, slot) if coverage else 0.0,
            )
        scores = totals.masked_fill(ended, -torch.inf)
        position += 1
        going_on = []
        for row, best in enumerate(scores.amax(dim=1).tolist()):
            limit, ranking = limits[held[row]], ranked[held[row]]
            if position < limit and ranking.can_improve(best, limit):
                going_on.append(row)
                continue
            if position == limit:
                for slot in (scores[row] > -torch.inf).nonzero().flatten().tolist():
                    ranking.add(
                        float(scores[row, slot]),
                        position - 1,
                        slot,
                        finished=False,
                        coverage=coverage.score(held[row], row, slot) if coverage else 0.0,
                    )
            scores[row] = -torch.inf

        if not going_on:
            break
        kept = list(range(len(held)))
        if worth_dropping(len(held) - len(going_on), len(held)):
            kept = going_on
        rows = (parents + width * torch.arange(len(held)).unsqueeze(1))[kept].flatten()
        if not torch.equal(rows, torch.arange(log_probs.size(0))):
            state = state.select(rows.to(device))
        tokens = chosen[kept].flatten().to(device)
        history = torch.cat([history[rows.to(device)], tokens.unsqueeze(1)], dim=1)
        scores = scores[kept]
        if coverage is not None:
            coverage.keep(kept)
        held = [held[row] for row in kept]
    return [
        [trace.hypothesis(example, ending) for ending in ranking.endings]
        for example, ranking in enumerate(ranked)
    ]


def best_tokens(log_probs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest values of each row and their tokens; of equals, smaller ids first.

    `torch.topk` leaves open which of several equals it returns, and in which order.

    Shape:
        log_probs [rows, vocabulary]; returns two tensors [rows, count].
    """
    if count == 1:
        values, tokens = log_probs.max(dim=1, keepdim=True)  # the first of equals
        return values, tokens
    # one more, to see whether the last one chosen has an equal that was left out
    values, tokens = log_probs.topk(min(count + 1, log_probs.size(1)), dim=1)
    equal = (values[:, 1:] == values[:, :-1]) & (values[:, 1:] > -torch.inf)
    values, tokens = values[:, :count], tokens[:, :count]
    tied = equal.any(dim=1).nonzero().squeeze(1)
    if tied.numel():
        rest = log_probs[tied]
        for column in range(count):
            best, token = rest.max(dim=1, keepdim=True)
            values[tied, column], tokens[tied, column] = best.squeeze(1), token.squeeze(1)
            rest.scatter_(1, token, -torch.inf)
    return values, tokens


def _extend(
    scores: Tensor,
    values: Tensor,
    candidates: Tensor,
    beam_size: int,
    held: list[int],
    position: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best extensions of each example, sorted: log-probability, parent slot, token.

    Shape:
        scores [examples, width], values and candidates [examples * width, count]; returns three
        tensors [examples, new_width] on the CPU.
    """
    examples, width = scores.shape
    gains = values.cpu().double().reshape(examples, width, -1)
    alive = scores > -torch.inf
    check_possible(
        gains[..., 0][alive].tolist(),
        [held[row] for row in alive.nonzero()[:, 0].tolist()],
        position,
    )
    # float64, so that adding a large score never makes two different log-probabilities equal
    totals = (scores.unsqueeze(2) + gains).masked_fill(~alive.unsqueeze(2), -torch.inf)
    totals, order = totals.flatten(1).sort(dim=1, descending=True, stable=True)
    totals, order = totals[:, :beam_size], order[:, :beam_size]
    parents = order // gains.size(2)
    return totals, parents, candidates.cpu().reshape(examples, -1).gather(1, order)


class _Ending(NamedTuple):
    """Where a hypothesis ended: `slot` of the beam after `position`."""

    score: float
    log_probability: float
    position: int
    slot: int
    finished: bool


class _Ranking:
    """The n best ended hypotheses of one example."""

    def __init__(self, n_best: int, length_penalty: float) -> None:
        self.n_best = n_best
        self.length_penalty = length_penalty
        self.endings: list[_Ending] = []

    def add(
        self,
        log_probability: float,
        position: int,
        slot: int,
        *,
        finished: bool,
        coverage: float,
    ) -> None:
        score = log_probability / length_normalizer(position + 1, self.length_penalty) + coverage
        self.endings.append(_Ending(score, log_probability, position, slot, finished))
        self.endings.sort(key=lambda ending: -ending.score)  # stable: of equals, the earlier one
        del self.endings[self.n_best :]

    def can_improve(self, log_probability: float, limit: int) -> bool:
        """Whether a hypothesis with this log-probability can still enter the n best."""
        if log_probability == -torch.inf:
            return False
        if len(self.endings) < self.n_best:
            return True
        most = log_probability / length_normalizer(limit, self.length_penalty)
        return most > self.endings[-1].score


def coverage_score(coverage: Tensor, coverage_penalty: float) -> float:
    """cp(X, Y) = beta * sum over i of log min(sum over j of p_ij, 1), Wu et al. 2016, equation 14.

    Never above 0, which is reached when every source position got a whole output's attention. A
    position that got none at all counts with the smallest number of single precision, 1.2e-38.

    Args:
        coverage: attention that each source position got from all predicted positions.
        coverage_penalty: beta.

    Shape:
        coverage [source_time], without padding.
    """
    seen = coverage.double().clamp(min=torch.finfo(torch.float32).tiny, max=1.0)
    return coverage_penalty * float(seen.log().sum())


class _Coverage:
    """The attention that every unfinished hypothesis has given to each source position."""

    def __init__(self, coverage_penalty: float, source_lengths: Tensor | None) -> None:
        if coverage_penalty < 0 or source_lengths is None:
            raise ValueError(
                f"coverage_penalty={coverage_penalty}: use 0 (none), or a positive number together "
                "with source_lengths."
            )
        self.coverage_penalty = coverage_penalty
        self.lengths: list[int] = source_lengths.tolist()
        self.sums = torch.zeros(len(self.lengths), 1, 1, dtype=torch.float64)

    def extend(self, alignment: Tensor | None, parents: Tensor) -> None:
        """Go one position further: alignment [examples * width, source_time] of the old slots."""
        if alignment is None:
            raise ValueError(
                f"coverage_penalty={self.coverage_penalty} needs alignments, but the step function "
                "gives none: the model has no attention."
            )
        examples, width = self.sums.shape[:2]
        sums = self.sums + alignment.cpu().double().reshape(examples, width, -1)
        self.sums = sums.gather(1, parents.unsqueeze(2).expand(-1, -1, sums.size(2)))

    def keep(self, rows: list[int]) -> None:
        self.sums = self.sums[rows]

    def score(self, example: int, row: int, slot: int) -> float:
        # cut first: a sum over padding could round differently
        return coverage_score(self.sums[row, slot, : self.lengths[example]], self.coverage_penalty)


class _Trace:
    """Back-pointers of every position, so that no prefix is ever copied."""

    def __init__(self) -> None:
        self.rows: list[dict[int, int]] = []  # example -> its row at that position
        self.parents: list[list[list[int]]] = []
        self.tokens: list[list[list[int]]] = []
        self.alignments: list[Tensor | None] = []  # [examples, width, source_time] each

    def append(
        self, held: list[int], parents: Tensor, tokens: Tensor, alignment: Tensor | None
    ) -> None:
        self.rows.append({example: row for row, example in enumerate(held)})
        self.parents.append(parents.tolist())
        self.tokens.append(tokens.tolist())
        if alignment is not None:
            alignment = alignment.reshape(len(held), -1, alignment.size(1))
        self.alignments.append(alignment)

    def hypothesis(self, example: int, ending: _Ending) -> Hypothesis:
        tokens: list[int] = []
        weights: list[Tensor] = []
        slot = ending.slot
        for position in range(ending.position, -1, -1):
            row = self.rows[position][example]
            tokens.append(self.tokens[position][row][slot])
            slot = self.parents[position][row][slot]
            alignment = self.alignments[position]
            if alignment is not None:
                weights.append(alignment[row, slot])
        tokens.reverse()
        weights.reverse()
        return Hypothesis(
            tokens=tokens[:-1] if ending.finished else tokens,
            log_probability=ending.log_probability,
            score=ending.score,
            finished=ending.finished,
            alignment=torch.stack(weights).cpu() if weights else None,
        )
