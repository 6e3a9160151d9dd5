"""The encoder: source tokens to one vector per position and a final state per layer and direction.

How that state becomes the decoder's first state is the bridge's business.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from seq2seq.models.connection import connections
from seq2seq.models.dropout import SequenceDropout, WordDropout
from seq2seq.models.embedding import make_embedding
from seq2seq.models.recurrent import (
    RecurrentLayer,
    RecurrentOutput,
    RecurrentState,
    reverse_by_length,
    stack_states,
)


class EncoderOutput(NamedTuple):
    """What the encoder returns.

    Shape:
        outputs: ``[batch, source_time, directions * hidden]`` of the top layer, zero where the
            source is padding; position ``s`` belongs to source token ``s``, whatever the order of
            the scan.
        state: ``[scans, batch, hidden]``, ordered layer by layer, forward first: two a
            bidirectional layer.
        mask: bool ``[batch, source_time]``, True = real token.
    """

    outputs: Tensor
    state: RecurrentState
    mask: Tensor


class EncoderLayer(nn.Module):
    """One layer of the encoder: a forward scan and, if bidirectional, a backward one beside it.

    Bidirectional as in Schuster and Paliwal 1997: the outputs of both scans are concatenated.
    """

    def __init__(
        self,
        *,
        cell: str,
        input_size: int,
        hidden_size: int,
        bidirectional: bool,
        projection_size: int | None = None,
        weight_dropout: float = 0.0,
        zoneout_hidden: float = 0.0,
        zoneout_cell: float = 0.0,
        truncation: int | None = None,
    ) -> None:
        super().__init__()
        self.forward_layer = RecurrentLayer(
            cell=cell,
            input_size=input_size,
            hidden_size=hidden_size,
            projection_size=projection_size,
            weight_dropout=weight_dropout,
            zoneout_hidden=zoneout_hidden,
            zoneout_cell=zoneout_cell,
            truncation=truncation,
        )
        self.backward_layer: RecurrentLayer | None = None
        if bidirectional:
            self.backward_layer = RecurrentLayer(
                cell=cell,
                input_size=input_size,
                hidden_size=hidden_size,
                projection_size=projection_size,
                reverse=True,
                weight_dropout=weight_dropout,
                zoneout_hidden=zoneout_hidden,
                zoneout_cell=zoneout_cell,
                truncation=truncation,
            )

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, list[RecurrentState]]:
        """Outputs ``[batch, time, directions * hidden]`` and one final state per direction."""
        output, state = self._scan(self.forward_layer, x, lengths)
        if self.backward_layer is None:
            return output, [state]
        backward_output, backward_state = self._scan(self.backward_layer, x, lengths)
        return torch.cat([output, backward_output], dim=2), [state, backward_state]

    @staticmethod
    def _scan(layer: RecurrentLayer, x: Tensor, lengths: Tensor) -> RecurrentOutput:
        noise = layer.draw_steps(x, layer.draw_noise())
        output: RecurrentOutput = layer(x, lengths, noise=noise)
        return output


class Encoder(nn.Module):
    """A stack of recurrent layers over embedded source tokens.

    Args:
        vocabulary_size: number of source tokens.
        pad_id: the token whose embedding stays zero.
        cell: see :class:`~seq2seq.models.recurrent.RecurrentLayer`.
        embedding_size: width of the source embedding.
        embedding_rank: width of its table, see
            :class:`~seq2seq.models.embedding.FactoredEmbedding`; None for a table of full width.
        hidden_size: width of each direction of each layer.
        projection_size: width of their hidden states after a projection, see
            :class:`~seq2seq.models.recurrent.RecurrentLayer`.
        layers: depth.
        bidirectional: scan in both directions.
        bidirectional_layers: so many layers, from the bottom, do so and the rest scan forwards; all
            if None. One is the encoder of Wu et al. 2016, section 3.2.
        layer_connection: see :class:`~seq2seq.models.connection.LayerConnection`; around every
            layer but the first whose input is as wide as its output.
        outputs_read: whether anything reads the outputs; if not, nothing goes around the top layer.
        embedding_dropout: share of embedding units dropped.
        layer_dropout: share of units dropped between layers (not after the last).
        word_dropout: share of words dropped, see :class:`~seq2seq.models.dropout.WordDropout`.
        weight_dropout, zoneout_hidden, zoneout_cell, truncation: see
            :class:`~seq2seq.models.recurrent.RecurrentLayer`.
        variational_dropout: draw embedding and layer dropout once a sequence, see
            :class:`~seq2seq.models.dropout.SequenceDropout`, and word dropout by type.
        reverse_source: read the source tokens last to first, the end symbol staying at the end
            (Sutskever, Vinyals and Le 2014, section 3.3).

    Raises:
        ValueError: for an unknown connection, or a number of bidirectional layers that can't be.
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
        bidirectional: bool,
        projection_size: int | None = None,
        embedding_rank: int | None = None,
        bidirectional_layers: int | None = None,
        layer_connection: str = "none",
        outputs_read: bool = True,
        embedding_dropout: float = 0.0,
        layer_dropout: float = 0.0,
        word_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        zoneout_hidden: float = 0.0,
        zoneout_cell: float = 0.0,
        truncation: int | None = None,
        variational_dropout: bool = False,
        reverse_source: bool = False,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        if bidirectional_layers is not None and not bidirectional:
            raise ValueError(
                f"bidirectional_layers is {bidirectional_layers}, but bidirectional is false: set "
                "it to null, or bidirectional=true"
            )
        if bidirectional_layers is not None and bidirectional_layers > layers:
            raise ValueError(
                f"bidirectional_layers is {bidirectional_layers}, but the encoder has {layers} "
                "layers: set it to null for all of them"
            )
        both = layers if bidirectional_layers is None else bidirectional_layers
        self.directions = tuple(
            2 if bidirectional and index < both else 1 for index in range(layers)
        )
        width = hidden_size if projection_size is None else projection_size
        widths = [directions * width for directions in self.directions]
        self.output_size = widths[-1]
        self.reverse_source = reverse_source
        self.embedding = make_embedding(
            vocabulary_size, embedding_size, pad_id=pad_id, rank=embedding_rank
        )
        self.word_dropout = WordDropout(
            word_dropout, vocabulary_size=vocabulary_size, by_type=variational_dropout
        )
        dropout = SequenceDropout if variational_dropout else nn.Dropout
        self.embedding_dropout = dropout(embedding_dropout)
        self.layer_dropout = dropout(layer_dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(
                cell=cell,
                input_size=below,
                hidden_size=hidden_size,
                projection_size=projection_size,
                bidirectional=directions == 2,
                weight_dropout=weight_dropout,
                zoneout_hidden=zoneout_hidden,
                zoneout_cell=zoneout_cell,
                truncation=truncation,
            )
            for below, directions in zip([embedding_size, *widths], self.directions, strict=False)
        )
        self.connections = connections(layer_connection, widths, top=outputs_read)

    def forward(self, source: Tensor, lengths: Tensor) -> EncoderOutput:
        """Encode a padded batch.

        Shape:
            source: int64 ``[batch, source_time]``; lengths: int64 ``[batch]``, each at least 1.
        """
        x = self.embedding_dropout(self.word_dropout(self.embedding(source), source))
        if self.reverse_source:
            x = reverse_by_length(x, lengths - 1)
        states: list[RecurrentState] = []
        for index, (layer, connection) in enumerate(
            zip(self.layers, self.connections, strict=True)
        ):
            output, final = layer(self.layer_dropout(x) if index else x, lengths)
            x = connection(x, output)
            states += final
        if self.reverse_source:
            x = reverse_by_length(x, lengths - 1)
        steps = torch.arange(source.size(1), device=source.device)
        mask = steps < lengths.to(source.device).unsqueeze(1)
        return EncoderOutput(x.masked_fill(~mask.unsqueeze(2), 0.0), stack_states(states), mask)
