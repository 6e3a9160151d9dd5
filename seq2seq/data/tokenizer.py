"""Text to token ids and back, trained on the training split through the library `tokenizers`.

The only place that knows the control tokens `<pad> <bos> <eos> <unk>` and their ids. Encoded text
holds none of `<pad> <bos> <eos>`: `batch.py` puts them where the model needs them.
"""

import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers

from seq2seq.data.corpus import Pair

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
PAD_ID, BOS_ID, EOS_ID, UNK_ID = range(4)

KINDS = ("word", "character", "whitespace", "bpe")

# How the control tokens are called inside the library. No text can contain these names, because
# whitespace is normalised to single spaces before a vocabulary is looked up: a corpus may hold
# "<eos>" as text, and it stays text.
_CONTROL_NAMES = [f"  {token}" for token in SPECIAL_TOKENS]

# A run of letters and digits, or one other character, each with its combining marks and with the
# space in front of it: " Hello" "," " world" "!". As the space is part of the token, joining the
# tokens gives the text back, and a "▁" in a corpus needs no escape.
_WORDS = r" ?[\p{L}\p{N}][\p{L}\p{M}\p{N}]*| ?[^\s\p{L}\p{N}]\p{M}*"

NORMAL_FORMS: Mapping[str, Callable[[], normalizers.Normalizer]] = {
    "nfc": normalizers.NFC,
    "nfd": normalizers.NFD,
    "nfkc": normalizers.NFKC,
    "nfkd": normalizers.NFKD,
}

_SPACE_SHOWN_AS = "▁"  # in pictures only


class Tokenizer:
    """One side's vocabulary: text to ids and ids to text.

    `decode(encode(text)) == text`, up to white space, for text of known tokens (kind `whitespace`
    joins by one space, `lowercase` lowers, a `normal_form` composes). What isn't in the vocabulary
    becomes `<unk>`.

    Args:
        kind: One of `KINDS`.
        library: The library's tokenizer: normalisation, splitting and vocabulary, with the control
            tokens at ids 0 to 3.

    Raises:
        ValueError: If the kind is unknown, or the control tokens aren't at ids 0 to 3.
    """

    def __init__(self, *, kind: str, library: tokenizers.Tokenizer) -> None:
        _check_kind(kind, "kind")
        names = [library.id_to_token(i) for i in range(library.get_vocab_size())]
        if names[: len(_CONTROL_NAMES)] != _CONTROL_NAMES:
            raise ValueError(
                f"the vocabulary of this {kind} tokenizer doesn't begin with "
                f"{' '.join(SPECIAL_TOKENS)}; it was not made by this package"
            )
        self.kind = kind
        self.vocabulary_size = len(names)
        self._library = library
        self._names = [*SPECIAL_TOKENS, *(str(name) for name in names[len(_CONTROL_NAMES) :])]
        # An unknown word was most likely preceded by a space; an unknown character was not.
        self._before_unknown = " " if kind == "word" else ""
        self._separator = " " if kind == "whitespace" else ""
        # With any normal form the two spellings of a letter are one.
        normalize = library.normalizer.normalize_str
        self._normal = normalize("\u00e9") == normalize("e\u0301")

    def encode(self, text: str) -> list[int]:
        """The ids of one text, without `<bos>` and `<eos>`."""
        return list(self._library.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many texts: the same as `encode` of each, on all cores."""
        encodings = self._library.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def pieces(self, text: str) -> list[str]:
        """What each token of `encode(text)` is looked up as, unknown ones too.

        It is normalised as the vocabulary is: in lower case where the tokenizer lowers, and a word
        with the space in front of it.
        """
        normalized = self._library.normalizer.normalize_str(text)
        words = [word for word, _ in self._library.pre_tokenizer.pre_tokenize_str(normalized)]
        if self.kind != "bpe":
            return words
        encoded = [(word.encode(), self._library.model.tokenize(word)) for word in words]
        # The model counts in bytes.
        return [word[slice(*token.offsets)].decode() for word, cut in encoded for token in cut]

    def written(self, text: str) -> list[str]:
        """What each token of `encode(text)` adds to a text that is decoded, unknown ones too.

        It stands as in the text, with its case also where the tokenizer lowers. A token that isn't
        a stretch of the text by itself, as one of several that a character was parted into, is
        written as the vocabulary would hold it.
        """
        offsets = self._library.encode(text, add_special_tokens=False).offsets
        return [
            self._as_in_text(text[start:end], piece)
            for piece, (start, end) in zip(self.pieces(text), offsets, strict=True)
        ]

    def _as_in_text(self, stretch: str, piece: str) -> str:
        word, own = piece.removeprefix(" "), stretch.strip()
        if own != word and self._library.normalizer.normalize_str(own).strip() != word:
            return piece
        # The first word is the same token as elsewhere: with a space in front.
        return piece[: len(piece) - len(word)] + own

    def decode(
        self,
        ids: Sequence[int],
        unknown: Iterable[str] | None = None,
        copied: Sequence[str] = (),
    ) -> str:
        """Plain text: control tokens are dropped, except an unknown token.

        Args:
            ids: The tokens.
            unknown: The text of each unknown token, in order; None shows all as `<unk>`.
            copied: What the ids from `vocabulary_size` on write, in order; see `written`.
        """
        words = repeat("<unk>") if unknown is None else iter(unknown)
        pieces = [
            self._before_unknown + next(words) if i == UNK_ID else self._name(i, copied)
            for i in ids
            if i not in (PAD_ID, BOS_ID, EOS_ID)
        ]
        return self.composed(re.sub(" +", " ", self._separator.join(pieces)).strip(" "))

    def composed(self, text: str) -> str:
        """The text in normal form C of Unicode, if this tokenizer has a normal form.

        Texts that look the same are the same then, whatever they were spelled as before.
        """
        return unicodedata.normalize("NFC", text) if self._normal else text

    def tokens(self, ids: Sequence[int], copied: Sequence[str] = ()) -> list[str]:
        """The name of every id, control tokens included, a space shown as `▁`: for pictures."""
        return [self._name(i, copied).replace(" ", _SPACE_SHOWN_AS) for i in ids]

    def _name(self, i: int, copied: Sequence[str]) -> str:
        beyond = i - self.vocabulary_size
        return self._names[i] if beyond < 0 else copied[beyond]

    def texts(self) -> list[str]:
        """The text of every id, without the space in front; empty for control tokens."""
        text = [name.removeprefix(" ") for name in self._names[len(SPECIAL_TOKENS) :]]
        return [""] * len(SPECIAL_TOKENS) + text

    def state(self) -> dict[str, str | int | bool]:
        """Everything that `from_state` needs, as plain data."""
        return {"kind": self.kind, "library": self._library.to_str()}

    @classmethod
    def from_state(cls, state: Mapping[str, str | int | bool]) -> "Tokenizer":
        """The tokenizer that `state` describes, the same in every id."""
        library = tokenizers.Tokenizer.from_str(str(state["library"]))
        return cls(kind=str(state["kind"]), library=library)


def train_tokenizers(
    pairs: Iterable[Pair],
    *,
    source: Mapping[str, Any],
    target: Mapping[str, Any],
    shared: bool = False,
) -> tuple[Tokenizer, Tokenizer]:
    """Train the source and the target tokenizer on the training pairs.

    Args:
        pairs: Training pairs; no other split may take part.
        source: Keyword arguments of `train_tokenizer`: kind, size, min_frequency, lowercase,
            normal_form.
        target: The same for the target.
        shared: One vocabulary, trained on both sides together; the two settings must be equal.

    Raises:
        ValueError: If the settings can't be used with this text; the sentence names the setting.
    """
    pairs = list(pairs)
    sources, targets = [pair.source for pair in pairs], [pair.target for pair in pairs]
    if not shared:
        return (
            train_tokenizer(sources, side="source", **source),
            train_tokenizer(targets, side="target", **target),
        )
    for key in sorted({*source, *target}):
        if source.get(key) != target.get(key):
            raise ValueError(
                f"tokenizer.shared=true needs the same settings on both sides, but {key} is "
                f"{source.get(key)!r} for the source and {target.get(key)!r} for the target"
            )
    tokenizer = train_tokenizer(sources + targets, side="source", **source)
    return tokenizer, tokenizer


def train_tokenizer(
    texts: Sequence[str],
    *,
    kind: str,
    size: int | None = None,
    min_frequency: int = 1,
    lowercase: bool = False,
    normal_form: str | None = None,
    side: str = "source",
) -> Tokenizer:
    """Train one tokenizer: the most frequent tokens of the texts, ties in code point order.

    Args:
        texts: Training text of one side, or of both for a shared vocabulary.
        kind: `word` (letters and digits apart from punctuation), `character` (code points),
            `whitespace` (already tokenized) or `bpe` (byte pair encoding, Sennrich et al. 2016,
            section 3.2, inside the words of `word`).
        size: Largest vocabulary, the four control tokens included; None is no limit.
        min_frequency: Tokens (for `bpe`: merges) seen less often in the texts are left out.
        lowercase: Lower the text first; decoded text is lower case then.
        normal_form: Unicode normal form (Unicode Standard Annex 15) that the text is brought into
            first, one of `NORMAL_FORMS`. `nfd` parts a syllable of Korean into its letters, and a
            letter from its accents; decoding puts them together again (NFC). What `nfkc` and `nfkd`
            replace, as a ligature by its letters, stays replaced. None leaves the text as it is.
        side: Name of the settings in messages, `tokenizer.<side>`.

    Raises:
        ValueError: If the settings can't be used with these texts.
    """
    where = f"tokenizer.{side}"
    _check_kind(kind, f"{where}.kind")
    if normal_form is not None and normal_form not in NORMAL_FORMS:
        raise ValueError(
            f"{where}.normal_form={normal_form!r} is unknown; choose one of "
            f"{', '.join(NORMAL_FORMS)}, or null"
        )
    if size is None and kind == "bpe":
        raise ValueError(f"{where}.size is not set, but kind bpe needs a size, such as 8000")
    smallest = len(SPECIAL_TOKENS) + 1
    if size is not None and size < smallest:
        raise ValueError(
            f"{where}.size={size} is too small: {len(SPECIAL_TOKENS)} control tokens and at least "
            f"one other need {smallest}"
        )
    if min_frequency < 1:
        raise ValueError(f"{where}.min_frequency={min_frequency} must be at least 1")
    if not any(text.strip() for text in texts):
        raise ValueError(f"{where} has nothing to learn from: the training text is empty")

    model, trainer = _untrained(kind, size, min_frequency)
    steps = _first_steps(lowercase=lowercase, normal_form=normal_form)
    in_training = _pipeline(model, kind=kind, first=steps)
    in_training.train_from_iterator(texts, trainer)
    # The trainer also registers the control tokens to be searched for in raw text; a second
    # tokenizer around the trained model knows nothing of that.
    library = _pipeline(in_training.model, kind=kind, first=steps)

    vocabulary_size = library.get_vocab_size()
    if vocabulary_size == len(SPECIAL_TOKENS):
        raise ValueError(
            f"{where}.min_frequency={min_frequency} leaves no token: none occurs that often in "
            "the training text"
        )
    if size is not None and vocabulary_size > size:  # bpe: every character has a place
        raise ValueError(
            f"{where}.size={size} is too small for kind bpe: the training text has "
            f"{vocabulary_size - len(SPECIAL_TOKENS)} different characters and "
            f"{len(SPECIAL_TOKENS)} control tokens are added; use more than {vocabulary_size}"
        )
    return Tokenizer(kind=kind, library=library)


def _check_kind(kind: str, where: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"{where}={kind!r} is unknown; choose one of {', '.join(KINDS)}")


def _untrained(
    kind: str, size: int | None, min_frequency: int
) -> tuple[models.Model, trainers.Trainer]:
    settings: dict[str, Any] = {
        "vocab_size": sys.maxsize if size is None else size,
        "min_frequency": min_frequency,
        "special_tokens": _CONTROL_NAMES,
        "show_progress": False,
    }
    unknown = _CONTROL_NAMES[UNK_ID]
    if kind == "bpe":
        # Without limit_alphabet and max_token_length: the first breaks ties by hash order.
        return models.BPE(unk_token=unknown), trainers.BpeTrainer(**settings)
    return models.WordLevel(unk_token=unknown), trainers.WordLevelTrainer(**settings)


def _first_steps(*, lowercase: bool, normal_form: str | None) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = [normalizers.Lowercase()] if lowercase else []
    # Last, as lower case may leave a normal form.
    return steps if normal_form is None else [*steps, NORMAL_FORMS[normal_form]()]


def _pipeline(
    model: models.Model, *, kind: str, first: Sequence[normalizers.Normalizer]
) -> tokenizers.Tokenizer:
    """Normalisation, splitting and the model, in the library's terms."""
    steps = [*first, normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    if kind in ("word", "bpe"):
        steps.append(normalizers.Prepend(" "))  # the first word is the same token as elsewhere
    library = tokenizers.Tokenizer(model)
    library.normalizer = normalizers.Sequence(steps)
    if kind == "whitespace":
        library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        matches = Regex("." if kind == "character" else _WORDS)
        library.pre_tokenizer = pre_tokenizers.Split(matches, behavior="removed", invert=True)
    return library
