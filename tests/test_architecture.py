"""Holds the table of who may import whom, by reading every import in the package with `ast`."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "seq2seq"

# Layer of each module, or of all modules in a folder (the longest name that fits decides).
# A file may import its own layer and those below.
LAYERS = {
    # 1: plain Python
    "data.corpus": 1,
    "data.extended_vocabulary": 1,
    "figures": 1,
    "records": 1,
    "status": 1,
    "data.curriculum": 1,
    "data.phrasebook": 1,
    "data.public_corpora": 1,
    "data.synthetic": 1,
    "data.tokenizer": 1,
    "data.torchtext_corpus": 1,
    "data.torchtext_vectors": 2,
    # 2: torch
    "activation_penalty": 2,
    "coverage_loss": 2,
    "penalty": 2,
    "bundle": 2,
    "checkpoint": 2,
    "data.batch": 2,
    "data.sampler": 2,
    "decoding": 2,
    "diagnostics": 2,
    "gradient_noise": 2,
    "graphs": 2,
    "initializers": 2,
    "losses": 2,
    "measurement": 2,
    "metrics": 2,
    "models": 2,
    "pretrained": 2,
    "schedules": 2,
    "scheduled_sampling": 2,
    "scoring": 2,
    "trained": 2,
    "translator": 2,
    "unknown_words": 2,
    # 3: Lightning
    "callbacks": 3,
    "data.datamodule": 3,
    "curves": 3,
    "module": 3,
    # 4: Hydra
    "assembly": 4,
    "config": 4,
    "config_checks": 4,
    "event_log": 4,
    "evaluate": 4,
    "export": 4,
    "inspection": 4,
    "instantiate": 4,
    "report": 4,
    "sweep": 4,
    "train": 4,
    "training_options": 4,
    "user_errors": 4,
    "translate": 4,
}
ENTRIES = {"evaluate", "export", "inspection", "report", "train", "translate"}

# Libraries that appear only from a layer on, whatever the file imports from this package.
LIBRARIES = {"torch": 2, "torchmetrics": 2, "lightning": 3, "hydra": 4, "omegaconf": 4}

# Within the layers: what must not know of what, because it is useful without it.
STRANGERS = [
    ("models", {"data", "decoding", "diagnostics", "initializers", "losses", "metrics"}),
    ("data", {"models", "decoding", "diagnostics", "initializers", "losses", "metrics"}),
    ("decoding", {"models", "data"}),
    ("losses", {"models", "data"}),
    ("metrics", {"models", "data"}),
    ("initializers", {"data", "decoding"}),
    ("diagnostics", {"data", "decoding"}),
]

FILES = sorted(PACKAGE.rglob("*.py"))


@functools.cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def dotted(file: Path) -> str:
    """Name below the package: `data.corpus`; a folder's `__init__` has the folder's name."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(name: str) -> int | None:
    fitting = [key for key in LAYERS if name == key or name.startswith(f"{key}.")]
    return LAYERS[max(fitting, key=len)] if fitting else None


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported anywhere in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: a relative import"
            for alias in node.names:
                submodule = PACKAGE.parent.joinpath(*node.module.split("."), alias.name)
                is_module = submodule.is_dir() or submodule.with_suffix(".py").is_file()
                yield node.lineno, f"{node.module}.{alias.name}" if is_module else node.module


def own_imports(file: Path) -> list[tuple[str, str]]:
    """Place and name below the package of what this file imports from the package."""
    return [
        (f"{file.relative_to(PACKAGE.parent)}:{line}", name.removeprefix("seq2seq."))
        for line, name in imports(parsed(file))
        if name.startswith("seq2seq.")
    ]


def test_every_file_has_a_layer() -> None:
    for file in FILES:
        name = dotted(file)
        if name in ("", "data"):
            assert not own_imports(file), f"{file.name} of {name or 'the package'} imports nothing"
            continue
        assert layer(name) is not None, (
            f"seq2seq/{file.relative_to(PACKAGE)} is in no layer: decide what it may import and "
            f"add {name!r} to LAYERS in tests/test_architecture.py"
        )


def test_every_layer_in_the_table_has_files() -> None:
    names = {dotted(file) for file in FILES}
    gone = {key for key in LAYERS if key not in names}
    assert not gone, f"LAYERS names modules that don't exist: {sorted(gone)}"


@pytest.mark.parametrize("file", FILES, ids=dotted)
def test_every_import_is_one_that_the_tables_allow(file: Path) -> None:
    own = dotted(file)
    height = layer(own) or 0
    for place, name in own_imports(file):
        other = layer(name)
        assert other is None or other <= height, (
            f"{place}: layer {height} imports {name} of layer {other}"
        )
        assert name.partition(".")[0] not in ENTRIES, f"{place} imports the entry {name}"
        for group, strangers in STRANGERS:
            if own.partition(".")[0] == group:
                assert name.partition(".")[0] not in strangers, f"{place}: {own} imports {name}"
    for line, name in imports(parsed(file)):
        library = name.partition(".")[0]
        assert library != "pytorch_lightning", f"{file.name}:{line}: import lightning instead"
        if library == "torchtext":
            assert own.startswith("data.torchtext_"), f"{file.name}:{line} imports torchtext"
        least = LIBRARIES.get(library, 0)
        assert least <= height, (
            f"{file.name}:{line}: layer {height} imports {name} (from layer {least})"
        )


def test_callbacks_touch_no_private_attribute() -> None:
    for file in (PACKAGE / "callbacks").glob("*.py"):
        for node in ast.walk(parsed(file)):
            if not isinstance(node, ast.Attribute) or not node.attr.startswith("_"):
                continue
            if node.attr.startswith("__"):
                continue
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            assert own, f"{file.name}:{node.lineno} reads the private {node.attr} of another object"


def test_files_are_named_for_what_they_hold_and_say_what_they_are_for() -> None:
    for file in FILES:
        for part in (*file.relative_to(PACKAGE).parts[:-1], file.stem):
            assert part.strip("_") not in {"util", "utils", "base", "helper", "helpers", "common"}
        assert ast.get_docstring(parsed(file)), f"{file.relative_to(PACKAGE)} has no docstring"


LIGHT = (
    "seq2seq",
    "seq2seq.config",
    "seq2seq.instantiate",
    "seq2seq.train",
    "seq2seq.inspection",
    "seq2seq.evaluate",
    "seq2seq.export",
    "seq2seq.translate",
    "seq2seq.data.corpus",
    "seq2seq.data.phrasebook",
    "seq2seq.data.synthetic",
    "seq2seq.data.tokenizer",
)


HEAVY = ("torch", "lightning", "numpy")


def test_importing_what_answers_at_once_does_not_import_torch() -> None:
    """One after the other in one process; the first of those that are named is the one that did."""
    imported = "importlib.import_module(name) and any(heavy in sys.modules for heavy in HEAVY)"
    code = f"import importlib\nHEAVY = {HEAVY}\nprint([name for name in {LIGHT} if {imported}])"
    assert last_line(code) == "[]"


@pytest.mark.parametrize("option", [["--help"], ["--cfg", "job"], ["model=nonsense"]])
def test_the_command_line_answers_without_importing_torch(option: list[str]) -> None:
    run = (
        f"sys.argv = ['train', *{option!r}]; runpy.run_module('seq2seq.train', run_name='__main__')"
    )
    tail = f"print([name for name in {HEAVY} if name in sys.modules])"
    code = f"import runpy\ntry: {run}\nexcept SystemExit: pass\nprint()\n{tail}"
    assert last_line(code) == "[]"


def last_line(code: str) -> str:
    """What a new process prints last."""
    answer = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    return answer.stdout.splitlines()[-1]
