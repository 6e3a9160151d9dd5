"""Size of an optimizer step beside the weights that it changes, by group of parameters.

The groups have the names of the roles of an initializer (`conf/initializer`).
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor

# By name, the first that matches; ``rest`` is what a network of another make may have.
PARAMETER_GROUPS = {
    "embedding": "*embedding.weight",
    "recurrent": "*weight_hh_l*",
    "input": "*weight_ih_l*",
    "bias": "*bias_?h_l*",
    "attention": "*attention*.weight",
    "bridge": "*bridge.*.weight",
    "output": "*output.weight",
    "linear_bias": "*.bias",
    "rest": "*",
}


def parameter_group(name: str) -> str:
    """The group of a parameter, by its name in the network."""
    return next(group for group, pattern in PARAMETER_GROUPS.items() if fnmatchcase(name, pattern))


@torch.no_grad()
def update_ratios(
    before: Mapping[str, Tensor], after: Iterable[tuple[str, Tensor]]
) -> dict[str, float]:
    """``||W' - W|| / ||W||`` of each group that has parameters, with the norm over all of them.

    About 1e-3 is what well-tuned runs with Adam show early on. Infinite where weights that were all
    zero moved, as biases do at the first step.

    Args:
        before: weights before the step, by name.
        after: names and weights after it.
    """
    squares: dict[str, list[Tensor]] = {}
    for name, weight in after:
        changed = torch.linalg.vector_norm(weight - before[name])
        size = torch.linalg.vector_norm(before[name])
        squares.setdefault(parameter_group(name), []).append(torch.stack([changed, size]).square())
    if not squares:
        return {}
    sums = torch.stack([torch.stack(parts).sum(0) for parts in squares.values()])
    ratios = (sums[:, 0] / sums[:, 1]).sqrt().tolist()
    return dict(zip(squares, ratios, strict=True))
