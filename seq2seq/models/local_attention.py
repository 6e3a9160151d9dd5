"""Where local attention looks: a window of source positions around one that is aligned.

The scores within the window, and their softmax, are the attention's.
"""

import torch
from torch import Tensor, nn

LOCAL_ATTENTIONS = ("none", "monotonic", "predictive")
WINDOW = 10  # Luong et al. 2015, section 4.1


class LocalWindow(nn.Module):
    """The window ``[p_t - D, p_t + D]`` of Luong, Pham and Manning 2015, section 3.2.

    ========== ======================================== ==========================================
    monotonic  ``p_t = t`` (local-m)                    every position in the window alike
    predictive ``p_t = S sigmoid(v . tanh(W h_t))``     ``exp(-(s - p_t)^2 / (2 (D / 2)^2))``
               (local-p, eq. 9)                         times the softmax (eq. 10)
    ========== ======================================== ==========================================

    Positions ``s`` and timesteps ``t`` count from 1, and ``S`` counts all real source positions,
    the end symbol too. Beyond the end of the source ``p_t`` of local-m stays at ``S``, so that the
    window is never empty. The weights of local-p add up to less than 1, as in the paper.

    Args:
        kind: ``monotonic`` or ``predictive``.
        query_size: width of the decoder's hidden state ``h_t``.
        distance: D, in source positions.
    """

    def __init__(self, *, kind: str, query_size: int, distance: int) -> None:
        super().__init__()
        self.kind = kind
        self.distance = distance
        if kind == "predictive":
            self.hidden = nn.Linear(query_size, query_size, bias=False)
            self.position = nn.Linear(query_size, 1, bias=False)

    def forward(self, query: Tensor, mask: Tensor, time: Tensor | None) -> Tensor:
        """What the weight of each position is multiplied by: 0 outside, from exp(-2) to 1 inside.

        Shape:
            query: ``[batch, target_time, query]``; mask: bool ``[batch, source_time]``, True =
            real; time: int64 ``[batch]``, timesteps before the first query, read by local-m alone;
            returns ``[batch, target_time, source_time]``.
        """
        lengths = mask.sum(1, keepdim=True)  # [batch, 1]
        # Half precision can't tell the positions of a long source apart.
        exact = torch.promote_types(query.dtype, torch.float32)
        positions = torch.arange(1, mask.size(1) + 1, device=mask.device, dtype=exact)
        if self.kind == "monotonic":
            assert time is not None
            steps = torch.arange(1, query.size(1) + 1, device=mask.device)
            centre = torch.minimum(time.unsqueeze(1) + steps, lengths)
        else:
            share = self.position(torch.tanh(self.hidden(query))).squeeze(2)
            centre = lengths * torch.sigmoid(share.to(exact))
        offset = positions - centre.unsqueeze(2)  # [batch, target, source]
        inside = (offset.abs() <= self.distance) & mask.unsqueeze(1)
        if self.kind == "monotonic":
            return inside.to(exact)
        return torch.exp(-2 * (offset / self.distance).square()).masked_fill(~inside, 0.0)
