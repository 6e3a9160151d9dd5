"""Translate lines of plain text with a trained run.

Started as ``seq2seq-translate run=FOLDER``; every argument is a Hydra override of
``conf/translate.yaml``. Lines come from standard input or a file, and leave in the same order.
"""

import contextlib
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

import hydra
from omegaconf import DictConfig

from seq2seq.config import config_folder, plain, register

if TYPE_CHECKING:
    from seq2seq.translator import Translation, Translator

# Read and translated together: enough that batches of equal lengths form, little enough that the
# first lines of a long file come soon.
_LINES_AT_ONCE = 2048


class Line(NamedTuple):
    """A source text, and what its translation must begin with."""

    source: str
    prefix: str = ""


def translate(config: DictConfig) -> None:
    """Translate every line of the input.

    Args:
        config: composed from ``conf/translate.yaml``, of type
            :class:`~seq2seq.config.TranslateConfig`.

    Raises:
        ValueError, FileNotFoundError: one sentence for whatever the user can mend.
    """
    from seq2seq.checkpoint import chosen_device, find_checkpoint, load_trained
    from seq2seq.translator import Translator

    path = find_checkpoint(run=config.run, checkpoint=config.checkpoint)
    trained = load_trained(path)
    trained.model.to(chosen_device(config.accelerator))
    translator = Translator(**trained._asdict(), **plain(config.decoding))
    if config.prefixes and config.decoding.prefix:
        raise ValueError(
            "prefixes=true takes the prefix of each line from its second column: leave out "
            "decoding.prefix"
        )
    if config.output != "-" and not Path(config.output).absolute().parent.is_dir():
        raise FileNotFoundError(f"output={config.output}: there is no such folder")
    with contextlib.ExitStack() as stack:
        output: TextIO = sys.stdout
        if config.output != "-":
            output = stack.enter_context(open(config.output, "w", encoding="utf-8"))
        name, stream = "standard input", sys.stdin.buffer
        if config.input != "-":
            name, stream = config.input, stack.enter_context(open(config.input, "rb"))
        lines = _sources(_lines(name, stream))
        if config.prefixes:
            lines = _with_prefixes(name, _lines(name, stream), translator)
        for best in _translated(translator, lines, config):
            for one in best:
                output.write(f"{one.score:.4f}\t{one.text}\n" if config.scores else f"{one.text}\n")
            output.flush()


def _lines(name: str, stream: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(stream, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name}, line {number}: byte 0x{line[error.start]:02x} isn't UTF-8; convert it, "
                "for example with `iconv -f latin1 -t utf-8`"
            ) from error


def _sources(lines: Iterable[str]) -> Iterator[Line]:
    from seq2seq.data.corpus import normalize

    return (Line(normalize(line)) for line in lines)


def _with_prefixes(name: str, lines: Iterable[str], translator: "Translator") -> Iterator[Line]:
    from seq2seq.data.corpus import normalize

    for number, text in enumerate(lines, start=1):
        source, *prefix = [normalize(column) for column in text.split("\t")]
        if len(prefix) > 1:
            raise ValueError(
                f"{name}, line {number} has {1 + len(prefix)} columns: with prefixes=true a line "
                "is a source, a tab and what its translation must begin with"
            )
        line = Line(source, prefix[0] if prefix else "")
        try:
            translator.encode_prefix(line.prefix)
        except ValueError as error:
            raise ValueError(f"{name}, line {number}: {error}") from error
        yield line


def _translated(
    translator: "Translator", lines: Iterable[Line], config: DictConfig
) -> Iterator[list["Translation"]]:
    # On a terminal, every line is answered before the next is typed.
    at_once = 1 if sys.stdin.isatty() else _LINES_AT_ONCE
    lines = iter(lines)
    while held := list(islice(lines, at_once)):
        yield from translator.translate(
            [line.source for line in held],
            prefixes=[line.prefix for line in held] if config.prefixes else None,
            batch_size=config.batch_size,
        )


register()


@hydra.main(version_base="1.3", config_path=config_folder(), config_name="translate")
def _hydra_main(config: DictConfig) -> None:
    try:
        translate(config)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read the output has seen enough; nothing is left to say
        sys.exit(0)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def main() -> None:
    """Entry of ``seq2seq-translate``."""
    _hydra_main()


if __name__ == "__main__":
    main()
