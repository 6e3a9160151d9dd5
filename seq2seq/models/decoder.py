"""The decoder: target tokens so far, a state and the source's memory to features of the next token.

Teacher forcing runs fused over all timesteps whenever no step needs the attention of the one
before; only input feeding walks step by step. Both use the same layers, and agree.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seq2seq.models.attention import Attention, Memory
from seq2seq.models.connection import connections
from seq2seq.models.recurrent import RecurrentLayer, RecurrentState, stack_states

QUERY_STATES = ("current", "previous")


class DecoderState(NamedTuple):
    """What the decoder carries from one timestep to the next.

    Shape:
        recurrent: ``[layers, batch, hidden]``.
        fed: ``[batch, hidden]``, the attention vector of the step before; None without input
            feeding, and with ``query_state="previous"``, which feeds the context itself.
    """

    recurrent: RecurrentState
    fed: Tensor | None = None

    def select(self, rows: Tensor) -> "DecoderState":
        """The examples ``rows`` (int64 ``[rows]``) in that order; repeats are allowed."""
        fed = None if self.fed is None else self.fed.index_select(0, rows)
        return DecoderState(self.recurrent.select(rows), fed)


class DecoderOutput(NamedTuple):
    """What the decoder returns.

    Shape:
        features: ``[batch, target_time, hidden]``, the input of the output layer.
        state: after the last timestep; None after a fused pass, which ends beyond the padding.
        alignment: ``[batch, target_time, source_time]``, or None without attention.
    """

    features: Tensor
    state: DecoderState | None
    alignment: Tensor | None


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
        layers: depth.
        attention: a ready module, or None.
        memory_size: width of the encoder's outputs.
        input_feeding: see above; needs attention.
        query_state: which hidden state asks, ``current`` or ``previous``.
        layer_connection: see :class:`~seq2seq.models.connection.LayerConnection`; around every
            layer but the first. Attention is asked by what leaves the top layer's connection, with
            ``previous`` by its hidden state.
        embedding_dropout: share of embedding units dropped.
        layer_dropout: share of units dropped between layers (not after the last).
        output_dropout: share of features dropped before the output layer.
        tie_embeddings: the output layer uses the embedding's weights (Press and Wolf 2017).

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
        input_feeding: bool = False,
        query_state: str = "current",
        layer_connection: str = "none",
        embedding_dropout: float = 0.0,
        layer_dropout: float = 0.0,
        output_dropout: float = 0.0,
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
        if query_state == "previous" and not input_feeding:
            raise ValueError(
                "query_state=previous computes the context before the step that uses it, so it "
                "needs input_feeding=true"
            )
        if tie_embeddings and embedding_size != hidden_size:
            raise ValueError(
                f"tie_embeddings=true needs equal widths, but embedding_size is {embedding_size} "
                f"and the decoder's hidden size is {hidden_size}"
            )
        self.hidden_size = hidden_size
        self.input_feeding = input_feeding
        self.query_state = query_state
        self.embedding = nn.Embedding(vocabulary_size, embedding_size, padding_idx=pad_id)
        self.embedding_dropout = nn.Dropout(embedding_dropout)
        self.layer_dropout = nn.Dropout(layer_dropout)
        self.output_dropout = nn.Dropout(output_dropout)
        fed_size = 0
        if input_feeding:
            fed_size = memory_size if query_state == "previous" else hidden_size
        self.layers = nn.ModuleList(
            RecurrentLayer(
                cell=cell,
                input_size=hidden_size if index else embedding_size + fed_size,
                hidden_size=hidden_size,
            )
            for index in range(layers)
        )
        self.connections = connections(layer_connection, [hidden_size] * layers)
        self.attention = attention
        if attention is not None:
            self.attention_vector = nn.Linear(memory_size + hidden_size, hidden_size, bias=False)
        self.output = nn.Linear(hidden_size, vocabulary_size)
        if tie_embeddings:
            self.output.weight = self.embedding.weight

    def first_state(self, recurrent: RecurrentState) -> DecoderState:
        """The state before the first token, from the bridge's ``[layers, batch, hidden]``."""
        if not self.input_feeding or self.query_state == "previous":
            return DecoderState(recurrent)
        batch = recurrent.hidden.size(1)
        return DecoderState(recurrent, recurrent.hidden.new_zeros(batch, self.hidden_size))

    def forward(self, tokens: Tensor, state: DecoderState, memory: Memory | None) -> DecoderOutput:
        """Teacher forcing: features of every timestep from the reference's tokens.

        Shape:
            tokens: int64 ``[batch, target_time]``, beginning with the begin symbol.
        """
        embedded = self.embedding_dropout(self.embedding(tokens))
        layers, fed = state.recurrent.layers(), state.fed
        if not self.input_feeding:
            hidden, _ = self._recurrent(embedded, layers)
            features, alignment = self._attend(hidden, memory)
            return DecoderOutput(self.output_dropout(features), None, alignment)
        steps: list[Tensor] = []
        alignments: list[Tensor] = []
        for token in embedded.split(1, dim=1):
            features, alignment, layers, fed = self._step(token, layers, fed, memory)
            assert alignment is not None
            steps.append(features)
            alignments.append(alignment)
        return DecoderOutput(
            self.output_dropout(torch.cat(steps, dim=1)),
            DecoderState(stack_states(layers), fed),
            torch.cat(alignments, dim=1),
        )

    def step(self, tokens: Tensor, state: DecoderState, memory: Memory | None) -> DecoderOutput:
        """One timestep: features ``[batch, 1, hidden]`` after the tokens ``[batch]``."""
        embedded = self.embedding_dropout(self.embedding(tokens.unsqueeze(1)))
        features, alignment, layers, fed = self._step(
            embedded, state.recurrent.layers(), state.fed, memory
        )
        after = DecoderState(stack_states(layers), fed)
        return DecoderOutput(self.output_dropout(features), after, alignment)

    def _step(
        self,
        embedded: Tensor,
        layers: Sequence[RecurrentState],
        fed: Tensor | None,
        memory: Memory | None,
    ) -> tuple[Tensor, Tensor | None, list[RecurrentState], Tensor | None]:
        """Features, alignment, and the states and the fed vector after.

        One state a layer: stacking and cutting them at every step would copy them.
        """
        if self.input_feeding and self.query_state == "previous":
            assert self.attention is not None and memory is not None
            before = layers[-1].hidden.transpose(0, 1)  # [batch, 1, hidden]
            context, alignment = self.attention(before, memory)
            hidden, after = self._recurrent(torch.cat([embedded, context], dim=2), layers)
            return self._attention_vector(context, hidden), alignment, after, None
        x = embedded if fed is None else torch.cat([embedded, fed.unsqueeze(1)], dim=2)
        hidden, after = self._recurrent(x, layers)
        features, alignment = self._attend(hidden, memory)
        return features, alignment, after, features.squeeze(1) if self.input_feeding else None

    def _recurrent(
        self, x: Tensor, states: Sequence[RecurrentState]
    ) -> tuple[Tensor, list[RecurrentState]]:
        after: list[RecurrentState] = []
        for index, (layer, connection, state) in enumerate(
            zip(self.layers, self.connections, states, strict=True)
        ):
            output, final = layer(self.layer_dropout(x) if index else x, None, state)
            x = connection(x, output)
            after.append(final)
        return x, after

    def _attend(self, hidden: Tensor, memory: Memory | None) -> tuple[Tensor, Tensor | None]:
        if self.attention is None:
            return hidden, None
        assert memory is not None
        context, alignment = self.attention(hidden, memory)
        return self._attention_vector(context, hidden), alignment

    def _attention_vector(self, context: Tensor, hidden: Tensor) -> Tensor:
        return torch.tanh(self.attention_vector(torch.cat([context, hidden], dim=2)))
