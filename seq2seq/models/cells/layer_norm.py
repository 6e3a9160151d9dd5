"""Layer normalisation of each gate's activations."""

import torch
from torch import Tensor
from torch.nn.functional import layer_norm


def normalize_gates(activations: Tensor, gates: int, gain: Tensor, bias: Tensor) -> Tensor:
    """``gain * (a - mean(a)) / std(a) + bias``, with mean and deviation over the units of a gate.

    Ba, Kiros and Hinton 2016, "Layer normalization", section 3.1. At least in float32, where
    squares of float16 don't overflow; returned in the type of the parameters, if that is wider.

    Shape:
        activations: ``[..., gates * units]``; gain and bias: ``[gates * units]``.
    """
    blocks = activations.reshape(*activations.shape[:-1], gates, -1)
    exact = blocks.to(torch.promote_types(blocks.dtype, torch.float32))
    normal = layer_norm(exact, exact.shape[-1:]).flatten(-2)
    result = torch.addcmul(bias.to(exact), gain.to(exact), normal)
    return result.to(torch.promote_types(activations.dtype, gain.dtype))


def check_units(hidden_size: int, cell: str) -> None:
    """A single unit has no deviation."""
    if hidden_size < 2:
        raise ValueError(
            f"hidden_size is {hidden_size}, but cell={cell} normalises over the units of a gate: "
            "it must be at least 2"
        )
