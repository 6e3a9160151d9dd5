"""Lyapunov exponents of one example of a recorded pass: cheap enough to follow during training.

The method is that of `lyapunov`; here fewer directions are followed, through the longest of the
recorded examples alone.
"""

from dataclasses import dataclass

import torch

from seq2seq.diagnostics.gradient_flow import LayerFlow
from seq2seq.diagnostics.lyapunov import lyapunov_exponents, memory_dimension

# Steps between two times that the frame is made orthonormal, which takes most of the time.
_ORTHONORMAL_EVERY = 4


@dataclass(frozen=True)
class LeadingExponents:
    """What survives the way through one sequence.

    Args:
        exponents: largest first, in natural logarithms per step.
        length: real timesteps of the sequence.
    """

    exponents: tuple[float, ...]
    length: int

    @property
    def memory_dimension(self) -> int:
        """Directions still there at the end, at most as many as were followed."""
        return memory_dimension(self.exponents, self.length)


@torch.no_grad()
def leading_exponents(flow: LayerFlow, *, count: int) -> LeadingExponents:
    """Follow ``count`` directions, or all if the state has fewer, through the longest example."""
    whole, row = flow.linearization, int(flow.lengths.argmax())
    length = int(flow.lengths[row])
    linearization = whole.part(length, row)
    count = min(count, flow.transport.size(2))
    exponents = lyapunov_exponents(linearization, count=count, orthonormal_every=_ORTHONORMAL_EVERY)
    return LeadingExponents(tuple(exponents[0].tolist()), length)
