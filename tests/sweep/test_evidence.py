"""What is read of runs that ended well, ended badly, or whose files were damaged."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from seq2seq.records import write_json
from seq2seq.status import held
from seq2seq.sweep.evidence import Evidence, gather
from seq2seq.sweep.plan import SweepPlan, write_plan

MakeRun = Callable[..., Path]


def only(folder: Path) -> Evidence:
    (one,) = gather([folder]).evidence
    return one


def test_a_run_is_read_with_its_command_its_curve_and_its_gradient(
    make_run: MakeRun, tmp_path: Path
) -> None:
    overrides = {"model": "gru", "optimizer.lr": 0.01, "sweep.resume": "x", "ckpt_path": "y.ckpt"}
    curve = {10: 2.5, 20: 1.5}
    made = {"loss": 1.25, "curve": curve, "slope": -0.5, "objective": "test/bleu"}
    make_run(tmp_path / "0", overrides, **made)
    one = only(tmp_path)
    assert one.command == ("seq2seq-train", "hydra.mode=RUN", "model=gru", "optimizer.lr=0.01")
    assert one.run.columns["test/loss"] == 1.25
    assert one.run.columns["slope"] == pytest.approx(-0.5)
    assert {step: row["train/loss"] for step, row in one.curves.items()} == curve
    assert (one.name, one.status, one.seconds, one.objective) == ("0", "finished", 2, "test/bleu")
    assert not one.notes


def test_a_key_that_a_run_was_started_without_is_looked_up_in_its_config(
    make_run: MakeRun, tmp_path: Path
) -> None:
    make_run(tmp_path / "a", {"optimizer.lr": 0.5, "model": "lstm", "figure.x": "seed"})
    make_run(tmp_path / "b", {"seed": 3})
    a, b = gather([tmp_path]).evidence
    assert dict(a.run.overrides) == {"optimizer.lr": 0.5, "model": "lstm", "seed": 1}
    assert dict(b.run.overrides) == {"optimizer.lr": 0.002, "model": "gru", "seed": 3}


def test_all_nans_are_one_value(make_run: MakeRun, tmp_path: Path) -> None:
    for number, seed in enumerate((1, 2)):
        make_run(tmp_path / str(number), {"optimizer.lr": "nan", "seed": seed})
    assert {one.run.overrides["optimizer.lr"] for one in gather([tmp_path]).evidence} == {"nan"}


def test_runs_come_in_the_order_of_their_numbers(make_run: MakeRun, tmp_path: Path) -> None:
    for number in (10, 9, 1):
        make_run(tmp_path / str(number), {"seed": number})
    assert [one.name for one in gather([tmp_path]).evidence] == ["1", "9", "10"]


def test_several_sweeps_are_told_apart_by_name_and_each_run_is_read_once(
    make_run: MakeRun, tmp_path: Path
) -> None:
    for above in ("monday", "friday"):
        make_run(tmp_path / above / "scale" / "0", {"seed": 1})
    folders = [tmp_path / "monday" / "scale", tmp_path / "friday" / "scale"]
    found = gather([*folders, folders[0]]).evidence
    assert [one.name for one in found] == ["monday/scale/0", "friday/scale/0"]
    assert [one.run.overrides["sweep"] for one in found] == ["monday/scale", "friday/scale"]


def test_sweeps_below_one_folder_are_told_apart_too(make_run: MakeRun, tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_run(tmp_path / name / "0", {"seed": 1})
        (tmp_path / name / "multirun.yaml").touch()
    make_run(tmp_path / "alone", {"seed": 1})
    found = {one.name: one.run.overrides["sweep"] for one in gather([tmp_path]).evidence}
    assert found == {"a/0": "a", "b/0": "b", f"{tmp_path.name}/alone": tmp_path.name}


def test_a_folder_that_is_a_run_is_one(make_run: MakeRun, tmp_path: Path) -> None:
    assert only(make_run(tmp_path / "run", {"seed": 1})).name == "run"


def test_the_planned_number_of_runs_is_that_of_the_sweep(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(tmp_path / "0", {"seed": 1})
    assert gather([tmp_path]).planned is None
    write_plan(tmp_path, SweepPlan("seq2seq-train", (), ("seed",), 24, ".", {}))
    assert gather([tmp_path]).planned == 24


def test_a_sweep_that_was_stopped_comes_with_what_goes_on_with_it(
    make_run: MakeRun, tmp_path: Path
) -> None:
    make_run(tmp_path / "0", {"seed": 1})
    write_plan(tmp_path, SweepPlan("seq2seq-train", (), ("seed",), 2, ".", {}))
    with held(tmp_path):
        assert not gather([tmp_path]).going_on  # it is still running
    assert gather([tmp_path]).going_on == (("seq2seq-train", "-m", f"sweep.resume={tmp_path}"),)
    make_run(tmp_path / "1", {"seed": 2}, status={"status": "running"})
    assert gather([tmp_path]).going_on  # its last run was killed
    write_json(tmp_path / "1" / "status.json", {"status": "finished"})
    assert not gather([tmp_path]).going_on


@pytest.mark.parametrize(
    ("file", "content", "note"),
    [
        ("metrics.json", '{\n  "test/loss": 2.1,\n  "test/bl', "metrics.json, line 3: "),
        ("status.json", "", "status.json, line 1: "),
        ("status.json", '{"status": "done"}', "holds no status"),
        (".hydra/config.yaml", "model:\n  cell: [gru\n x: }", ".hydra/config.yaml, line 3: "),
        (".hydra/config.yaml", "", ".hydra/config.yaml: it is empty"),
        (".hydra/hydra.yaml", "\0", ".hydra/hydra.yaml: "),
        (".hydra/hydra.yaml", None, ".hydra/hydra.yaml is missing"),
        (".hydra/overrides.yaml", "- 'a", ".hydra/overrides.yaml, line "),
        (".hydra/config.yaml", "seed: 1\n", "its files lack what a run writes: Missing key model"),
    ],
)
def test_a_damaged_file_is_named_and_spares_the_other_runs(
    make_run: MakeRun, tmp_path: Path, file: str, content: str | None, note: str
) -> None:
    make_run(tmp_path / "0", {"seed": 1}, loss=1.0)
    make_run(tmp_path / "1", {"seed": 2}, loss=2.0)
    if content is None:
        (tmp_path / "1" / file).unlink()
    else:
        (tmp_path / "1" / file).write_text(content)
    sound, damaged = gather([tmp_path]).evidence
    assert (sound.status, damaged.status) == ("finished", "damaged")
    assert note in damaged.notes[0]
    assert "test/loss" not in damaged.run.columns
    if "overrides" not in file:
        assert damaged.run.overrides["seed"] == 2


def test_lines_that_a_kill_cut_off_are_left_out_and_named(
    make_run: MakeRun, tmp_path: Path
) -> None:
    folder = make_run(tmp_path / "0", {"seed": 1}, curve={1: 3.0, 2: 2.0, 3: 1.0}, slope=-0.5)
    for name in ("curves.jsonl", "gradient_flow.jsonl"):
        path = folder / name
        path.write_text(path.read_text()[:-12])
    one = only(tmp_path)
    assert list(one.curves) == [1, 2]
    assert len(one.flow) == 3
    assert [note.partition(" is no")[0] for note in one.notes] == [
        "curves.jsonl, line 3",
        "gradient_flow.jsonl, line 4",
    ]
    assert one.status == "finished"


def test_a_table_of_gradients_that_is_damaged_in_the_middle_is_named_with_its_line(
    make_run: MakeRun, tmp_path: Path
) -> None:
    folder = make_run(tmp_path / "0", {"seed": 1}, slope=-0.5)
    lines = (folder / "gradient_flow.jsonl").read_text().splitlines()
    lines[1] = json.dumps({"step": 1})
    (folder / "gradient_flow.jsonl").write_text("\n".join(lines) + "\n")
    one = only(tmp_path)
    assert not one.flow
    assert one.notes[0].startswith("gradient_flow.jsonl, line 2 is no gradient profile")


def test_a_run_whose_process_was_killed_is_interrupted(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(tmp_path / "0", {"seed": 1}, status={"status": "running"}, curve={5: 1.0})
    assert only(tmp_path).status == "interrupted"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("missing", "there is no such folder"),
        ("file", "is a file: name the folder of a sweep or of a run"),
        ("empty", r"holds no runs: there is no .hydra/overrides.yaml below it"),
    ],
)
def test_a_folder_without_runs_is_refused(tmp_path: Path, name: str, sentence: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=f"{name}.*{sentence}"):
        gather([tmp_path / name])
