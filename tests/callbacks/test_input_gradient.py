"""The free tier during training: what it averages, and what doesn't change it."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_training import Module, alone, fit, hooks, loss_scaling, make_batch, read_events

from seq2seq.callbacks.gradient_flow import TABLE as EXACT_TABLE
from seq2seq.callbacks.gradient_flow import GradientFlow
from seq2seq.callbacks.input_gradient import TABLE, InputGradient
from seq2seq.data.batch import Batch
from seq2seq.diagnostics.gradient_profile import GradientProfile, read_gradient_flow


def rows(folder: Path) -> list[GradientProfile]:
    return read_gradient_flow(folder / TABLE)


def assert_same_profiles(
    first: list[GradientProfile], second: list[GradientProfile], rel: float = 1e-4
) -> None:
    assert first
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert (a.step, a.layer, a.quantity) == (b.step, b.layer, b.quantity)
        assert a.from_end == pytest.approx(b.from_end, rel=rel, nan_ok=True)


def first_is_longest(batch: Batch) -> bool:
    both = torch.stack([batch.source_lengths, batch.target_lengths])
    return bool((both[:, 1:] < both[:, :1]).all())


def test_the_first_line_is_of_the_first_step_and_each_other_of_all_steps_since(
    tmp_path: Path,
) -> None:
    each, some = tmp_path / "each", tmp_path / "some"
    batches = [make_batch(seed) for seed in range(9)]
    fit(Module(), each, [InputGradient(log_every_n_steps=1, min_examples=1)], batches=batches)
    fit(Module(), some, [InputGradient(log_every_n_steps=4, min_examples=1)], batches=batches)
    single = {(profile.step, profile.layer): profile.from_end for profile in rows(each)}
    assert {profile.step for profile in rows(some)} == {0, 4, 8}
    for profile in rows(some):
        steps = [0] if profile.step == 0 else range(profile.step - 3, profile.step + 1)
        parts = [single[step, profile.layer] for step in steps]
        # All sequences have a last timestep, so that there every batch counts as much.
        rms = math.sqrt(sum(part[0] ** 2 for part in parts) / len(parts))
        assert profile.from_end[0] == pytest.approx(rms, rel=1e-5)


def test_only_every_so_manieth_step_is_watched_if_asked_for(tmp_path: Path) -> None:
    every, third = tmp_path / "every", tmp_path / "third"
    batches = [make_batch(seed) for seed in range(7)]
    fit(Module(), every, [InputGradient(log_every_n_steps=1)], batches=batches)
    fit(Module(), third, [InputGradient(every_n_steps=3, log_every_n_steps=1)], batches=batches)
    expected = [profile for profile in rows(every) if profile.step % 3 == 0]
    assert_same_profiles(rows(third), expected)


@pytest.mark.parametrize("input_feeding", [False, True])
def test_loss_scale_accumulation_and_batch_size_change_no_profile(
    input_feeding: bool, tmp_path: Path
) -> None:
    def profiles(name: str, **options: Any) -> list[GradientProfile]:
        callback = InputGradient(log_every_n_steps=2, min_examples=1)
        fit(Module(input_feeding=input_feeding), tmp_path / name, [callback], **options)
        return rows(tmp_path / name)

    batches = [make_batch(seed) for seed in range(5)]
    plain = profiles("plain", batches=batches)
    assert_same_profiles(plain, profiles("scaled", batches=batches, plugins=loss_scaling(1024.0)))
    # The same updates: each batch four times, a fourth of its gradient at a time.
    four_times = [batch for batch in batches for _ in range(4)]
    accumulated = profiles("accumulated", batches=four_times, accumulate_grad_batches=4)
    assert_same_profiles(plain, accumulated)

    # One whose first example alone has timesteps as far from the end as its own.
    batch = next(batch for batch in map(make_batch, range(99)) if first_is_longest(batch))
    single = profiles("single", batches=[alone(batch)])
    whole = profiles("whole", batches=[batch])
    for one, of_eight in zip(single, whole, strict=True):
        assert one.from_end[-1] == pytest.approx(of_eight.from_end[-1], rel=1e-4)


def test_bfloat16_stays_close(tmp_path: Path) -> None:
    exact, rough = tmp_path / "exact", tmp_path / "rough"
    fit(Module(), exact, [InputGradient()], batches=[make_batch(0)])
    fit(Module(), rough, [InputGradient()], batches=[make_batch(0)], precision="bf16-mixed")
    assert_same_profiles(rows(rough), rows(exact), rel=0.1)


def test_its_slope_in_tensorboard_is_near_the_exact_one(tmp_path: Path) -> None:
    module = Module(attention="none", bridge="linear", hidden_size=32)
    batches = [make_batch(0, size=32, longest=30)]
    fit(module, tmp_path, [GradientFlow(), InputGradient()], batches=batches, tensorboard=True)
    events = read_events(tmp_path)
    for direction in ("forward", "backward"):
        found, exact = (
            events.Scalars(f"gradient_flow/encoder/layer0/{direction}/{quantity}/slope")[0].value
            for quantity in ("input", "hidden")
        )
        assert found == pytest.approx(exact, rel=0.1)
        assert exact < -0.2
    assert {profile.quantity for profile in read_gradient_flow(tmp_path / EXACT_TABLE)} == {
        "hidden",
        "cell",
        "transport",
    }


def test_a_resumed_run_goes_on_in_the_same_table_without_doubles(tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    checkpoint = ModelCheckpoint(dirpath=tmp_path, filename="epoch", save_on_train_epoch_end=True)
    callback = InputGradient(log_every_n_steps=5)
    fit(Module(), tmp_path, [callback, checkpoint], enable_checkpointing=True)
    table = tmp_path / TABLE
    table.write_text(table.read_text() + table.read_text().splitlines()[0].replace("0", "25", 1))
    callback = InputGradient(log_every_n_steps=5)
    fit(Module(), tmp_path, [callback], max_epochs=2, ckpt_path=tmp_path / "epoch.ckpt")
    steps = [profile.step for profile in rows(tmp_path)]
    assert steps == [step for step in range(0, 40, 5) for _ in range(3)]


def test_no_hook_is_left_after_training(tmp_path: Path) -> None:
    module = Module()
    fit(module, tmp_path, [InputGradient()], batches=[make_batch(0)])
    assert hooks(module) == 0


def test_where_nothing_can_be_watched_one_line_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = Module(attention="none", bridge="linear").requires_grad_(False)
    module.model.decoder.output.requires_grad_(True)
    with caplog.at_level(logging.WARNING):
        fit(module, tmp_path, [InputGradient()], batches=[make_batch(seed) for seed in range(3)])
    messages = [r.message for r in caplog.records if "input gradient" in r.message]
    assert len(messages) == 1
    assert "no recurrent layer could be watched" in messages[0]


def test_fast_dev_run_writes_nothing(tmp_path: Path) -> None:
    fit(Module(), tmp_path, [InputGradient()], fast_dev_run=1)
    assert not (tmp_path / TABLE).exists()
