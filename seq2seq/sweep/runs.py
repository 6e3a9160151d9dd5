"""The runs of a sweep, read from what they left in their own folders.

So a sweep can be looked at while it runs, after it was killed, and whoever launched its jobs.
"""

import logging
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seq2seq.records import INSPECTION, METRICS, read_json
from seq2seq.status import read_status

logger = logging.getLogger(__name__)

Value = float | int | str | bool | None

# What a file of unexpected content can raise in those who read it.
_UNREADABLE = (OSError, LookupError, TypeError, AttributeError, yaml.YAMLError)

# Status of a run whose files can't be read.
DAMAGED = "damaged"

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

    A run whose files were damaged is told of, and listed with nothing but that status.

    Raises:
        ValueError: for a folder without runs.
    """
    configs = sorted(folder.rglob(".hydra/overrides.yaml"), key=_number)
    if not configs:
        raise ValueError(f"{folder} holds no runs of a sweep")
    folders = [path.parent.parent for path in configs]
    known = known or {}
    return [known.get(run.resolve()) or _read_or_name(run) for run in folders]


def _read_or_name(folder: Path) -> Run:
    try:
        return read_run(folder)
    except ValueError as error:
        logger.error("%s", error)
        return Run(folder, {}, {**dict.fromkeys(COLUMNS), "status": DAMAGED}, ())


def swept(runs: Sequence[Run]) -> list[str]:
    """Keys of the overrides in which runs differ, seeds last."""
    keys = dict.fromkeys(key for run in runs for key in run.overrides)
    different = [key for key in keys if len({run.overrides.get(key) for run in runs}) > 1]
    return sorted(different, key=lambda key: key == "seed")


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


def _number(path: Path) -> tuple[int, str]:
    name = path.parent.parent.name
    return (int(name), "") if name.isdigit() else (sys.maxsize, name)


def read_run(folder: Path) -> Run:
    """One run from its folder; see :func:`read_runs`.

    Raises:
        ValueError: naming the folder, if its files were damaged.
    """
    try:
        return _read_run(folder)
    except ValueError as error:
        raise ValueError(f"{folder} is damaged: {error}") from error
    except (*_UNREADABLE, OmegaConfBaseException) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"{folder} is damaged: its files lack what a run writes: {first}"
        ) from error


def _read_run(folder: Path) -> Run:
    columns: dict[str, Value] = dict.fromkeys(COLUMNS)
    columns["status"] = read_status(folder)["status"]
    config = OmegaConf.create(read_yaml(folder / ".hydra" / "config.yaml"))
    choices = read_yaml(folder / ".hydra" / "hydra.yaml")["hydra"]["runtime"]["choices"]
    columns["initializer"] = choices["initializer"]
    columns["cell"], columns["width"] = config.model.cell, config.model.hidden_size
    transport: tuple[float, ...] = ()
    if (folder / INSPECTION).is_file():
        layers = read_json(folder / INSPECTION)["layers"]
        columns |= _measured(layers)
        transport = _numbers(layers[0]["transport"]["from_end"])
    if (folder / METRICS).is_file():
        columns |= {
            name: value
            for name, value in read_json(folder / METRICS).items()
            if isinstance(value, (int, float))
        }
    return Run(folder, _overrides(folder), columns, transport)


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, interpolations as they are written.

    Raises:
        yaml.YAMLError: if it holds no YAML.
    """
    # The loader in C, where PyYAML has it, takes a tenth of the time.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(path.read_text(encoding="utf-8"), loader)


def overrides_of(texts: Sequence[str], *, origin: Path) -> dict[str, Value]:
    """Overrides as they are typed, by key; what is no plain value stays text.

    Args:
        texts: such as ``model.hidden_size=8``.
        origin: the file or folder that they come from.

    Raises:
        ValueError: naming the origin, for what isn't an override.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(texts))
    except HydraException as error:
        raise ValueError(f"{origin}: {error}") from error
    found: dict[str, Value] = {}
    for override in parsed:
        value = override.value()
        if value is None or isinstance(value, (int, float, str, bool)):
            found[override.key_or_group] = comparable(value)
        else:
            found[override.key_or_group] = override.get_value_string()
    return found


def comparable(value: Value) -> Value:
    """A setting as it is told from others: no axis has a place for NaN, which equals nothing."""
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def _overrides(folder: Path) -> dict[str, Value]:
    path = folder / ".hydra" / "overrides.yaml"
    texts = read_yaml(path)
    if not isinstance(texts, list):
        raise ValueError(f"{path} holds no list of overrides")
    return overrides_of([str(text) for text in texts], origin=path)


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
