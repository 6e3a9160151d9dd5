"""From a config to the objects of a run: checks, corpus, network, weights, callbacks.

What is done with them is left to the entries, which all build them here, so that an inspection
looks at the same network that training begins with.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from seq2seq.config import plain
from seq2seq.event_log import hyperparameters
from seq2seq.figures import FIGURES, SMALLER_IS_BETTER
from seq2seq.instantiate import instantiate
from seq2seq.sweep.launchers import cores, runs_at_once
from seq2seq.sweep.plan import this_place

if TYPE_CHECKING:
    import lightning

    from seq2seq.data.batch import EncodedSplit
    from seq2seq.data.corpus import Corpus
    from seq2seq.data.curriculum import Curriculum
    from seq2seq.data.datamodule import TranslationDataModule
    from seq2seq.data.torchtext_vectors import PretrainedVectors
    from seq2seq.gradient_noise import GradientNoise
    from seq2seq.initializers.rules import Initialization
    from seq2seq.initializers.trials import LayerCalibration
    from seq2seq.module import TranslationModule
    from seq2seq.penalty import Penalty
    from seq2seq.scheduled_sampling import ScheduledSampling

logger = logging.getLogger(__name__)

# Of a sweep: the data modules of the last corpora, each with the configs that it was built from.
_corpora: list[tuple[Any, "TranslationDataModule"]] = []

# Pairs of text that they may hold in all, beside the last: about 100 MB.
_MOST_PAIRS = 200_000

# What the gradient of a step is of, and how it is cut.
_GRADIENT = (
    "label_smoothing",
    "activation_regularization",
    "temporal_activation_regularization",
    "coverage_loss",
    "trainer.gradient_clip_val",
    "trainer.accumulate_grad_batches",
)

# PyTorch's number of threads before any run of this process changed it.
_first_threads: list[int] = []


def use_threads(threads: int | None) -> None:
    """Let PyTorch use so many CPU threads.

    Args:
        threads: None for as many as it began with; runs of a sweep that run at the same time share
            the cores.

    Raises:
        ValueError: for less than 1.
    """
    import torch

    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads} must be at least 1, or null")
    if not _first_threads:
        _first_threads.append(torch.get_num_threads())
    share = _first_threads[0]
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        share = min(share, max(1, cores() // runs_at_once(HydraConfig.get())))
    torch.set_num_threads(threads or share)


def check_sizes(config: DictConfig) -> None:
    """Refuse a network or initializer that can't be built, before any data is read.

    Raises:
        ValueError: naming the key, its value and the rule.
    """
    import torch

    from seq2seq.data.extended_vocabulary import check_copying
    from seq2seq.data.tokenizer import PAD_ID
    from seq2seq.decoding.settings import check_decoding
    from seq2seq.initializers.calibration import calibration_from_config
    from seq2seq.initializers.rules import SHORTEST_SPREAD, assign, rules_from_config
    from seq2seq.models.encoder_decoder import encoder_decoder
    from seq2seq.unknown_words import read_dictionary

    decoding = {
        key: value for key, value in plain(config.decoding).items() if key not in ("seed", "prefix")
    }
    check_decoding(**decoding, attends=config.model.attention != "none")
    if config.model.copy_mechanism:
        check_copying(**plain(config.tokenizer))
    if config.decoding.dictionary is not None:
        read_dictionary(config.decoding.dictionary)
    if config.model.share_embeddings and not config.tokenizer.shared:
        raise ValueError(
            "model.share_embeddings=true needs one vocabulary for both sides: set "
            "tokenizer.shared=true, or model.share_embeddings=false"
        )
    with torch.device("meta"):
        model = encoder_decoder(
            source_vocabulary_size=8, target_vocabulary_size=8, pad_id=PAD_ID, **plain(config.model)
        )
    # Any length will do: how long the data is isn't known yet.
    assign(model, rules_from_config(plain(config.initializer), longest=SHORTEST_SPREAD))
    calibration_from_config(plain(config.initializer))
    _penalties(config)
    if config.pretrained_vectors.freeze or _vector_files(config):
        from seq2seq.pretrained import check_pretrained

        check_pretrained(
            _vector_files(config),
            freeze=config.pretrained_vectors.freeze,
            model=model,
            resumed=config.ckpt_path is not None,
        )


def check_training(config: DictConfig) -> None:
    """Refuse values of the training loop that would fail late, or silently do something else.

    Raises:
        ValueError: naming the key, its value and the rule.
    """
    if config.trainer.devices != 1:
        raise ValueError(
            f"trainer.devices={config.trainer.devices} must be 1: batches are made for one device, "
            "and each of several would train on the same pairs"
        )
    for key in ("accumulate_grad_batches", "check_val_every_n_epoch", "log_every_n_steps"):
        if config.trainer[key] < 1:
            raise ValueError(f"trainer.{key}={config.trainer[key]} must be at least 1")
    if config.weight_decay_on not in ("all", "matrices"):
        raise ValueError(
            f"weight_decay_on={config.weight_decay_on} is unknown; choose one of all, matrices"
        )
    if config.weight_decay_on != "all" and not config.optimizer.weight_decay:
        raise ValueError(
            f"weight_decay_on={config.weight_decay_on} says where weights decay, but "
            "optimizer.weight_decay is 0: set it, or weight_decay_on=all"
        )
    if config.optimizer.lr < 0:
        raise ValueError(f"optimizer.lr={config.optimizer.lr} must be at least 0")
    for key, such_as in (("betas", "[0.9,0.999]"), ("eps", "[null,0.001]")):
        pair = OmegaConf.select(config, f"optimizer.{key}")
        if OmegaConf.is_list(pair) and len(pair) != 2:
            raise ValueError(f"optimizer.{key}={list(pair)} must be two numbers, such as {such_as}")
    _check_optimizer(config.optimizer)
    _gradient_noise(config)
    _scheduled_sampling(config)
    if _curriculum(config) is not None and config.trainer.overfit_batches:
        raise ValueError(
            f"batch.curriculum={config.batch.curriculum} needs all batches, but "
            f"trainer.overfit_batches={config.trainer.overfit_batches} repeats a few: set "
            "batch.curriculum=none"
        )
    clip = config.trainer.gradient_clip_val
    if clip is not None and not clip > 0:
        raise ValueError(
            f"trainer.gradient_clip_val={clip} must be above 0; set it to null for no clipping"
        )
    if config.trainer.limit_val_batches == 0:
        for key in ("scheduler", "callbacks.early_stopping"):
            if OmegaConf.select(config, f"{key}.monitor") is not None:
                raise ValueError(
                    f"{key}.monitor asks for validation, but trainer.limit_val_batches=0 leaves it "
                    "out: set trainer.limit_val_batches=1.0"
                )
        validations = config.callbacks.average_checkpoint.validations
        if validations is not None:
            raise ValueError(
                f"callbacks.average_checkpoint.validations={validations} averages the weights at "
                "validations, but trainer.limit_val_batches=0 leaves them out: set "
                "trainer.limit_val_batches=1.0"
            )
    logged = [f"val/{figure}" for figure in FIGURES]
    for key in ("scheduler", "callbacks.best_checkpoint", "callbacks.early_stopping"):
        monitor = OmegaConf.select(config, f"{key}.monitor")
        if monitor is None:
            continue
        if monitor not in logged:
            raise ValueError(
                f"{key}.monitor={monitor} is not logged: choose one of {', '.join(logged)}"
            )
        mode = OmegaConf.select(config, f"{key}.mode")
        better = "min" if monitor.removeprefix("val/") in SMALLER_IS_BETTER else "max"
        if mode != better:
            raise ValueError(
                f"{key}.mode={mode} would take the worst {monitor} for the best: use "
                f"{key}.mode={better}"
            )


def _check_optimizer(config: DictConfig) -> None:
    import torch

    try:  # torch knows the rules of each, and says them when one is made
        instantiate(config)([torch.nn.Parameter(torch.zeros(1))])
    except ValueError as error:
        given = {key: value for key, value in plain(config).items() if not key.startswith("_")}
        values = ", ".join(f"optimizer.{key}={value}" for key, value in given.items())
        raise ValueError(f"{values} can't be: {error}") from error


def build_datamodule(config: DictConfig) -> "TranslationDataModule":
    """Corpus, tokenizers trained on its training split, and batches.

    The runs of a sweep that run one after the other in a process share their corpora.
    """
    from seq2seq.data.datamodule import TranslationDataModule
    from seq2seq.data.tokenizer import train_tokenizers

    batches = {
        "batch_size": config.batch.size,
        "batch_unit": config.batch.unit,
        "evaluation_batch_size": config.batch.evaluation_size,
        "seed": config.batch.seed,
        "curriculum": _curriculum(config),
        "copies": config.model.copy_mechanism,
    }
    # Nowhere else: files that change between two runs must be read again.
    sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    wanted = {"data": plain(config.data), "tokenizer": plain(config.tokenizer)}
    for known, shared in _corpora:
        if sweep and known == wanted:
            return shared.in_other_batches(**batches)
    corpus = instantiate(config.data)
    source, target = train_tokenizers(corpus.train, **plain(config.tokenizer))
    logger.info(
        "pairs: %s; vocabulary: %d source and %d target tokens",
        ", ".join(
            f"{len(getattr(corpus, name)):,} {name}"
            for name in ("train", "validation", "test", "test_longer")
            if getattr(corpus, name)
        ),
        source.vocabulary_size,
        target.vocabulary_size,
    )
    datamodule = TranslationDataModule(
        corpus=corpus, source_tokenizer=source, target_tokenizer=target, **batches
    )
    if sweep:
        # Not the one of this run, which will hold the run's network.
        _corpora.append((wanted, datamodule.in_other_batches(**batches)))
        while len(_corpora) > 1 and sum(_pairs(one.corpus) for _, one in _corpora) > _MOST_PAIRS:
            del _corpora[0]
    return datamodule


def _pairs(corpus: "Corpus") -> int:
    return sum(map(len, (corpus.train, corpus.validation, corpus.test, corpus.test_longer)))


def build_module(config: DictConfig, datamodule: "TranslationDataModule") -> "TranslationModule":
    """The network in its training module, with PyTorch's own initial weights."""
    from seq2seq.data.tokenizer import PAD_ID
    from seq2seq.models.encoder_decoder import encoder_decoder
    from seq2seq.module import TranslationModule
    from seq2seq.translator import Translator

    source, target = datamodule.source_tokenizer, datamodule.target_tokenizer
    arguments = {
        "source_vocabulary_size": source.vocabulary_size,
        "target_vocabulary_size": target.vocabulary_size,
        "pad_id": PAD_ID,
        **plain(config.model),
    }
    model = encoder_decoder(**arguments)
    if config.pretrained_vectors.freeze:
        from seq2seq.pretrained import freeze_embeddings

        freeze_embeddings(model, _vector_files(config))
    decoding = plain(config.decoding)
    return TranslationModule(
        model=model,
        model_arguments=arguments,
        training_arguments={
            f"{group}.{key}": value
            for group in ("optimizer", "scheduler")
            for key, value in plain(config[group]).items()
        }
        | _chosen_arguments(config),
        gradient_arguments={key: OmegaConf.select(config, key) for key in _GRADIENT},
        optimizer=instantiate(config.optimizer),
        scheduler=instantiate(config.scheduler),
        label_smoothing=config.label_smoothing,
        penalties=_penalties(config),
        weight_decay_on=config.weight_decay_on,
        scheduled_sampling=_scheduled_sampling(config),
        gradient_noise=_gradient_noise(config),
        bleu_tokenizer=config.bleu_tokenizer,
        validation_translator=Translator(
            model=model,
            source_tokenizer=source,
            target_tokenizer=target,
            max_length_ratio=decoding["max_length_ratio"],
            max_length_constant=decoding["max_length_constant"],
        ),
        test_translator=Translator(
            model=model, source_tokenizer=source, target_tokenizer=target, **decoding
        ),
    )


def report_cut_outputs(config: DictConfig, datamodule: "TranslationDataModule") -> None:
    """Warn of validation targets that `decoding` cuts short: no model could write them.

    The test split isn't looked at, so that nothing is fitted to it.
    """
    from seq2seq.decoding.step import length_limits

    split = datamodule.split("validation")
    sources, words = split.source_lengths, split.target_lengths - 1
    ratio, constant = config.decoding.max_length_ratio, config.decoding.max_length_constant
    cut = words > length_limits(sources, ratio=ratio, constant=constant)
    if cut.any():
        enough = math.ceil(10 * ((words - constant) / sources).max().item()) / 10
        logger.warning(
            "%.2f%% of the targets of the validation split are longer than "
            "decoding.max_length_ratio=%g and max_length_constant=%d let an output be; "
            "decoding.max_length_ratio=%g suffices for them",
            100 * cut.double().mean().item(),
            ratio,
            constant,
            enough,
        )


def _chosen_arguments(config: DictConfig) -> dict[str, Any]:
    # Absent where they are off, as in checkpoints from before there was a choice.
    off = {"weight_decay_on": "all", "gradient_noise": 0.0, "callbacks.weight_average.decay": None}
    values = {key: OmegaConf.select(config, key) for key in off}
    chosen = {key: value for key, value in values.items() if value != off[key]}
    if config.scheduled_sampling.schedule != "none":
        # Null for c means one number, which older checkpoints have with every schedule.
        sampling = plain(config.scheduled_sampling) | {"c": _scheduled_sampling(config).c}
        chosen |= {f"scheduled_sampling.{key}": value for key, value in sampling.items()}
    if config.pretrained_vectors.freeze:
        chosen["frozen embeddings"] = ", ".join(_vector_files(config))
    return chosen


def _gradient_noise(config: DictConfig) -> "GradientNoise":
    from seq2seq.gradient_noise import GradientNoise

    return GradientNoise(eta=config.gradient_noise, seed=config.seed)


def _scheduled_sampling(config: DictConfig) -> "ScheduledSampling":
    from seq2seq.scheduled_sampling import ScheduledSampling

    return ScheduledSampling(**plain(config.scheduled_sampling))


def _curriculum(config: DictConfig) -> "Curriculum | None":
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


def _vector_files(config: DictConfig) -> dict[str, str]:
    """The files of pretrained vectors, by side."""
    files = {side: config.pretrained_vectors[side] for side in ("source", "target")}
    return {side: path for side, path in files.items() if path is not None}


def read_vectors(config: DictConfig, module: "TranslationModule") -> "dict[str, PretrainedVectors]":
    """The pretrained vectors that the embeddings are to begin with, by side.

    None where the weights come from a checkpoint.

    Raises:
        FileNotFoundError, ValueError: one sentence that names key, file and line.
    """
    files = _vector_files(config)
    if not files or config.ckpt_path is not None:
        return {}
    from seq2seq.pretrained import read_pretrained

    translator = module.test_translator
    tokenizers = {"source": translator.source_tokenizer, "target": translator.target_tokenizer}
    return read_pretrained(files, module.model, tokenizers)


def _penalties(config: DictConfig) -> "list[Penalty]":
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


@dataclass(frozen=True)
class SetWeights:
    """How the weights of a network were set.

    Args:
        initialization: what was set by which rule.
        calibrated: what calibration changed in which layer, in the order of the layers.
        notes: what is worth saying beside it, one sentence each.
    """

    initialization: "Initialization"
    calibrated: "Sequence[LayerCalibration]"
    notes: Sequence[str]


def initialize_weights(
    config: DictConfig,
    module: "TranslationModule",
    split: "EncodedSplit",
    vectors: "Mapping[str, PretrainedVectors] | None" = None,
) -> SetWeights:
    """Set every weight by the config's rules and calibration.

    Args:
        config: its ``initializer`` says how.
        module: the network, modified in place.
        split: the training split: its lengths are those that ``longest`` means where the config
            has none, and calibration measures one batch of it.
        vectors: from :func:`read_vectors`; they take the place of what the rules have drawn.

    Raises:
        ValueError: if the network overflows on the batch, so that it can't be calibrated.
    """
    from seq2seq.data.tokenizer import PAD_ID
    from seq2seq.initializers.calibration import calibration_from_config
    from seq2seq.initializers.rules import initialize, rules_from_config
    from seq2seq.measurement import calibrate_layers, longest_dependency

    group = plain(config.initializer)
    rules = rules_from_config(group, longest=longest_dependency(split))
    done = initialize(module.model, rules, seed=config.initialization_seed, pad_id=PAD_ID)
    notes = list(done.notes)
    if vectors:
        from seq2seq.pretrained import write_pretrained

        notes += write_pretrained(module.model, vectors)
    elif _vector_files(config):
        notes.append("no pretrained vectors were read: the weights come from ckpt_path")
    calibration = calibration_from_config(group)
    if calibration is None:
        return SetWeights(done, (), notes)
    if config.ckpt_path is not None:
        return SetWeights(done, (), [*notes, "not calibrated: the weights come from ckpt_path"])
    try:
        calibrated = calibrate_layers(module.model, split, calibration, done)
    except FloatingPointError as error:
        raise ValueError(
            f"the network can't be calibrated ({error}): choose smaller numbers in the rules of "
            "the initializer, or initializer.calibration=null"
        ) from error
    return SetWeights(done, calibrated, notes)


def report_weights(weights: SetWeights) -> str:
    """Print the tables of how the weights were set, and return them as markdown."""
    from seq2seq.initializers.calibration import trial_table
    from seq2seq.initializers.report import describe, markdown_table, text_table

    rows = describe(weights.initialization, weights.calibrated)
    text, markdown = text_table(rows, weights.notes), markdown_table(rows, weights.notes)
    if weights.calibrated:
        trials = trial_table(weights.calibrated)
        text, markdown = f"{text}\n\n{trials}", f"{markdown}\n\n```\n{trials}\n```"
    logger.info("%s", text)
    return markdown


def build_callbacks(config: DictConfig, folder: Path) -> list["lightning.Callback"]:
    """Every callback that the config asks for."""
    from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor

    from seq2seq.callbacks.average_checkpoint import AverageCheckpoint
    from seq2seq.callbacks.best_checkpoint import BestCheckpoint
    from seq2seq.callbacks.charts import ChartLayout
    from seq2seq.callbacks.divergence import StopOnDivergence
    from seq2seq.callbacks.hparams import HParams
    from seq2seq.callbacks.last_checkpoint import LastCheckpoint
    from seq2seq.callbacks.progress import ProgressBar
    from seq2seq.callbacks.random_state import RandomState
    from seq2seq.callbacks.steps_to_target import StepsToTarget
    from seq2seq.callbacks.weight_average import WeightAverage

    chosen = config.callbacks
    callbacks: list[lightning.Callback] = [
        RandomState(),
        StopOnDivergence(folder=folder),
        instantiate(chosen.throughput),
    ]
    if config.trainer.enable_progress_bar:
        callbacks.append(ProgressBar(refresh_rate=10))
    if chosen.gradient_flow is not None:
        # The table lies in the run's folder: it is data, and TensorBoard only a view of it.
        callbacks.append(instantiate(chosen.gradient_flow, folder=str(folder)))
    if chosen.input_gradient is not None:
        callbacks.append(instantiate(chosen.input_gradient, folder=str(folder)))
    for group in ("forward_signal", "weight_gradient", "spectrum", "update_ratio"):
        if chosen[group] is not None:
            callbacks.append(instantiate(chosen[group]))
    for group in ("sample_translations", "attention_pictures"):
        if chosen[group] is not None:
            callbacks.append(instantiate(chosen[group]))
    if chosen.target.loss is not None:
        callbacks.append(StepsToTarget(**plain(chosen.target)))
    if chosen.weight_average.decay is not None:
        # Behind what looks at a validation's weights; Lightning puts checkpoints behind it.
        callbacks.append(WeightAverage(**plain(chosen.weight_average)))
    if config.trainer.fast_dev_run:
        return callbacks
    place = this_place()
    swept = None if place is None else {key: place.overrides.get(key) for key in place.swept}
    callbacks += [
        LearningRateMonitor(logging_interval="step"),
        ChartLayout(),
        HParams(values=hyperparameters(config, swept=swept)),
    ]
    if chosen.early_stopping is not None:
        callbacks.append(EarlyStopping(**plain(chosen.early_stopping)))
    if chosen.average_checkpoint.validations is not None:
        # Before those that keep what it holds.
        callbacks.append(
            AverageCheckpoint(folder=folder / "checkpoints", **plain(chosen.average_checkpoint))
        )
    if chosen.best_checkpoint is not None:
        callbacks.append(
            BestCheckpoint(folder=folder / "checkpoints", **plain(chosen.best_checkpoint))
        )
    if chosen.last_checkpoint is not None:
        callbacks.append(
            LastCheckpoint(folder=folder / "checkpoints", **plain(chosen.last_checkpoint))
        )
    return callbacks
