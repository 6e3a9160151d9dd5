"""How far a sweep is: one line over all its runs, from what stands in their folders.

On a terminal it stays at the bottom and is brought up to date; elsewhere it is a line a run.
"""

import sys
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from seq2seq.status import RECORD, read_status

# Clears what stands in the line, for something else to be printed there.
_CLEAR = "\r\x1b[K"


@dataclass(frozen=True)
class Progress:
    """How many runs of a sweep stand how.

    Args:
        jobs: how many there will be, if that is known.
        counts: by status.
        seconds: that the runs which have ended took on average.
    """

    jobs: int | None
    counts: Mapping[str, int]
    seconds: float | None

    @property
    def ended(self) -> int:
        """Runs that have an outcome."""
        return sum(self.counts.get(status, 0) for status in ("finished", "diverged", "failed"))

    def left(self, *, workers: int) -> float | None:
        """Seconds that the others will take, about.

        Args:
            workers: runs that go on at the same time.
        """
        if self.jobs is None or self.seconds is None:
            return None
        return max(self.jobs - self.ended, 0) * self.seconds / max(workers, 1)

    def line(self, *, workers: int | None = None) -> str:
        """``13 of 36 runs done, 2 running, 1 diverged, 0 failed, about 1 min 50 s left``.

        Args:
            workers: runs that go on at the same time; those that are running by default.
        """
        running = self.counts.get("running", 0)
        parts = [f"{self.ended} of {self.jobs or '?'} runs done", f"{running} running"]
        parts += [f"{self.counts.get(status, 0)} {status}" for status in ("diverged", "failed")]
        left = self.left(workers=running if workers is None else workers)
        if left is not None and self.ended != self.jobs:
            parts.append(f"about {duration(round(left))} left")
        return ", ".join(parts)


def progress_of(folder: Path, jobs: int | None) -> Progress:
    """Look at every run of a sweep's folder.

    Args:
        folder: of the sweep.
        jobs: how many runs there will be, if that is known.
    """
    records = []
    for path in folder.rglob(RECORD):
        try:
            records.append(read_status(path.parent))
        except (ValueError, OSError):  # damaged: told of where the run's results are read
            continue
    ended = [
        float(record["seconds"])
        for record in records
        if record["status"] in ("finished", "diverged") and "seconds" in record
    ]
    counts = Counter(str(record["status"]) for record in records)
    return Progress(jobs, counts, sum(ended) / len(ended) if ended else None)


def duration(seconds: float) -> str:
    """In the two largest units that matter."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def tell(line: str) -> None:
    """Print a line of a sweep, above the one that shows its progress."""
    clear = _CLEAR if sys.stdout.isatty() and sys.stderr.isatty() else ""
    print(f"{clear}{line}", flush=True)


class ProgressLine:
    """The line at the bottom of a terminal, kept up to date by a thread; nothing elsewhere.

    Args:
        folder: of the sweep.
        jobs: how many runs there will be, if that is known.
        seconds: from one look at the folder to the next.
    """

    def __init__(self, folder: Path, jobs: int | None, *, seconds: float = 1.0) -> None:
        self._folder = folder
        self._jobs = jobs
        self._seconds = seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sweep progress", daemon=True)

    def start(self) -> None:
        """Begin to show it, on a terminal."""
        if sys.stderr.isatty():
            self._thread.start()

    def stop(self) -> None:
        """Take the line away."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
            print(_CLEAR, end="", file=sys.stderr, flush=True)

    def _watch(self) -> None:
        while not self._over.wait(self._seconds):
            line = progress_of(self._folder, self._jobs).line()
            print(f"{_CLEAR}{line}", end="", file=sys.stderr, flush=True)
