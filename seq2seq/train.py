"""Train an encoder-decoder and test it: config to objects, fit, test, one table of figures.

Started as ``scripts/train``, ``seq2seq-train`` or ``python -m seq2seq.train``; every argument is a
Hydra override. Everything heavy is imported once a config has been composed.
"""

import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from seq2seq.assembly import (
    build_callbacks,
    build_datamodule,
    build_module,
    initialize_weights,
    read_vectors,
    report_cut_outputs,
    report_weights,
    use_threads,
)
from seq2seq.config import config_folder, register
from seq2seq.config_checks import check_sizes, check_training
from seq2seq.event_log import event_logger, open_tensorboard
from seq2seq.figures import Figures, table
from seq2seq.instantiate import check_targets, instantiate
from seq2seq.records import INSPECTION, METRICS, write_json
from seq2seq.status import Diverged, check_free, recorded
from seq2seq.sweep.job import run_job
from seq2seq.sweep.plan import this_place
from seq2seq.sweep.record import start

if TYPE_CHECKING:
    import lightning

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
        seq2seq.status.Diverged: if the loss or a gradient is no longer finite.
    """
    import lightning

    _quieten()
    check_targets(config)
    # Every job of a sweep sets its own seeds: they share one process.
    lightning.seed_everything(config.seed, verbose=False)
    check_sizes(config)
    check_training(config)
    use_threads(config.threads)
    folder = Path(config.run_folder)
    check_free(folder, key="hydra.run.dir", ckpt_path=config.ckpt_path)
    with recorded(folder):
        return _train(config, folder)


def _train(config: DictConfig, folder: Path) -> Figures:
    import lightning
    from lightning.pytorch.callbacks import Checkpoint

    from seq2seq.callbacks.best_checkpoint import BestCheckpoint, validation_figures
    from seq2seq.callbacks.progress import Throughput
    from seq2seq.checkpoint import check_resumable
    from seq2seq.curves import CurveTable

    callbacks = build_callbacks(config, folder)  # what is wrong with one shows before data is read
    datamodule = build_datamodule(config)
    module = build_module(config, datamodule)
    vectors = read_vectors(config, module)
    report_cut_outputs(config, datamodule)
    ckpt_path, done = None, 0
    if config.ckpt_path is not None:
        ckpt_path = Path(config.ckpt_path)
        done = check_resumable(ckpt_path, module.description)
    tensorboard = event_logger(event_folder(folder), before_step=done)
    curves = CurveTable(folder=folder, before_step=done)
    initialized = initialize_weights(config, module, datamodule.split("train"), vectors)
    report = report_weights(initialized)
    tensorboard.experiment.add_text("initialization", report, 0)
    if config.inspect and ckpt_path is not None:
        logger.info("not inspected: the weights come from ckpt_path")
    elif config.inspect:
        _inspect(module, datamodule, folder)
    trainer: lightning.Trainer = instantiate(
        config.trainer,
        callbacks=callbacks,
        logger=[tensorboard, curves],
        default_root_dir=folder,
        # Lightning would add a checkpoint of its own where the config has none.
        enable_checkpointing=any(isinstance(one, Checkpoint) for one in callbacks),
    )
    # Lightning does so after it reads a checkpoint, and would round weights of 64 bits to 32.
    trainer.precision_plugin.convert_module(module)
    trainer.fit(module, datamodule, ckpt_path=ckpt_path, weights_only=True)
    throughput = next(one for one in callbacks if isinstance(one, Throughput))
    if not throughput.tokens:
        weights = "initialized weights" if ckpt_path is None else "weights in ckpt_path"
        logger.warning("nothing was trained: the figures are those of the %s", weights)
    judge = next((one for one in callbacks if isinstance(one, BestCheckpoint)), None)
    best = None if judge is None else judge.path
    # Of the weights that are tested: testing forgets what validation found.
    validated = validation_figures(trainer) if judge is None else judge.figures
    trainer.test(
        module,
        datamodule,
        ckpt_path=best if best is not None and best.is_file() else None,
        weights_only=True,
        verbose=False,
    )
    figures = {**validated, **summary(trainer, module, callbacks, folder)}
    write_json(folder / METRICS, figures)
    return figures


def event_folder(folder: Path) -> Path:
    """Where TensorBoard's events of a run lie: those of a sweep's runs all in one place."""
    place = this_place()
    return folder / "tensorboard" if place is None else place.sweep / "tensorboard" / place.name


def _inspect(
    module: "TranslationModule", datamodule: "TranslationDataModule", folder: Path
) -> None:
    """Measure every recurrent layer as training begins with it; say and keep what was found."""
    from seq2seq.diagnostics.verdict import judge
    from seq2seq.measurement import measure_layers, write_reports

    try:
        reports = measure_layers(module.model, datamodule.split("train"))
    except ArithmeticError as error:  # the network overflows, or is too large to recompute
        logger.warning("nothing was measured before training: %s", error)
        return
    for report in reports:
        logger.info("%s %s", report.layer, judge(report))
    write_reports(folder / INSPECTION, reports)


def summary(
    trainer: "lightning.Trainer",
    module: "TranslationModule",
    callbacks: "Sequence[lightning.Callback]",
    folder: Path,
) -> Figures:
    """Everything worth keeping of a finished run, under the keys of TensorBoard."""
    from seq2seq.callbacks.progress import Throughput
    from seq2seq.callbacks.steps_to_target import StepsToTarget

    throughput = next(one for one in callbacks if isinstance(one, Throughput))
    targets = [one for one in callbacks if isinstance(one, StepsToTarget)]
    figures: Figures = {
        name: float(value)
        for name, value in sorted(trainer.callback_metrics.items())
        if name.startswith("test")
    }
    signatures = module.signatures()
    best = folder / "checkpoints" / "best.ckpt"
    last = folder / "checkpoints" / "last.ckpt"
    tensorboard = event_folder(folder)
    return {
        **figures,
        "train/target_tokens_per_second": throughput.tokens_per_second,
        "train/seconds": throughput.seconds,
        **({"train/steps_to_target": targets[0].steps} if targets else {}),
        "parameters": sum(parameter.numel() for parameter in module.model.parameters()),
        "bleu_signature": signatures["bleu"],
        "chrf_signature": signatures["chrf"],
        "run": str(folder),
        "checkpoint": next((str(path) for path in (best, last) if path.is_file()), None),
        "tensorboard": str(tensorboard),
        "open_tensorboard": open_tensorboard(tensorboard),
    }


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

    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return run_job(config, train)
    try:
        figures = train(config)
    except (ValueError, OSError, MisconfigurationException, Diverged) as error:
        sys.exit(f"error: {error}")
    except (KeyboardInterrupt, SystemExit):  # Lightning turns Ctrl-C into an exit
        last = Path(config.run_folder) / "checkpoints" / "last.ckpt"
        # In the same folder, so that the best checkpoint so far stays the one to beat.
        hint = f"; go on with ckpt_path={last} hydra.run.dir={config.run_folder}"
        sys.exit(f"\ninterrupted{hint if last.is_file() else ''}")  # below the progress bar
    print(table(figures), flush=True)
    return None


def main() -> None:
    """Entry of ``seq2seq-train``."""
    start(_hydra_main, app="seq2seq-train")


if __name__ == "__main__":
    main()
