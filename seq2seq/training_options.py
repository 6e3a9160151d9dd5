"""Small parts of training from their keys of the config, and what a checkpoint keeps of them.

What fits together is checked in `config_checks`; who uses them is decided in `assembly`.
"""

from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from seq2seq.config import plain

if TYPE_CHECKING:
    from seq2seq.data.curriculum import Curriculum
    from seq2seq.gradient_noise import GradientNoise
    from seq2seq.penalty import Penalty
    from seq2seq.scheduled_sampling import ScheduledSampling

_GRADIENT = (
    "label_smoothing",
    "activation_regularization",
    "temporal_activation_regularization",
    "coverage_loss",
    "trainer.gradient_clip_val",
    "trainer.accumulate_grad_batches",
)


def training_arguments(config: DictConfig) -> dict[str, Any]:
    """What a resumed run must have in common: optimizer, schedule and what changes their steps.

    Options are absent where they are off, as in checkpoints from before there was a choice.
    """
    off = {"weight_decay_on": "all", "gradient_noise": 0.0, "callbacks.weight_average.decay": None}
    values = {key: OmegaConf.select(config, key) for key in off}
    chosen = {key: value for key, value in values.items() if value != off[key]}
    if config.scheduled_sampling.schedule != "none":
        # Null for c means one number, which older checkpoints have with every schedule.
        sampling = plain(config.scheduled_sampling) | {"c": scheduled_sampling(config).c}
        chosen |= {f"scheduled_sampling.{key}": value for key, value in sampling.items()}
    if config.pretrained_vectors.freeze:
        chosen["frozen embeddings"] = ", ".join(vector_files(config))
    groups = {
        f"{group}.{key}": value
        for group in ("optimizer", "scheduler")
        for key, value in plain(config[group]).items()
    }
    return groups | chosen


def gradient_arguments(config: DictConfig) -> dict[str, Any]:
    """What the gradient of a step is of, and how it is cut."""
    return {key: OmegaConf.select(config, key) for key in _GRADIENT}


def gradient_noise(config: DictConfig) -> "GradientNoise":
    """The noise that is added to the gradient.

    Raises:
        ValueError: for values that it can't have.
    """
    from seq2seq.gradient_noise import GradientNoise

    return GradientNoise(eta=config.gradient_noise, seed=config.seed)


def scheduled_sampling(config: DictConfig) -> "ScheduledSampling":
    """How often the true token is fed.

    Raises:
        ValueError: for values that it can't have.
    """
    from seq2seq.scheduled_sampling import ScheduledSampling

    return ScheduledSampling(**plain(config.scheduled_sampling))


def curriculum(config: DictConfig) -> "Curriculum | None":
    """Which pairs the first epochs are made of; None for all.

    Raises:
        ValueError: for values that it can't have, or that would do nothing.
    """
    from seq2seq.data.curriculum import Curriculum

    batch = config.batch
    numbers = {key: batch[f"curriculum_{key}"] for key in ("epochs", "start")}
    given = {key: value for key, value in numbers.items() if value is not None}
    if batch.curriculum != "none":
        return Curriculum(batch.curriculum, **given)
    for key, value in given.items():
        raise ValueError(
            f"batch.curriculum_{key}={value} does nothing with batch.curriculum=none: set it to "
            "null, or choose batch.curriculum=linear or batch.curriculum=sqrt"
        )
    return None


def vector_files(config: DictConfig) -> dict[str, str]:
    """The files of pretrained vectors, by side."""
    files = {side: config.pretrained_vectors[side] for side in ("source", "target")}
    return {side: path for side, path in files.items() if path is not None}


def penalties(config: DictConfig) -> "list[Penalty]":
    """What is added to the loss.

    Raises:
        ValueError: for values that a penalty can't have, or alignments that don't exist.
    """
    from seq2seq.activation_penalty import ActivationPenalty
    from seq2seq.coverage_loss import CoverageLoss

    activation = ActivationPenalty(
        activation=config.activation_regularization,
        temporal=config.temporal_activation_regularization,
    )
    coverage = CoverageLoss(config.coverage_loss)
    if coverage and config.model.attention == "none":
        raise ValueError(
            f"coverage_loss={config.coverage_loss} is about alignments, but model.attention=none "
            "has none: choose an attention, or set coverage_loss=0"
        )
    return [penalty for penalty in (activation, coverage) if penalty]
