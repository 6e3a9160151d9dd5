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
        projection_size: width of the hidden states of both sides, where they are projected: only
            the cell states have the widths above then.

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
        projection_size: int | None = None,
    ) -> None:
        super().__init__()
        if kind not in BRIDGES:
            raise ValueError(f"bridge is {kind!r}, but it must be one of {', '.join(BRIDGES)}")
        self.kind = kind
        self.encoder_directions = tuple(encoder_directions)
        first = len(self.encoder_directions) - decoder_layers
        self._sources = [max(0, first + index) for index in range(decoder_layers)]
        self.decoder_layers = decoder_layers
        self.has_cell = has_cell_state(cell)
        cell_widths = encoder_hidden_size, decoder_hidden_size
        hidden_widths = cell_widths if projection_size is None else (projection_size,) * 2
        self.decoder_widths = hidden_widths[1], cell_widths[1]
        for of_encoder, of_decoder in (hidden_widths, cell_widths):
            for width in self._joined(of_encoder):
                if kind == "copy" and width != of_decoder:
                    raise ValueError(
                        "bridge=copy needs equal widths, but the encoder's directions have "
                        f"{width} together and the decoder has {of_decoder}: change one, or use "
                        "bridge=linear"
                    )
        if kind == "linear":
            self.hidden = self._maps(*hidden_widths)
            if self.has_cell:
                self.cell = self._maps(*cell_widths)

    def _joined(self, width: int) -> list[int]:
        """Width of the directions of each source together."""
        return [self.encoder_directions[one] * width for one in self._sources]

    def _maps(self, of_encoder: int, of_decoder: int) -> nn.ModuleList:
        return nn.ModuleList(nn.Linear(width, of_decoder) for width in self._joined(of_encoder))

    def forward(self, state: RecurrentState) -> RecurrentState:
        """To ``[decoder_layers, batch, hidden]`` from the encoder's ``[scans, batch, hidden]``."""
        if self.kind == "zero":
            layers, batch = self.decoder_layers, state.hidden.size(1)
            hidden, cell = (
                state.hidden.new_zeros(layers, batch, width) for width in self.decoder_widths
            )
            return RecurrentState(hidden, cell if self.has_cell else None)
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
