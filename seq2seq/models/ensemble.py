"""Several trained networks that decode together as one.

It is used in place of an `EncoderDecoder` wherever nothing is trained; which networks take part is
left to whoever loads them.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seq2seq.models.encoder_decoder import DecodingState, EncoderDecoder


class EnsembleState(NamedTuple):
    """What one decoding step needs of the steps before, for each network."""

    members: tuple[DecodingState, ...]

    def select(self, rows: Tensor) -> "EnsembleState":
        """The hypotheses ``rows`` (int64 ``[rows]``) in that order; repeats are allowed."""
        return EnsembleState(tuple(member.select(rows) for member in self.members))


class Ensemble(nn.Module):
    """The mixture of several networks: ``p(y | x) = 1/n sum_i p_i(y | x)`` at every position.

    Probabilities are averaged, not their logarithms as in a product of experts. The mixture is a
    distribution as it stands, so that its scores remain log-probabilities and its perplexity can be
    compared with that of one network; by Jensen's inequality its cross-entropy is never above the
    mean of theirs; and no network alone can veto a token by giving it almost nothing. The alignment
    is the mean over the networks that have attention.

    Args:
        members: networks with the same vocabularies, on one device.

    Raises:
        ValueError: if there are none.
    """

    def __init__(self, members: Sequence[EncoderDecoder]) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble needs at least one network")
        self.members = nn.ModuleList(members)
        self.attends = any(member.decoder.attention is not None for member in members)

    def networks(self) -> list[EncoderDecoder]:
        """The members."""
        return [member for member in self.members if isinstance(member, EncoderDecoder)]

    def forward(self, source: Tensor, source_lengths: Tensor, decoder_input: Tensor) -> Tensor:
        """The features of all networks side by side: ``[batch, target_time, sum of hidden]``."""
        arguments = (source, source_lengths, decoder_input)
        return torch.cat([member(*arguments) for member in self.members], dim=2)

    def logits(self, features: Tensor) -> Tensor:
        """Log-probabilities of the mixture, from ``[..., sum of hidden]`` to ``[..., vocabulary]``.

        They are logits as well: their softmax is the mixture.
        """
        widths = [member.decoder.hidden_size for member in self.networks()]
        parts = torch.split(features, widths, dim=-1)
        exact = torch.promote_types(features.dtype, torch.float32)
        return _mixture(
            [
                torch.log_softmax(member.logits(part), dim=-1, dtype=exact)
                for member, part in zip(self.networks(), parts, strict=True)
            ]
        )

    def start(self, source: Tensor, source_lengths: Tensor) -> EnsembleState:
        """Encode the source with every network."""
        return EnsembleState(
            tuple(member.start(source, source_lengths) for member in self.networks())
        )

    def step(
        self, tokens: Tensor, state: EnsembleState
    ) -> tuple[Tensor, EnsembleState, Tensor | None]:
        """As :meth:`EncoderDecoder.step`, of the mixture."""
        answers = [
            member.step(tokens, before)
            for member, before in zip(self.networks(), state.members, strict=True)
        ]
        alignments = [alignment for _, _, alignment in answers if alignment is not None]
        return (
            _mixture([log_probabilities for log_probabilities, _, _ in answers]),
            EnsembleState(tuple(after for _, after, _ in answers)),
            torch.stack(alignments).mean(dim=0) if alignments else None,
        )


def _mixture(log_probabilities: list[Tensor]) -> Tensor:
    return torch.stack(log_probabilities).logsumexp(dim=0) - math.log(len(log_probabilities))
