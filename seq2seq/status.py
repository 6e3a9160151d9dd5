"""How a run stands, kept in its folder from the first moment on.

A run holds its folder while it lasts, so that one whose process was killed is told from one that is
still running.
"""

import fcntl
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seq2seq.records import INSPECTION, METRICS, SWEEP_PLAN, read_json, write_json

RECORD = "status.json"
STATUSES = ("finished", "diverged", "failed", "interrupted", "running")

# Seconds for which a reader's look at the lock may keep a run from taking it.
_PATIENCE = 2.0


class Diverged(RuntimeError):
    """Training can't go on because the loss or a gradient is NaN or infinite.

    Args:
        what: one sentence that says where.
        step: optimizer steps done before.
        tensor: the first tensor that isn't finite.
    """

    def __init__(self, what: str, *, step: int, tensor: str) -> None:
        self.step = step
        self.tensor = tensor
        super().__init__(
            f"training diverged: {what.rstrip('.')}. Use a smaller optimizer.lr or "
            "trainer.gradient_clip_val, or another initializer; the gradient flow of the run shows "
            "which layer explodes"
        )


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder, so that no other process works in it; the system lets go when this one dies.

    Args:
        folder: made if it isn't there.

    Raises:
        ValueError: if another process, or another part of this one, holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        give_up = time.monotonic() + _PATIENCE
        while not _lock(descriptor, fcntl.LOCK_EX):
            if time.monotonic() > give_up:
                raise ValueError(
                    f"{folder} is being worked in: wait for its process to end, or stop it"
                )
            time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def is_held(folder: Path) -> bool:
    """Whether a living process holds the folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


@contextmanager
def recorded(folder: Path) -> Iterator[None]:
    """Keep the status of what happens inside, one of :data:`STATUSES`, with what is known of it.

    ``diverged`` comes with ``step`` and ``tensor``, ``failed`` with ``traceback``, both with a
    ``reason``; all but ``running`` with ``seconds``. Exceptions pass.

    Args:
        folder: of the run; made if it isn't there.

    Raises:
        ValueError: if a run is going on there.
    """
    with held(folder):
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
    left = any((folder / name).exists() for name in (METRICS, INSPECTION))
    left = left or any((folder / "checkpoints").glob("*.ckpt"))
    if (folder / SWEEP_PLAN).is_file():
        raise ValueError(f"{folder} holds a sweep: choose another {key}")
    if left or ((folder / RECORD).is_file() and read_status(folder)["status"] != "failed"):
        hint = f", or go on with ckpt_path={last}" if last.is_file() else ""
        raise ValueError(f"{folder} holds a run already: choose another {key}{hint}")


def read_status(folder: Path) -> dict[str, Any]:
    """What :func:`recorded` wrote; without such a file the status is ``failed``: nothing began.

    A run that should be running but whose process is dead is ``interrupted``.

    Raises:
        ValueError: if the file is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        return {"status": "failed"}
    found = read_json(path)
    if found.get("status") not in STATUSES:
        raise ValueError(f"{path} holds no status: one of {', '.join(STATUSES)}")
    if found["status"] == "running" and not is_held(folder):
        found = read_json(path)  # it may have ended since
        if found["status"] == "running":
            return {**found, "status": "interrupted"}
    return found


def _lock(descriptor: int, kind: int) -> bool:
    """Try to lock an open folder; True too where the file system has no locks to give."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # Such as a network file system that locks no folders: an exclusive lock is granted on
        # trust, and the record of a running run is believed.
        return kind == fcntl.LOCK_EX
    return True
