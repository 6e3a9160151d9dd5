"""What watches the training loops of the benchmark: step times, time by part, peak memory.

Each loop, whichever it is, says when a step begins; parts are named by those who know the loop.
"""

import contextlib
import functools
import itertools
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

PARTS = (
    "data",
    "encoder",
    "decoder, attention",
    "output layer, loss",
    "backward",
    "clipping, optimizer",
    "logging",
    "callbacks",
    "diagnostics",
    "Lightning, loop",
)

WARM_UP = 10  # steps of each run that don't count
MEMORY_STEPS = range(2, 6)  # watched for the peak memory


class Moment(NamedTuple):
    """Seconds of the wall clock, and of the process on all its threads."""

    wall: float
    cpu: float

    def since(self, before: "Moment") -> "Moment":
        return Moment(self.wall - before.wall, self.cpu - before.cpu)


class Watch:
    """What a loop tells that a step begins; by itself it does nothing."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.step = 0

    def tick(self, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Step `self.step` begins."""
        self.step += 1

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part of the step runs inside."""
        yield


class StepTimes(Watch):
    """When each step began. A GPU is waited for only where the measured steps begin and end."""

    def __init__(self, device: torch.device, *, steps: int) -> None:
        super().__init__(device)
        self.steps = steps
        self._moments: list[Moment] = []

    def tick(self, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
        if self.device.type == "cuda" and self.step in (WARM_UP, WARM_UP + self.steps):
            torch.cuda.synchronize(self.device)
        self._moments.append(Moment(time.perf_counter(), time.process_time()))
        super().tick(parameters, optimizer)

    def each(self) -> list[Moment]:
        """Duration of each measured step."""
        measured = self._moments[WARM_UP : WARM_UP + self.steps + 1]
        return [after.since(before) for before, after in itertools.pairwise(measured)]

    def total(self) -> Moment:
        """Duration of all measured steps together."""
        return self._moments[WARM_UP + self.steps].since(self._moments[WARM_UP])


class Parts(Watch):
    """Seconds spent in each part of the measured steps; a part inside another is not its share.

    CPU seconds of the process, or wall seconds with a GPU, which is then waited for everywhere.
    """

    def __init__(self, device: torch.device, *, steps: int) -> None:
        super().__init__(device)
        self.steps = steps
        self.seconds: dict[str, float] = {}
        self._running: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    def tick(self, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
        self._turn()
        if self.step == WARM_UP:
            self._running = dict.fromkeys(PARTS, 0.0)
        elif self.step == WARM_UP + self.steps:
            self.seconds = dict(self._running)
        super().tick(parameters, optimizer)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def wrap(self, owner: Any, method: str, name: str) -> None:
        """Count every call of `owner.method` as that part."""
        inner = getattr(owner, method)

        @functools.wraps(inner)
        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return inner(*args, **kwargs)

        setattr(owner, method, counted)

    def _turn(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            now = time.perf_counter()
        else:
            now = time.process_time()
        if self._open:
            part = self._open[-1]
            self._running[part] = self._running.get(part, 0.0) + now - self._since
        self._since = now


class MemoryPeak(Watch):
    """Largest size of all tensors of a loop during `MEMORY_STEPS`, in bytes.

    What lives from step to step is added up; what comes and goes is read from PyTorch's profiler
    on the CPU, and from CUDA's allocator on a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.bytes = 0
        self._before = 0
        self._profiler: Any = None

    def tick(self, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
        if self.step == MEMORY_STEPS.start:
            states = (value for state in optimizer.state.values() for value in state.values())
            gradients = (parameter.grad for parameter in parameters)
            lasting = [*parameters, *gradients, *states]
            self.bytes = sum(one.nbytes for one in lasting if isinstance(one, Tensor))
            self._begin()
        elif self.step == MEMORY_STEPS.stop:
            self.bytes += self._end()
        super().tick(parameters, optimizer)

    def _begin(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
            return
        self._profiler = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        )
        self._profiler.start()

    def _end(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self._before
        self._profiler.stop()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            self._profiler.export_chrome_trace(str(path))
            events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
        changes = sorted(
            (event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"
        )
        sizes: list[int] = list(itertools.accumulate((change for _, change in changes), initial=0))
        return max(sizes)
