"""Attention: from decoder queries and encoder outputs to contexts and alignments.

Keys are projected once per source, and any number of queries is answered in one batched product;
only scores that depend on earlier alignments are computed one query after the other. When the
queries are available, all at once or a step at a time, is the decoder's business.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seq2seq.models.attention_history import AttentionState, HistoryScore
from seq2seq.models.local_attention import LOCAL_ATTENTIONS, WINDOW, LocalWindow

ATTENTIONS = ("none", "additive", "dot", "general", "scaled_dot", "location")
FILTERS, KERNEL = 10, 15


class Memory(NamedTuple):
    """What attention reads: projected keys, the values that are mixed, and which are real.

    Shape:
        keys: ``[batch, source_time, key]``; values: ``[batch, source_time, value]``;
        mask: bool ``[batch, source_time]``, True = real token.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor

    def select(self, rows: Tensor) -> "Memory":
        """The examples ``rows`` (int64 ``[rows]``) in that order; repeats are allowed."""
        return Memory(*(tensor.index_select(0, rows) for tensor in self))


class AttentionOutput(NamedTuple):
    """What attention answers.

    Shape:
        context: ``[batch, target_time, memory]``.
        alignment: ``[batch, target_time, source_time]``, with several heads their mean.
        state: after the last query; None if no answer depends on those before.
    """

    context: Tensor
    alignment: Tensor
    state: AttentionState | None


class Attention(nn.Module):
    """Soft attention with one of five scores between a query ``q`` and an encoder output ``m``.

    ========== ================================= ===============================================
    additive   ``v . tanh(W q + U m)``           Bahdanau, Cho and Bengio 2015, appendix A.1.2
    dot        ``q . m``                         Luong, Pham and Manning 2015, eq. 8
    general    ``q . W m``                       Luong, Pham and Manning 2015, eq. 8
    scaled_dot ``q . m / sqrt(size)``            Vaswani et al. 2017, eq. 1
    location   additive, and the last alignment  Chorowski et al. 2015, section 2.2
    ========== ================================= ===============================================

    The alignment is the softmax of the scores over real source positions (Luong 2015, eq. 7), and
    the context is the mean of the encoder outputs under it. Padding gets weight exactly zero.

    Several heads (Vaswani et al. 2017, section 3.2.2) each have their share of a projected query,
    key and value, and their contexts together are projected back to the width of the memory.
    Coverage (See, Liu and Manning 2017, eq. 11) and location add terms of earlier alignments to the
    score, see :class:`~seq2seq.models.attention_history.HistoryScore`: queries are then answered
    one after the other. Local attention reads a window of the source alone, see
    :class:`~seq2seq.models.local_attention.LocalWindow`; it costs as much as reading all.

    Args:
        kind: one of the five scores above.
        query_size: width of the decoder's hidden state.
        memory_size: width of the encoder's outputs.
        attention_size: width of the additive score, and of all heads together; the query's if
            None. Other scores refuse it.
        heads: how many; several with ``additive`` and ``scaled_dot`` alone.
        filters, kernel: of ``location``, how many filters see how many source positions each; 10
            and 15 if None (the paper's filters see frames of speech, of which there are more).
        coverage: whether the sum of all earlier alignments is a term of the additive score.
        local: ``none``, ``monotonic`` or ``predictive``.
        window: D of local attention: so many source positions to both sides; 10 if None.
        truncation: in training no gradient goes back through the alignments before every so many
            queries that are asked at once.

    Raises:
        ValueError: for an unknown kind, sizes that don't fit together, or an option that has no
            meaning with the others.
    """

    def __init__(
        self,
        *,
        kind: str,
        query_size: int,
        memory_size: int,
        attention_size: int | None = None,
        heads: int = 1,
        filters: int | None = None,
        kernel: int | None = None,
        coverage: bool = False,
        local: str = "none",
        window: int | None = None,
        truncation: int | None = None,
    ) -> None:
        super().__init__()
        if kind not in ATTENTIONS[1:]:
            raise ValueError(f"attention is {kind!r}, but it must be one of {ATTENTIONS}")
        additive = kind in ("additive", "location")
        size = query_size if attention_size is None else attention_size
        if heads > 1:
            _check_heads(kind, heads, size, coverage)
        elif kind in ("dot", "scaled_dot") and query_size != memory_size:
            raise ValueError(
                f"attention={kind} multiplies decoder states of size {query_size} with encoder "
                f"outputs of size {memory_size} (all directions together): make them equal, or "
                "use attention=general"
            )
        if attention_size is not None and not additive and heads == 1:
            raise ValueError(
                f"attention_size={attention_size} has no meaning for attention={kind}: "
                "only attention=additive, attention=location and several attention_heads have a "
                "size of their own; set attention_size to null"
            )
        if coverage and not additive:
            raise ValueError(
                f"coverage=true adds to the additive score, but attention is {kind}: use "
                "attention=additive or attention=location, or coverage=false"
            )
        self.kind = kind
        self.heads = heads
        self.truncation = truncation
        self.scale = 1 / math.sqrt(size // heads) if kind == "scaled_dot" else 1.0
        self.query_projection: nn.Linear | None = None
        self.key_projection: nn.Linear | None = None
        self.energy: nn.Linear | None = None
        if additive or heads > 1:
            self.query_projection = nn.Linear(query_size, size, bias=additive)
            self.key_projection = nn.Linear(memory_size, size, bias=False)
        elif kind == "general":
            self.key_projection = nn.Linear(memory_size, query_size, bias=False)
        if additive:
            self.energy = nn.Linear(size // heads, heads, bias=False)  # one head a row
        if heads > 1:
            self.value_projection = nn.Linear(memory_size, size, bias=False)
            self.output_projection = nn.Linear(size, memory_size, bias=False)
        self.history = _history(kind, size, filters, kernel, coverage)
        self.window = _window(local, query_size, window)

    @property
    def remembers(self) -> bool:
        """Whether an answer depends on those before."""
        monotonic = self.window is not None and self.window.kind == "monotonic"
        return self.history is not None or monotonic

    def memory(self, outputs: Tensor, mask: Tensor) -> Memory:
        """Project the encoder outputs ``[batch, source_time, memory]``, once a source."""
        keys = outputs if self.key_projection is None else self.key_projection(outputs)
        return Memory(keys, outputs if self.heads == 1 else self.value_projection(outputs), mask)

    def first_state(self, memory: Memory) -> AttentionState | None:
        """The state before the first query; None if no answer depends on those before."""
        return AttentionState.first(memory.keys) if self.remembers else None

    def forward(
        self, query: Tensor, memory: Memory, state: AttentionState | None = None
    ) -> AttentionOutput:
        """Contexts and alignments of all queries, in their order.

        Shape:
            query: ``[batch, target_time, query]``; state: after the query before, None for the
            first.
        """
        if state is None:
            state = self.first_state(memory)
        queries = query if self.query_projection is None else self.query_projection(query)
        near = None
        if self.window is not None:
            near = self.window(query, memory.mask, None if state is None else state.time)
        if self.history is not None:
            assert state is not None
            weights, state = self._walk(queries, memory, near, state)
        else:
            weights = self._weights(queries, memory.keys, memory.mask, near)
            state = None if state is None else state.after(_mean(weights))
        mixed = weights.to(memory.values.dtype) @ self._split(memory.values)
        if self.heads == 1:
            return AttentionOutput(mixed, weights, state)
        context = self.output_projection(mixed.transpose(1, 2).flatten(2))
        return AttentionOutput(context, _mean(weights), state)

    def _walk(
        self, queries: Tensor, memory: Memory, near: Tensor | None, state: AttentionState
    ) -> tuple[Tensor, AttentionState]:
        """Alignments one query after the other; contexts are mixed for all of them at once."""
        assert self.history is not None
        steps: list[Tensor] = []
        chunk = self.truncation if self.training else None
        for time, query in enumerate(torch.split(queries, 1, dim=1)):
            here = None if near is None else near[:, time : time + 1]
            if chunk is not None and time and time % chunk == 0:
                state = state.detach()
            keys = self.history(memory.keys, state)
            steps.append(self._weights(query, keys, memory.mask, here))
            state = state.after(steps[-1])
        return torch.cat(steps, dim=1), state

    def _weights(self, queries: Tensor, keys: Tensor, mask: Tensor, near: Tensor | None) -> Tensor:
        """``[batch, target, source]``, with several heads ``[batch, heads, target, source]``."""
        if self.energy is None:
            scores = self._split(queries) @ self._split(keys).transpose(-2, -1) * self.scale
        else:
            inner = torch.tanh(queries.unsqueeze(2) + keys.unsqueeze(1))
            if self.heads == 1:  # [batch, target, source, size]
                scores = self.energy(inner).squeeze(3)
            else:
                # [size, heads]: each head reads its own share.
                energy: Tensor = torch.block_diag(*self.energy.weight.unsqueeze(2))  # type: ignore[no-untyped-call]
                scores = (inner @ energy).permute(0, 3, 1, 2)
        readable = mask.unsqueeze(1) if near is None else near > 0
        if self.heads > 1:
            readable = readable.unsqueeze(1)
        scores = scores.masked_fill(~readable, -math.inf)
        # A softmax over hundreds of positions loses too much in half precision.
        exact = torch.promote_types(scores.dtype, torch.float32)
        weights = torch.softmax(scores, dim=-1, dtype=exact)
        if near is None:
            return weights
        return weights * (near if self.heads == 1 else near.unsqueeze(1))

    def _split(self, x: Tensor) -> Tensor:
        """From ``[batch, time, size]`` to ``[batch, heads, time, size / heads]``."""
        if self.heads == 1:
            return x
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


def _mean(weights: Tensor) -> Tensor:
    """Over the heads, if there are several."""
    return weights.mean(1) if weights.dim() == 4 else weights


def _check_heads(kind: str, heads: int, size: int, coverage: bool) -> None:
    if kind in ("dot", "general"):
        raise ValueError(
            f"attention_heads={heads} projects queries and keys, so that attention={kind} would be "
            "scaled_dot without its scale: use attention=scaled_dot or attention=additive, or "
            "attention_heads=1"
        )
    if kind == "location" or coverage:
        option = "attention=location" if kind == "location" else "coverage=true"
        raise ValueError(
            f"attention_heads={heads} gives several alignments, but {option} goes on from one: use "
            "attention_heads=1"
        )
    if size % heads:
        raise ValueError(
            f"attention_heads={heads} must divide the width that the heads share, {size}: choose "
            "another attention_size"
        )


def _history(
    kind: str, size: int, filters: int | None, kernel: int | None, coverage: bool
) -> HistoryScore | None:
    if kind != "location":
        for name, value in (("attention_filters", filters), ("attention_kernel", kernel)):
            if value is not None:
                raise ValueError(
                    f"{name}={value} has no meaning for attention={kind}: only attention=location "
                    "has filters; set it to null"
                )
        if not coverage:
            return None
        return HistoryScore(size=size, filters=None, kernel=1, coverage=True)
    kernel = KERNEL if kernel is None else kernel
    if kernel % 2 == 0:
        raise ValueError(
            f"attention_kernel={kernel} must be odd: a filter is centred on a source position"
        )
    filters = FILTERS if filters is None else filters
    return HistoryScore(size=size, filters=filters, kernel=kernel, coverage=coverage)


def _window(local: str, query_size: int, window: int | None) -> LocalWindow | None:
    if local not in LOCAL_ATTENTIONS:
        raise ValueError(f"local_attention is {local!r}, but it must be one of {LOCAL_ATTENTIONS}")
    if local != "none":
        distance = WINDOW if window is None else window
        return LocalWindow(kind=local, query_size=query_size, distance=distance)
    if window is not None:
        raise ValueError(
            f"attention_window={window} has no meaning without local attention: set it to null, or "
            "local_attention to monotonic or predictive"
        )
    return None
