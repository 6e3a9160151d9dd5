"""Tokens to vectors by one table, or by a narrow one and a projection; the output layer tied to it.

Which sides share an embedding is decided by encoder and decoder, and where its rows come from by
initializers or pretrained vectors.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class FactoredEmbedding(nn.Embedding):
    """A table of narrow rows and a learned projection to the width that the network reads.

    Of token ``v``, the embedding is ``P w_v``: the whole table is the product ``W P^T`` of rank
    ``rank``, and ``V * rank + rank * size`` numbers take the place of ``V * size`` (Lan et al.
    2020, "ALBERT", section 3.1). A ``rank`` above ``size`` saves nothing, but lets a table of
    given width, as of pretrained vectors, feed a narrower network.

    Args:
        vocabulary_size: number of tokens, V.
        size: width of the embeddings.
        rank: width of the table.
        pad_id: the token whose embedding stays zero.
    """

    def __init__(self, vocabulary_size: int, size: int, *, rank: int, pad_id: int) -> None:
        super().__init__(vocabulary_size, rank, padding_idx=pad_id)
        self.projection = nn.Linear(rank, size, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Int64 ``[batch, time]`` to ``[batch, time, size]``."""
        embedded: Tensor = self.projection(super().forward(tokens))
        return embedded


class FactoredOutput(nn.Linear):
    """The output layer that uses a factored embedding's weights: ``W (P^T x) + b``.

    Its matrix is the embedding's own product, as where a whole table is tied (Press and Wolf
    2017), and never made: the features are projected to the width of the table first.

    Args:
        embedding: whose table ``W`` and projection ``P`` are used.
    """

    def __init__(self, embedding: FactoredEmbedding) -> None:
        super().__init__(embedding.embedding_dim, embedding.num_embeddings)
        self.weight = embedding.weight
        self.projection = embedding.projection

    def forward(self, features: Tensor) -> Tensor:
        """``[..., size]`` to scores ``[..., vocabulary]``."""
        return super().forward(F.linear(features, self.projection.weight.T))


def make_embedding(
    vocabulary_size: int, size: int, *, pad_id: int, rank: int | None = None
) -> nn.Embedding:
    """An embedding of one table, or a factored one if there is a rank."""
    if rank is None:
        return nn.Embedding(vocabulary_size, size, padding_idx=pad_id)
    return FactoredEmbedding(vocabulary_size, size, rank=rank, pad_id=pad_id)


def make_output(size: int, embedding: nn.Embedding, *, tied: bool) -> nn.Module:
    """The output layer for the embedding's vocabulary, tied to its weights or with its own."""
    if tied and isinstance(embedding, FactoredEmbedding):
        return FactoredOutput(embedding)
    output = nn.Linear(size, embedding.num_embeddings)
    if tied:
        output.weight = embedding.weight
    return output
