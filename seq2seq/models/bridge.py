"""The bridge: the encoder's final states become the decoder's first state."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from seq2seq.models.recurrent import RecurrentState, has_cell_state

BRIDGES = ("zero", "copy", "linear")


class Bridge(nn.Module):
    """Map the final hidden and cell state of every encoder layer and direction to the decoder.

    * ``zero``: the decoder starts from zeros; all it knows of the source comes by attention.
    * ``copy``: the directions of an encoder layer, concatenated (Sutskever et al. 2014 for one).
    * ``linear``: ``tanh(W [forward; backward] + b)``, one map a layer, and another for the cell
      (Bahdanau et al. 2015, appendix A.2.2, maps the backward direction alone).

    Depths may differ: layers are matched from the top, and decoder layers below the encoder's
    first all read that one.

    Args:
        kind: one of :data:`BRIDGES`.
        cell: the cell of both sides; where it has a cell state, that is mapped too.
        encoder_directions: number of scans of each encoder layer, from the bottom.
        encoder_hidden_size: width of each scan.
        decoder_layers, decoder_hidden_size: shape of the decoder.

    Raises:
        ValueError: for an unknown kind, or sizes that ``copy`` can't join.
    """

    def __init__(
        self,
        *,
        kind: str,
        cell: str,
        encoder_directions: Sequence[int],
        encoder_hidden_size: int,
        decoder_layers: int,
        decoder_hidden_size: int,
    ) -> None:
        super().__init__()
        if kind not in BRIDGES:
            raise ValueError(f"bridge is {kind!r}, but it must be one of {', '.join(BRIDGES)}")
        self.kind = kind
        self.encoder_directions = tuple(encoder_directions)
        first = len(self.encoder_directions) - decoder_layers
        self._sources = [max(0, first + index) for index in range(decoder_layers)]
        joined = [self.encoder_directions[one] * encoder_hidden_size for one in self._sources]
        for width in joined:
            if kind == "copy" and width != decoder_hidden_size:
                raise ValueError(
                    f"bridge=copy needs equal widths, but the encoder's directions have {width} "
                    f"together and the decoder has {decoder_hidden_size}: change one, or use "
                    "bridge=linear"
                )
        self.decoder_layers = decoder_layers
        self.decoder_hidden_size = decoder_hidden_size
        self.has_cell = has_cell_state(cell)
        if kind == "linear":
            self.hidden = self._maps(joined)
            if self.has_cell:
                self.cell = self._maps(joined)

    def _maps(self, joined: Sequence[int]) -> nn.ModuleList:
        return nn.ModuleList(nn.Linear(width, self.decoder_hidden_size) for width in joined)

    def forward(self, state: RecurrentState) -> RecurrentState:
        """To ``[decoder_layers, batch, hidden]`` from the encoder's ``[scans, batch, hidden]``."""
        if self.kind == "zero":
            batch = state.hidden.size(1)
            zeros = state.hidden.new_zeros(self.decoder_layers, batch, self.decoder_hidden_size)
            return RecurrentState(zeros, zeros if self.has_cell else None)
        linear = self.kind == "linear"
        hidden = self._map(state.hidden, self.hidden if linear else None)
        if state.cell is None:
            return RecurrentState(hidden)
        return RecurrentState(hidden, self._map(state.cell, self.cell if linear else None))

    def _map(self, final: Tensor, maps: nn.ModuleList | None) -> Tensor:
        # [scans, batch, hidden] -> of each layer [batch, directions * hidden]
        layers = [
            scans.transpose(0, 1).flatten(1)
            for scans in torch.split(final, list(self.encoder_directions))
        ]
        chosen = [layers[source] for source in self._sources]
        if maps is not None:
            chosen = [torch.tanh(linear(one)) for linear, one in zip(maps, chosen, strict=True)]
        return torch.stack(chosen)
