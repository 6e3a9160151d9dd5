"""Sampling outputs from the model's own distribution: tempered, and from its likely tokens only."""

from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from seq2seq.decoding.constraints import Constraints
from seq2seq.decoding.greedy import walk
from seq2seq.decoding.step import Hypothesis, StateT, Step, checked_limits


def sample(
    step: Step[StateT],
    state: StateT,
    *,
    max_lengths: Tensor,
    pad_id: int,
    bos_id: int,
    eos_id: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    samples: int = 1,
    length_penalty: float = 0.0,
    constraints: Constraints | None = None,
    alignments: bool = False,
) -> list[list[Hypothesis]]:
    """Draw every token from p(v)^(1 / temperature), made to sum to one.

    With `top_k` or `top_p`, from the tokens that :func:`likely` keeps of this distribution.

    The random numbers of an example are taken from the generator in one piece, as many as its
    maximum length. So a corpus gives the same outputs however it is cut into batches.

    Args:
        step: the step function, see `step.py`.
        state: its state before the first token, one row an example.
        max_lengths: most predicted positions of each example, `<eos>` included, on the device of
            the step function; see `length_limits`.
        pad_id: never generated.
        bos_id: the first input; never generated.
        eos_id: ends a hypothesis.
        generator: source of the random numbers, moved on; on any device.
        temperature: 1 is the model's distribution; towards 0 it becomes greedy search.
        top_k: draw from the k most probable tokens only; None for all.
        top_p: draw from the nucleus that holds this probability only; None for all tokens.
        samples: independent outputs of each example.
        length_penalty: alpha of `length_normalizer`, only for the reported score.
        constraints: what outputs must and must not hold.
        alignments: whether to keep the attention weights.

    Shape:
        max_lengths [batch] int64; returns `samples` hypotheses for each example, as drawn.

    Raises:
        ValueError: as `greedy`, and if `temperature`, `top_k`, `top_p` or `samples` is out of
            range.
    """
    if not 0.0 < temperature < float("inf"):
        raise ValueError(
            f"temperature={temperature}: use a positive number; for the limit at 0 use greedy "
            "search."
        )
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k}: draw from at least 1 token.")
    if top_p is not None and not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p={top_p}: use a probability above 0, up to 1.")
    if samples < 1:
        raise ValueError(f"samples={samples}: draw at least 1 output of each example.")
    checked_limits(
        max_lengths, pad_id=pad_id, bos_id=bos_id, eos_id=eos_id, length_penalty=length_penalty
    )
    if samples > 1:
        examples = torch.arange(max_lengths.size(0), device=max_lengths.device)
        rows = examples.repeat_interleave(samples)
        state, max_lengths = state.select(rows), max_lengths[rows]
        constraints = constraints and constraints.select(rows)
    table = _uniforms(max_lengths.tolist(), generator).to(max_lengths.device)

    def draw(log_probs: Tensor, hypotheses: list[int], position: int) -> Tensor:
        scores = log_probs.double()
        # from the best token down, so that a tiny temperature can't make all of them -inf
        scores = (scores - scores.amax(dim=1, keepdim=True)) / temperature
        scores = likely(scores, top_k=top_k, top_p=top_p)
        return inverse_cumulative(scores, table[hypotheses, position])

    drawn = walk(
        step,
        state,
        draw=draw,
        max_lengths=max_lengths,
        pad_id=pad_id,
        bos_id=bos_id,
        eos_id=eos_id,
        length_penalty=length_penalty,
        constraints=constraints,
        alignments=alignments,
    )
    return [drawn[first : first + samples] for first in range(0, len(drawn), samples)]


def likely(scores: Tensor, *, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Scores in which unlikely tokens are impossible; of equals, smaller ids are kept first.

    Args:
        scores: logarithms of probabilities, up to a constant in each row.
        top_k: keep the k most probable tokens (Fan, Lewis and Dauphin 2018, section 5,
            "Generation").
        top_p: of these, keep the nucleus: the fewest most probable tokens that together have at
            least this probability (Holtzman et al. 2020, section 3.1, equation 2).

    Shape:
        scores [rows, vocabulary]; returns the same shape.
    """
    if top_p == 1.0:
        top_p = None  # rounding must not cost the least probable tokens
    if top_k is None and top_p is None:
        return scores
    ordered, order = scores.sort(dim=1, descending=True, stable=True)
    dropped = torch.zeros_like(ordered, dtype=torch.bool)
    dropped[:, top_k:] = top_k is not None
    if top_p is not None:
        shares = torch.softmax(ordered.masked_fill(dropped, -torch.inf), dim=1)
        before = shares.cumsum(dim=1).roll(1, dims=1)  # of the more probable tokens together
        before[:, 0] = 0.0
        dropped |= before >= top_p
    return scores.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)


def inverse_cumulative(scores: Tensor, uniforms: Tensor) -> Tensor:
    """The first token whose cumulative share of exp(scores) exceeds the uniform number of its row.

    Shape:
        scores [rows, vocabulary], uniforms [rows] float64 in [0, 1); returns [rows] int64.
    """
    shares = torch.softmax(scores, dim=1, dtype=torch.float64).cumsum(dim=1)
    total = shares[:, -1:]
    # strictly below the total, or rounding could choose a token of probability zero at the end
    wanted = torch.minimum(uniforms.unsqueeze(1) * total, torch.nextafter(total, 0 * total))
    return torch.searchsorted(shares, wanted, right=True).squeeze(1)


def _uniforms(limits: list[int], generator: torch.Generator) -> Tensor:
    """Uniform numbers [hypotheses, longest], drawn hypothesis after hypothesis."""
    drawn = torch.rand(
        sum(limits), generator=generator, dtype=torch.float64, device=generator.device
    )
    if not limits:
        return drawn
    return pad_sequence(list(drawn.tensor_split(list(accumulate(limits))[:-1])), batch_first=True)
