"""Attention: from decoder queries and encoder outputs to contexts and alignments.

Keys are projected once per source, and any number of queries is answered in one batched product.
When the queries are available, all at once or a step at a time, is the decoder's business.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

ATTENTIONS = ("none", "additive", "dot", "general", "scaled_dot")


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


class Attention(nn.Module):
    """Soft attention with one of four scores between a query ``q`` and an encoder output ``m``.

    ========== ============================== ==================================================
    additive   ``v . tanh(W q + U m)``        Bahdanau, Cho and Bengio 2015, appendix A.1.2
    dot        ``q . m``                      Luong, Pham and Manning 2015, eq. 8
    general    ``q . W m``                    Luong, Pham and Manning 2015, eq. 8
    scaled_dot ``q . m / sqrt(size)``         Vaswani et al. 2017, eq. 1
    ========== ============================== ==================================================

    The alignment is the softmax of the scores over real source positions (Luong 2015, eq. 7), and
    the context is the mean of the encoder outputs under it. Padding gets weight exactly zero.

    Args:
        kind: one of the four scores above.
        query_size: width of the decoder's hidden state.
        memory_size: width of the encoder's outputs.
        attention_size: width of the additive score; the query's if None. Other scores refuse it.

    Raises:
        ValueError: for an unknown kind, sizes that a dot product can't join, or an
            ``attention_size`` that would be ignored.
    """

    def __init__(
        self, *, kind: str, query_size: int, memory_size: int, attention_size: int | None = None
    ) -> None:
        super().__init__()
        if kind not in ATTENTIONS[1:]:
            raise ValueError(f"attention is {kind!r}, but it must be one of {ATTENTIONS}")
        if kind in ("dot", "scaled_dot") and query_size != memory_size:
            raise ValueError(
                f"attention={kind} multiplies decoder states of size {query_size} with encoder "
                f"outputs of size {memory_size} (all directions together): make them equal, or "
                "use attention=general"
            )
        if attention_size is not None and kind != "additive":
            raise ValueError(
                f"attention_size={attention_size} has no meaning for attention={kind}: "
                "only attention=additive has a size of its own; set attention_size to null"
            )
        self.kind = kind
        self.scale = 1 / math.sqrt(query_size) if kind == "scaled_dot" else 1.0
        if kind == "additive":
            size = query_size if attention_size is None else attention_size
            self.query_projection = nn.Linear(query_size, size)
            self.key_projection = nn.Linear(memory_size, size, bias=False)
            self.energy = nn.Linear(size, 1, bias=False)
        elif kind == "general":
            self.key_projection = nn.Linear(memory_size, query_size, bias=False)

    def memory(self, outputs: Tensor, mask: Tensor) -> Memory:
        """Project the encoder outputs ``[batch, source_time, memory]`` to keys, once a source."""
        keys = outputs if self.kind in ("dot", "scaled_dot") else self.key_projection(outputs)
        return Memory(keys, outputs, mask)

    def forward(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Contexts and alignments of all queries.

        Shape:
            query: ``[batch, target_time, query]``; returns ``[batch, target_time, value]`` and
            ``[batch, target_time, source_time]``.
        """
        if self.kind == "additive":
            projected = self.query_projection(query).unsqueeze(2)  # [batch, target, 1, size]
            scores = self.energy(torch.tanh(projected + memory.keys.unsqueeze(1))).squeeze(3)
        else:
            scores = query @ memory.keys.transpose(1, 2) * self.scale
        scores = scores.masked_fill(~memory.mask.unsqueeze(1), -math.inf)
        # A softmax over hundreds of positions loses too much in half precision.
        alignment = torch.softmax(
            scores, dim=2, dtype=torch.promote_types(scores.dtype, torch.float32)
        )
        return alignment.to(memory.values.dtype) @ memory.values, alignment
