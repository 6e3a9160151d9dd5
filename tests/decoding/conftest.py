"""Small random step functions, whose best outputs can be found by trying every sequence."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

PAD, BOS, EOS = 0, 1, 2
IDS = {"pad_id": PAD, "bos_id": BOS, "eos_id": EOS}


@dataclass
class Rows:
    """State of the step functions here: the example of each row and a tensor of its history."""

    example: Tensor
    history: Tensor

    def select(self, rows: Tensor) -> "Rows":
        return Rows(self.example[rows], self.history[rows])


class Markov:
    """Next token by table, from the example and the two tokens before: rows can't interact."""

    def __init__(self, *, examples: int = 1, vocabulary: int = 7, seed: int = 0, spread: float = 2):
        generator = torch.Generator().manual_seed(seed)
        shape = (examples, vocabulary, vocabulary, vocabulary)
        self.table = (spread * torch.randn(shape, generator=generator)).log_softmax(dim=-1)
        self.examples = examples
        self.rows_computed: list[int] = []  # of each call

    def start(self, *examples: int) -> Rows:
        chosen = torch.tensor(examples or range(self.examples))
        return Rows(chosen, torch.zeros_like(chosen))

    def __call__(self, tokens: Tensor, state: Rows) -> tuple[Tensor, Rows, Tensor]:
        self.rows_computed.append(tokens.numel())
        log_probs = self.table[state.example, state.history, tokens]
        # an "alignment" that tells which token this position was predicted from
        alignment = torch.nn.functional.one_hot(tokens, self.table.size(-1)).float()
        return log_probs, Rows(state.example, tokens), alignment


class Recurrent:
    """A random tanh network in float64: the next token depends on the whole history."""

    def __init__(self, *, examples: int = 1, vocabulary: int = 7, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.embedding, self.recurrent = random(vocabulary, 8), random(8, 8)
        self.output, self.first = random(8, vocabulary), random(examples, 8)
        self.examples = examples

    def start(self, *examples: int) -> Rows:
        chosen = torch.tensor(examples or range(self.examples))
        return Rows(chosen, self.first[chosen])

    def __call__(self, tokens: Tensor, state: Rows) -> tuple[Tensor, Rows, None]:
        hidden = torch.tanh(self.embedding[tokens] + state.history @ self.recurrent)
        return (hidden @ self.output).log_softmax(dim=-1), Rows(state.example, hidden), None


def every_sequence(
    step: Callable[..., tuple[Tensor, Rows, Tensor | None]], state: Rows, limit: int
) -> list[tuple[list[int], float, bool]]:
    """(tokens, log-probability, finished) of every output that one example can have."""
    outputs: list[tuple[list[int], float, bool]] = []

    def extend(state: Rows, prefix: list[int], total: float) -> None:
        last = torch.tensor([prefix[-1] if prefix else BOS])
        log_probs, after, _ = step(last, state)
        for token, gain in enumerate(log_probs[0].double().tolist()):
            if token == EOS:
                outputs.append((prefix, total + gain, True))
            elif token not in (PAD, BOS):
                if len(prefix) + 1 == limit:
                    outputs.append(([*prefix, token], total + gain, False))
                else:
                    extend(after, [*prefix, token], total + gain)

    extend(state, [], 0.0)
    return outputs


@pytest.fixture
def ids() -> dict[str, int]:
    return dict(IDS)


@pytest.fixture
def markov() -> type[Markov]:
    return Markov


@pytest.fixture
def recurrent() -> type[Recurrent]:
    return Recurrent


@pytest.fixture
def enumerate_outputs() -> Callable[..., list[tuple[list[int], float, bool]]]:
    return every_sequence
