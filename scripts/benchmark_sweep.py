"""Many small runs as one sweep, beside the same runs as separate processes.

The ways to start them take turns, round after round, and must end in the same figures. Then a sweep
runs in this process, and its CPU time is counted by part. `docs/benchmarks.md` says how to read it.
"""

import argparse
import contextlib
import functools
import json
import logging
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

# The network and the task of the interview's sweeps, in which a run takes seconds.
TOY = (
    *("data=copy", "data.alphabet_size=8", "data.min_length=12", "data.max_length=12"),
    *("data.train_size=16000", "data.validation_size=64", "data.test_size=500"),
    *("data.longer_size=0", "model=rnn", "model.embedding_size=32", "batch.size=64"),
    *("trainer=short", "callbacks=none", "threads=1"),
)
TRAIN = (sys.executable, "-P", "-m", "seq2seq.train")
# One thread each, whatever the size: as the sweeps have it.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

PARTS = (
    "composing configs",
    "data",
    "network, callbacks",
    "weights",
    "their table",
    "training",
    "test",
    "table of the sweep",
    "all else",
)


class Cost(NamedTuple):
    """What all runs took in one way: seconds on the clock, and of all processes' CPU time."""

    wall: float
    cpu: float


def processes(overrides: Sequence[str], runs: int, folder: Path, *, at_once: int) -> None:
    """Every run in a process of its own, so many at the same time."""
    waiting = [
        [*TRAIN, *overrides, f"seed={seed}", f"hydra.run.dir={folder / str(seed - 1)}"]
        for seed in range(1, runs + 1)
    ]
    running: list[subprocess.Popen[bytes]] = []
    while waiting or running:
        while waiting and len(running) < at_once:
            running.append(start(waiting.pop(0), folder))
        time.sleep(0.02)
        for process in [one for one in running if one.poll() is not None]:
            running.remove(process)
            check(process, folder)


def sweep(overrides: Sequence[str], runs: int, folder: Path, *, launcher: Sequence[str]) -> None:
    """All runs as one sweep."""
    seeds = ",".join(map(str, range(1, runs + 1)))
    command = [*TRAIN, "-m", *overrides, *launcher, f"seed={seeds}", f"hydra.sweep.dir={folder}"]
    process = start(command, folder)
    process.wait()
    check(process, folder)


def start(command: Sequence[str], folder: Path) -> "subprocess.Popen[bytes]":
    with said(folder).open("ab") as output:
        return subprocess.Popen(command, env=ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT)


def check(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    if process.returncode:
        raise SystemExit(f"error: a run failed:\n{said(folder).read_text(errors='replace')}")


def said(folder: Path) -> Path:
    """What the processes of one way print."""
    return folder.with_name(f"{folder.name}.log")


def losses(folder: Path, runs: int) -> list[float]:
    """Test loss of each run."""
    files = [folder / str(number) / "metrics.json" for number in range(runs)]
    return [json.loads(file.read_text())["test/loss"] for file in files]


def ways(at_once: int) -> dict[str, Callable[[Sequence[str], int, Path], None]]:
    """By name, in the order of their turns."""
    joblib = ("hydra/launcher=joblib", f"hydra.launcher.n_jobs={at_once}")
    return {
        "processes, one after the other": functools.partial(processes, at_once=1),
        f"processes, {at_once} at once": functools.partial(processes, at_once=at_once),
        "sweep, one process": functools.partial(sweep, launcher=()),
        f"sweep, joblib, {at_once} at once": functools.partial(sweep, launcher=joblib),
    }


def measure(overrides: Sequence[str], options: argparse.Namespace) -> dict[str, list[Cost]]:
    """Every way once in each round; the turns change their order from round to round."""
    costs: dict[str, list[Cost]] = defaultdict(list)
    expected: list[float] | None = None
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(options.rounds):
            turns = list(ways(options.at_once).items())
            for name, way in turns if number % 2 == 0 else reversed(turns):
                folder = Path(temporary, str(number), name.replace(" ", "_").replace(",", ""))
                folder.parent.mkdir(exist_ok=True)
                began, used = time.perf_counter(), cpu_of_children()
                way(overrides, options.runs, folder)
                cost = Cost(time.perf_counter() - began, cpu_of_children() - used)
                costs[name].append(cost)
                print(f"round {number + 1}: {name}: {cost.wall:.1f} s", file=sys.stderr)
                found = losses(folder, options.runs)
                expected = expected or found
                if found != expected:
                    raise SystemExit(f"error: {name}: test losses {found} instead of {expected}")
    return costs


def cpu_of_children() -> float:
    """CPU seconds of all processes that were started from here and have ended."""
    times = os.times()
    return times.children_user + times.children_system


def print_costs(costs: dict[str, list[Cost]], runs: int) -> None:
    """One line a way; how many times as fast as the two ways without a sweep."""
    medians = {name: median(cost.wall for cost in found) for name, found in costs.items()}
    one, several, *_ = medians.values()
    rows = [
        [
            name,
            f"{medians[name]:.1f}",
            f"{medians[name] / runs:.2f}",
            f"{median(cost.cpu for cost in found) / runs:.2f}",
            f"{one / medians[name]:.2f}",
            f"{several / medians[name]:.2f}",
        ]
        for name, found in costs.items()
    ]
    first, second, *_ = costs
    header = ["way", "s", "s a run", "CPU s a run", f"times '{first}'", f"times '{second}'"]
    print_table([header, *rows])


def print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    ruled = [rows[0], ["-" * width for width in widths], *rows[1:]]
    for row in ruled:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print(f"| {' | '.join(cells)} |")
    print(flush=True)


# --- one sweep in this process, by part -----------------------------------------------------------


class Parts:
    """CPU seconds by part; what runs inside another part counts only for itself."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self._open: list[str] = ["all else"]
        self._since = time.process_time()

    def wrap(self, stack: contextlib.ExitStack, owner: Any, name: str, part: str) -> None:
        """Count the calls of ``owner.name`` for a part until the stack is left."""
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._turn()
            self._open.append(part)
            try:
                return inner(*args, **kwargs)
            finally:
                self._turn()
                self._open.pop()

        setattr(owner, name, counted)
        stack.callback(setattr, owner, name, inner)

    def reset(self) -> None:
        """Begin at zero."""
        self._turn()
        self.seconds = dict.fromkeys(PARTS, 0.0)

    def total(self) -> dict[str, float]:
        """Seconds so far."""
        self._turn()
        return dict(self.seconds)

    def _turn(self) -> None:
        now = time.process_time()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now


def measure_parts(overrides: Sequence[str], runs: int) -> dict[str, float]:
    """CPU seconds a run by part, once the first run has loaded the libraries and made the data."""
    import lightning

    from seq2seq import train
    from seq2seq.sweep.composition import SweepConfigLoader
    from seq2seq.sweep.record import SweepRecord

    parts = Parts()
    ended: list[dict[str, float]] = []

    def run_ended(*_: Any, **__: Any) -> None:
        if not ended:
            parts.reset()
        ended.append(parts.total())

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        for owner, name, part in (
            (SweepConfigLoader, "load_sweep_config", "composing configs"),
            (train, "build_datamodule", "data"),
            (train, "build_module", "network, callbacks"),
            (train, "build_callbacks", "network, callbacks"),
            (train, "initialize_weights", "weights"),
            (train, "report_weights", "their table"),
            (lightning.Trainer, "fit", "training"),
            (lightning.Trainer, "test", "test"),
            (SweepRecord, "on_job_end", "table of the sweep"),
        ):
            parts.wrap(stack, owner, name, part)
        inner = SweepRecord.on_job_end

        def on_job_end(*args: Any, **kwargs: Any) -> None:
            inner(*args, **kwargs)
            run_ended()

        stack.callback(setattr, SweepRecord, "on_job_end", inner)
        SweepRecord.on_job_end = on_job_end  # type: ignore[method-assign]
        seeds = ",".join(map(str, range(1, runs + 2)))
        sys.argv = ["seq2seq-train", "-m", *overrides, f"seed={seeds}", f"hydra.sweep.dir={folder}"]
        with silent():
            train.main()
    return {part: (ended[-1][part] - ended[0][part]) / runs for part in PARTS}


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Nothing of the sweep's own on the terminal."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        try:
            yield
        finally:
            root.handlers[:], root.level = handlers, level


def print_parts(parts: dict[str, float]) -> None:
    total = sum(parts.values())
    rows = [
        [part, f"{1e3 * seconds:.1f}", f"{seconds / total:.1%}"] for part, seconds in parts.items()
    ]
    print_table([["part", "ms a run", "share"], *rows, ["all", f"{1e3 * total:.1f}", "100.0%"]])


def arguments(command_line: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=24, help="of the sweep")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of a run")
    parser.add_argument("--hidden", type=int, default=64, help="size of the network's layers")
    parser.add_argument("--rounds", type=int, default=1, help="turns of each way")
    parser.add_argument("--at-once", type=int, default=os.cpu_count(), help="runs; all cores")
    parser.add_argument(
        "--only-parts", action="store_true", help="leave out the comparison with processes"
    )
    parser.add_argument("overrides", nargs="*", help="of the config, such as callbacks=default")
    options = parser.parse_args(command_line)
    for name in ("runs", "steps", "hidden", "rounds", "at_once"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')}={getattr(options, name)} must be at least 1")
    return options


def main(command_line: Sequence[str] | None = None) -> None:
    options = arguments(command_line)
    overrides = [
        *TOY,
        f"trainer.max_steps={options.steps}",
        f"model.hidden_size={options.hidden}",
        *options.overrides,
    ]
    print(f"{options.runs} runs of {shlex.join(overrides)}\n", flush=True)
    if not options.only_parts:
        print_costs(measure(overrides, options), options.runs)
    print_parts(measure_parts(overrides, min(options.runs, 6)))


if __name__ == "__main__":
    main()
