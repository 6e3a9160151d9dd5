"""From a config to the objects of a run: corpus, network, weights, callbacks.

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
from omegaconf import DictConfig

from seq2seq.config import plain
from seq2seq.event_log import hyperparameters
from seq2seq.instantiate import instantiate
from seq2seq.sweep.launchers import cores, runs_at_once
from seq2seq.sweep.plan import this_place
from seq2seq.training_options import (
    curriculum,
    gradient_arguments,
    gradient_noise,
    penalties,
    scheduled_sampling,
    training_arguments,
    vector_files,
)

if TYPE_CHECKING:
    import lightning

    from seq2seq.data.batch import EncodedSplit
    from seq2seq.data.corpus import Corpus
    from seq2seq.data.datamodule import TranslationDataModule
    from seq2seq.data.torchtext_vectors import PretrainedVectors
    from seq2seq.initializers.rules import Initialization
    from seq2seq.initializers.trials import LayerCalibration
    from seq2seq.module import TranslationModule

logger = logging.getLogger(__name__)

# Of a sweep: the data modules of the last corpora, each with the configs that it was built from.
_corpora: list[tuple[Any, "TranslationDataModule"]] = []

# Pairs of text that they may hold in all, beside the last: about 100 MB.
_MOST_PAIRS = 200_000

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
        "curriculum": curriculum(config),
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

        freeze_embeddings(model, vector_files(config))
    decoding = plain(config.decoding)
    return TranslationModule(
        model=model,
        model_arguments=arguments,
        training_arguments=training_arguments(config),
        gradient_arguments=gradient_arguments(config),
        optimizer=instantiate(config.optimizer),
        scheduler=instantiate(config.scheduler),
        label_smoothing=config.label_smoothing,
        penalties=penalties(config),
        weight_decay_on=config.weight_decay_on,
        scheduled_sampling=scheduled_sampling(config),
        gradient_noise=gradient_noise(config),
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


def read_vectors(config: DictConfig, module: "TranslationModule") -> "dict[str, PretrainedVectors]":
    """The pretrained vectors that the embeddings are to begin with, by side.

    None where the weights come from a checkpoint.

    Raises:
        FileNotFoundError, ValueError: one sentence that names key, file and line.
    """
    files = vector_files(config)
    if not files or config.ckpt_path is not None:
        return {}
    from seq2seq.pretrained import read_pretrained

    translator = module.test_translator
    tokenizers = {"source": translator.source_tokenizer, "target": translator.target_tokenizer}
    return read_pretrained(files, module.model, tokenizers)


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
    elif vector_files(config):
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
