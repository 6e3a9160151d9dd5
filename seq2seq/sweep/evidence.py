"""What the runs of one or several sweeps left, read for their report however they ended.

Where `runs` refuses a damaged file, a report goes on: the run is listed with the file and its line.
What is made of it is left to `combinations`, the figures and the page.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seq2seq.diagnostics.gradient_profile import GradientProfile, read_gradient_flow
from seq2seq.records import CURVES, INSPECTION, METRICS, SWEEP_PLAN, read_lines
from seq2seq.status import RECORD, is_held, read_status
from seq2seq.sweep.plan import SweepPlan, read_plan
from seq2seq.sweep.runs import DAMAGED, Run, Value, comparable, overrides_of, read_run, read_yaml

GRADIENT_FLOW = "gradient_flow.jsonl"

# Keys that change what is shown or where it runs, never what is trained.
_NOT_TRAINED = ("ckpt_path", "figure", "hydra", "inspect", "sweep", "threads")
_OVERRIDES = Path(".hydra", "overrides.yaml")
_RECORDS = (Path(".hydra", "config.yaml"), Path(".hydra", "hydra.yaml"), _OVERRIDES)


@dataclass(frozen=True)
class Evidence:
    """One run and everything that a report shows of it.

    Args:
        run: its overrides hold a value for every key that any run of the report was started with,
            from its config where it was started without; ``sweep`` too if there are several. The
            column ``status`` may also be ``damaged``, and ``slope`` comes from the first probe of
            training if nothing was measured before.
        name: the folder's, with that of the sweep if there are several.
        record: what `status.json` says: ``reason``, ``step``, ``tensor``, ``traceback``,
            ``seconds``, as far as known.
        command: what starts it again, one argument each.
        objective: the figure that its sweep was to make better.
        curves: logged values by name, by optimizer step.
        flow: gradient norms by distance, layer and step.
        notes: one sentence for each file that could not be read as it should be.
    """

    run: Run
    name: str
    record: Mapping[str, Any] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    objective: str = "test/loss"
    curves: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    flow: tuple[GradientProfile, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        return str(self.run.columns["status"])

    @property
    def inspected(self) -> bool:
        """Whether it was measured before training and never trained."""
        return self.command[:1] == ("seq2seq-inspect",)

    @property
    def seconds(self) -> float | None:
        """How long the run took, as far as known."""
        seconds = self.record.get("seconds")
        return float(seconds) if isinstance(seconds, (int, float)) else None


@dataclass(frozen=True)
class Gathered:
    """All runs of a report.

    Args:
        evidence: one a run, in the order of the sweeps and of their numbers.
        folders: that the report was asked for.
        planned: number of runs that the sweeps will have at their end, if known.
        going_on: what goes on with each sweep that was stopped before its end, one argument each.
        notes: by sweep, one sentence each for what could not be read of its plan.
    """

    evidence: tuple[Evidence, ...]
    folders: tuple[Path, ...]
    planned: int | None
    going_on: tuple[tuple[str, ...], ...]
    notes: tuple[tuple[str, str], ...] = ()


def gather(folders: Sequence[Path]) -> Gathered:
    """Read all runs below the folders, each once.

    Raises:
        ValueError: for a folder that isn't there, is none, or holds no runs.
    """
    found: dict[Path, Path] = {}  # run: its sweep
    for folder in folders:
        for path in _run_folders(folder):
            found.setdefault(path.resolve(), _sweep_of(path, folder).resolve())
    sweeps = _sweep_names(list(dict.fromkeys(found.values())))
    read = [_read(path, _name(path, sweep, sweeps)) for path, sweep in found.items()]
    keys = dict.fromkeys(key for one in read for key in one.overrides)
    trained = [key for key in keys if key.partition(".")[0] not in _NOT_TRAINED]
    begun: dict[Path, list[Evidence]] = {sweep: [] for sweep in sweeps}
    for one, sweep in zip(read, found.values(), strict=True):
        overrides: dict[str, Value] = {"sweep": sweeps[sweep]} if len(sweeps) > 1 else {}
        overrides |= {key: one.value(key) for key in trained}
        run = dataclasses.replace(one.evidence.run, overrides=overrides)
        begun[sweep].append(dataclasses.replace(one.evidence, run=run))
    evidence = tuple(one for runs in begun.values() for one in runs)
    notes: list[tuple[str, str]] = []
    plans = {sweep: _plan(sweep, name, notes) for sweep, name in sweeps.items()}
    jobs = [None if plan is None else plan.jobs for plan in plans.values()]
    planned = sum(filter(None, jobs)) if None not in jobs else 0
    return Gathered(
        evidence=evidence,
        folders=tuple(folders),
        planned=planned if planned >= len(evidence) else None,
        going_on=tuple(
            (plan.app, "-m", f"sweep.resume={sweep}")
            for sweep, plan in plans.items()
            if plan is not None and _stopped(sweep, plan, begun[sweep])
        ),
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Read:
    """A run as read on its own, before it is known which keys the others have."""

    evidence: Evidence
    overrides: Mapping[str, Value]
    config: Mapping[str, Any]
    choices: Mapping[str, Value]

    @cached_property
    def _composed(self) -> DictConfig:
        return OmegaConf.create(dict(self.config))

    def value(self, key: str) -> Value:
        if key in self.overrides:
            return self.overrides[key]
        if key in self.choices:
            return self.choices[key]
        try:
            value = OmegaConf.select(self._composed, key)
        except OmegaConfBaseException:
            return None
        if isinstance(value, ListConfig):  # as an override is written
            return f"[{','.join(map(str, value))}]"
        return comparable(value) if isinstance(value, (int, float, str, bool)) else None


def _run_folders(folder: Path) -> list[Path]:
    if not folder.exists():
        raise ValueError(f"{folder}: there is no such folder")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file: name the folder of a sweep or of a run")
    runs = [path.parent.parent for path in folder.rglob(str(_OVERRIDES))]
    if not runs:
        raise ValueError(f"{folder} holds no runs: there is no {_OVERRIDES} below it")
    return sorted(runs, key=lambda run: [_number(part) for part in run.relative_to(folder).parts])


def _number(part: str) -> tuple[int, str]:
    return (int(part), "") if part.isdecimal() else (sys.maxsize, part)


def _sweep_of(run: Path, folder: Path) -> Path:
    """The nearest folder above the run that holds a sweep, not beyond the one asked for."""
    for parent in run.parents:
        if not parent.is_relative_to(folder):
            break
        if (parent / "multirun.yaml").is_file() or (parent / SWEEP_PLAN).is_file():
            return parent
    return folder


def _sweep_names(sweeps: Sequence[Path]) -> dict[Path, str]:
    names = [sweep.name for sweep in sweeps]
    if len(set(names)) < len(names):
        above = os.path.commonpath([sweep.parent for sweep in sweeps])
        names = [sweep.relative_to(above).as_posix() for sweep in sweeps]
    return dict(zip(sweeps, names, strict=True))


def _name(run: Path, sweep: Path, sweeps: Mapping[Path, str]) -> str:
    inside = run.relative_to(sweep).as_posix()
    if inside == ".":
        return sweeps[sweep]
    return f"{sweeps[sweep]}/{inside}" if len(sweeps) > 1 else inside


def _plan(sweep: Path, name: str, notes: list[tuple[str, str]]) -> SweepPlan | None:
    try:
        return read_plan(sweep)
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        notes.append((name, str(error).replace(str(sweep / SWEEP_PLAN), SWEEP_PLAN)))
        return None


def _stopped(sweep: Path, plan: SweepPlan, begun: Sequence[Evidence]) -> bool:
    """Whether the sweep has ended before all its runs have."""
    missing = plan.jobs is not None and len(begun) < plan.jobs
    cut = any(one.status == "interrupted" for one in begun)
    return (missing or cut) and not is_held(sweep)


# What a file of unexpected content can raise in those who read it.
_UNREADABLE = (
    *(ValueError, OSError, KeyError, IndexError, TypeError, AttributeError, AssertionError),
    *(yaml.YAMLError, OmegaConfBaseException),
)


def _read(folder: Path, name: str) -> _Read:
    notes: list[str] = []
    try:
        run = read_run(folder)
    except _UNREADABLE as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        notes = _damage(folder) or [first.removeprefix(f"{folder} is damaged: ")]
        run = Run(folder, _readable(_overrides, folder, {}), {"status": DAMAGED}, ())
    config = _readable(_mapping, folder / _RECORDS[0], {})
    hydra = _readable(_mapping, folder / _RECORDS[1], {}).get("hydra", {})
    curves, cut = _read_curves(folder / CURVES)
    flow, broken = _read_flow(folder / GRADIENT_FLOW)
    if run.columns.get("slope") is None and flow:
        run = dataclasses.replace(run, columns={**run.columns, "slope": _first_slope(flow)})
    evidence = Evidence(
        run=run,
        name=name,
        record=_readable(read_status, folder, {}),
        command=_command(folder, hydra),
        objective=_objective(config),
        curves=curves,
        flow=tuple(flow),
        notes=(*notes, *cut, *broken),
    )
    choices = (hydra.get("runtime") or {}).get("choices") or {}
    return _Read(evidence, run.overrides, config, choices)


def objective_of(folder: Path) -> str:
    """The figure that a run's sweep was to make better: ``test/loss`` if its config is lost."""
    return _objective(_readable(_mapping, folder / _RECORDS[0], {}))


def _objective(config: Mapping[str, Any]) -> str:
    sweep = config.get("sweep")
    return str((sweep if isinstance(sweep, dict) else {}).get("objective") or "test/loss")


def _overrides(folder: Path) -> dict[str, Value]:
    return overrides_of(_texts(folder), origin=folder / _OVERRIDES)


def _texts(folder: Path) -> list[str]:
    texts = _parse(folder / _OVERRIDES)
    if not isinstance(texts, list):
        raise ValueError("no list of overrides")
    return [str(text) for text in texts]


def _readable(read: Any, path: Path, otherwise: Any) -> Any:
    try:
        return read(path)
    except _UNREADABLE:
        return otherwise


def _mapping(path: Path) -> dict[str, Any]:
    content = _parse(path)
    if not isinstance(content, dict):
        raise ValueError("no mapping of names to values")
    return content


def _parse(path: Path) -> Any:
    return json.loads(path.read_bytes()) if path.suffix == ".json" else read_yaml(path)


def _damage(folder: Path) -> list[str]:
    """Which of the run's files can't be read, and from where on."""
    notes = []
    for name in (*_RECORDS, Path(RECORD), Path(INSPECTION), Path(METRICS)):
        try:
            if name in _RECORDS or (folder / name).is_file():
                content = _parse(folder / name)
                if not content or not isinstance(content, list if name == _OVERRIDES else dict):
                    raise ValueError("it is empty or holds something else than a run writes there")
        except FileNotFoundError:
            notes.append(f"{name} is missing")
        except json.JSONDecodeError as error:
            notes.append(f"{name}, line {error.lineno}: {error.msg}")
        except yaml.MarkedYAMLError as error:
            line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
            notes.append(f"{name}{line}: {error.problem or error.context or 'no YAML'}")
        except (ValueError, OSError, yaml.YAMLError) as error:
            notes.append(f"{name}: {' '.join(str(error).split())}")
    return notes


def _command(folder: Path, hydra: Mapping[str, Any]) -> tuple[str, ...]:
    """As it is typed; an experiment may ask for a sweep of its own, so a run is asked for."""
    texts = _readable(_texts, folder, [])
    entry = str((hydra.get("help") or {}).get("app_name") or "seq2seq-train")
    keys = [text.lstrip("+~").partition("=")[0] for text in texts]
    kept = [
        text
        for text, key in zip(texts, keys, strict=True)
        if key != "ckpt_path" and not key.startswith("sweep.")
    ]
    return (entry, "hydra.mode=RUN", *kept)


def _read_curves(path: Path) -> tuple[dict[int, dict[str, float]], list[str]]:
    """Values by name at each step, the last ones written, and what is wrong with the file."""
    if not path.is_file():
        return {}, []
    curves: dict[int, dict[str, float]] = {}
    lines, broken = read_lines(path)
    for line in lines:
        if isinstance(line.get("step"), int):
            step = line.pop("step")
            numbers = {key: value for key, value in line.items() if isinstance(value, (int, float))}
            curves.setdefault(step, {}).update(numbers)
    return curves, [] if broken is None else [_stops(path, broken)]


def _read_flow(path: Path) -> tuple[list[GradientProfile], list[str]]:
    if not path.is_file():
        return [], []
    try:
        flow = read_gradient_flow(path)
    except ValueError as error:
        return [], [str(error).replace(str(path), path.name)]
    lines = path.read_bytes().splitlines(keepends=True)
    return flow, [_stops(path, len(lines))] if lines and not lines[-1].endswith(b"\n") else []


def _stops(path: Path, line: int) -> str:
    return f"{path.name}, line {line} is no whole line, as after a kill: it is left out from there"


def _first_slope(flow: Sequence[GradientProfile]) -> float | None:
    """Of the first layer at the first probe, per timestep: what is measured without training."""
    transports = [profile for profile in flow if profile.quantity == "transport"] or list(flow)
    slope = transports[0].slope
    return slope if slope == slope else None
