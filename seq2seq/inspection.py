"""See before training whether signal and gradient will carry: one batch, no step.

Started as ``scripts/inspect``, ``seq2seq-inspect`` or ``python -m seq2seq.inspection``; every
argument is a Hydra override of training. What is measured and what it means is in `diagnostics`.
"""

import copy
import json
import logging
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from seq2seq.config import config_folder, plain, register
from seq2seq.instantiate import check_targets
from seq2seq.train import build_datamodule, build_module, check_sizes, initialize_weights

if TYPE_CHECKING:
    from seq2seq.data.batch import Batch, EncodedSplit
    from seq2seq.diagnostics.advice import Advice, Changes, Laboratory
    from seq2seq.diagnostics.layer_report import DataLengths, LayerReport
    from seq2seq.diagnostics.verdict import Verdict
    from seq2seq.models.encoder_decoder import EncoderDecoder
    from seq2seq.module import TranslationModule

JSON, PICTURE = "inspection.json", "inspection.png"

# Examples that every figure is measured on.
_EXAMPLES = 64


@dataclass(frozen=True)
class Inspection:
    """What was found: of each layer in order, and the change that helps, if one is needed."""

    reports: "list[LayerReport]"
    verdicts: "list[Verdict]"
    advice: "Advice | None"


def inspect(config: DictConfig) -> Inspection:
    """Measure every recurrent layer, and write table, picture and JSON.

    Args:
        config: composed from ``conf/inspect.yaml`` or ``conf/train.yaml``, of type
            :class:`~seq2seq.config.TrainConfig`.

    Raises:
        ValueError, FileNotFoundError: one sentence for whatever the user can mend.
    """
    from seq2seq.diagnostics.layer_picture import draw_layers

    folder = Path(config.run_folder)
    if (folder / JSON).exists():
        raise ValueError(
            f"{folder / JSON} is there already and is not overwritten: remove it, or choose "
            "another hydra.run.dir"
        )
    found = measure(config)
    advice = _advice_text(found).partition("\n")[0]
    picture = draw_layers(found.reports, found.verdicts, title=_title(), advice=advice)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PICTURE).write_bytes(picture)
    _write_json(folder / JSON, found)
    print(f"{text(found)}\n\n{folder / PICTURE}\n{folder / JSON}", flush=True)
    return found


def measure(config: DictConfig) -> Inspection:
    """Build model and batch, measure every recurrent layer, and look for a change that helps.

    Raises:
        ValueError, FileNotFoundError: as :func:`inspect`.
    """
    import lightning

    from seq2seq.diagnostics.advice import advise
    from seq2seq.diagnostics.verdict import judge

    check_targets(config)
    lightning.seed_everything(config.seed, verbose=False)
    check_sizes(config)
    datamodule = build_datamodule(config)
    module = build_module(config, datamodule)
    laboratory = _laboratory(config, module, datamodule.split("train"))
    try:
        reports = list(laboratory.report({}))
        advice = advise(laboratory, reports)
    except FloatingPointError as error:
        raise ValueError(
            f"the network overflows on its first batch ({error}): choose a far smaller "
            "initializer, such as initializer=orthogonal"
        ) from error
    return Inspection(reports, [judge(report) for report in reports], advice)


def data_lengths(split: "EncodedSplit") -> "dict[str, DataLengths]":
    """Lengths of the training sequences, by the part of the network that scans them."""
    from seq2seq.diagnostics.layer_report import DataLengths

    return {
        "encoder": DataLengths.of("sources", split.source_lengths),
        "decoder": DataLengths.of("targets", split.target_lengths),
    }


def long_batch(split: "EncodedSplit", lengths: "dict[str, DataLengths]") -> "Batch":
    """The pairs of the split whose lengths are nearest to the 95th percentiles of both sides."""
    source, target = lengths["encoder"].long, lengths["decoder"].long
    far = (split.source_lengths - source).abs() / source
    far = far + (split.target_lengths - target).abs() / target
    return split.batch(far.argsort(stable=True)[:_EXAMPLES])


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
    config: DictConfig, module: "TranslationModule", split: "EncodedSplit"
) -> "Laboratory":
    """The network on one batch, in float64 and without dropout, under changed initializers."""
    from seq2seq.diagnostics.advice import Laboratory
    from seq2seq.diagnostics.layer_report import (
        attenuation_over,
        report_layers,
        transport_profiles,
    )
    from seq2seq.scoring import batch_loss

    lengths = data_lengths(split)
    batch = long_batch(split, lengths)
    real = {"encoder": batch.source_lengths, "decoder": batch.target_lengths}

    def report(changes: "Changes") -> "list[LayerReport]":
        model = _initialized(config, module, changes)
        return report_layers(
            model.recurrent_layers(),
            lambda: batch_loss(model, batch)[0].sum,
            real=real,
            data=lengths,
        )

    def attenuations(changes: "Changes") -> list[float]:
        model = _initialized(config, module, changes)
        profiles = transport_profiles(
            model.recurrent_layers(),
            lambda: model(batch.source, batch.source_lengths, batch.decoder_input),
            real=real,
        )
        return [
            attenuation_over(profile, lengths[name.partition("/")[0]].long)
            for name, profile in profiles.items()
        ]

    return Laboratory(
        model=module.model,
        initializer=plain(config.initializer),
        report=report,
        attenuations=attenuations,
    )


def _initialized(
    config: DictConfig, module: "TranslationModule", changes: "Changes"
) -> "EncoderDecoder":
    """A copy of the network as training would begin with it, were these changes typed."""
    changed = copy.deepcopy(config)
    for key, value in changes.items():
        OmegaConf.update(changed, f"initializer.{key}", value)
    # The table of weights that training prints belongs to training.
    training = logging.getLogger("seq2seq.train")
    level = training.level
    training.setLevel(logging.WARNING)
    try:
        initialize_weights(changed, module)
    finally:
        training.setLevel(level)
    return copy.deepcopy(module.model).double().eval()


def _title() -> str:
    if not HydraConfig.initialized():
        return "seq2seq-inspect"
    return " ".join(["seq2seq-inspect", *HydraConfig.get().overrides.task])


def _write_json(path: Path, found: Inspection) -> None:
    layers = []
    for report, verdict in zip(found.reports, found.verdicts, strict=True):
        lengths = report.lengths
        layers.append(
            {
                **asdict(report),
                "spectra": {gate: both._asdict() for gate, both in report.spectra.items()},
                "slope": report.slope,
                "half_life": report.half_life,
                "attenuation": report.attenuation,
                "memory_dimension": {
                    "median": report.memory_dimension(lengths.median),
                    "long": report.memory_dimension(lengths.long),
                },
                "verdict": asdict(verdict),
            }
        )
    advice = None
    if found.advice is not None:
        advice = {**asdict(found.advice), "overrides": found.advice.overrides}
    content = _json({"layers": layers, "advice": advice})
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)


def _json(value: Any) -> Any:
    """The same with six digits, and null for what JSON has no number for."""
    match value:
        case dict():
            return {key: _json(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_json(inner) for inner in value]
        case float():
            return float(f"{value:.6g}") if math.isfinite(value) else None
        case _:
            return value


register()


@hydra.main(version_base="1.3", config_path=config_folder(), config_name="inspect")
def _hydra_main(config: DictConfig) -> None:
    try:
        inspect(config)
    except (ValueError, OSError) as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        sys.exit(f"error: {error}")


def main() -> None:
    """Entry of ``seq2seq-inspect``."""
    _hydra_main()


if __name__ == "__main__":
    main()
