"""How a run appears in TensorBoard: where its events lie, and which hyperparameters it is shown by.

What is written there is left to the callbacks.
"""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from seq2seq.config import plain
from seq2seq.sweep.runs import Value

if TYPE_CHECKING:
    from lightning.pytorch.loggers import TensorBoardLogger

# Keys of the config that say which network is trained on what, and how.
_SHOWN = (
    *("model", "initializer", "pretrained_vectors", "optimizer", "scheduler", "data", "batch"),
    *("label_smoothing", "weight_decay_on", "coverage_loss", "gradient_noise"),
    *("activation_regularization", "temporal_activation_regularization"),
    *("scheduled_sampling", "callbacks.weight_average"),
)


def event_logger(folder: Path, *, before_step: int = 0) -> "TensorBoardLogger":
    """Lightning's logger of events that lie in this very folder.

    Args:
        folder: of this run alone.
        before_step: optimizer step from which a resumed run goes on: what an interrupted one wrote
            from there on is no longer shown, for it will come again.
    """
    from lightning.pytorch.loggers import TensorBoardLogger

    # Hyperparameters come with figures of their own, and without Lightning's, which would be -1.
    return TensorBoardLogger(
        save_dir=folder.parent,
        name="",
        version=folder.name,
        default_hp_metric=False,
        purge_step=before_step,
    )


def open_tensorboard(folder: Path) -> str:
    """The command that shows the events in a folder, with all pictures that there are."""
    return (
        f"{shlex.quote(sys.executable)} -m tensorboard.main --logdir {shlex.quote(str(folder))} "
        "--samples_per_plugin images=100,scalars=5000"
    )


def hyperparameters(config: DictConfig, *, swept: Mapping[str, Value] | None) -> dict[str, Value]:
    """Names and values of a run's hyperparameters.

    Args:
        config: of the run.
        swept: its values of the keys in which the runs of its sweep differ; None for a single run.

    Returns:
        Of a run in a sweep the swept keys and the seed; of a single run the seed and everything
        that has a value about its network, its data, its loss and its optimization.
    """
    if swept is not None:
        values = {name: value for name, value in swept.items() if name != "seed"}
        return {**values, "seed": config.seed}
    flat: dict[str, Any] = {}

    def flatten(prefix: str, node: Any) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                flatten(f"{prefix}.{key}" if prefix else str(key), value)
        elif isinstance(node, (bool, int, float, str)):
            flat[prefix] = node

    flatten("seed", config.seed)
    for key in _SHOWN:
        value = OmegaConf.select(config, key)
        flatten(key, plain(value) if OmegaConf.is_config(value) else value)
    return flat
