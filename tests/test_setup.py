"""The set-up behind scripts/train and scripts/test, on a stand-in project without dependencies."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "seq2seq"
version = "1"
"""

# The smallest build backend that can do an editable install.
BACKEND = """
import pathlib, zipfile
def build_editable(folder, config_settings=None, metadata_directory=None):
    info = "seq2seq-1.dist-info/"
    files = {
        "seq2seq.pth": str(pathlib.Path.cwd()),
        info + "METADATA": "Metadata-Version: 2.1\\nName: seq2seq\\nVersion: 1\\n",
        info + "WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    }
    files[info + "RECORD"] = "".join(f"{name},,\\n" for name in [*files, info + "RECORD"])
    with zipfile.ZipFile(pathlib.Path(folder, "seq2seq-1-py3-none-any.whl"), "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return "seq2seq-1-py3-none-any.whl"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "a project"
    (root / "seq2seq").mkdir(parents=True)
    shutil.copytree(SCRIPTS, root / "scripts", ignore=lambda _, names: {*names} - SCRIPT_NAMES)
    (root / "pyproject.toml").write_text(PYPROJECT)
    (root / "requirements.lock").write_text("# nothing\n")
    (root / "backend.py").write_text(BACKEND)
    (root / "seq2seq" / "__init__.py").write_text("")
    (root / "seq2seq" / "train.py").write_text(
        "import os, random, sys\nprint(os.getcwd(), sys.argv[1:], random.__file__)\n"
    )
    return root


SCRIPT_NAMES = {"setup.sh", "train", "test"}


def train(
    project: Path, *arguments: str, folder: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(project / "scripts" / "train"), *arguments],
        cwd=folder or project,
        env={**os.environ, "SEQ2SEQ_PYTHON": sys.executable, **variables},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)  # makes three environments
def test_the_environment_is_made_reused_brought_up_to_date_and_made_again(
    project: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "random.py").write_text("")

    first = train(project, "data=copy", "a b", folder=elsewhere)
    assert first.returncode == 0, first.stderr
    assert "making" in first.stderr
    # Arguments arrive whole, from the caller's folder, whose files replace no library.
    assert first.stdout.startswith(f"{elsewhere} ['data=copy', 'a b'] ")
    assert str(elsewhere / "random.py") not in first.stdout

    again = train(project)
    assert again.returncode == 0
    assert again.stderr == ""

    with (project / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    changed = train(project)
    assert "dependencies have changed" in changed.stderr
    assert "making" not in changed.stderr
    assert train(project).stderr == ""

    (project / ".venv" / "complete").unlink()  # as an interrupted set-up leaves it
    assert "making" in train(project).stderr
    assert train(project).stderr == ""

    moved = project.rename(tmp_path / "moved")
    assert "making" in train(moved).stderr


@pytest.mark.slow
def test_a_failed_installation_shows_its_end_and_is_redone(project: Path) -> None:
    lock = project / "requirements.lock"
    lock.write_text("no-such-package-at-all==1.0\n")
    failed = train(project, PIP_NO_INDEX="1")
    assert failed.returncode == 1
    assert "Set-up failed at: installing the packages" in failed.stderr
    assert "no-such-package-at-all" in failed.stderr
    assert failed.stdout == ""
    lock.write_text("")
    assert train(project).returncode == 0


def test_an_old_python_is_refused_in_one_sentence(project: Path, tmp_path: Path) -> None:
    old = tmp_path / "python3.10"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    refused = train(project, SEQ2SEQ_PYTHON=str(old))
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"No Python 3.11 or newer at SEQ2SEQ_PYTHON={old}")
    assert len(refused.stderr.splitlines()) == 1


def test_a_python_that_cannot_make_environments_is_refused_in_one_sentence(
    project: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "python3"
    bare.write_text(
        '#!/bin/sh\ncase "$*" in *ensurepip*) exit 1 ;; esac\nexec "' + sys.executable + '" "$@"\n'
    )
    bare.chmod(0o755)
    refused = train(project, SEQ2SEQ_PYTHON=str(bare))
    assert refused.returncode == 1
    assert "apt install python3-venv" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["scripts/train", "scripts/test", ".ci/run"])
def test_scripts_can_be_started(name: str) -> None:
    script = SCRIPTS.parent / name
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
