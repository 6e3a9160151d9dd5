"""Train an encoder-decoder and test it: config to objects, fit, test, one table of figures.

Started as ``scripts/train``, ``seq2seq-train`` or ``python -m seq2seq.train``; every argument is a
Hydra override. Everything heavy is imported once a config has been composed.
"""

import logging
import math
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from seq2seq.config import config_folder, plain, register
from seq2seq.figures import Figures, table, write_figures
from seq2seq.instantiate import check_targets, instantiate

if TYPE_CHECKING:
    import lightning
    from lightning.pytorch.loggers import TensorBoardLogger

    from seq2seq.callbacks.progress import Throughput
    from seq2seq.data.datamodule import TranslationDataModule
    from seq2seq.module import TranslationModule

logger = logging.getLogger(__name__)


def train(config: DictConfig) -> Figures:
    """Run one experiment: fit, then test the best checkpoint.

    Args:
        config: composed from ``conf/train.yaml``, of type
            :class:`~seq2seq.config.TrainConfig`.

    Returns:
        The figures of the table at the end, as in ``metrics.json``.

    Raises:
        ValueError, FileNotFoundError: one sentence for whatever the user can mend.
        seq2seq.module.Diverged: if the loss or a gradient is no longer finite.
    """
    import lightning

    from seq2seq.callbacks.best_checkpoint import BestCheckpoint
    from seq2seq.callbacks.progress import Throughput
    from seq2seq.checkpoint import check_resumable

    _quieten()
    check_targets(config)
    # Every job of a sweep sets its own seeds: they share one process.
    lightning.seed_everything(config.seed, verbose=False)
    check_sizes(config)
    check_training(config)
    folder = Path(config.run_folder)
    checkpoints = folder / "checkpoints"
    if config.ckpt_path is None and any(checkpoints.glob("*.ckpt")):
        raise ValueError(
            f"{folder} holds a run already: choose another hydra.run.dir, or go on with "
            f"ckpt_path={checkpoints / 'last.ckpt'}"
        )
    folder.mkdir(parents=True, exist_ok=True)

    datamodule = build_datamodule(config)
    module = build_module(config, datamodule)
    ckpt_path = None
    if config.ckpt_path is not None:
        ckpt_path = Path(config.ckpt_path)
        check_resumable(ckpt_path, module.description)
    tensorboard = _tensorboard(folder)
    report = initialize_weights(config, module)
    tensorboard.experiment.add_text("initialization", report, 0)

    callbacks = build_callbacks(config, folder)
    trainer: lightning.Trainer = instantiate(
        config.trainer, callbacks=callbacks, logger=tensorboard, default_root_dir=folder
    )
    trainer.fit(module, datamodule, ckpt_path=ckpt_path, weights_only=True)
    if trainer.global_step == 0:
        logger.warning("nothing was trained: the figures are those of the initialized weights")
    best = next((one.path for one in callbacks if isinstance(one, BestCheckpoint)), None)
    trainer.test(
        module,
        datamodule,
        ckpt_path=best if best is not None and best.is_file() else None,
        weights_only=True,
        verbose=False,
    )
    throughput = next(one for one in callbacks if isinstance(one, Throughput))
    figures = summary(trainer, module, throughput, folder)
    write_figures(folder / "metrics.json", figures)
    print(table(figures), flush=True)
    _log_hyperparameters(tensorboard, config, figures)
    return figures


def check_sizes(config: DictConfig) -> None:
    """Refuse a network or initializer that can't be built, before any data is read.

    Raises:
        ValueError: naming the key, its value and the rule.
    """
    import torch

    from seq2seq.data.tokenizer import PAD_ID
    from seq2seq.initializers.rules import assign, rules_from_config
    from seq2seq.models.encoder_decoder import encoder_decoder
    from seq2seq.translator import check_decoding

    decoding = plain(config.decoding)
    check_decoding(
        **{key: decoding[key] for key in ("strategy", "beam_size", "n_best", "temperature")}
    )
    with torch.device("meta"):
        model = encoder_decoder(
            source_vocabulary_size=8, target_vocabulary_size=8, pad_id=PAD_ID, **plain(config.model)
        )
    assign(model, rules_from_config(plain(config.initializer)))


def check_training(config: DictConfig) -> None:
    """Refuse values of the training loop that would fail late, or silently do something else.

    Raises:
        ValueError: naming the key, its value and the rule.
    """
    from seq2seq.scoring import FIGURES, SMALLER_IS_BETTER

    if config.trainer.devices != 1:
        raise ValueError(
            f"trainer.devices={config.trainer.devices} must be 1: batches are made for one device, "
            "and each of several would train on the same pairs"
        )
    for key in ("accumulate_grad_batches", "check_val_every_n_epoch", "log_every_n_steps"):
        if config.trainer[key] < 1:
            raise ValueError(f"trainer.{key}={config.trainer[key]} must be at least 1")
    if config.optimizer.lr < 0:
        raise ValueError(f"optimizer.lr={config.optimizer.lr} must be at least 0")
    betas = OmegaConf.select(config, "optimizer.betas")
    if betas is not None and len(betas) != 2:
        raise ValueError(f"optimizer.betas={list(betas)} must be two numbers, such as [0.9,0.999]")
    clip = config.trainer.gradient_clip_val
    if clip is not None and not clip > 0:
        raise ValueError(
            f"trainer.gradient_clip_val={clip} must be above 0; set it to null for no clipping"
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


def build_datamodule(config: DictConfig) -> "TranslationDataModule":
    """Corpus, tokenizers trained on its training split, and batches."""
    from seq2seq.data.datamodule import TranslationDataModule
    from seq2seq.data.tokenizer import train_tokenizers

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
    return TranslationDataModule(
        corpus=corpus,
        source_tokenizer=source,
        target_tokenizer=target,
        batch_size=config.batch.size,
        batch_unit=config.batch.unit,
        evaluation_batch_size=config.batch.evaluation_size,
        seed=config.batch.seed,
    )


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
    decoding = plain(config.decoding)
    return TranslationModule(
        model=model,
        model_arguments=arguments,
        training_arguments={
            f"{group}.{key}": value
            for group in ("optimizer", "scheduler")
            for key, value in plain(config[group]).items()
        },
        optimizer=instantiate(config.optimizer),
        scheduler=instantiate(config.scheduler),
        label_smoothing=config.label_smoothing,
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


def initialize_weights(config: DictConfig, module: "TranslationModule") -> str:
    """Set every weight by the config's rules; print the table and return it as markdown."""
    from seq2seq.data.tokenizer import PAD_ID
    from seq2seq.initializers.report import describe, markdown_table, text_table
    from seq2seq.initializers.rules import initialize, rules_from_config

    rules = rules_from_config(plain(config.initializer))
    done = initialize(module.model, rules, seed=config.initialization_seed, pad_id=PAD_ID)
    rows = describe(done)
    logger.info("%s", text_table(rows, done.notes))
    return markdown_table(rows, done.notes)


def build_callbacks(config: DictConfig, folder: Path) -> list["lightning.Callback"]:
    """Every callback that the config asks for."""
    from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor

    from seq2seq.callbacks.best_checkpoint import BestCheckpoint
    from seq2seq.callbacks.divergence import StopOnDivergence
    from seq2seq.callbacks.last_checkpoint import LastCheckpoint
    from seq2seq.callbacks.progress import ProgressBar
    from seq2seq.callbacks.random_state import RandomState

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
    if chosen.sample_translations is not None:
        callbacks.append(instantiate(chosen.sample_translations))
    if config.trainer.fast_dev_run:
        return callbacks
    callbacks.append(LearningRateMonitor(logging_interval="step"))
    if chosen.early_stopping is not None:
        callbacks.append(EarlyStopping(**plain(chosen.early_stopping)))
    if chosen.best_checkpoint is not None:
        callbacks.append(
            BestCheckpoint(folder=folder / "checkpoints", **plain(chosen.best_checkpoint))
        )
    if chosen.last_checkpoint is not None:
        callbacks.append(
            LastCheckpoint(folder=folder / "checkpoints", **plain(chosen.last_checkpoint))
        )
    return callbacks


def summary(
    trainer: "lightning.Trainer",
    module: "TranslationModule",
    throughput: "Throughput",
    folder: Path,
) -> Figures:
    """Everything worth keeping of a finished run, under the keys of TensorBoard."""
    figures: Figures = {
        name: float(value)
        for name, value in sorted(trainer.callback_metrics.items())
        if name.startswith("test")
    }
    signatures = module.signatures()
    best = folder / "checkpoints" / "best.ckpt"
    last = folder / "checkpoints" / "last.ckpt"
    tensorboard = folder / "tensorboard"
    return {
        **figures,
        "train/target_tokens_per_second": throughput.tokens_per_second,
        "train/seconds": throughput.seconds,
        "parameters": sum(parameter.numel() for parameter in module.model.parameters()),
        "bleu_signature": signatures["bleu"],
        "chrf_signature": signatures["chrf"],
        "run": str(folder),
        "checkpoint": next((str(path) for path in (best, last) if path.is_file()), None),
        "tensorboard": str(tensorboard),
        "open_tensorboard": (
            f"{sys.executable} -m tensorboard.main --logdir {tensorboard} "
            "--samples_per_plugin images=100,scalars=5000"
        ),
    }


def _tensorboard(folder: Path) -> "TensorBoardLogger":
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(
        save_dir=folder, name="", version="tensorboard", default_hp_metric=False
    )


def _log_hyperparameters(
    tensorboard: "TensorBoardLogger", config: DictConfig, figures: Figures
) -> None:
    """Fill the HParams tab: the config flat, and the test figures under tags of their own."""
    flat: dict[str, Any] = {}

    def flatten(prefix: str, node: Any) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                flatten(f"{prefix}.{key}" if prefix else str(key), value)
        elif isinstance(node, (bool, int, float, str)):
            flat[prefix] = node

    groups = ("model", "initializer", "optimizer", "scheduler", "data", "batch")
    flatten("", {"seed": config.seed, **{group: plain(config[group]) for group in groups}})
    metrics = {
        f"hp/{name.removeprefix('test/')}": value
        for name, value in figures.items()
        if name.startswith("test/") and isinstance(value, float) and math.isfinite(value)
    }
    tensorboard.log_hyperparams(flat, metrics)
    tensorboard.save()


def _quieten() -> None:
    """Keep advice that can't be followed here out of the terminal."""
    for message in (
        ".*does not have many workers.*",
        ".*isinstance\\(treespec, LeafSpec\\).*",
        "Checkpoint directory .* exists and is not empty",
        ".*Found \\d+ module\\(s\\) in eval mode.*",
        ".*is smaller than the logging interval.*",
        ".*could not find the monitored key in the returned metrics.*",
        ".*callbacks used to create the checkpoint need to be provided.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)


register()


@hydra.main(version_base="1.3", config_path=config_folder(), config_name="train")
def _hydra_main(config: DictConfig) -> float | None:
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from seq2seq.module import Diverged

    try:
        figures = train(config)
    except (ValueError, OSError, MisconfigurationException, Diverged) as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            logger.error("error: %s", error)  # Hydra itself speaks only after the last job
            raise
        sys.exit(f"error: {error}")
    except (KeyboardInterrupt, SystemExit):  # Lightning turns Ctrl-C into an exit
        last = Path(config.run_folder) / "checkpoints" / "last.ckpt"
        # In the same folder, so that the best checkpoint so far stays the one to beat.
        hint = f"; go on with ckpt_path={last} hydra.run.dir={config.run_folder}"
        hint = hint if last.is_file() else ""
        sys.exit(f"\ninterrupted{hint}")  # below the progress bar
    objective = figures.get("test/loss")
    return objective if isinstance(objective, float) else None


def main() -> None:
    """Entry of ``seq2seq-train``."""
    try:
        _hydra_main()
    except OSError as error:  # Hydra makes the run's folder before anything of ours runs
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
