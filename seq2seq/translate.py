"""Translate lines of plain text with a trained run.

Started as ``seq2seq-translate run=FOLDER``; every argument is a Hydra override of
``conf/translate.yaml``. Lines come from standard input or a file, and leave in the same order, as
text or as JSON. How a line is translated is left to the translator.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

import hydra
from omegaconf import DictConfig
from tqdm import tqdm

from seq2seq import user_errors
from seq2seq.config import config_folder, plain, register

if TYPE_CHECKING:
    from seq2seq.translator import Translation, Translator

# Read and translated together: enough that batches of equal lengths form, little enough that the
# first lines of a long file come soon.
_LINES_AT_ONCE = 2048

# Before the progress bar appears: short files need none.
_SECONDS_WITHOUT_BAR = 1.0


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
    from seq2seq.checkpoint import chosen_device
    from seq2seq.trained import find_trained, load_together
    from seq2seq.translator import Translator

    # Lists may be among them.
    given = {key: plain(config)[key] for key in ("run", "checkpoint", "bundle")}
    paths = find_trained(**given)
    trained = load_together(paths)
    trained.model.to(chosen_device(config.accelerator))
    translator = Translator(**trained._asdict(), **plain(config.decoding))
    _check(config, translator)
    with contextlib.ExitStack() as stack:
        name, stream, total = "standard input", sys.stdin.buffer, None
        if config.input != "-":
            name, stream = config.input, stack.enter_context(open(config.input, "rb"))
            if Path(name).is_file():  # and not a pipe, which can be read but once
                total = sum(1 for _ in stream)
                stream.seek(0)
        output: TextIO = sys.stdout
        if config.output != "-":
            if Path(config.output).is_file() and Path(name).is_file():
                _refuse_same(Path(name), Path(config.output))
            output = stack.enter_context(open(config.output, "w", encoding="utf-8"))
        lines = _sources(_lines(name, stream))
        if config.prefixes:
            lines = _with_prefixes(name, _lines(name, stream), translator)
        bar = stack.enter_context(
            tqdm(
                total=total,
                unit="line",
                file=sys.stderr,
                delay=_SECONDS_WITHOUT_BAR,
                # Into a terminal the translations themselves come one after the other.
                disable=not sys.stderr.isatty() or output.isatty(),
            )
        )
        for number, (line, best) in enumerate(
            _translated(translator, lines, config, bar.update), start=1
        ):
            if config.format == "json":
                output.write(_json(number, line, best))
            else:
                for one in best:
                    score = f"{one.score:.4f}\t" if config.scores else ""
                    output.write(f"{score}{one.text}\n")
            output.flush()


def _check(config: DictConfig, translator: "Translator") -> None:
    if config.format not in ("text", "json"):
        raise ValueError(f"format={config.format!r} must be text or json")
    if config.scores and config.format == "json":
        raise ValueError("format=json has scores always: leave out scores=true")
    if config.alignments and config.format == "text":
        raise ValueError("alignments=true needs format=json: text has no place for them")
    if config.alignments and not translator.attends:
        raise ValueError("alignments=true needs a model with attention: this one has none")
    if config.prefixes and config.decoding.prefix:
        raise ValueError(
            "prefixes=true takes the prefix of each line from its second column: leave out "
            "decoding.prefix"
        )
    if config.output != "-" and not Path(config.output).absolute().parent.is_dir():
        raise FileNotFoundError(f"output={config.output}: there is no such folder")


def _json(number: int, line: Line, best: Sequence["Translation"]) -> str:
    """One line of JSON: an input line and its translations, best first."""
    translations: list[dict[str, object]] = []
    for one in best:
        content: dict[str, object] = {
            "text": one.text,
            "score": one.score,
            "log_probability": one.log_probability,
            "finished": one.finished,
        }
        if one.alignment is not None:
            content["source_tokens"] = one.alignment.source
            content["target_tokens"] = one.alignment.target
            # Six digits are all that single precision holds.
            content["alignment"] = one.alignment.weights.round(6).tolist()
        translations.append(content)
    whole = {"line": number, "source": line.source, "translations": translations}
    return json.dumps(whole, ensure_ascii=False) + "\n"


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
    translator: "Translator",
    lines: Iterable[Line],
    config: DictConfig,
    advance: Callable[[int], object],
) -> Iterator[tuple[Line, list["Translation"]]]:
    # Of lines that are typed, each is answered before the next.
    typed = config.input == "-" and sys.stdin.isatty()
    at_once = 1 if typed else _LINES_AT_ONCE
    lines = iter(lines)
    while held := list(islice(lines, at_once)):
        translations = translator.translate(
            [line.source for line in held],
            prefixes=[line.prefix for line in held] if config.prefixes else None,
            alignments=config.alignments,
            batch_size=config.batch_size,
            on_batch=advance,
        )
        yield from zip(held, translations, strict=True)
        advance(sum(not line.source.strip() for line in held))  # empty ones are in no batch


def _refuse_same(source: Path, output: Path) -> None:
    if output.samefile(source):
        raise ValueError(f"output={output} is the input: it would be emptied; give another file")


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
    with user_errors.told():
        _hydra_main()


if __name__ == "__main__":
    main()
