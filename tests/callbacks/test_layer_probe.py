"""What all groups of diagnostics promise: they change nothing, share a record, and stay few."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from toy_training import Module, fit, hooks, make_batch, read_events

from seq2seq.callbacks import layer_probe
from seq2seq.callbacks.charts import ChartLayout
from seq2seq.callbacks.forward_signal import ForwardSignal
from seq2seq.callbacks.gradient_flow import GradientFlow
from seq2seq.callbacks.input_gradient import InputGradient
from seq2seq.callbacks.spectrum import Spectrum
from seq2seq.callbacks.update_ratio import UpdateRatio
from seq2seq.callbacks.weight_gradient import WeightGradient
from seq2seq.diagnostics.gradient_flow import LayerFlow

GROUPS: dict[str, Callable[..., Any]] = {
    "gradient_flow": GradientFlow,
    "input_gradient": lambda **options: InputGradient(log_every_n_steps=2, **options),
    "forward_signal": ForwardSignal,
    "weight_gradient": WeightGradient,
    "spectrum": lambda **options: Spectrum(exponents=4, **options),
    "update_ratio": UpdateRatio,
}
MODELS: dict[str, dict[str, Any]] = {
    "attention": {"encoder_layers": 2, "layer_dropout": 0.2},
    "no attention": {"cell": "gru", "attention": "none", "bridge": "linear"},
    "input feeding": {"cell": "lstm", "input_feeding": True, "output_dropout": 0.2},
    "rnn": {"cell": "rnn_tanh", "attention": "additive"},
}
PLAIN: dict[str, Mapping[str, torch.Tensor]] = {}


def every_group(**options: Any) -> list[lightning.Callback]:
    return [group(every_n_steps=1, **options) for group in GROUPS.values()]


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("group", [*GROUPS, "all"])
def test_weights_are_bitwise_the_same_with_and_without_a_group(
    group: str, options: dict[str, Any], tmp_path: Path
) -> None:
    def trained(callbacks: list[lightning.Callback], **more: Any) -> Mapping[str, torch.Tensor]:
        module = Module(**options)
        batches = [make_batch(seed) for seed in range(8)]
        fit(module, tmp_path, callbacks, batches=batches, gradient_clip_val=1.0, **more)
        return module.state_dict()

    if str(options) not in PLAIN:
        PLAIN[str(options)] = trained([])
    callbacks = every_group() if group == "all" else [GROUPS[group](every_n_steps=1)]
    watched = trained(callbacks, tensorboard=True)
    written = read_events(tmp_path).Tags()["scalars"]
    assert set(callbacks[0].tags(Module(**options))) & set(written)
    for name, weight in PLAIN[str(options)].items():
        assert torch.equal(weight, watched[name]), name


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_every_group_writes_the_tags_that_it_announces_and_no_others(
    options: dict[str, Any], tmp_path: Path
) -> None:
    module, callbacks = Module(**options), every_group()
    fit(module, tmp_path, callbacks, batches=[make_batch(s) for s in range(3)], tensorboard=True)
    found = read_events(tmp_path).Tags()
    written = {*found["scalars"], *found["images"], *found["histograms"]} - {"epoch"}
    announced = [tag for callback in callbacks for tag in callback.tags(module)]
    assert len(set(announced)) == len(announced)
    assert written <= set(announced)
    # Distances beyond the longest sequence of 12 never come.
    missing = [tag for tag in announced if tag not in written]
    assert all("/distance_" in tag and int(tag[-4:]) >= 12 for tag in missing)


def test_the_deepest_model_that_ships_stays_within_the_tags(tmp_path: Path) -> None:
    module = Module(encoder_layers=4, bidirectional=False, attention="none", bridge="copy")
    callbacks = every_group()
    fit(module, tmp_path, callbacks, batches=[make_batch(0)], tensorboard=True)
    tags = [tag for callback in callbacks for tag in callback.tags(module)]
    assert len(set(tags)) == len(tags)
    assert len(tags) <= GradientFlow().max_tags


def test_more_tags_than_allowed_are_refused_for_all_groups_together(tmp_path: Path) -> None:
    callbacks = [Spectrum(), GradientFlow(max_tags=120)]
    with pytest.raises(ValueError, match=r"141 TensorBoard tags, 111 of them .* max_tags is 120"):
        fit(Module(), tmp_path, callbacks, batches=[make_batch(0)], tensorboard=True)


def test_one_layout_holds_the_charts_of_all_groups(tmp_path: Path) -> None:
    callbacks = [*every_group(), ChartLayout()]
    fit(Module(), tmp_path, callbacks, batches=[make_batch(0)], tensorboard=True)
    (event,) = read_events(tmp_path).Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    charts = {
        category.title: [chart.title for chart in category.chart] for category in layout.category
    }
    assert list(charts) == [
        "Compare runs",
        "Gradient flow",
        "Gradient norm by distance (log10)",
        "Forward signal",
        "Recurrent weight gradient over time",
        "Spectrum",
        "Optimizer step",
    ]
    assert {"slope of all layers, hidden", "slope of all layers, input"} <= set(
        charts["Gradient flow"]
    )


def test_groups_that_are_due_together_follow_the_batch_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed: list[int] = []
    real = layer_probe.layer_flow

    def counted(*args: Any, **kwargs: Any) -> LayerFlow:
        followed.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(layer_probe, "layer_flow", counted)
    callbacks = [GradientFlow(every_n_steps=2), ForwardSignal(every_n_steps=4), Spectrum()]
    fit(Module(), tmp_path, callbacks, batches=[make_batch(seed) for seed in range(5)])
    assert len(followed) == 3 * 3  # layers, probes at steps 0, 2 and 4


def test_groups_that_want_other_examples_have_a_record_of_their_own(tmp_path: Path) -> None:
    few, many = ForwardSignal(examples=2), ForwardSignal(examples=8)
    fit(Module(), tmp_path, [few, many], batches=[make_batch(0)])
    assert few.recording is not many.recording


def test_an_error_in_the_forward_pass_leaves_no_hook(tmp_path: Path) -> None:
    class Broken(Module):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            super().training_step(batch, batch_idx)
            raise RuntimeError("broken")

    module = Broken()
    with pytest.raises(RuntimeError, match="broken"):
        fit(module, tmp_path, every_group())
    assert hooks(module) == 0


@pytest.mark.parametrize("group", GROUPS)
def test_a_cadence_below_1_is_refused_with_its_key(group: str) -> None:
    with pytest.raises(ValueError, match=f"^callbacks.{group}.every_n_steps is 0.* to null"):
        GROUPS[group](every_n_steps=0)


@pytest.mark.parametrize("group", [*GROUPS][:-1])
def test_a_module_without_recurrent_layers_is_refused(group: str, tmp_path: Path) -> None:
    module = Module()
    module.model = torch.nn.Linear(2, 2)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=f"remove the callback {group}"):
        fit(module, tmp_path, [GROUPS[group](every_n_steps=1)])


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_a_gpu_writes_the_same_numbers(
    options: dict[str, Any], precision: str, tmp_path: Path
) -> None:
    exact, rough = tmp_path / "exact", tmp_path / "rough"
    batches = [make_batch(0)]
    options = {key: value for key, value in options.items() if "dropout" not in key}
    fit(Module(**options), exact, every_group(), batches=batches, tensorboard=True)
    device = {"accelerator": "gpu", "devices": 1, "precision": precision}
    fit(Module(**options), rough, every_group(), batches=batches, tensorboard=True, **device)
    first, second = (read_events(folder) for folder in (exact, rough))
    for tag in first.Tags()["scalars"]:
        if precision == "16-mixed" and tag.startswith("update_ratio"):
            continue  # the first step is skipped
        expected, found = (events.Scalars(tag)[0].value for events in (first, second))
        assert found == pytest.approx(expected, rel=0.1, abs=0.05), tag
