"""The layout of the Custom Scalars tab: one section compares runs, a line for each."""

import re
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from toy_training import read_events

from seq2seq.callbacks.charts import COMPARISON
from seq2seq.train import train

Compose = Callable[..., DictConfig]


def comparison(events: EventAccumulator) -> dict[str, list[str]]:
    """Titles of the charts that compare runs, and the tags in each."""
    (event,) = events.Tensors("custom_scalars__config__")
    (first, *_) = Layout.FromString(event.tensor_proto.string_val[0]).category
    assert first.title == COMPARISON
    return {
        chart.title: [
            tag
            for pattern in chart.multiline.tag
            for tag in events.Tags()["scalars"]
            if re.match(pattern, tag)  # as TensorBoard does
        ]
        for chart in first.chart
    }


def test_a_chart_that_compares_runs_has_one_line_for_each(compose: Compose, tmp_path: Path) -> None:
    diagnostics = ("callbacks.gradient_flow.every_n_steps=2", "callbacks.spectrum=null")
    train(compose(*diagnostics, "model=lstm_attention", "trainer.log_every_n_steps=2"))
    layers = ("encoder/layer0/forward", "encoder/layer0/backward", "decoder/layer0")
    assert comparison(read_events(tmp_path / "run" / "tensorboard")) == {
        "training loss": ["train/loss"],
        "gradient norm before clipping": ["train/gradient_norm"],
        "validation loss": ["val/loss"],
        "validation exact match": ["val/exact_match"],
        **{
            f"transport slope, {layer}": [f"gradient_flow/{layer}/transport/slope"]
            for layer in layers
        },
        "update over weight of the recurrent matrices": ["update_ratio/recurrent"],
    }


def test_runs_compare_without_diagnostics_and_validation_too(
    compose: Compose, tmp_path: Path
) -> None:
    without = ("trainer.limit_val_batches=0", "callbacks.best_checkpoint=null")
    train(compose(*without, "trainer.log_every_n_steps=2"))
    assert comparison(read_events(tmp_path / "run" / "tensorboard")) == {
        "training loss": ["train/loss"],
        "gradient norm before clipping": ["train/gradient_norm"],
    }
