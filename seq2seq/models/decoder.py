"""The decoder: target tokens so far, a state and the source's memory to features of the next token.

Teacher forcing runs fused over all timesteps whenever no step needs the attention of the one
before; only input feeding walks step by step. Both use the same layers, and agree.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seq2seq.models.attention import Attention, Memory
from seq2seq.models.attention_history import AttentionState
from seq2seq.models.connection import connections
from seq2seq.models.copy_mechanism import CopyMechanism
from seq2seq.models.dropout import SequenceDropout, WordDropout, masked
from seq2seq.models.embedding import make_embedding, make_output
from seq2seq.models.recurrent import (
    RecurrentLayer,
    RecurrentNoise,
    RecurrentState,
    stack_states,
)

QUERY_STATES = ("current", "previous")


class DecoderNoise(NamedTuple):
    """What is drawn once a sequence in training; empty where nothing is.

    Shape:
        words: ``[batch, vocabulary]``, factor of each word's embedding.
        embedding, output: ``[batch, 1, size]``, factors at every timestep.
        layers: the same of what enters a layer, by its index.
        recurrent: of a layer, by its index.
    """

    words: Tensor | None = None
    embedding: Tensor | None = None
    output: Tensor | None = None
    layers: Mapping[int, Tensor] = MappingProxyType({})
    recurrent: Mapping[int, RecurrentNoise] = MappingProxyType({})

    def select(self, rows: Tensor) -> "DecoderNoise":
        """The examples ``rows`` (int64 ``[rows]``) in that order; repeats are allowed."""

        def chosen(mask: Tensor | None) -> Tensor | None:
            return None if mask is None else mask.index_select(0, rows)

        return DecoderNoise(
            chosen(self.words),
            chosen(self.embedding),
            chosen(self.output),
            {index: mask.index_select(0, rows) for index, mask in self.layers.items()},
            self.recurrent,
        )


_NO_NOISE = DecoderNoise()


class DecoderState(NamedTuple):
    """What the decoder carries from one timestep to the next.

    Shape:
        recurrent: ``[layers, batch, hidden]``.
        fed: ``[batch, hidden]``, the attention vector of the step before; None without input
            feeding, and with ``query_state="previous"``, which feeds the context itself.
        noise: the same at every timestep; None in evaluation.
        attention: None where no answer of the attention depends on those before.
    """

    recurrent: RecurrentState
    fed: Tensor | None = None
    noise: DecoderNoise | None = None
    attention: AttentionState | None = None

    def detach(self) -> "DecoderState":
        """The same values, through which no gradient goes back."""
        return self._replace(
            recurrent=self.recurrent.detach(),
            fed=None if self.fed is None else self.fed.detach(),
            attention=None if self.attention is None else self.attention.detach(),
        )

    def select(self, rows: Tensor) -> "DecoderState":
        """The examples ``rows`` (int64 ``[rows]``) in that order; repeats are allowed."""
        fed = None if self.fed is None else self.fed.index_select(0, rows)
        noise = None if self.noise is None else self.noise.select(rows)
        attention = None if self.attention is None else self.attention.select(rows)
        return DecoderState(self.recurrent.select(rows), fed, noise, attention)


class DecoderOutput(NamedTuple):
    """What the decoder returns.

    Shape:
        features: ``[batch, target_time, hidden]``, the input of the output layer.
        state: after the last timestep; None after a fused pass, which ends beyond the padding.
        alignment: ``[batch, target_time, source_time]``, or None without attention.
        copy_gate: ``[batch, target_time, 1]``, see
            :class:`~seq2seq.models.copy_mechanism.CopyMechanism`, or None without one.
    """

    features: Tensor
    state: DecoderState | None
    alignment: Tensor | None
    copy_gate: Tensor | None = None


class _Step(NamedTuple):
    """One timestep: what it gives, and what the next one needs.

    There is one state a layer: stacking and cutting them at every step would copy them.
    """

    features: Tensor
    alignment: Tensor | None
    copy_gate: Tensor | None
    layers: list[RecurrentState]
    fed: Tensor | None
    attention: AttentionState | None


class Decoder(nn.Module):
    """A stack of recurrent layers over embedded target tokens, with or without attention.

    With attention the features are the attention vector ``tanh(W [context; hidden])`` of Luong
    et al. 2015, eq. 5, and what differs is where the context comes in:

    * no input feeding: the top hidden state ``h_t`` asks, and nothing of the answer reaches the
      recurrence, so that all timesteps are computed at once;
    * input feeding (Luong et al. 2015, section 3.3): the input of step ``t`` is the embedding
      beside the attention vector of step ``t - 1``;
    * input feeding with ``query_state="previous"`` (Bahdanau et al. 2015, appendix A.2.2): the
      hidden state ``h_{t-1}`` asks, and the input of step ``t`` is the embedding beside the
      context.

    Args:
        vocabulary_size: number of target tokens.
        pad_id: the token whose embedding stays zero.
        cell: see :class:`~seq2seq.models.recurrent.RecurrentLayer`.
        embedding_size: width of the target embedding.
        hidden_size: width of each layer and of the features.
        projection_size: width of the layers' hidden states and of the features after a projection,
            see :class:`~seq2seq.models.recurrent.RecurrentLayer`.
        layers: depth.
        attention: a ready module, or None.
        memory_size: width of the encoder's outputs.
        embedding_rank: width of the embedding's table, see
            :class:`~seq2seq.models.embedding.FactoredEmbedding`; None for a table of full width.
        shared_embedding: the encoder's, to be used here as well; one of its own if None.
        input_feeding: see above; needs attention.
        query_state: which hidden state asks, ``current`` or ``previous``.
        layer_connection: see :class:`~seq2seq.models.connection.LayerConnection`; around every
            layer but the first. Attention is asked by what leaves the top layer's connection, with
            ``previous`` by its hidden state.
        copy_mechanism: see :class:`~seq2seq.models.copy_mechanism.CopyMechanism`, whose input is
            that of the recurrence; needs attention.
        embedding_dropout: share of embedding units dropped.
        layer_dropout: share of units dropped between layers (not after the last).
        output_dropout: share of features dropped before the output layer.
        word_dropout: share of words dropped, see :class:`~seq2seq.models.dropout.WordDropout`.
        weight_dropout, zoneout_hidden, zoneout_cell: see
            :class:`~seq2seq.models.recurrent.RecurrentLayer`.
        truncation: the same, also of what is fed and of what attention goes on from.
        variational_dropout: draw embedding, layer and output dropout once a sequence, see
            :class:`~seq2seq.models.dropout.SequenceDropout`, and word dropout by type.
        tie_embeddings: the output layer uses the embedding's weights (Press and Wolf 2017,
            section 3).

    Raises:
        ValueError: for options that contradict each other.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        pad_id: int,
        cell: str,
        embedding_size: int,
        hidden_size: int,
        layers: int,
        attention: Attention | None,
        memory_size: int,
        projection_size: int | None = None,
        embedding_rank: int | None = None,
        shared_embedding: nn.Embedding | None = None,
        input_feeding: bool = False,
        query_state: str = "current",
        layer_connection: str = "none",
        copy_mechanism: bool = False,
        embedding_dropout: float = 0.0,
        layer_dropout: float = 0.0,
        output_dropout: float = 0.0,
        word_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        zoneout_hidden: float = 0.0,
        zoneout_cell: float = 0.0,
        truncation: int | None = None,
        variational_dropout: bool = False,
        tie_embeddings: bool = False,
    ) -> None:
        super().__init__()
        if query_state not in QUERY_STATES:
            raise ValueError(
                f"query_state is {query_state!r}, but it must be one of {QUERY_STATES}"
            )
        if input_feeding and attention is None:
            raise ValueError(
                "input_feeding=true feeds the attention vector, but attention=none has none: "
                "choose an attention, or set input_feeding=false"
            )
        if copy_mechanism and attention is None:
            raise ValueError(
                "copy_mechanism=true copies from where the attention lies, but attention=none has "
                "none: choose an attention, or set copy_mechanism=false"
            )
        if query_state == "previous" and not input_feeding:
            raise ValueError(
                "query_state=previous computes the context before the step that uses it, so it "
                "needs input_feeding=true"
            )
        width = hidden_size if projection_size is None else projection_size
        if tie_embeddings and embedding_size != width:
            raise ValueError(
                f"tie_embeddings=true needs equal widths, but embedding_size is {embedding_size} "
                f"and the decoder's hidden size is {width}"
            )
        self.output_size = width
        self.input_feeding = input_feeding
        self.query_state = query_state
        self.truncation = truncation
        self.embedding_size = embedding_size
        if shared_embedding is None:
            shared_embedding = make_embedding(
                vocabulary_size, embedding_size, pad_id=pad_id, rank=embedding_rank
            )
        self.embedding = shared_embedding
        self.word_dropout = WordDropout(
            word_dropout, vocabulary_size=vocabulary_size, by_type=variational_dropout
        )
        dropout = SequenceDropout if variational_dropout else nn.Dropout
        self.embedding_dropout = dropout(embedding_dropout)
        self.layer_dropout = dropout(layer_dropout)
        self.output_dropout = dropout(output_dropout)
        fed_size = 0
        if input_feeding:
            fed_size = memory_size if query_state == "previous" else width
        self.layers = nn.ModuleList(
            RecurrentLayer(
                cell=cell,
                input_size=width if index else embedding_size + fed_size,
                hidden_size=hidden_size,
                projection_size=projection_size,
                weight_dropout=weight_dropout,
                zoneout_hidden=zoneout_hidden,
                zoneout_cell=zoneout_cell,
                truncation=truncation,
            )
            for index in range(layers)
        )
        self.connections = connections(layer_connection, [width] * layers)
        self.attention = attention
        if attention is not None:
            self.attention_vector = nn.Linear(memory_size + width, width, bias=False)
        self.copy_mechanism: CopyMechanism | None = None
        if copy_mechanism:
            self.copy_mechanism = CopyMechanism(
                context_size=memory_size,
                hidden_size=width,
                input_size=embedding_size + fed_size,
                pad_id=pad_id,
            )
        self.output = make_output(width, self.embedding, tied=tie_embeddings)

    def first_state(self, recurrent: RecurrentState, memory: Memory | None) -> DecoderState:
        """The state before the first token, from the bridge's ``[layers, batch, hidden]``."""
        noise = self._draw_noise(recurrent.hidden[0])
        attention = None
        if self.attention is not None:
            assert memory is not None
            attention = self.attention.first_state(memory)
        fed = None
        if self.input_feeding and self.query_state == "current":
            fed = recurrent.hidden.new_zeros(recurrent.hidden.size(1), self.output_size)
        return DecoderState(recurrent, fed, noise, attention)

    def _draw_noise(self, like: Tensor) -> DecoderNoise | None:
        """For the batch of ``like``, ``[batch, ...]``."""

        def drawn(dropout: nn.Module, size: int) -> Tensor | None:
            return dropout.draw(like, size=size) if isinstance(dropout, SequenceDropout) else None

        if not self.training:
            return None
        layers, recurrent = {}, {}
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, RecurrentLayer)
            mask = drawn(self.layer_dropout, self.output_size) if index else None
            if mask is not None:
                layers[index] = mask
            if (disturbed := layer.draw_noise()) is not None:
                recurrent[index] = disturbed
        return DecoderNoise(
            words=self.word_dropout.draw(like),
            embedding=drawn(self.embedding_dropout, self.embedding_size),
            output=drawn(self.output_dropout, self.output_size),
            layers=layers,
            recurrent=recurrent,
        )

    def forward(self, tokens: Tensor, state: DecoderState, memory: Memory | None) -> DecoderOutput:
        """Teacher forcing: features of every timestep from the reference's tokens.

        Shape:
            tokens: int64 ``[batch, target_time]``, beginning with the begin symbol.
        """
        noise = state.noise or _NO_NOISE
        embedded = self._embed(tokens, noise)
        layers, fed, attention = state.recurrent.layers(), state.fed, state.attention
        if not self.input_feeding:
            hidden, _ = self._recurrent(embedded, layers, noise)
            features, alignment, gate, _ = self._attend(hidden, embedded, memory, attention)
            features = _drop(self.output_dropout, features, noise.output)
            return DecoderOutput(features, None, alignment, gate)
        steps: list[Tensor] = []
        alignments: list[Tensor] = []
        gates: list[Tensor] = []
        for time, token in enumerate(torch.split(embedded, 1, dim=1)):
            if self.begins_chunk(time):
                cut = DecoderState(stack_states(layers), fed, None, attention).detach()
                layers, fed, attention = cut.recurrent.layers(), cut.fed, cut.attention
            features, alignment, gate, layers, fed, attention = self._step(
                token, layers, fed, attention, memory, noise
            )
            assert alignment is not None
            steps.append(features)
            alignments.append(alignment)
            if gate is not None:
                gates.append(gate)
        return DecoderOutput(
            _drop(self.output_dropout, torch.cat(steps, dim=1), noise.output),
            DecoderState(stack_states(layers), fed, state.noise, attention),
            torch.cat(alignments, dim=1),
            torch.cat(gates, dim=1) if gates else None,
        )

    def begins_chunk(self, time: int) -> bool:
        """Whether truncation cuts the way of the gradient right before this timestep."""
        size = self.truncation if self.training else None
        return size is not None and time > 0 and time % size == 0

    def step(self, tokens: Tensor, state: DecoderState, memory: Memory | None) -> DecoderOutput:
        """One timestep: features ``[batch, 1, hidden]`` after the tokens ``[batch]``."""
        noise = state.noise or _NO_NOISE
        embedded = self._embed(tokens.unsqueeze(1), noise)
        features, alignment, gate, layers, fed, attention = self._step(
            embedded, state.recurrent.layers(), state.fed, state.attention, memory, noise
        )
        after = DecoderState(stack_states(layers), fed, state.noise, attention)
        features = _drop(self.output_dropout, features, noise.output)
        return DecoderOutput(features, after, alignment, gate)

    def _embed(self, tokens: Tensor, noise: DecoderNoise) -> Tensor:
        embedded = self.word_dropout(self.embedding(tokens), tokens, noise.words)
        return _drop(self.embedding_dropout, embedded, noise.embedding)

    def _step(
        self,
        embedded: Tensor,
        layers: Sequence[RecurrentState],
        fed: Tensor | None,
        attention: AttentionState | None,
        memory: Memory | None,
        noise: DecoderNoise,
    ) -> "_Step":
        if self.input_feeding and self.query_state == "previous":
            assert self.attention is not None and memory is not None
            before = layers[-1].hidden.transpose(0, 1)  # [batch, 1, hidden]
            context, alignment, attention = self.attention(before, memory, attention)
            x = torch.cat([embedded, context], dim=2)
            hidden, after = self._recurrent(x, layers, noise)
            gate = self._copy_gate(context, hidden, x)
            features = self._attention_vector(context, hidden)
            return _Step(features, alignment, gate, after, None, attention)
        x = embedded if fed is None else torch.cat([embedded, fed.unsqueeze(1)], dim=2)
        hidden, after = self._recurrent(x, layers, noise)
        features, alignment, gate, attention = self._attend(hidden, x, memory, attention)
        fed = features.squeeze(1) if self.input_feeding else None
        return _Step(features, alignment, gate, after, fed, attention)

    def _recurrent(
        self, x: Tensor, states: Sequence[RecurrentState], noise: DecoderNoise
    ) -> tuple[Tensor, list[RecurrentState]]:
        after: list[RecurrentState] = []
        for index, (layer, connection, state) in enumerate(
            zip(self.layers, self.connections, states, strict=True)
        ):
            assert isinstance(layer, RecurrentLayer)
            below = _drop(self.layer_dropout, x, noise.layers.get(index)) if index else x
            disturbed = layer.draw_steps(below, noise.recurrent.get(index))
            output, final = layer(below, None, state, disturbed)
            x = connection(x, output)
            after.append(final)
        return x, after

    def _attend(
        self, hidden: Tensor, x: Tensor, memory: Memory | None, state: AttentionState | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, AttentionState | None]:
        """Features, alignment, copy gate and the attention's state after.

        Args:
            hidden: what the recurrence made of its input ``x``.
        """
        if self.attention is None:
            return hidden, None, None, None
        assert memory is not None
        context, alignment, state = self.attention(hidden, memory, state)
        gate = self._copy_gate(context, hidden, x)
        return self._attention_vector(context, hidden), alignment, gate, state

    def _copy_gate(self, context: Tensor, hidden: Tensor, x: Tensor) -> Tensor | None:
        return None if self.copy_mechanism is None else self.copy_mechanism(context, hidden, x)

    def _attention_vector(self, context: Tensor, hidden: Tensor) -> Tensor:
        return torch.tanh(self.attention_vector(torch.cat([context, hidden], dim=2)))


def _drop(dropout: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """With the mask of the sequence, or without one as the module itself does."""
    dropped: Tensor = dropout(x) if mask is None else masked(x, mask)
    return dropped
