from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from torch import nn

PRESETS = Path(__file__).parents[2] / "conf" / "initializer"


class ToyEncoderDecoder(nn.Module):
    """The parameter names of the real encoder-decoder, without its forward."""

    def __init__(self, cell: str, hidden: int, embedding: int, vocabulary: int, tied: bool) -> None:
        super().__init__()
        rnn = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[cell]
        self.encoder = nn.Module()
        self.encoder.embedding = nn.Embedding(vocabulary, embedding)
        layer = nn.Module()
        layer.forward_layer = nn.ModuleDict({"rnn": rnn(embedding, hidden)})
        layer.backward_layer = nn.ModuleDict({"rnn": rnn(embedding, hidden)})
        self.encoder.layers = nn.ModuleList([layer])
        self.bridge = nn.ModuleDict({"hidden": nn.ModuleList([nn.Linear(2 * hidden, hidden)])})
        self.decoder = nn.Module()
        self.decoder.embedding = nn.Embedding(vocabulary, hidden if tied else embedding)
        self.decoder.layers = nn.ModuleList([nn.ModuleDict({"rnn": rnn(embedding, hidden)})])
        self.decoder.attention = nn.ModuleDict(
            {
                "query_projection": nn.Linear(hidden, hidden),
                "energy": nn.Linear(hidden, 1, bias=False),
            }
        )
        self.decoder.attention_vector = nn.Linear(3 * hidden, hidden, bias=False)
        self.decoder.output = nn.Linear(hidden, vocabulary)
        if tied:
            self.decoder.output.weight = self.decoder.embedding.weight


@pytest.fixture
def toy() -> Callable[..., nn.Module]:
    def build(
        cell: str = "lstm",
        hidden: int = 24,
        embedding: int = 16,
        vocabulary: int = 50,
        tied: bool = False,
    ) -> nn.Module:
        return ToyEncoderDecoder(cell, hidden, embedding, vocabulary, tied)

    return build


@pytest.fixture
def preset() -> Callable[..., dict[str, Any]]:
    """A shipped preset as plain values, with overrides as typed on the command line."""

    def composed(name: str) -> Any:
        config = OmegaConf.load(PRESETS / f"{name}.yaml")
        assert isinstance(config, DictConfig)
        bases = [base for base in config.pop("defaults", []) if base != "_self_"]
        return OmegaConf.merge(*map(composed, bases), config)

    def load(name: str, *overrides: str) -> dict[str, Any]:
        config = OmegaConf.merge(composed(name), OmegaConf.from_dotlist(list(overrides)))
        container = OmegaConf.to_container(config)
        assert isinstance(container, dict)
        if "longest" in container and container["longest"] is None:
            container["longest"] = 20.0  # in training it is that of the data
        return {str(key): value for key, value in container.items()}

    return load
