"""Dropout that keeps one mask for a whole sequence, and dropout of whole words.

Where each acts is the business of encoder and decoder; dropout of recurrent weights is part of the
recurrent layer.
"""

import torch
from torch import Tensor, nn


class SequenceDropout(nn.Module):
    """Dropout whose mask is the same at every timestep of a sequence: variational dropout.

    Gal and Ghahramani 2016, "A theoretically grounded application of dropout in recurrent neural
    networks", section 4, of what enters a layer; what remains is divided by ``1 - p``. Nothing of
    it lies within the recurrence, which stays fused.

    Args:
        p: share of units dropped in each sequence.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def draw(self, like: Tensor, *, size: int) -> Tensor | None:
        """A mask ``[batch, 1, size]`` for the batch of ``like``, whose first axis counts examples.

        None where nothing is dropped. It multiplies the input at any timestep.
        """
        if not self.training or not self.p:
            return None
        return draw_mask(like, (like.size(0), 1, size), self.p)

    def forward(self, x: Tensor) -> Tensor:
        """Drop from ``[batch, time, size]`` with a mask of its own."""
        return masked(x, self.draw(x, size=x.size(2)))

    def extra_repr(self) -> str:
        """What ``print`` shows of it."""
        return f"p={self.p}"


class WordDropout(nn.Module):
    """Set the embeddings of whole words to zero, and divide the others by ``1 - p``.

    With ``by_type`` one coin is tossed for each word of the vocabulary and each sequence, so that
    every occurrence in it is dropped together: embedding dropout of Gal and Ghahramani 2016,
    section 4.2. Otherwise each token has a coin of its own: word dropout of Iyyer et al. 2015,
    "Deep unordered composition rivals syntactic methods for text classification", section 3.1, of
    decoder inputs Bowman et al. 2016, "Generating sentences from a continuous space", section 3.1.

    Args:
        p: share of words dropped.
        vocabulary_size: number of words.
        by_type: see above.
    """

    def __init__(self, p: float, *, vocabulary_size: int, by_type: bool) -> None:
        super().__init__()
        self.p = p
        self.vocabulary_size = vocabulary_size
        self.by_type = by_type

    def draw(self, like: Tensor) -> Tensor | None:
        """A mask ``[batch, vocabulary]`` for the batch of ``like``; None if drawn by token."""
        if not self.training or not self.p or not self.by_type:
            return None
        return draw_mask(like, (like.size(0), self.vocabulary_size), self.p)

    def forward(self, embedded: Tensor, tokens: Tensor, types: Tensor | None = None) -> Tensor:
        """Drop from the embeddings ``[batch, time, size]`` of ``tokens`` ``[batch, time]``.

        Args:
            embedded: embeddings.
            tokens: ids.
            types: from :meth:`draw`; by type, drawn here if None.
        """
        if not self.training or not self.p:
            return embedded
        if not self.by_type:
            return masked(embedded, draw_mask(embedded, (*tokens.shape, 1), self.p))
        types = self.draw(embedded) if types is None else types
        assert types is not None
        return masked(embedded, types.gather(1, tokens).unsqueeze(2))

    def extra_repr(self) -> str:
        """What ``print`` shows of it."""
        return f"p={self.p}, by_type={self.by_type}"


def draw_mask(like: Tensor, shape: tuple[int, ...], p: float) -> Tensor:
    """Zeros with probability ``p`` and ``1 / (1 - p)`` otherwise, on the device of ``like``."""
    exact = torch.promote_types(like.dtype, torch.float32)
    mask = torch.empty(shape, dtype=exact, device=like.device)
    return mask.bernoulli_(1 - p).div_(1 - p)


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """``x`` times a mask, in the type of ``x``; ``x`` itself without one."""
    return x if mask is None else x * mask.to(x.dtype)
