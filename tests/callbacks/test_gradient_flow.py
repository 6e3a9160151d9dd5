"""Probing during training: it changes nothing, nothing changes it, and what it writes."""

import copy
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from toy_training import Module, alone, fit, hooks, loss_scaling, make_batch, read_events

from seq2seq.callbacks.gradient_flow import TABLE, GradientFlow
from seq2seq.data.batch import Batch
from seq2seq.diagnostics.gradient_profile import GradientProfile, read_gradient_flow


def rows(folder: Path) -> list[GradientProfile]:
    return read_gradient_flow(folder / TABLE)


def assert_same_profiles(first: list[GradientProfile], second: list[GradientProfile]) -> None:
    assert first
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert (a.step, a.layer, a.quantity) == (b.step, b.layer, b.quantity)
        assert a.from_end == pytest.approx(b.from_end, rel=1e-4, nan_ok=True)
        assert a.from_start == pytest.approx(b.from_start, rel=1e-4, nan_ok=True)


@pytest.mark.parametrize(
    "options",
    [
        {"cell": "lstm", "encoder_layers": 2, "layer_dropout": 0.2},
        {"cell": "lstm", "attention": "none", "bridge": "linear"},
        {"cell": "gru", "input_feeding": True, "output_dropout": 0.2},
        {"cell": "rnn_tanh", "attention": "additive"},
    ],
)
def test_weights_after_20_steps_are_bitwise_the_same_with_and_without_probes(
    options: dict[str, Any], tmp_path: Path
) -> None:
    plain, probed = Module(**options), Module(**options)
    fit(plain, tmp_path, [], gradient_clip_val=1.0)
    fit(probed, tmp_path, [GradientFlow(every_n_steps=1)], gradient_clip_val=1.0)
    assert {profile.step for profile in rows(tmp_path)} == set(range(20))
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, probed.state_dict()[name]), name


def test_a_probe_comes_every_n_steps_for_every_layer_and_quantity(tmp_path: Path) -> None:
    fit(Module(encoder_layers=2), tmp_path, [GradientFlow(every_n_steps=8)])
    found = [(profile.step, profile.layer, profile.quantity) for profile in rows(tmp_path)]
    assert found == [
        (step, layer, quantity)
        for step in (0, 8, 16)
        for layer in (
            "encoder/layer0/forward",
            "encoder/layer0/backward",
            "encoder/layer1/forward",
            "encoder/layer1/backward",
            "decoder/layer0",
            "decoder/layer1",
        )
        for quantity in ("hidden", "cell", "transport")
    ]


def test_a_loss_scale_of_1024_changes_no_profile(tmp_path: Path) -> None:
    plain, scaled = tmp_path / "plain", tmp_path / "scaled"
    fit(Module(), plain, [GradientFlow(every_n_steps=5)])
    fit(Module(), scaled, [GradientFlow(every_n_steps=5)], plugins=loss_scaling(1024.0))
    assert_same_profiles(rows(plain), rows(scaled))


def test_gradient_accumulation_changes_no_profile(tmp_path: Path) -> None:
    once, accumulated = tmp_path / "once", tmp_path / "accumulated"
    fit(Module(), once, [GradientFlow(every_n_steps=5)])
    # The same updates: each batch four times, a fourth of its gradient at a time.
    batches = [make_batch(seed) for seed in range(20) for _ in range(4)]
    fit(
        Module(),
        accumulated,
        [GradientFlow(every_n_steps=5)],
        batches=batches,
        accumulate_grad_batches=4,
    )
    assert_same_profiles(rows(once), rows(accumulated))


def test_the_size_of_the_batch_does_not_matter_to_an_example(tmp_path: Path) -> None:
    whole, single = tmp_path / "whole", tmp_path / "single"
    batch = make_batch(0)
    fit(Module(), whole, [GradientFlow(examples=1)], batches=[batch])
    fit(Module(), single, [GradientFlow(examples=1)], batches=[alone(batch)])
    assert_same_profiles(rows(whole), rows(single))


def test_bfloat16_stays_close(tmp_path: Path) -> None:
    exact, rough = tmp_path / "exact", tmp_path / "rough"
    fit(Module(), exact, [GradientFlow()], batches=[make_batch(0)])
    fit(Module(), rough, [GradientFlow()], batches=[make_batch(0)], precision="bf16-mixed")
    for a, b in zip(rows(exact), rows(rough), strict=True):
        assert a.from_end == pytest.approx(b.from_end, rel=0.1, nan_ok=True)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("input_feeding", [False, True])
def test_a_gpu_writes_the_same_profiles(
    precision: Any, input_feeding: bool, tmp_path: Path
) -> None:
    exact, rough = tmp_path / "exact", tmp_path / "rough"
    batches = [make_batch(0)]
    module = Module(input_feeding=input_feeding)
    fit(copy.deepcopy(module), exact, [GradientFlow()], batches=batches)
    options = {"precision": precision, "accelerator": "gpu", "devices": 1}
    fit(module, rough, [GradientFlow()], batches=batches, **options)
    for a, b in zip(rows(exact), rows(rough), strict=True):
        assert a.from_end == pytest.approx(b.from_end, rel=0.1, nan_ok=True)


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> EventAccumulator:
    folder = tmp_path_factory.mktemp("events")
    callback = GradientFlow(every_n_steps=2, heat_map_every=4)
    fit(Module(encoder_layers=2), folder, [callback], tensorboard=True)
    return read_events(folder)


def test_tensorboard_gets_slopes_norms_and_pictures_of_every_layer(
    events: EventAccumulator,
) -> None:
    tags = events.Tags()
    scalars = [tag for tag in tags["scalars"] if tag.startswith("gradient_")]
    layer = "encoder/layer1/backward"
    for quantity in ("hidden", "cell", "transport"):
        for number in ("slope", "half_life", "attenuation"):
            assert f"gradient_flow/{layer}/{quantity}/{number}" in scalars
    assert "gradient_flow/decoder/layer0/hidden/slope_from_start" in scalars
    distances = [tag for tag in scalars if tag.startswith(f"gradient_norm/{layer}/cell/")]
    assert [tag.rsplit("_", 1)[1] for tag in distances] == [
        "0000",
        "0001",
        "0002",
        "0003",
        "0005",
        "0008",
    ]
    assert tags["images"] == [
        f"gradient_heat_map/{name}/{quantity}"
        for name in (
            "encoder/layer0/forward",
            "encoder/layer0/backward",
            "encoder/layer1/forward",
            "encoder/layer1/backward",
            "decoder/layer0",
            "decoder/layer1",
        )
        for quantity in ("hidden", "cell")
    ]
    assert f"gradient_ridge/{layer}/hidden" in tags["histograms"]
    total = len(scalars) + len(tags["images"]) + len(tags["histograms"])
    assert total <= 300


def test_heat_maps_are_drawn_every_few_probes_and_at_the_end(events: EventAccumulator) -> None:
    drawn = events.Images("gradient_heat_map/decoder/layer0/hidden")
    assert [image.step for image in drawn] == [6, 14, 18]


def test_scalars_carry_the_step_and_the_logarithm(events: EventAccumulator) -> None:
    values = events.Scalars("gradient_norm/decoder/layer0/hidden/distance_0000")
    assert [value.step for value in values] == list(range(0, 20, 2))
    assert all(-4 < value.value < 2 for value in values)


def test_the_ridge_has_one_bucket_a_distance(events: EventAccumulator) -> None:
    (first, *_) = events.Histograms("gradient_ridge/decoder/layer0/hidden")
    limits = first.histogram_value.bucket_limit
    assert limits[:3] == [0.5, 1.5, 2.5]


def test_more_tags_than_allowed_are_refused_with_both_numbers(tmp_path: Path) -> None:
    module = Module(encoder_layers=6, bidirectional=False)
    with pytest.raises(ValueError, match=r"12 recurrent layers .* 444 .* max_tags is 300"):
        fit(module, tmp_path, [GradientFlow(max_tags=300)], tensorboard=True)


def test_the_deepest_model_that_ships_stays_within_the_tags(tmp_path: Path) -> None:
    module = Module(encoder_layers=4, bidirectional=False, attention="none", bridge="copy")
    fit(module, tmp_path, [GradientFlow()], batches=[make_batch(0)], tensorboard=True)


def test_a_resumed_run_goes_on_in_the_same_table_without_doubles(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    fit(Module(), whole, [GradientFlow(every_n_steps=2)], max_epochs=2)
    checkpoint = ModelCheckpoint(dirpath=broken, filename="epoch", save_on_train_epoch_end=True)
    callbacks = [GradientFlow(every_n_steps=2), checkpoint]
    fit(Module(), broken, callbacks, enable_checkpointing=True)
    # The run went on for a while after its checkpoint, and was killed while writing.
    table = broken / TABLE
    extra = (whole / TABLE).read_text().splitlines(keepends=True)
    table.write_text("".join(extra[: len(extra) * 3 // 4]) + '{"step": 30, "lay')
    callback = GradientFlow(every_n_steps=2)
    fit(Module(), broken, [callback], max_epochs=2, ckpt_path=broken / "epoch.ckpt")
    steps = [profile.step for profile in rows(broken)]
    assert steps == [profile.step for profile in rows(whole)]
    assert_same_profiles(rows(broken), rows(whole))


def test_a_fresh_run_in_the_same_folder_starts_the_table_anew(tmp_path: Path) -> None:
    for _ in range(2):
        fit(Module(), tmp_path, [GradientFlow()], batches=[make_batch(0)])
    assert len(rows(tmp_path)) == 9


class Watcher(lightning.Callback):
    """Counts hooks where none may be."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: Module) -> None:  # type: ignore[override]
        self.seen.append(hooks(pl_module))

    def on_after_backward(self, trainer: lightning.Trainer, pl_module: Module) -> None:  # type: ignore[override]
        self.seen.append(hooks(pl_module))


def test_hooks_are_there_for_one_forward_pass_only(tmp_path: Path) -> None:
    watcher = Watcher()
    module = Module()
    loader = DataLoader([make_batch(seed) for seed in range(4)], batch_size=None)  # type: ignore[arg-type]
    trainer = lightning.Trainer(
        default_root_dir=tmp_path,
        logger=False,
        callbacks=[GradientFlow(every_n_steps=1), watcher],
        accelerator="cpu",
        max_epochs=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader, loader)
    assert watcher.seen == [0] * 6  # sanity check, four batches, validation
    assert hooks(module) == 0


def test_an_error_in_the_forward_pass_leaves_no_hook(tmp_path: Path) -> None:
    class Broken(Module):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            super().training_step(batch, batch_idx)
            raise RuntimeError("broken")

    module = Broken()
    with pytest.raises(RuntimeError, match="broken"):
        fit(module, tmp_path, [GradientFlow()])
    assert hooks(module) == 0


def test_a_gradient_that_overflows_is_left_out_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = Module(factor=math.inf)
    with caplog.at_level(logging.WARNING):
        fit(module, tmp_path, [GradientFlow(every_n_steps=1)], batches=[make_batch(0)] * 3)
    messages = [record.message for record in caplog.records if "gradient flow" in record.message]
    assert len(messages) == 1
    assert "not finite" in messages[0] and "step 0" in messages[0]
    assert not (tmp_path / TABLE).exists()


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_network_is_trained_as_ever_and_one_line_says_why_nothing_shows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = []
    for callbacks in ([], [GradientFlow(every_n_steps=2)]):
        module = Module(cell="gru", attention="none", bridge="linear")
        module.model.compile(backend="eager")
        with caplog.at_level(logging.WARNING):
            fit(module, tmp_path, callbacks, batches=[make_batch(seed) for seed in range(4)])
        weights.append(module.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    messages = [record.message for record in caplog.records if "gradient flow" in record.message]
    assert len(messages) == 1
    assert "compiled" in messages[0]


def test_fast_dev_run_probes_and_writes_nothing(tmp_path: Path) -> None:
    fit(Module(), tmp_path, [GradientFlow()], fast_dev_run=1)
    assert not (tmp_path / TABLE).exists()


def test_a_module_without_recurrent_layers_is_refused(tmp_path: Path) -> None:
    module = Module()
    module.model = nn.Linear(2, 2)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="remove the callback gradient_flow"):
        fit(module, tmp_path, [GradientFlow()])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps is 0"),
        ({"distances": [-1]}, "none may be below 0"),
        ({"heat_map_lowest": 3.0}, "must be below heat_map_highest"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradientFlow(**options)
