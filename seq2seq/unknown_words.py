"""What is written for an unknown word: the source word that the decoder looked at, or its entry.

Names and numbers that no vocabulary holds are mostly copied, or are in a dictionary.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from seq2seq.data.tokenizer import UNK_ID


def read_dictionary(path: str) -> dict[str, str]:
    """Translations of single words, one a line: source, tab, target.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming file and line, if one isn't UTF-8, hasn't two columns, or says again what
            an earlier one said otherwise.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"decoding.dictionary={path}: there is no such file")
    entries: dict[str, str] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"decoding.dictionary={path} isn't UTF-8 ({error.reason})") from error
    for number, line in enumerate(lines, start=1):
        columns = [column.strip() for column in line.split("\t")]
        if columns == [""]:
            continue
        if len(columns) != 2 or not all(columns):
            raise ValueError(
                f"{path}, line {number}: an entry is a source word, a tab and its translation"
            )
        source, target = columns
        if entries.setdefault(source, target) != target:
            raise ValueError(
                f"{path}, line {number}: {source!r} has another translation in an earlier line"
            )
    return entries


def replacements(
    tokens: Sequence[int],
    alignment: Tensor,
    written: Sequence[str],
    dictionary: Mapping[str, str],
) -> list[str]:
    """The text for each `<unk>` of an output, in order.

    It is that of the source token with the largest attention weight at that position, by the
    dictionary where it has an entry and as it stands elsewhere: the post-processing of Luong et al.
    2015 ("Addressing the rare word problem in neural machine translation", section 3), with
    attention in place of predicted positions as in Jean et al. 2015. White space isn't copied.

    Args:
        tokens: the output.
        alignment: attention weights.
        written: the source's own text of each of its tokens.
        dictionary: from :func:`read_dictionary`.

    Shape:
        alignment ``[predicted positions, source_time]``; what comes after the source's tokens, its
        end symbol and padding, isn't looked at.
    """
    words = [index for index, word in enumerate(written) if word.strip()]
    found = []
    for position, token in enumerate(tokens):
        if token == UNK_ID:
            best = words[int(alignment[position, words].argmax())]
            word = written[best].strip()
            found.append(dictionary.get(word, word))
    return found
