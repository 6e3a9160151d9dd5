"""A minimal training loop in plain PyTorch: the floor of the benchmark.

What a good PyTorch user would write for exactly the models that are compared, and nothing else: the
modules that PyTorch ships, packed encoder input, attention over all timesteps at once where the
model allows it, only real positions in the output layer, fused Adam.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from step_watches import Watch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from seq2seq.data.batch import Batch
from seq2seq.data.tokenizer import PAD_ID
from seq2seq.models.encoder_decoder import EncoderDecoder
from seq2seq.models.recurrent import reverse_by_length


def train_plainly(
    model: "PlainModel", batches: Sequence["PlainBatch"], watch: Watch, *, device: torch.device
) -> None:
    """The loop; the watch sees each step and its parts."""
    parameters = list(model.train().parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)
    for prepared in batches:
        watch.tick(parameters, optimizer)
        with watch.part("Lightning, loop"):
            with watch.part("data"):
                batch = prepared.to(device)
            with watch.part("encoder"):
                encoded = model.encode(batch)
            with watch.part("decoder, attention"):
                features = model.decode(batch, encoded)
            with watch.part("output layer, loss"):
                loss = model.loss(batch, features)
            with watch.part("backward"):
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
            with watch.part("clipping, optimizer"):
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()


class PlainBatch(NamedTuple):
    """A batch as the floor wants it, made before the clock starts."""

    source: Tensor  # [batch, source_time]
    lengths: Tensor  # [batch], stays on the CPU, where packing needs it
    padding: Tensor  # [batch, 1, source_time], True = padding
    decoder_input: Tensor  # [batch, target_time]
    positions: Tensor  # [target_tokens], flat positions of the real labels
    labels: Tensor  # [target_tokens]

    def to(self, device: torch.device) -> "PlainBatch":
        moved = (tensor.to(device, non_blocking=True) for tensor in self)
        return PlainBatch(*moved)._replace(lengths=self.lengths)


def prepare(batch: Batch, *, reverse_source: bool) -> PlainBatch:
    """The floor's form of one of the framework's batches."""
    source, lengths = batch.source, batch.source_lengths
    if reverse_source:
        source = reverse_by_length(source, lengths - 1)
    padding = torch.arange(source.size(1)) >= lengths.unsqueeze(1)
    return PlainBatch(
        source=source,
        lengths=lengths,
        padding=padding.unsqueeze(1),
        decoder_input=batch.decoder_input.contiguous(),
        positions=batch.target_positions,
        labels=batch.labels,
    )


class PlainModel(nn.Module):
    """LSTM encoder-decoder with general attention, on the modules that PyTorch ships.

    A bidirectional encoder has one layer and hands its state on through `tanh(W [forward;
    backward])`; a unidirectional one has any number and hands each layer's state on as it is.
    """

    def __init__(
        self,
        *,
        source_vocabulary_size: int,
        target_vocabulary_size: int,
        size: int,
        layers: int,
        bidirectional: bool,
        input_feeding: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.size = size
        self.input_feeding = input_feeding
        memory = 2 * size if bidirectional else size
        stack = {"num_layers": layers, "dropout": dropout, "batch_first": True}
        self.source_embedding = nn.Embedding(source_vocabulary_size, size, padding_idx=PAD_ID)
        self.target_embedding = nn.Embedding(target_vocabulary_size, size, padding_idx=PAD_ID)
        self.encoder = nn.LSTM(size, size, bidirectional=bidirectional, **stack)
        self.bridge = (
            nn.ModuleList(nn.Linear(memory, size) for _ in "hc") if bidirectional else None
        )
        if input_feeding:
            self.cells = nn.ModuleList(
                nn.LSTMCell(size if layer else 2 * size, size) for layer in range(layers)
            )
            self.dropout = nn.Dropout(dropout)
        else:
            self.decoder = nn.LSTM(size, size, **stack)
        self.key = nn.Linear(memory, size, bias=False)
        self.attention_vector = nn.Linear(memory + size, size, bias=False)
        self.output = nn.Linear(size, target_vocabulary_size)

    def encode(self, batch: PlainBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs [batch, source_time, memory], and the last hidden and cell states."""
        packed = pack_padded_sequence(
            self.source_embedding(batch.source),
            batch.lengths,
            batch_first=True,
            enforce_sorted=False,
        )
        outputs, (hidden, cell) = self.encoder(packed)
        return pad_packed_sequence(outputs, batch_first=True)[0], hidden, cell

    def decode(self, batch: PlainBatch, encoded: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Attention vectors [batch, target_time, size] from the reference's tokens."""
        memory, hidden, cell = encoded
        keys = self.key(memory).transpose(1, 2)
        if self.bridge is not None:
            hidden, cell = (
                torch.tanh(linear(torch.cat([*state], dim=1))).unsqueeze(0)
                for linear, state in zip(self.bridge, (hidden, cell), strict=True)
            )
        embedded = self.target_embedding(batch.decoder_input)
        if not self.input_feeding:
            queries, _ = self.decoder(embedded, (hidden, cell))
            return self.attend(queries, keys, memory, batch.padding)
        states = list(zip(hidden, cell, strict=True))
        fed = embedded.new_zeros(len(embedded), self.size)
        steps = []
        for token in embedded.unbind(1):
            x = torch.cat([token, fed], dim=1)
            for layer, lstm in enumerate(self.cells):
                states[layer] = lstm(self.dropout(x) if layer else x, states[layer])
                x = states[layer][0]
            fed = self.attend(x.unsqueeze(1), keys, memory, batch.padding).squeeze(1)
            steps.append(fed)
        return torch.stack(steps, dim=1)

    def attend(self, queries: Tensor, keys: Tensor, memory: Tensor, padding: Tensor) -> Tensor:
        scores = torch.bmm(queries, keys).masked_fill(padding, -torch.inf)
        context = torch.bmm(torch.softmax(scores, dim=2), memory)
        return torch.tanh(self.attention_vector(torch.cat([context, queries], dim=2)))

    def loss(self, batch: PlainBatch, features: Tensor) -> Tensor:
        """Mean cross-entropy over the real target positions."""
        real = features.flatten(0, 1).index_select(0, batch.positions)
        return F.cross_entropy(self.output(real), batch.labels)


def plain_model(model: EncoderDecoder) -> PlainModel:
    """The floor's counterpart of a network, with the same weights."""
    encoder, decoder = model.encoder, model.decoder
    plain_one = PlainModel(
        source_vocabulary_size=encoder.embedding.num_embeddings,
        target_vocabulary_size=decoder.embedding.num_embeddings,
        size=decoder.output_size,
        layers=len(encoder.layers),
        bidirectional=encoder.directions[0] == 2,
        input_feeding=decoder.input_feeding,
        dropout=encoder.layer_dropout.p,
    ).to(decoder.output.weight)
    weights = model.state_dict()
    plain_one.load_state_dict({name: weights[twin] for name, twin in twins(plain_one).items()})
    return plain_one


def twins(plain_one: PlainModel) -> dict[str, str]:
    """Parameter names of the floor, and what the framework calls the same parameter."""
    names = {
        "source_embedding.weight": "encoder.embedding.weight",
        "target_embedding.weight": "decoder.embedding.weight",
        "key.weight": "decoder.attention.key_projection.weight",
        "attention_vector.weight": "decoder.attention_vector.weight",
        "output.weight": "decoder.output.weight",
        "output.bias": "decoder.output.bias",
    }
    for name, _ in plain_one.named_parameters():
        kind, _, rest = name.partition(".")
        if kind == "bridge":
            state, part = rest.split(".")
            names[name] = f"bridge.{('hidden', 'cell')[int(state)]}.0.{part}"
        elif kind == "cells":
            layer, part = rest.split(".")
            names[name] = f"decoder.layers.{layer}.rnn.{part}_l0"
        elif kind in ("encoder", "decoder"):
            forward = rest.removesuffix("_reverse")
            part, _, layer = forward.rpartition("_l")
            direction = ".forward_layer" if forward == rest else ".backward_layer"
            inner = direction if kind == "encoder" else ""
            names[name] = f"{kind}.layers.{layer}{inner}.rnn.{part}_l0"
    return names
