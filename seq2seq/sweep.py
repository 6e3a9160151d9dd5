"""A sweep as a whole: the table and the figure of its runs, in the sweep's folder.

Everything is read from what the runs left in their own folders, so that a sweep can be summed up
while it runs, after it was killed, and whoever launched its jobs. The drawing is in `sweep_figure`.
"""

import csv
import logging
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from seq2seq.config import plain
from seq2seq.records import read_json

logger = logging.getLogger(__name__)

TABLE, FIGURE = "sweep.csv", "sweep.png"

Value = float | int | str | bool | None

# What the table says of a run beside its own overrides, where it is known.
COLUMNS = (
    *("status", "initializer", "cell", "width", "length"),
    *("slope", "half_life", "attenuation", "reach", "leading_exponent", "memory_dimension"),
    *("attenuation_over_layers", "verdict", "train/steps_to_target"),
)


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Args:
        folder: where it lies.
        overrides: that it was started with, by key.
        columns: the rest of its row in the table: see :func:`read_runs`.
        transport: norm that is left of a unit vector by steps back, in the first layer of the
            encoder, before training; empty if the layers weren't measured.
    """

    folder: Path
    overrides: Mapping[str, Value]
    columns: Mapping[str, Value]
    transport: tuple[float, ...]

    def value(self, name: str) -> Value:
        """Of an override or a column."""
        return self.overrides[name] if name in self.overrides else self.columns.get(name)


def only_warnings() -> None:
    """Keep a job's tables out of the terminal, where the sweep's lines stand; its log has them."""
    for handler in logging.getLogger().handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.WARNING)


def lost(folder: Path, error: Exception) -> float:
    """Take note of a job that ended in an error, so that the sweep can go on.

    Returns:
        The objective for a sweeper that minimises: infinity, as it can't compare with NaN.
    """
    from seq2seq.status import RECORD, recorded

    logger.error("error: %s", error)
    if not (folder / RECORD).exists():  # it was refused before it began
        try:
            with recorded(folder):
                raise error
        except type(error):
            pass
    return math.inf


def end_early(folder: Path) -> str:
    """Bring the table of an interrupted sweep up to date, and say where it is."""
    write_table(folder / TABLE, read_runs(folder))
    return f"what has ended is in {folder / TABLE}"


class SweepRecord(Callback):
    """Hydra's callback: the table after each job of a sweep, table and figure at its end.

    Before anything is written it refuses a folder in which something ran already, and what would
    show its mistake only at the end.
    """

    def __init__(self) -> None:
        self._ended: dict[Path, Run] = {}  # each is read once, when it has ended

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Look at the folder of a single run before Hydra writes its config there."""
        from seq2seq.status import check_free

        try:
            folder = Path(config.hydra.run.dir)
            check_free(folder, key="hydra.run.dir", ckpt_path=config.ckpt_path)
        except ValueError as error:
            sys.exit(f"error: {error}")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Look at the sweep before its first job."""
        try:
            check_sweep(config)
        except ValueError as error:
            sys.exit(f"error: {error}")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Bring the table up to date, for those who look while the sweep runs."""
        if config.hydra.mode == RunMode.MULTIRUN:
            folder = Path(config.hydra.sweep.dir)
            ended = Path(config.hydra.runtime.output_dir)
            self._ended[ended.resolve()] = _read_run(ended)
            write_table(folder / TABLE, read_runs(folder, known=self._ended))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Say how the runs ended and draw their figure; an exit with 1 if any of them failed."""
        from seq2seq.sweep_figure import draw

        folder = Path(config.hydra.sweep.dir)
        runs = read_runs(folder, known=self._ended)
        write_table(folder / TABLE, runs)
        print(outcome(runs), flush=True)
        print(folder / TABLE, flush=True)
        try:
            figure = figure_of(runs, plain(config.figure))
            (folder / FIGURE).write_bytes(draw(runs, **figure))
            print(folder / FIGURE, flush=True)
            drawn = {figure["x"], figure["lines"], figure["panels"], *figure["y"], "seed"}
            averaged = [key for key in swept(runs) if key not in drawn]
            if averaged:
                print(f"the figure averages over {', '.join(averaged)}", flush=True)
        except ValueError as error:
            logger.error("no figure was drawn: %s", error)
        if any(run.columns["status"] == "failed" for run in runs):
            sys.exit(1)


def check_sweep(config: DictConfig) -> None:
    """Refuse what would spoil a sweep, or show only when all its runs have ended.

    Raises:
        ValueError: for a folder that holds a sweep, several experiments, or a figure that can't be
            drawn.
    """
    from seq2seq.sweep_figure import check_figure

    folder = Path(config.hydra.sweep.dir)
    if next(folder.rglob(".hydra"), None) is not None:
        raise ValueError(f"{folder} holds a sweep already: choose another hydra.sweep.dir")
    if config.hydra.output_subdir is None:
        raise ValueError(
            "hydra.output_subdir=null leaves out the configs that the table of a sweep is made of: "
            "leave it as it is"
        )
    for override in config.hydra.overrides.task:
        key, _, value = str(override).partition("=")
        if key.lstrip("+") == "experiment" and "," in value:
            raise ValueError(
                f"{override}: an experiment may be a sweep of its own, so run one at a time"
            )
    figure = plain(config.figure)
    check_figure(figure["kind"], lines=figure["lines"] or "chosen", x="x", y=("y",))
    inspected = config.inspect or config.hydra.help.app_name == "seq2seq-inspect"
    if figure["kind"] == "profile" and not inspected:
        raise ValueError(
            "figure.kind=profile needs runs that are measured before training: inspect=true"
        )
    choices = set(config.hydra.runtime.choices)
    for key in ("x", "lines", "panels", "y", "logarithmic"):
        for name in _names(figure[key]):
            column = name in COLUMNS or name.split("/")[0] in ("test", "test_longer", "train")
            if not column and name not in choices and not _is_key(config, name):
                raise ValueError(
                    f"figure.{key}={name} is neither a key of the config nor a column of "
                    f"sweep.csv: {', '.join(COLUMNS)}, test/loss, test/exact_match, ..."
                )


def _names(names: Any) -> list[str]:
    return [] if names is None else [names] if isinstance(names, str) else list(names)


def _is_key(config: DictConfig, name: str) -> bool:
    node: Any = OmegaConf.to_container(config, resolve=False)
    for part in name.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def read_runs(folder: Path, *, known: Mapping[Path, Run] | None = None) -> list[Run]:
    """The runs of a sweep in the order of their numbers.

    The columns are those of :data:`COLUMNS` and every figure of ``metrics.json``:

    * ``initializer``, ``cell``, ``width``: what it was trained with, ``width`` the encoder's units;
    * ``length``: 95th percentile of the source lengths in tokens, and from there to
      ``memory_dimension`` what the first layer of the encoder was before training: slope per
      timestep, half-life in timesteps, attenuation over ``length``, the leading Lyapunov exponent
      per timestep, directions left after ``length``. ``reach`` is the number of timesteps back in
      which 5 % is left, infinite where nothing decays;
    * ``attenuation_over_layers``: natural logarithm of the gradient norm at the last timestep of
      the encoder's first layer over that of its last layer;
    * ``verdict``: ``vanishing``, ``exploding`` or ``carries``: the first of these words that holds
      for any layer.

    Args:
        folder: of the sweep.
        known: runs that need not be read again, by their resolved folders.

    Raises:
        ValueError: for a folder without runs, or a run whose files were damaged.
    """
    configs = sorted(folder.rglob(".hydra/overrides.yaml"), key=_number)
    if not configs:
        raise ValueError(f"{folder} holds no runs of a sweep")
    folders = [path.parent.parent for path in configs]
    known = known or {}
    return [known.get(run.resolve()) or _read_run(run) for run in folders]


def swept(runs: Sequence[Run]) -> list[str]:
    """Keys of the overrides in which runs differ, seeds last."""
    keys = dict.fromkeys(key for run in runs for key in run.overrides)
    different = [key for key in keys if len({run.overrides.get(key) for run in runs}) > 1]
    return sorted(different, key=lambda key: key == "seed")


def write_table(path: Path, runs: Sequence[Run]) -> None:
    """One line a run: its number, what was swept, and all columns that any run has."""
    keys = swept(runs)
    known = dict.fromkeys(name for run in runs for name in run.columns)
    names = [
        name
        for name in known
        if name not in keys and any(run.columns.get(name) is not None for run in runs)
    ]
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", *keys, *names])
        for run in runs:
            values = [run.overrides.get(key) for key in keys]
            values += [run.columns.get(name) for name in names]
            writer.writerow([run.folder.name, *(_cell(value) for value in values)])
    unfinished.replace(path)


def outcome(runs: Sequence[Run]) -> str:
    """How many runs there are, how they ended, and the lowest loss with its overrides."""
    counts = Counter(run.columns["status"] for run in runs)
    number = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    lines = [f"{number}: " + ", ".join(f"{n} {status}" for status, n in counts.items())]
    losses = {index: run.columns.get("test/loss") for index, run in enumerate(runs)}
    known = {index: loss for index, loss in losses.items() if isinstance(loss, float)}
    if known:
        best = min(known, key=known.__getitem__)
        overrides = [f"{key}={typed(runs[best].overrides.get(key))}" for key in swept(runs)]
        lines.append(" ".join([f"lowest test/loss {known[best]:.4f}", *overrides]))
    return "\n".join(lines)


def figure_of(runs: Sequence[Run], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of :func:`~seq2seq.sweep_figure.draw`: the config's, or what suits the sweep.

    Without an axis it is the first number that was swept, with a line for each value of the next
    key; without a quantity the losses are drawn, with the slope below if it was measured.
    """
    measured = [
        name
        for name in ("test/loss", "slope")
        if any(run.columns.get(name) is not None for run in runs)
    ]
    figure = {
        **wanted,
        "y": _names(wanted["y"]) or measured or ["test/loss"],
        "logarithmic": _names(wanted["logarithmic"]),
    }
    if wanted["x"] is not None:
        return figure
    keys = [key for key in swept(runs) if key != "seed"]
    if wanted["kind"] == "profile":
        return {**figure, "lines": wanted["lines"] or (keys[0] if keys else None)}
    if not measured:
        raise ValueError("no run has a loss or was measured")
    if not keys:
        raise ValueError("the runs differ in nothing but their seed")
    numbers = [key for key in keys if all(is_number(run.overrides.get(key)) for run in runs)]
    axis = (numbers or keys)[0]
    lines, panels, *_ = [*(key for key in keys if key != axis), None, None]
    return {
        **figure,
        "x": axis,
        "lines": wanted["lines"] or lines,
        "panels": wanted["panels"] or panels,
    }


def _number(path: Path) -> tuple[int, str]:
    name = path.parent.parent.name
    return (int(name), "") if name.isdigit() else (sys.maxsize, name)


def _read_run(folder: Path) -> Run:
    from seq2seq.measurement import RECORD
    from seq2seq.status import read_status

    columns: dict[str, Value] = dict.fromkeys(COLUMNS)
    columns["status"] = read_status(folder)["status"]
    config = OmegaConf.load(folder / ".hydra" / "config.yaml")
    choices = OmegaConf.load(folder / ".hydra" / "hydra.yaml").hydra.runtime.choices
    columns["initializer"] = choices.initializer
    columns["cell"], columns["width"] = config.model.cell, config.model.hidden_size
    transport: tuple[float, ...] = ()
    if (folder / RECORD).is_file():
        layers = read_json(folder / RECORD)["layers"]
        columns |= _measured(layers)
        transport = _numbers(layers[0]["transport"]["from_end"])
    if (folder / "metrics.json").is_file():
        columns |= {
            name: value
            for name, value in read_json(folder / "metrics.json").items()
            if isinstance(value, (int, float))
        }
    return Run(folder, _overrides(folder), columns, transport)


def _overrides(folder: Path) -> dict[str, Value]:
    texts = OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "overrides.yaml"))
    assert isinstance(texts, list)
    try:
        parsed = OverridesParser.create().parse_overrides([str(text) for text in texts])
    except HydraException as error:
        raise ValueError(f"{folder / '.hydra' / 'overrides.yaml'}: {error}") from error
    found: dict[str, Value] = {}
    for override in parsed:
        value = override.value()
        if value is None or isinstance(value, (int, float, str, bool)):
            found[override.key_or_group] = value
        else:
            found[override.key_or_group] = override.get_value_string()
    return found


def _measured(layers: Sequence[Mapping[str, Any]]) -> dict[str, Value]:
    first = layers[0]
    slope, exponents = first["slope"], first["exponents"]
    encoder = [layer for layer in layers if layer["layer"].startswith("encoder")]
    encoder = [layer for layer in encoder if layer["layer"].endswith("forward")]
    ends = [_numbers(layer["gradient"]["hidden"]["from_end"])[0] for layer in encoder]
    kinds = [layer["verdict"]["kind"] for layer in layers]
    over_layers = math.log(ends[0] / ends[-1]) if ends[0] and ends[-1] else None
    return {
        "length": first["lengths"]["long"],
        "slope": slope,
        "half_life": first["half_life"],
        "attenuation": first["attenuation"],
        "reach": math.inf if slope is None or slope >= 0 else 3 / -slope,
        "leading_exponent": exponents[0],
        "memory_dimension": first["memory_dimension"]["long"],
        "attenuation_over_layers": over_layers,
        "verdict": next(kind for kind in ("vanishing", "exploding", "carries") if kind in kinds),
    }


def _numbers(values: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(math.nan if value is None else value for value in values)


def typed(value: Value) -> str:
    """A value as it is typed on the command line."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str() if not value.replace("_", "").replace("-", "").isalnum():
            return f"'{value}'"
        case _:
            return str(value)


def is_number(value: Value) -> bool:
    """Whether it can stand on an axis; True and False are names there."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _cell(value: Value) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
