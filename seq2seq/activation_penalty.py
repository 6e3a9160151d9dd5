"""What is added to the loss for large recurrent outputs, and for outputs that jump.

The outputs are read while the network runs; the network itself knows nothing of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from seq2seq.models.encoder_decoder import EncoderDecoder
from seq2seq.models.recurrent import RecurrentLayer
from seq2seq.penalty import kept_outputs


class ActivationPenalty:
    """Activation regularization (AR) and temporal activation regularization (TAR).

    ``alpha * mean(h_t^2) + beta * mean((h_t - h_{t-1})^2)`` of the outputs of the encoder's top
    layer (of both its directions) and of the decoder's, over real timesteps, examples and units;
    the means of encoder and decoder are added. Merity, McCann and Socher 2017, "Revisiting
    activation regularization for language RNNs", section 3, with the mean of squares as the
    authors' code has it. The recurrence stays fused.

    Args:
        activation: alpha.
        temporal: beta.

    Raises:
        ValueError: for a negative number.
    """

    name = "activation_penalty"

    def __init__(self, *, activation: float = 0.0, temporal: float = 0.0) -> None:
        for name, value in (
            ("activation_regularization", activation),
            ("temporal_activation_regularization", temporal),
        ):
            if not value >= 0:
                raise ValueError(f"{name}={value} must be at least 0")
        self.activation = activation
        self.temporal = temporal

    def __bool__(self) -> bool:
        return self.activation > 0 or self.temporal > 0

    @contextmanager
    def watching(self, model: EncoderDecoder) -> Iterator["WatchedLayers"]:
        """Keep the outputs of the top layers during one forward pass.

        Raises:
            RuntimeError: on leaving, if they were hidden, as in a compiled network.
        """
        option = f"{'' if self.activation else 'temporal_'}activation_regularization"
        with kept_outputs(
            _top_layers(model), lambda result: result.output, option=option
        ) as outputs:
            yield WatchedLayers(self, outputs)


class WatchedLayers:
    """What the top layers gave, by name, in one call or in one a timestep."""

    def __init__(self, penalty: ActivationPenalty, outputs: dict[str, list[Tensor]]) -> None:
        self._penalty = penalty
        self._outputs = outputs

    def penalty(self, *, source_lengths: Tensor, target_lengths: Tensor) -> Tensor:
        """The penalty of the batch, a scalar.

        Shape:
            source_lengths, target_lengths: int64 ``[batch]``, real timesteps.
        """
        penalties = []
        for part, lengths in (("encoder", source_lengths), ("decoder", target_lengths)):
            scans = [
                torch.cat(outputs, dim=1)
                for name, outputs in self._outputs.items()
                if name.startswith(part)
            ]
            penalties.append(self._of(torch.cat(scans, dim=2), lengths))
        return torch.stack(penalties).sum()

    def _of(self, outputs: Tensor, lengths: Tensor) -> Tensor:
        steps = torch.arange(outputs.size(1), device=outputs.device)
        real = steps < lengths.to(outputs.device).unsqueeze(1)
        # What a kernel leaves in the padding is undefined.
        exact = outputs.float() if outputs.dtype.itemsize < 4 else outputs
        outputs = exact.masked_fill(~real.unsqueeze(2), 0.0)
        penalty = self._penalty.activation * outputs.square().sum() / real.sum() / outputs.size(2)
        later = real[:, 1:]
        changes = (outputs[:, 1:] - outputs[:, :-1]).masked_fill(~later.unsqueeze(2), 0.0)
        count = later.sum().clamp_min(1)  # sequences of one timestep have no change
        return penalty + self._penalty.temporal * changes.square().sum() / count / outputs.size(2)


def _top_layers(model: EncoderDecoder) -> dict[str, RecurrentLayer]:
    layers = model.recurrent_layers()
    top = f"encoder/layer{len(model.encoder.layers) - 1}/"
    last = f"decoder/layer{len(model.decoder.layers) - 1}"
    return {name: layer for name, layer in layers.items() if name.startswith(top) or name == last}
