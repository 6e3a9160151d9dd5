"""The one place where a config's ``_target_`` becomes an object.

Refuses every target that is neither on a short list nor in this package, before anything is
imported or called: a config file is data that people pass around, not a program. What the objects
are for, and how a config is composed, is left to ``train`` and ``config``.
"""

import functools
import importlib
import inspect
import os
from pathlib import Path
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf

LISTED_TARGETS = frozenset(
    {
        "torch.optim.Adam",
        "torch.optim.AdamW",
        "torch.optim.Adadelta",
        "torch.optim.Adafactor",
        "torch.optim.RMSprop",
        "torch.optim.SGD",
        "lightning.Trainer",
        "lightning.pytorch.Trainer",
        "lightning.pytorch.callbacks.DeviceStatsMonitor",
        "lightning.pytorch.callbacks.EarlyStopping",
        "lightning.pytorch.callbacks.LearningRateMonitor",
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "lightning.pytorch.callbacks.ModelSummary",
        "lightning.pytorch.callbacks.RichProgressBar",
        "lightning.pytorch.callbacks.TQDMProgressBar",
        "lightning.pytorch.callbacks.Timer",
        "lightning.pytorch.loggers.CSVLogger",
        "lightning.pytorch.loggers.TensorBoardLogger",
    }
)

# Names of this package that a config has no reason to call: entries start whole runs, others write
# files, and allow_target would let a config allow itself anything.
REFUSED_MODULES = frozenset(
    {
        *("assembly", "bundle", "config", "evaluate", "export", "inspection", "instantiate"),
        *("measurement", "records", "report", "status", "sweep", "train", "translate"),
        "user_errors",
    }
)

ALLOW_VARIABLE = "SEQ2SEQ_ALLOW_TARGETS"

_PACKAGE = __name__.partition(".")[0]
_FOLDER = Path(__file__).resolve().parent

# Read when this module is imported, not when a target is checked: Hydra lets a config set
# environment variables (hydra.job.env_set) just before the run.
_allowed_by_user = {name.strip() for name in os.environ.get(ALLOW_VARIABLE, "").split(",")} - {""}


def allow_target(name: str) -> None:
    """Allow a target outside this package in every config of this process.

    Args:
        name: the exact dotted name that stands behind ``_target_``.
    """
    _allowed_by_user.add(name)


def instantiate(config: Any, **kwargs: Any) -> Any:
    """Build what a config describes, after checking every ``_target_`` in it.

    A config without ``_target_`` at its top gives a dict or list of built objects. Objects arrive
    with plain dicts and lists (``_convert_="all"``), and values passed here reach the target as
    they are: Hydra neither copies them nor reads them as configs.

    Args:
        config: a node of a composed config, or plain dicts and lists. None gives None.
        **kwargs: further keyword arguments of the top target; they win over the config's.

    Raises:
        ValueError: if a target isn't allowed, or whatever sentence the target itself raised.
    """
    if config is None:
        return None
    key = ""
    if isinstance(config, DictConfig | ListConfig):
        key = config._get_full_key(None)
        # Resolved once: what is checked is what is built, whatever a resolver would answer next.
        config = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    _check(config, key)
    if not isinstance(config, dict) or "_target_" not in config:
        if kwargs:
            raise ValueError(f"{key or 'the config'} has no _target_ to take {', '.join(kwargs)}")
        return _build(config)
    # Hydra fills in the config's arguments; the call itself is ours, so that an error of the
    # target stays the sentence it is.
    target = _build({**config, "_partial_": True})
    if config.get("_partial_", False):
        return functools.partial(target, **kwargs)
    return target(**kwargs)


def check_targets(config: DictConfig) -> None:
    """Refuse a whole composed config at once, before its first part is built.

    Raises:
        ValueError: if any target anywhere in it isn't allowed.
    """
    _check(OmegaConf.to_container(config, resolve=True), config._get_full_key(None))


def _build(config: Any) -> Any:
    try:
        return hydra.utils.instantiate(config, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError | OSError):
            raise error.__cause__ from None  # the sentence meant for the user, without its wrapping
        raise


def _check(node: Any, key: str) -> None:
    """Refuse the first thing in plain config data that must not reach Hydra."""
    if isinstance(node, dict):
        for name, value in node.items():
            inner = f"{key}.{name}" if key else str(name)
            if name == "_target_":
                _check_target(value, inner)
            _check(value, inner)
    elif isinstance(node, list | tuple):
        for position, value in enumerate(node):
            _check(value, f"{key}[{position}]")
    elif isinstance(node, str) and "${" in node:
        # Hydra would resolve it a second time, and a target could hide in the answer.
        raise ValueError(f"{key}: {node!r} still holds '${{' after interpolation: write it without")


def _check_target(target: Any, key: str) -> None:
    if isinstance(target, str) and (target in LISTED_TARGETS or target in _allowed_by_user):
        return
    if isinstance(target, str) and target.startswith(f"{_PACKAGE}."):
        reason = _why_not_ours(target)
        if reason is None:
            return
        raise ValueError(f"{key}: {target!r} cannot be built from a config: {reason}")
    raise ValueError(
        f"{key}: {target!r} is not among the targets that a config may name; if you trust it, run "
        f"with {ALLOW_VARIABLE}={target} in the environment, or call "
        f"seq2seq.instantiate.allow_target({target!r}) first"
    )


def _why_not_ours(target: str) -> str | None:
    """Say why a name below this package isn't a class or function of its own; None if it is."""
    _, *middle, name = target.split(".")
    # Looked up as a file, so that nothing is imported for a name that isn't a module of ours.
    folder = _FOLDER.joinpath(*middle)
    is_module = all(part.isidentifier() for part in middle) and (
        folder.with_suffix(".py").is_file() or (folder / "__init__.py").is_file()
    )
    module_name = ".".join([_PACKAGE, *middle])
    if not middle or not is_module:
        return f"there is no module {module_name} with classes or functions for a config"
    if middle[0] in REFUSED_MODULES:
        return f"nothing in {module_name} is meant for a config"
    found = getattr(importlib.import_module(module_name), name, None)
    if found is None or name.startswith("_"):
        return f"module {module_name} has no public {name}"
    origin = getattr(found, "__module__", None)
    if not (inspect.isclass(found) or inspect.isfunction(found)) or not (
        isinstance(origin, str) and origin.startswith(f"{_PACKAGE}.")
    ):
        return f"{name} is not a class or function that {_PACKAGE} defines"
    if origin.split(".")[1] in REFUSED_MODULES:
        return f"nothing in {origin} is meant for a config"
    return None
