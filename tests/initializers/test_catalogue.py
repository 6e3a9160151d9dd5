import pytest
import torch
from torch import Generator, Tensor

from seq2seq.initializers.blocks import Block
from seq2seq.initializers.catalogue import BLOCK_SCHEMES


def draw(name: str, block: Block, seed: int = 0, **arguments: float) -> Tensor:
    return BLOCK_SCHEMES[name](block, generator=Generator().manual_seed(seed), **arguments)


UNDRAWN = {"zeros", "constant", "identity", "nonnormal_chain"}


@pytest.mark.parametrize("name", sorted(set(BLOCK_SCHEMES) - UNDRAWN))
def test_the_generator_alone_decides_the_draw(name: str) -> None:
    required = {
        "scale": 0.1 if name in ("uniform", "normal", "truncated_normal") else None,
        "spectral_radius": 1.0 if name == "uniform_radius" else None,
        "longest": 10.0 if name == "recommended_recurrent" else None,
    }
    arguments = {key: value for key, value in required.items() if value is not None}
    block = Block((32, 32), 32, 32, "recurrent")
    torch.manual_seed(1)
    first = draw(name, block, **arguments)
    torch.manual_seed(2)
    assert torch.equal(first, draw(name, block, **arguments))
    assert not torch.equal(first, draw(name, block, seed=1, **arguments))
    assert torch.initial_seed() == 2
