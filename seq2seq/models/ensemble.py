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
    """The average of several networks: ``p(y | x) = 1/n sum_i p_i(y | x)`` at every position.

    Probabilities are averaged, not their logarithms as in a product of experts. The average is a
    distribution as it stands, so that its scores remain log-probabilities and its perplexity can be
    compared with that of one network; by Jensen's inequality its cross-entropy is never above the
    mean of theirs; and no network alone can veto a token by giving it almost nothing. The alignment
    is the mean over the networks that have attention.

    Args:
        members: networks with the same vocabularies, on one device.

    Raises:
        ValueError: if there are none, or some copy words of the source and others don't.
    """

    def __init__(self, members: Sequence[EncoderDecoder]) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble needs at least one network")
        self.members = nn.ModuleList(members)
        self.attends = any(member.decoder.attention is not None for member in members)
        self.copies = members[0].copies
        if any(member.copies != self.copies for member in members):
            raise ValueError(
                "some of these networks have model.copy_mechanism=true and others don't, so that "
                "their outputs are other words: put only those that copy together, or only the "
                "others"
            )

    def networks(self) -> list[EncoderDecoder]:
        """The members."""
        return [member for member in self.members if isinstance(member, EncoderDecoder)]

    def forward(
        self,
        source: Tensor,
        source_lengths: Tensor,
        decoder_input: Tensor,
        extended_source: Tensor | None = None,
    ) -> Tensor:
        """The features of all networks side by side: ``[batch, target_time, sum of widths]``."""
        arguments = (source, source_lengths, decoder_input)
        parts = [member(*arguments, extended_source=extended_source) for member in self.members]
        return torch.cat(parts, dim=2)

    def distribution(self, features: Tensor, extended_source: Tensor | None) -> Tensor:
        """Log-probabilities of the average; logits as well, as their softmax is the average.

        Shape:
            features: ``[..., sum of widths]``; extended_source: ``[..., source_time]``, None unless
            words of the source may be copied; returns ``[..., vocabulary]``, with copies
            ``[..., vocabulary + source_time]``.
        """
        copied = 0 if extended_source is None else extended_source.size(-1)
        widths = [member.decoder.output_size + copied for member in self.networks()]
        parts = torch.split(features, widths, dim=-1)
        return _averaged(
            [
                member.log_probabilities(part, extended_source)
                for member, part in zip(self.networks(), parts, strict=True)
            ]
        )

    def start(
        self, source: Tensor, source_lengths: Tensor, extended_source: Tensor | None = None
    ) -> EnsembleState:
        """Encode the source with every network."""
        arguments = (source, source_lengths, extended_source)
        return EnsembleState(tuple(member.start(*arguments) for member in self.networks()))

    def step(
        self, tokens: Tensor, state: EnsembleState
    ) -> tuple[Tensor, EnsembleState, Tensor | None]:
        """As :meth:`EncoderDecoder.step`, of the average."""
        answers = [
            member.step(tokens, before)
            for member, before in zip(self.networks(), state.members, strict=True)
        ]
        alignments = [alignment for _, _, alignment in answers if alignment is not None]
        return (
            _averaged([log_probabilities for log_probabilities, _, _ in answers]),
            EnsembleState(tuple(after for _, after, _ in answers)),
            torch.stack(alignments).mean(dim=0) if alignments else None,
        )


def _averaged(log_probabilities: list[Tensor]) -> Tensor:
    """The logarithm of the mean of the probabilities."""
    return torch.stack(log_probabilities).logsumexp(dim=0) - math.log(len(log_probabilities))
