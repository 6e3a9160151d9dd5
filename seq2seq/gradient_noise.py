"""Gaussian noise on the gradient, weaker with every step.

When it is added, after clipping, is the training module's.
"""

import torch
from torch import Tensor, nn


class GradientNoise:
    """Add ``N(0, sigma_t^2)`` to every gradient, ``sigma_t^2 = eta / (1 + t)^0.55``.

    Neelakantan et al. 2015, "Adding gradient noise improves learning for very deep networks",
    eq. 1, where eta is 0.01, 0.3 or 1. The draws are a function of seed and step alone: neither
    dropout nor the order of the data sees them, and a resumed run draws the same. The padding's
    embedding gets none, which has a gradient only where the output layer is tied to it.

    Args:
        eta: variance at step 0.
        seed: of the draws.

    Raises:
        ValueError: if eta is negative or not finite.
    """

    def __init__(self, *, eta: float = 0.0, seed: int = 0) -> None:
        if not 0 <= eta < float("inf"):
            raise ValueError(
                f"gradient_noise={eta} is a variance and must be at least 0; 0 adds no noise"
            )
        self.eta = eta
        self.seed = seed

    def __bool__(self) -> bool:
        return self.eta > 0

    def deviation(self, step: int) -> float:
        """The standard deviation after ``step`` optimizer steps."""
        return float((self.eta / (1 + step) ** 0.55) ** 0.5)

    @torch.no_grad()
    def add(self, module: nn.Module, step: int) -> None:
        """Add the noise of this step to the gradients of a module's parameters."""
        padding = {
            one.weight: one.padding_idx
            for one in module.modules()
            if isinstance(one, nn.Embedding) and one.padding_idx is not None
        }
        deviation = self.deviation(step)
        generators: dict[torch.device, torch.Generator] = {}
        for parameter in module.parameters():
            gradient = parameter.grad
            if gradient is None:
                continue
            generator = generators.get(gradient.device)
            if generator is None:
                generator = torch.Generator(gradient.device)
                # Not seed + step: neighbouring seeds would share all but one of their draws.
                generator.manual_seed((self.seed * 1_000_003 + step) % 2**63)
                generators[gradient.device] = generator
            noise = _normal(gradient, generator)
            if parameter in padding:
                noise[padding[parameter]] = 0
            gradient.add_(noise, alpha=deviation)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
