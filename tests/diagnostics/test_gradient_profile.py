"""Averages, slopes and the table of profiles."""

import json
import math
from pathlib import Path

import pytest
import torch

from seq2seq.diagnostics.gradient_profile import (
    GradientProfile,
    append_gradient_flow,
    cut_gradient_flow,
    gradient_profiles,
    log_slope,
    read_gradient_flow,
    root_mean_square,
)


def decaying_norms(lengths: list[int], slope: float) -> torch.Tensor:
    """Norms of examples whose gradient falls by `slope` per step from their own last step back."""
    norms = torch.zeros(len(lengths), max(lengths), dtype=torch.float64)
    for row, length in enumerate(lengths):
        for time in range(length):
            norms[row, time] = math.exp(slope * (length - 1 - time))
    return norms


def test_only_alignment_from_the_end_finds_the_slope_of_ragged_sequences() -> None:
    lengths = torch.randint(10, 61, (64,), generator=torch.Generator().manual_seed(0))
    norms = decaying_norms(lengths.tolist(), -0.231)
    (profile,) = gradient_profiles(0, "layer", {"hidden": norms}, lengths, min_examples=8)
    assert profile.slope == pytest.approx(-0.231, abs=1e-9)
    assert abs(profile.slope_from_start) < 0.1
    assert profile.half_life == pytest.approx(3.0, abs=0.01)


def test_the_mean_is_the_root_mean_square_over_real_timesteps_only() -> None:
    norms = torch.tensor([[3.0, 4.0, 0.0], [1.0, 2.0, 5.0]], dtype=torch.float64)
    lengths = torch.tensor([2, 3])
    from_end = root_mean_square(norms, lengths, from_end=True, min_examples=1)
    assert from_end == pytest.approx([math.sqrt((16 + 25) / 2), math.sqrt((9 + 4) / 2), 1.0])
    from_start = root_mean_square(norms, lengths, from_end=False, min_examples=1)
    assert from_start == pytest.approx([math.sqrt((9 + 1) / 2), math.sqrt((16 + 4) / 2), 5.0])


def test_padded_columns_change_no_profile() -> None:
    norms = decaying_norms([4, 6], -0.1)
    lengths = torch.tensor([4, 6])
    padded = torch.nn.functional.pad(norms, (0, 3))
    for from_end in (True, False):
        options = {"from_end": from_end, "min_examples": 1}
        assert root_mean_square(norms, lengths, **options) == root_mean_square(
            padded, lengths, **options
        )


def test_a_distance_that_too_few_examples_reach_is_unknown() -> None:
    lengths = torch.tensor([3, 3, 3, 6])
    norms = decaying_norms(lengths.tolist(), -0.5)
    (profile,) = gradient_profiles(0, "layer", {"hidden": norms}, lengths, min_examples=8)
    assert [math.isnan(norm) for norm in profile.from_end] == [False] * 3 + [True] * 3
    assert profile.attenuation == pytest.approx(-1.0)


@pytest.mark.parametrize("size", [1e-300, 1e200])
def test_squares_neither_vanish_nor_overflow(size: float) -> None:
    norms = torch.full((2, 3), size, dtype=torch.float64)
    found = root_mean_square(norms, torch.tensor([3, 3]), from_end=True, min_examples=1)
    assert found == pytest.approx([size] * 3, rel=1e-12)


def test_half_life_tells_vanishing_from_exploding() -> None:
    def profile(slope: float) -> GradientProfile:
        return GradientProfile(0, "layer", "hidden", tuple(math.exp(slope * d) for d in range(9)))

    assert profile(-math.log(2) / 5).half_life == pytest.approx(5)
    assert profile(math.log(2) / 4).half_life == pytest.approx(-4)
    assert profile(-0.3).attenuation == pytest.approx(-0.3 * 8)


def test_the_slope_leaves_out_the_first_distances_and_underflow() -> None:
    norms = [100.0, 50.0, *(math.exp(-0.4 * d) for d in range(2, 10)), 0.0, 1e-39, math.nan]
    assert log_slope(norms) == pytest.approx(-0.4)
    assert math.isnan(log_slope([1.0, 1.0, 1.0, 1.0]))


def test_underflow_shows_as_a_floor() -> None:
    profile = GradientProfile(0, "layer", "hidden", (1.0, 0.0, math.nan))
    assert profile.log10()[:2] == pytest.approx([0.0, -38.0])
    assert math.isnan(profile.log10()[2])


def some_profiles() -> list[GradientProfile]:
    return [
        GradientProfile(
            step, "encoder/layer0/forward", quantity, (1.0, 0.5, 0.25, math.nan), (0.5,)
        )
        for step in (0, 50, 100)
        for quantity in ("hidden", "cell")
    ]


def test_the_table_gives_back_what_went_in(tmp_path: Path) -> None:
    path = tmp_path / "gradient_flow.jsonl"
    for profile in some_profiles():
        append_gradient_flow(path, [profile])
    assert repr(read_gradient_flow(path)) == repr(some_profiles())
    row = json.loads(path.read_text().splitlines()[0])
    assert row["attenuation"] == pytest.approx(math.log(0.25), rel=1e-5)
    assert row["slope_from_start"] is None


def test_a_table_cut_off_at_any_byte_is_readable(tmp_path: Path) -> None:
    path, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    append_gradient_flow(path, some_profiles())
    whole = path.read_bytes()
    for end in range(len(whole)):
        cut.write_bytes(whole[:end])
        assert len(read_gradient_flow(cut)) == whole[:end].count(b"\n")


def test_a_spoilt_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gradient_flow.jsonl"
    append_gradient_flow(path, some_profiles()[:1])
    path.write_text(path.read_text() + '{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2 is no gradient profile"):
        read_gradient_flow(path)


def test_going_on_from_a_step_drops_what_came_after_it(tmp_path: Path) -> None:
    path = tmp_path / "gradient_flow.jsonl"
    assert cut_gradient_flow(path, before_step=0) == []
    append_gradient_flow(path, some_profiles())
    with path.open("a") as file:
        file.write('{"step": 100, "la')
    kept = cut_gradient_flow(path, before_step=100)
    assert {profile.step for profile in kept} == {0, 50}
    append_gradient_flow(path, some_profiles()[-2:])
    assert repr(read_gradient_flow(path)) == repr(some_profiles())
    assert list(tmp_path.iterdir()) == [path]
