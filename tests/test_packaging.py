"""The wheel and the sdist: what is inside, and that the installed wheel starts on its own."""

import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str | Path, folder: Path, ok: bool = True) -> str:
    """Run a command in a folder and return all it said."""
    answer = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert (answer.returncode == 0) is ok, answer.stdout
    return answer.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, folder=folder)
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(distributions: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a new environment that has the wheel, and this environment's libraries."""
    environment = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", environment, folder=environment.parent)
    python = environment / "bin" / "python"
    (site,) = environment.glob("lib/python*/site-packages")
    # A folder named in a .pth file is searched, but its own .pth files aren't read: an editable
    # install of the checkout there stays invisible.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    wheel = distributions[1]
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"),
        *("--ignore-installed", wheel),
        folder=environment.parent,
    )
    return environment / "bin"


def locked_versions() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {
        canonicalize_name(requirement.name): re.sub("^==", "", str(requirement.specifier))
        for requirement in requirements
    }


def test_the_lock_holds_one_exact_version_of_everything_that_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = locked_versions()
    extras = [text for texts in project["optional-dependencies"].values() for text in texts]
    for text in [*project["dependencies"], *extras]:
        wanted = Requirement(text)
        assert locked[canonicalize_name(wanted.name)] in wanted.specifier, text
    for name, version in locked.items():
        assert re.fullmatch(r"[0-9.]+", version), f"{name}: {version}"


@pytest.mark.slow
def test_the_wheel_holds_the_package_its_config_and_its_type_marker(
    distributions: tuple[Path, Path],
) -> None:
    names = set(zipfile.ZipFile(distributions[1]).namelist())
    sources = {f"seq2seq/{file.relative_to(ROOT)}" for file in (ROOT / "conf").rglob("*.yaml")}
    sources |= {str(file.relative_to(ROOT)) for file in (ROOT / "seq2seq").rglob("*.py")}
    assert sources | {"seq2seq/py.typed"} <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"seq2seq"}


@pytest.mark.slow
def test_the_sdist_is_the_whole_repository_without_what_runs_leave_behind(
    distributions: tuple[Path, Path],
) -> None:
    with tarfile.open(distributions[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = set(run("git", "ls-files", folder=ROOT).splitlines())
    assert {name for name in tracked if (ROOT / name).is_file()} <= names
    assert not [name for name in names if name.startswith((".venv", "runs/", "multirun/", ".git/"))]


@pytest.mark.slow
def test_the_installed_wheel_starts_from_an_unrelated_folder(
    installed: Path, tmp_path: Path
) -> None:
    where = run(
        installed / "python", "-c", "import seq2seq; print(seq2seq.__file__)", folder=tmp_path
    )
    assert where.startswith(str(installed.parent))
    for name in ("train", "inspect", "evaluate", "translate", "bundle", "report"):
        assert name in run(installed / f"seq2seq-{name}", "--help", folder=tmp_path)
    job = run(installed / "python", "-m", "seq2seq.train", "--cfg", "job", folder=tmp_path)
    assert "hidden_size" in job
    assert not list(tmp_path.iterdir()), "asking for help or the config leaves files behind"
    refused = run(installed / "seq2seq-train", "model=nonsense", folder=tmp_path, ok=False)
    assert "lstm_attention" in refused, "a wrong choice names the right ones"
