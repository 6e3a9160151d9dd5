"""See before training whether signal and gradient will carry: one batch, no step.

Started as ``scripts/inspect``, ``seq2seq-inspect`` or ``python -m seq2seq.inspection``; every
argument is a Hydra override of training. What is measured and what it means is in `diagnostics`.
"""

import copy
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from seq2seq.assembly import (
    build_datamodule,
    build_module,
    initialize_weights,
    read_vectors,
    use_threads,
)
from seq2seq.config import config_folder, plain, register
from seq2seq.config_checks import check_sizes
from seq2seq.instantiate import check_targets
from seq2seq.sweep.job import run_job
from seq2seq.sweep.record import start

if TYPE_CHECKING:
    from seq2seq.data.batch import EncodedSplit
    from seq2seq.data.torchtext_vectors import PretrainedVectors
    from seq2seq.diagnostics.advice import Advice, Changes, Laboratory
    from seq2seq.diagnostics.layer_report import LayerReport
    from seq2seq.diagnostics.verdict import Verdict
    from seq2seq.models.encoder_decoder import EncoderDecoder
    from seq2seq.module import TranslationModule

logger = logging.getLogger(__name__)

PICTURE = "inspection.png"


@dataclass(frozen=True)
class Inspection:
    """What was found: of each layer in order, and the change that helps, if one is needed."""

    reports: "list[LayerReport]"
    verdicts: "list[Verdict]"
    advice: "Advice | None"


def inspect(config: DictConfig, *, brief: bool = False) -> Inspection:
    """Measure every recurrent layer, and write table, picture and JSON.

    Args:
        config: composed from ``conf/inspect.yaml`` or ``conf/train.yaml``, of type
            :class:`~seq2seq.config.TrainConfig`.
        brief: look for no advice and draw no picture, and log the verdicts alone.

    Raises:
        ValueError, FileNotFoundError: one sentence for whatever the user can mend.
    """
    from seq2seq.diagnostics.layer_picture import draw_layers
    from seq2seq.measurement import write_reports
    from seq2seq.records import INSPECTION
    from seq2seq.status import check_free, recorded

    folder = Path(config.run_folder)
    check_free(folder, key="hydra.run.dir")
    with recorded(folder):
        found = measure(config, advice=not brief)
    if brief:
        write_reports(folder / INSPECTION, found.reports)
        for report, verdict in zip(found.reports, found.verdicts, strict=True):
            logger.info("%s %s", report.layer, verdict)
        return found
    advice = _advice_text(found).partition("\n")[0]
    picture = draw_layers(found.reports, found.verdicts, title=_title(), advice=advice)
    (folder / PICTURE).write_bytes(picture)
    write_reports(folder / INSPECTION, found.reports, found.advice)
    print(f"{text(found)}\n\n{folder / PICTURE}\n{folder / INSPECTION}", flush=True)
    return found


def measure(config: DictConfig, *, advice: bool = True) -> Inspection:
    """Build model and batch, measure every recurrent layer, and look for a change that helps.

    Args:
        config: as for :func:`inspect`.
        advice: whether to look for one.

    Raises:
        ValueError, FileNotFoundError: as :func:`inspect`.
    """
    import lightning

    from seq2seq.diagnostics.advice import advise
    from seq2seq.diagnostics.verdict import judge

    check_targets(config)
    if config.ckpt_path is not None:
        raise ValueError(
            f"ckpt_path={config.ckpt_path} is for training: an inspection measures the weights "
            "that training begins with"
        )
    use_threads(config.threads)
    lightning.seed_everything(config.seed, verbose=False)
    check_sizes(config)
    datamodule = build_datamodule(config)
    module = build_module(config, datamodule)
    vectors = read_vectors(config, module)
    laboratory = _laboratory(config, module, datamodule.split("train"), vectors)
    try:
        reports = list(laboratory.report({}))
        change = advise(laboratory, reports) if advice else None
    except ArithmeticError as error:  # it overflows, or is too large for its recomputation
        raise ValueError(
            f"the network overflows on its first batch, or nearly ({error}): choose a far "
            "smaller gain or scale, such as those of initializer=orthogonal"
        ) from error
    return Inspection(reports, [judge(report) for report in reports], change)


def text(found: Inspection) -> str:
    """Tables, verdicts and advice for the terminal."""
    from seq2seq.diagnostics.layer_table import aligned, matrix_table, signal_table, time_table

    verdicts = aligned(
        [
            [report.layer, str(verdict)]
            for report, verdict in zip(found.reports, found.verdicts, strict=True)
        ],
        text_columns=2,
    )
    parts = [
        matrix_table(found.reports),
        signal_table(found.reports),
        time_table(found.reports)
        + "\n(lengths and directions left: at the median and the 95th percentile of the data)",
        verdicts,
        _advice_text(found),
    ]
    return "\n" + "\n\n".join(parts)


def _advice_text(found: Inspection) -> str:
    from seq2seq.diagnostics.layer_table import aligned

    if all(verdict.kind == "carries" for verdict in found.verdicts):
        return "Every layer carries: nothing to change."
    if found.advice is None:
        return (
            "No single change of the initializer that was tried helps: the weights are set by "
            "initializer.rules of your own, or the network doesn't depend on what can be tuned."
        )
    rows = [
        [f"  {report.layer}", str(verdict)]
        for report, verdict in zip(found.reports, found.advice.verdicts, strict=True)
    ]
    return (
        f"To type: {' '.join(found.advice.overrides)}\n"
        f"That is {found.advice.reason}. "
        f"{'With it every layer carries' if found.advice.suffices else 'It helps, but not enough'}:"
        f"\n{aligned(rows, text_columns=2)}"
    )


def _laboratory(
    config: DictConfig,
    module: "TranslationModule",
    split: "EncodedSplit",
    vectors: "Mapping[str, PretrainedVectors]",
) -> "Laboratory":
    """The network on one batch, in float64 and without dropout, under changed initializers."""
    from seq2seq.diagnostics.advice import Laboratory
    from seq2seq.diagnostics.layer_report import attenuation_over, transport_profiles
    from seq2seq.measurement import (
        data_lengths,
        long_batch,
        longest_dependency,
        measure_layers,
        real_lengths,
    )

    lengths = data_lengths(split)
    batch = long_batch(split, lengths)

    def report(changes: "Changes") -> "list[LayerReport]":
        return measure_layers(_initialized(config, module, split, vectors, changes), split)

    def attenuations(changes: "Changes") -> list[float]:
        model = _initialized(config, module, split, vectors, changes)
        profiles = transport_profiles(
            model.recurrent_layers(),
            lambda: model(batch.source, batch.source_lengths, batch.decoder_input),
            real=real_lengths(batch),
        )
        return [
            attenuation_over(profile, lengths[name.partition("/")[0]].long)
            for name, profile in profiles.items()
        ]

    return Laboratory(
        model=module.model,
        initializer=plain(config.initializer),
        longest=longest_dependency(split),
        report=report,
        attenuations=attenuations,
    )


def _initialized(
    config: DictConfig,
    module: "TranslationModule",
    split: "EncodedSplit",
    vectors: "Mapping[str, PretrainedVectors]",
    changes: "Changes",
) -> "EncoderDecoder":
    """A copy of the network as training would begin with it, were these changes typed."""
    from seq2seq.measurement import exact_copy

    changed = copy.deepcopy(config)
    for key, value in changes.items():
        OmegaConf.update(changed, f"initializer.{key}", value)
    initialize_weights(changed, module, split, vectors)
    return exact_copy(module.model)


def _verdict_of(config: DictConfig) -> str:
    """Inspect one network of a sweep; the verdict of its first layer that doesn't carry."""
    found = inspect(config, brief=True)
    for report, verdict in zip(found.reports, found.verdicts, strict=True):
        if verdict.kind != "carries":
            return f"{report.layer} {verdict}"
    return "every layer carries"


def _title() -> str:
    if not HydraConfig.initialized():
        return "seq2seq-inspect"
    return " ".join(["seq2seq-inspect", *HydraConfig.get().overrides.task])


register()


@hydra.main(version_base="1.3", config_path=config_folder(), config_name="inspect")
def _hydra_main(config: DictConfig) -> float | None:
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return run_job(config, _verdict_of)
    try:
        inspect(config)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    return None


def main() -> None:
    """Entry of ``seq2seq-inspect``."""
    start(_hydra_main, app="seq2seq-inspect")


if __name__ == "__main__":
    main()
