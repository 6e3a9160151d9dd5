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


def read_status(folder: Path) -> dict[str, Any]:
    """What :func:`recorded` wrote; without such a file the status is ``failed``: nothing began."""
    path = folder / RECORD
    return read_json(path) if path.is_file() else {"status": "failed"}
