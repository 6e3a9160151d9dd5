"""Names for source words that the target vocabulary lacks, so that a model can copy them.

The extended vocabulary of a pair is the target vocabulary, of V tokens, and behind it its source,
position by position: the id V + i is the unknown word that the source has first at position i.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from seq2seq.data.corpus import Pair
from seq2seq.data.tokenizer import UNK_ID, Tokenizer


def extended_ids(
    pairs: Sequence[Pair],
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
) -> tuple[list[list[int]], list[list[int]]]:
    """The ids of every source token, and of every target token, in the extended vocabulary.

    Two unknown tokens are the same word if the vocabulary would hold them as one: with their
    spaces, and in lower case where the tokenizer lowers. Of target tokens that the source hasn't
    either, the id is that of `<unk>`.

    Args:
        pairs: Pairs of text.
        sources: Their sources as the source tokenizer cuts them.
        targets: Their targets as the target tokenizer cuts them.
        tokenizer: That of the target; it must cut sources as the source tokenizer does.

    Raises:
        ValueError: If it doesn't.
    """
    extended_sources, extended_targets = [], []
    encoded = tokenizer.encode_batch([pair.source for pair in pairs])
    for pair, own, source, target in zip(pairs, sources, encoded, targets, strict=True):
        if len(own) != len(source):
            raise ValueError(
                f"the source tokenizer makes {len(own)} tokens of {pair.source!r} and the target "
                f"tokenizer {len(source)}, so that none can be copied: {_RULE}"
            )
        first: dict[str, int] = {}
        for position, word in _unknown(pair.source, source, tokenizer).items():
            first.setdefault(word, tokenizer.vocabulary_size + position)
            source[position] = first[word]
        target = list(target)
        if first:
            for position, word in _unknown(pair.target, target, tokenizer).items():
                target[position] = first.get(word, UNK_ID)
        extended_sources.append(source)
        extended_targets.append(target)
    return extended_sources, extended_targets


def _unknown(text: str, ids: Sequence[int], tokenizer: Tokenizer) -> dict[int, str]:
    """The unknown words of a text by position, as the vocabulary would hold them."""
    if UNK_ID not in ids:
        return {}
    pieces = tokenizer.pieces(text)
    return {position: pieces[position] for position, token in enumerate(ids) if token == UNK_ID}


_RULE = (
    "with model.copy_mechanism=true both tokenizers need the same kind, lowercase and "
    "normal_form, and bpe tokenizer.shared=true"
)


def check_copying(*, source: Mapping[str, Any], target: Mapping[str, Any], shared: bool) -> None:
    """Refuse tokenizers that cut the same text at different places: their tokens can't be copied.

    Args:
        source, target, shared: Arguments of `train_tokenizers`.

    Raises:
        ValueError: Naming the key and the two values.
    """
    for key in ("kind", "lowercase", "normal_form"):
        if source.get(key) != target.get(key):
            raise ValueError(
                f"tokenizer.source.{key} is {source.get(key)} and tokenizer.target.{key} is "
                f"{target.get(key)}, but {_RULE}"
            )
    if source["kind"] == "bpe" and not shared:
        raise ValueError(f"tokenizer.shared is false and the kind is bpe, but {_RULE}")
