"""Which timesteps the gradient of a recurrent matrix comes from, and whether they agree.

Every timestep adds its part to the gradient of the one matrix that all share. The parts of the
first and of the last third of a sequence are compared here; derivatives at each timestep come from
`gradient_flow`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from seq2seq.diagnostics.gradient_flow import LayerFlow
from seq2seq.models.dropout import masked

THIRDS = ("early", "middle", "late")


@dataclass(frozen=True)
class WeightGradientByTime:
    """How the gradient of one recurrent matrix ``U`` is spread over time.

    Args:
        cosine: between the gradients that come from the first and from the last third of the
            timesteps, as vectors: near 1 both ask for the same change, near 0 for unrelated ones,
            below 0 for opposite ones. NaN where one of them is zero.
        shares: norm of the gradient from each third, over the sum of the three norms.
    """

    cosine: float
    shares: dict[str, float]


def weight_gradient_by_time(flow: LayerFlow) -> WeightGradientByTime:
    """Compare the thirds of the time of one recorded pass."""
    thirds = recurrent_gradient_by_third(flow).flatten(1)
    norms = torch.linalg.vector_norm(thirds, dim=1)
    directions = thirds / norms.unsqueeze(1)  # NaN where nothing arrived
    shares = (norms / norms.sum()).tolist()
    return WeightGradientByTime(
        cosine=float(directions[0] @ directions[2]),
        shares=dict(zip(THIRDS, shares, strict=True)),
    )


@torch.no_grad()
def recurrent_gradient_by_third(flow: LayerFlow) -> Tensor:
    """``sum_t d_t h_{t-1}^T`` over each third of the timesteps and all examples.

    With ``d_t`` the gradient of the pre-activations, the sum over all timesteps is ``dL/dU`` of the
    examples' summed losses. An example's thirds are those of its own real timesteps, in the order
    of the layer's scan: of a layer that scans backward, the first third holds its last tokens.

    Shape:
        returns ``[3, gates * hidden, hidden]``.
    """
    lengths = flow.lengths
    steps = torch.arange(len(flow.hidden), device=lengths.device).unsqueeze(1)
    # By the middle of each timestep, so that of two steps one is early and one is late.
    third = 3 * (2 * steps + 1) // (2 * lengths)  # [time, rows]
    third = torch.where(steps < lengths, third, -1)
    parts = torch.stack([third == one for one in range(3)])
    thirds = flow.linearization.recurrent_gradients(flow.hidden, flow.cell, parts)
    return masked(thirds, flow.scan.recurrent_mask)
