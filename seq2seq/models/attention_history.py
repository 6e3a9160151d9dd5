"""What attention remembers of the target positions before, and what it adds to the next scores.

When it is asked again, and with which query, is left to the attention.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AttentionState(NamedTuple):
    """What an attention that depends on its own past carries from one query to the next.

    Shape:
        time: int64 ``[batch]``, how many queries were answered.
        previous: ``[batch, source_time]``, the last alignment.
        coverage: ``[batch, source_time]``, the sum of all.
    """

    time: Tensor
    previous: Tensor
    coverage: Tensor

    @classmethod
    def first(cls, keys: Tensor) -> "AttentionState":
        """The state before the first query, of sources with ``keys [batch, source_time, key]``.

        The alignment before the first lies on the first position, as in the authors' code of
        location-aware attention (the paper leaves it open); nothing is covered yet (See et al.
        2017, section 2.3).
        """
        exact = torch.promote_types(keys.dtype, torch.float32)
        coverage = keys.new_zeros(keys.shape[:2], dtype=exact)
        previous = coverage.clone()
        previous[:, 0] = 1.0
        return cls(keys.new_zeros(keys.size(0), dtype=torch.int64), previous, coverage)

    def after(self, alignment: Tensor) -> "AttentionState":
        """The state after answers with the alignments ``[batch, queries, source_time]``."""
        return AttentionState(
            self.time + alignment.size(1), alignment[:, -1], self.coverage + alignment.sum(1)
        )

    def detach(self) -> "AttentionState":
        """The same values, through which no gradient goes back."""
        return AttentionState(*(tensor.detach() for tensor in self))

    def select(self, rows: Tensor) -> "AttentionState":
        """The examples ``rows`` (int64 ``[rows]``) in that order; repeats are allowed."""
        return AttentionState(*(tensor.index_select(0, rows) for tensor in self))


class HistoryScore(nn.Module):
    """What past alignments add inside the tanh of the additive score.

    * location (Chorowski et al. 2015, section 2.2): ``U f_s`` with ``f = F * a_{t-1}``, the last
      alignment seen through a few filters ``F`` that are centred on the position ``s``;
    * coverage (See et al. 2017, eq. 10 and 11): ``w c_s`` with ``c`` the sum of all alignments
      before.

    Args:
        size: width of the additive score.
        filters: how many filters; None for no location.
        kernel: source positions under a filter, an odd number.
        coverage: whether to add that of coverage.
    """

    def __init__(self, *, size: int, filters: int | None, kernel: int, coverage: bool) -> None:
        super().__init__()
        self.filters: nn.Linear | None = None
        self.location: nn.Linear | None = None
        self.coverage: nn.Linear | None = None
        if filters is not None:
            self.filters = nn.Linear(kernel, filters, bias=False)  # one filter a row
            self.location = nn.Linear(filters, size, bias=False)
        if coverage:
            self.coverage = nn.Linear(1, size, bias=False)

    def forward(self, keys: Tensor, state: AttentionState) -> Tensor:
        """The keys ``[batch, source_time, size]`` with the terms added."""
        if self.filters is not None:
            assert self.location is not None
            kernel = self.filters.in_features
            # Zeros around the source, as an alignment has in its padding.
            around = F.pad(state.previous, (kernel // 2, kernel // 2)).unfold(1, kernel, 1)
            keys = keys + self.location(self.filters(around.to(self.filters.weight.dtype)))
        if self.coverage is not None:
            covered = state.coverage.unsqueeze(2)
            keys = keys + self.coverage(covered.to(self.coverage.weight.dtype))
        return keys
