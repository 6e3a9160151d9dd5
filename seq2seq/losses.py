"""Cross-entropy over the real target positions, as a sum and a count.

The caller gathers the real positions before the output projection (nothing padded arrives here) and
divides once, by the tokens of the whole optimizer step. Averages over a corpus are in metrics.py.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Distribution(Protocol):
    """Log-probabilities of the real target positions that aren't laid out as one tensor."""

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens that smoothing is spread over, the first ones."""
        ...

    def log_probability(self, labels: Tensor) -> Tensor:
        """Of one token a position, int64 [tokens] to [tokens]."""
        ...

    def sum_over_vocabulary(self) -> Tensor:
        """Of the first `vocabulary_size` tokens together, [tokens]."""
        ...

    def log_probabilities(self) -> Tensor:
        """Of all tokens, [tokens, vocabulary or more]."""
        ...


class TokenLoss(NamedTuple):
    """Loss of a batch, summed over its target tokens.

    Args:
        sum: what is minimised, label smoothing included; carries the gradient.
        negative_log_likelihood: the sum without smoothing, detached. Perplexity is made of this
            one, so that runs with different smoothing can be compared.
        tokens: number of target tokens, `<eos>` included, padding not.
    """

    sum: Tensor
    negative_log_likelihood: Tensor
    tokens: int


def cross_entropy(
    distribution: Tensor | Distribution, labels: Tensor, *, label_smoothing: float = 0.0
) -> TokenLoss:
    """Label-smoothed cross-entropy (Szegedy et al. 2016, section 7), uniform over the vocabulary.

    sum_n [ -(1 - e) log p(y_n) - e / V * sum_v log p(v) ], the definition of
    `torch.nn.functional.cross_entropy`. Half precision is widened to float32, inside autocast too.
    With a copy mechanism v goes over the target vocabulary, without the words of the source.

    Args:
        distribution: at the real target positions; a tensor is of logits.
        labels: the token that stands at each of them.
        label_smoothing: e, the probability spread over the vocabulary; 0 is the plain likelihood.

    Shape:
        distribution, if a tensor, [tokens, vocabulary]; labels [tokens] int64.

    Raises:
        ValueError: if the shapes don't fit or `label_smoothing` isn't in [0, 1).
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(
            f"label_smoothing={label_smoothing} is a probability taken from the label: use a value "
            "of at least 0 and below 1."
        )
    if not isinstance(distribution, Tensor):
        likelihood = -distribution.log_probability(labels).sum()
        loss = likelihood
        if label_smoothing:
            spread = label_smoothing / distribution.vocabulary_size
            loss = (1.0 - label_smoothing) * likelihood
            loss = loss - spread * distribution.sum_over_vocabulary().sum()
        return TokenLoss(loss, likelihood.detach(), labels.size(0))
    logits = distribution
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"cross_entropy needs logits [tokens, vocabulary] and labels [tokens], not "
            f"{list(logits.shape)} and {list(labels.shape)}: gather the real positions first."
        )
    wide = torch.promote_types(logits.dtype, torch.float32)
    log_probs = torch.log_softmax(logits, dim=1, dtype=wide)
    likelihood = F.nll_loss(log_probs, labels, reduction="sum")
    loss = likelihood
    if label_smoothing:  # otherwise the second pass over the vocabulary is saved
        spread = label_smoothing / log_probs.size(1)
        loss = (1.0 - label_smoothing) * likelihood - spread * log_probs.sum()
    return TokenLoss(loss, likelihood.detach(), labels.size(0))


def correct_tokens(distribution: Tensor | Distribution, labels: Tensor) -> Tensor:
    """Number of positions whose most probable token is the label.

    Shape:
        distribution, if a tensor, [tokens, vocabulary] of logits; labels [tokens]; returns [].
    """
    scores = distribution if isinstance(distribution, Tensor) else distribution.log_probabilities()
    return (scores.argmax(dim=-1) == labels).sum()
