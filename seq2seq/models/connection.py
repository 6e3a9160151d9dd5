"""What goes around a layer of a stack: the input that is added to its output, or mixed with it.

Which layers of a stack have such a way around them is decided by encoder and decoder.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

LAYER_CONNECTIONS = ("none", "residual", "highway")


class LayerConnection(nn.Module):
    """Join what enters a layer, ``x``, with what leaves it, ``h``, at each timestep alone.

    ======== ============================================= ========================================
    none     ``h``
    residual ``h + x``                                     Wu et al. 2016, section 3.1, eq. 6
    highway  ``T * h + (1 - T) * x``,                      Srivastava, Greff and Schmidhuber 2015,
             ``T = sigmoid(W x + b)``                      "Highway networks", eq. 2 and 3
    ======== ============================================= ========================================

    The gate ``T`` begins nearly shut, at a bias below zero (section 2.2 there): -1 by the rules of
    `initializers`.

    Args:
        kind: one of :data:`LAYER_CONNECTIONS`.
        size: width of both.

    """

    def __init__(self, *, kind: str, size: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "highway":
            self.highway = nn.Linear(size, size)

    def forward(self, below: Tensor, output: Tensor) -> Tensor:
        """From the layer's input and output, both ``[batch, time, size]``, to the same shape."""
        match self.kind:
            case "residual":
                return output + below
            case "highway":
                gate = torch.sigmoid(self.highway(below))
                return gate * output + (1 - gate) * below
            case _:
                return output

    def extra_repr(self) -> str:
        """What ``print`` shows of it."""
        return self.kind


def connections(kind: str, widths: Sequence[int], *, top: bool = True) -> nn.ModuleList:
    """One connection a layer of a stack, from the width of each layer's output.

    None around the first layer, whose input is an embedding, nor where the layer below has another
    width, as a bidirectional one has.

    Args:
        kind: one of :data:`LAYER_CONNECTIONS`.
        widths: of each layer, from the bottom.
        top: whether anything reads the top layer's output; a way around it would lead nowhere.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind not in LAYER_CONNECTIONS:
        raise ValueError(
            f"layer_connection is {kind!r}, but it must be one of {', '.join(LAYER_CONNECTIONS)}"
        )
    return nn.ModuleList(
        LayerConnection(
            kind=kind if below == width and (top or index < len(widths) - 1) else "none",
            size=width,
        )
        for index, (below, width) in enumerate(zip([None, *widths], widths, strict=False))
    )
