"""How a run stands, kept in its folder from the first moment on.

A process that is killed leaves ``running`` behind.
"""

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seq2seq.module import Diverged
from seq2seq.records import read_json, write_json

RECORD = "status.json"
STATUSES = ("finished", "diverged", "failed", "interrupted", "running")


@contextmanager
def recorded(folder: Path) -> Iterator[None]:
    """Keep the status of what happens inside, one of :data:`STATUSES`, with what is known of it.

    ``diverged`` comes with ``step`` and ``tensor``, ``failed`` with ``traceback``, both with a
    ``reason``; all but ``running`` with ``seconds``. Exceptions pass.

    Args:
        folder: of the run; made if it isn't there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()

    def write(status: str, **details: Any) -> None:
        seconds = round(time.perf_counter() - began, 2)
        write_json(folder / RECORD, {"status": status, "seconds": seconds, **details})

    write_json(folder / RECORD, {"status": "running"})
    try:
        yield
    except Diverged as error:
        write("diverged", step=error.step, tensor=error.tensor, reason=str(error))
        raise
    except Exception as error:
        write("failed", reason=str(error), traceback=traceback.format_exc())
        raise
    except BaseException:  # Ctrl-C, which Lightning turns into an exit
        write("interrupted")
        raise
    write("finished")


def check_free(folder: Path, *, key: str, ckpt_path: str | None = None) -> None:
    """Refuse a folder in which something ran already, unless that is gone on with.

    A run that failed before it left anything may be tried again in its folder.

    Args:
        folder: where a run is to begin.
        key: config key that chooses another.
        ckpt_path: checkpoint that it goes on from.

    Raises:
        ValueError: saying what to choose instead.
    """
    if ckpt_path is not None:
        return
    last = folder / "checkpoints" / "last.ckpt"
    left = any((folder / name).exists() for name in ("metrics.json", "inspection.json"))
    left = left or any((folder / "checkpoints").glob("*.ckpt"))
    if left or ((folder / RECORD).is_file() and read_status(folder)["status"] != "failed"):
        hint = f", or go on with ckpt_path={last}" if last.is_file() else ""
        raise ValueError(f"{folder} holds a run already: choose another {key}{hint}")


def read_status(folder: Path) -> dict[str, Any]:
    """What :func:`recorded` wrote; without such a file the status is ``failed``: nothing began."""
    path = folder / RECORD
    return read_json(path) if path.is_file() else {"status": "failed"}
