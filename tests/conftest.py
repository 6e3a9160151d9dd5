"""Set-up shared by all tests: one thread per test process, the real corpora, and what is skipped.

Tests marked `slow` run only with `--slow`; tests marked `gpu` are skipped where no GPU is found.
"""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

# Tests are small: one thread is faster than several, and keeps the order of additions fixed.
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skip_slow = pytest.mark.skip(reason="slow: run with --slow")
    skip_gpu = pytest.mark.skip(reason="no GPU on this machine")
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(skip_slow)
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(skip_gpu)


@pytest.fixture(scope="session")
def corpora_root() -> Path:
    """Folder of the real corpora: `SEQ2SEQ_DATA`, or `../shared/data` from the repository."""
    root = Path(os.environ.get("SEQ2SEQ_DATA") or ROOT.parent / "shared" / "data")
    if not root.is_dir():
        pytest.skip(f"no corpora at {root}: set SEQ2SEQ_DATA to their folder")
    return root
