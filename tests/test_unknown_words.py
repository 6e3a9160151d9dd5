"""Unknown words are copied from where the attention lies, or looked up."""

from pathlib import Path

import pytest
import torch

from seq2seq.unknown_words import read_dictionary, replacements

UNK = 3
PIECES = ["Anna", " likes", " Wien", "!"]


def test_the_source_word_with_the_largest_weight_is_copied() -> None:
    alignment = torch.tensor(
        [
            # Anna, likes, Wien, !, <eos>, padding
            [0.4, 0.3, 0.1, 0.1, 0.1, 0.0],
            [0.1, 0.6, 0.1, 0.1, 0.1, 0.0],
            [0.1, 0.0, 0.2, 0.1, 0.6, 0.0],  # of the words, the third has the most
            [0.0, 0.0, 0.0, 0.0, 1.0, 0.0],
        ]
    )
    assert replacements([UNK, 8, UNK], alignment, PIECES, {}) == ["Anna", "Wien"]
    assert replacements([UNK, 8, UNK], alignment, PIECES, {"Wien": "Vienne"}) == ["Anna", "Vienne"]
    assert replacements([5, 8, 9], alignment, PIECES, {}) == []


def test_white_space_is_not_copied() -> None:
    alignment = torch.tensor([[0.3, 0.5, 0.2]])
    assert replacements([UNK], alignment, ["a", " ", "b"], {}) == ["a"]


def test_a_dictionary_is_read(tmp_path: Path) -> None:
    path = tmp_path / "words.tsv"
    path.write_bytes("\ufeffWien\tVienne\r\n\nThe Hague \t La Haye\nWien\tVienne\n".encode())
    assert read_dictionary(str(path)) == {"Wien": "Vienne", "The Hague": "La Haye"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\tb\nc\n", "words.tsv, line 2: an entry is a source word, a tab and its translation"),
        (b"a\tb\tc\n", "words.tsv, line 1: an entry is"),
        (b"a\t\n", "words.tsv, line 1: an entry is"),
        (b"a\tb\na\tc\n", "words.tsv, line 2: 'a' has another translation in an earlier line"),
        (b"caf\xe9\tb\n", "words.tsv isn't UTF-8"),
    ],
)
def test_a_damaged_dictionary_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "words.tsv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_dictionary(str(tmp_path / "words.tsv"))


def test_a_missing_dictionary_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"decoding.dictionary=gone.tsv: there is no such"):
        read_dictionary("gone.tsv")
