"""Every recurrent layer of a network, measured on one batch of its task before any training.

The batch is one of long pairs, since length decides what carries. What is measured and what it
means is in `diagnostics`; when it is asked for is left to the entries.
"""

import copy
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from seq2seq.data.batch import Batch, EncodedSplit
from seq2seq.diagnostics.advice import Advice
from seq2seq.diagnostics.layer_report import DataLengths, LayerReport, report_layers
from seq2seq.diagnostics.verdict import Verdict, judge
from seq2seq.initializers.calibration import Calibration, calibrate
from seq2seq.initializers.rules import Initialization
from seq2seq.initializers.trials import LayerCalibration
from seq2seq.models.encoder_decoder import EncoderDecoder
from seq2seq.records import write_json
from seq2seq.scoring import batch_loss

# Examples that every figure is measured on.
_EXAMPLES = 64
# Fewer for calibration, which measures again and again: a trial then costs about what a training
# step does.
_CALIBRATION_EXAMPLES = 32


def data_lengths(split: EncodedSplit) -> dict[str, DataLengths]:
    """Lengths of the training sequences, by the part of the network that scans them."""
    return {
        "encoder": DataLengths.of("sources", split.source_lengths),
        "decoder": DataLengths.of("targets", split.target_lengths),
    }


def longest_dependency(split: EncodedSplit) -> int:
    """How far back a task may ask, in tokens: the 95th percentile of the longer side's lengths."""
    return max(lengths.long for lengths in data_lengths(split).values())


def long_batch(split: EncodedSplit, lengths: dict[str, DataLengths]) -> Batch:
    """The pairs of the split whose lengths are nearest to the 95th percentiles of both sides."""
    source, target = lengths["encoder"].long, lengths["decoder"].long
    far = (split.source_lengths - source).abs() / source
    far = far + (split.target_lengths - target).abs() / target
    return split.batch(far.argsort(stable=True)[:_EXAMPLES])


def real_lengths(batch: Batch) -> dict[str, Tensor]:
    """Real timesteps of each example, by the part of the network that scans them."""
    return {"encoder": batch.source_lengths, "decoder": batch.target_lengths}


def exact_copy(model: EncoderDecoder) -> EncoderDecoder:
    """The network in float64 and without dropout, on the CPU."""
    return copy.deepcopy(model).to("cpu").double().eval()


def measure_layers(model: EncoderDecoder, split: EncodedSplit) -> list[LayerReport]:
    """Reports of all recurrent layers, in order; the network stays as it is.

    Raises:
        FloatingPointError: if the network overflows on this batch.
    """
    lengths = data_lengths(split)
    batch = long_batch(split, lengths)
    exact = exact_copy(model)
    return report_layers(
        exact.recurrent_layers(),
        lambda: batch_loss(exact, batch)[0].sum,
        real=real_lengths(batch),
        data=lengths,
    )


def calibrate_layers(
    model: EncoderDecoder,
    split: EncodedSplit,
    calibration: Calibration,
    initialization: Initialization,
) -> list[LayerCalibration]:
    """Set all recurrent layers in place, in their order, for this training split.

    Raises:
        FloatingPointError: if the network overflows on this batch.
    """
    lengths = data_lengths(split)
    batch = split.batch(long_batch(split, lengths).index[:_CALIBRATION_EXAMPLES])
    return calibrate(
        model,
        lambda: model(batch.source, batch.source_lengths, batch.decoder_input),
        layers=model.recurrent_layers(),
        lengths=real_lengths(batch),
        longest={part: one.long for part, one in lengths.items()},
        calibration=calibration,
        initialization=initialization,
    )


def write_reports(path: Path, reports: Sequence[LayerReport], advice: Advice | None = None) -> None:
    """Keep reports, their verdicts and, where one was looked for, the advice as JSON."""
    found = None
    if advice is not None:
        found = {**asdict(advice), "overrides": advice.overrides}
    write_json(path, {"layers": [_entry(report) for report in reports], "advice": found})


def _entry(report: LayerReport) -> dict[str, object]:
    lengths = report.lengths
    verdict: Verdict = judge(report)
    return {
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
