"""What a command line or config file got wrong, in one sentence, for every command.

Hydra and OmegaConf say it in several lines, with types of their own and the advice to ask for a
stack trace.
"""

import difflib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

# Lines that say nothing to a user: where the error arose inside, and how to get around the schema.
_NOISE = re.compile(
    r"full_key:|reference_type=|object_type=|To append to your|See https?:|Config search path|"
    r"provider="
)

_INTERVAL = "does not support sweep type : INTERVAL_SWEEP"


@contextmanager
def told() -> Iterator[None]:
    """Around Hydra's call of a command: a mistake ends it with one sentence and status 1.

    Raises:
        SystemExit: with the sentence.
    """
    # Asks Hydra to raise what it would print.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {sentence(error)}")
    except AssertionError as error:
        if "Unexpected type for root: NoneType" not in str(error):
            raise
        sys.exit(
            "error: an override sets a key of something that is left out (null): choose an option "
            "that has it, such as callbacks=early_stopping for callbacks.early_stopping.patience"
        )


def sentence(error: Exception) -> str:
    """All that Hydra or OmegaConf said which helps, in one line.

    Where a key isn't known, the nearest of those there are is named, or all of them.
    """
    cause = error.__cause__
    keys = _keys_of_a_group(cause)
    if keys:
        return f"{str(error).splitlines()[0].rstrip('.:')}; {keys}"
    texts = [str(error), str(cause) if isinstance(cause, OmegaConfBaseException) else ""]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    lines = list(dict.fromkeys(line for line in lines if line and not _NOISE.match(line)))
    parts: list[str] = []
    options: list[str] = []
    for line in lines:
        heading = line.endswith(":") and line.startswith("Available options")
        if heading or (options and not line.endswith((".", ":"))):
            options.append(line)
        else:
            parts.append(line.rstrip(".:"))
    if options:
        parts.append(f"{options[0].lower()} {', '.join(options[1:])}")
    if any(_INTERVAL in part for part in parts):
        return "an interval can't be swept, only searched: add hydra/sweeper=optuna"
    return "; ".join(parts) + _known_keys(cause or error)


def _known_keys(error: BaseException) -> str:
    node = getattr(error, "parent_node", None)
    key = getattr(error, "key", None)
    if node is None or not isinstance(key, str) or f"Key '{key}' not in" not in str(error):
        return ""
    known = _keys(node)
    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; it has {', '.join(known)}"


def _keys_of_a_group(cause: BaseException | None) -> str:
    """What can be set where a group of keys was given a single value."""
    group = getattr(cause, "child_node", None)
    given = re.search(r"Invalid type assigned|is not Optional", str(cause))
    if given is None or group is None or not OmegaConf.is_dict(group):
        return ""
    return f"{getattr(cause, 'full_key', '')} has keys of its own: {', '.join(_keys(group))}"


def _keys(node: Iterable[object]) -> list[str]:
    """Those that a user sets; what Hydra calls is ours."""
    return [str(one) for one in node if not str(one).startswith("_")]
