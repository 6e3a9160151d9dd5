"""What the documents tell people to type: it composes, and the tutorial's commands run."""

import itertools
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TUTORIAL = ROOT / "docs" / "tutorial.md"
COMMAND = re.compile(r"(scripts/(?:train|inspect)\b[^`\n|]*)")


def commands(document: Path) -> list[str]:
    """Every command line of training and inspection, in blocks and in running text."""
    found = COMMAND.findall(document.read_text(encoding="utf-8"))
    return list(dict.fromkeys(command.split(" #")[0].strip() for command in found))


def overrides(command: str) -> tuple[str, list[str]]:
    """Name of the config, and the first job's overrides."""
    script, *arguments = shlex.split(command)
    arguments = [one for one in arguments if one not in ("-m", "--multirun", "--help")]
    first = [
        f"{one.get_key_element()}={first_value(one)}"
        if one.is_sweep_override()
        else str(one.input_line)
        for one in OverridesParser.create().parse_overrides(arguments)
    ]
    return {"scripts/train": "train", "scripts/inspect": "inspect"}[script], first


def first_value(swept: Override) -> str:
    """What the first job of a sweep, or a search, may be given."""
    if swept.is_interval_sweep():
        interval = swept.value()
        assert isinstance(interval, IntervalSweep)
        return str(interval.start)
    return str(next(iter(swept.sweep_string_iterator())))


@pytest.mark.parametrize(
    ("document", "command"),
    [(document.name, command) for document in DOCUMENTS for command in commands(document)],
)
def test_what_a_document_says_to_type_composes(
    compose_config: Callable[[str, list[str]], DictConfig], document: str, command: str
) -> None:
    assert compose_config(*overrides(command)).model.cell


def tables(document: Path) -> list[list[str]]:
    """Every block of lines that begin with a bar, outside of code."""
    prose = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    lines = itertools.groupby(prose.splitlines(), key=lambda line: line.startswith("|"))
    return [list(block) for is_table, block in lines if is_table]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_table_has_a_header_and_rows_as_wide_as_it(document: Path) -> None:
    for table in tables(document):
        assert len(table) > 1 and re.fullmatch(r"\|( ?:?-+:? ?\|)+", table[1]), table[0]
        for row in table:
            assert row.replace(r"\|", "").count("|") == table[1].count("|"), row


def test_the_tutorial_has_its_experiments_and_pictures() -> None:
    text = TUTORIAL.read_text(encoding="utf-8")
    for name in re.findall(r"experiment=(\w+)", text):  # each is run by test_experiments.py
        assert (ROOT / "conf" / "experiment" / f"{name}.yaml").is_file()
    for document in DOCUMENTS:
        linked = re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8"))
        for target in linked:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def alone() -> list[str]:
    return [one for one in commands(TUTORIAL) if "experiment=" not in one]


@pytest.mark.slow
@pytest.mark.parametrize("command", alone())
def test_a_command_of_the_tutorial_runs_on_less_data(
    command_line: Callable[..., Any], command: str
) -> None:
    less = ("data.train_size=400", "data.validation_size=20", "data.test_size=20")
    short = ("trainer.max_epochs=null", "trainer.max_steps=3", "trainer.enable_progress_bar=false")
    # What the fixture adds comes before: an option must not stand between overrides.
    typed = [one for one in shlex.split(command)[1:] if one != "-m"]
    sweep = ["-m"] if "-m" in shlex.split(command) else []
    if command.startswith("scripts/train"):
        finished = command_line(*typed, *less, *short, *sweep, tiny_task=False)
        assert finished.status == 0, finished.output


@pytest.mark.slow
@pytest.mark.usefixtures("command_line")
@pytest.mark.parametrize("command", [one for one in alone() if one.startswith("scripts/inspect")])
def test_the_verdicts_of_the_tutorial_are_those_that_are_printed(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from seq2seq import inspection

    monkeypatch.setattr(sys, "argv", shlex.split(command))
    inspection.main()
    printed = capsys.readouterr().out
    gain = re.search(r"gain=(\S+)", command)
    if gain is None:
        assert "Every layer carries" in printed
        return
    row = rf"^\| {gain[1]} \| ([a-z]+: .+) \|$"
    (told,) = re.findall(row, TUTORIAL.read_text(encoding="utf-8"), re.MULTILINE)
    (found,) = re.findall(r"^encoder/layer0/forward  ([a-z]+: .+)$", printed, re.MULTILINE)
    assert found == told
