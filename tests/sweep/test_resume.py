"""A sweep that ended early goes on: what is done stays, the rest comes out as it would have."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from seq2seq.module import TranslationModule
from seq2seq.status import held, read_status
from seq2seq.sweep.plan import SweepPlan, write_plan
from seq2seq.sweep.resume import resumed_arguments

SHORT = (
    *("trainer.max_steps=6", "trainer.log_every_n_steps=1", "data.longer_size=0"),
    *("trainer.limit_val_batches=0", "trainer.num_sanity_val_steps=0"),
)
# Nothing but a checkpoint now and then, and the diagnostics that keep a table.
LEFT_OUT = ("forward_signal", "weight_gradient", "spectrum", "update_ratio", "sample_translations")
CHECKPOINTS = (
    *("callbacks.last_checkpoint.every_n_train_steps=2", "callbacks.best_checkpoint=null"),
    *("callbacks.gradient_flow.every_n_steps=2", "callbacks.gradient_flow.min_examples=1"),
    *(f"callbacks.{group}=null" for group in LEFT_OUT),
)
SWEEP = ("model=rnn", "initializer.recurrent.gain=0.5,1.5", "seed=1,2", "--multirun")


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Ctrl-C in the so-manieth training step from now on."""
    original, steps = TranslationModule.training_step, []

    def training_step(self: TranslationModule, *args: Any, **kwargs: Any) -> Any:
        steps.append(0)
        if len(steps) > step:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(TranslationModule, "training_step", training_step)
    return monkeypatch


def weights(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return dict(checkpoint["state_dict"])


def curve(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "curves.jsonl").read_text().splitlines()]
    found = [line for line in lines if "train/loss" in line]
    assert len(found) == len({line["step"] for line in found}), "a step is there twice"
    return {line["step"]: line["train/loss"] for line in found}


def norms(run: Path) -> list[tuple[int, str, str, list[float]]]:
    """The table without its slopes, which are computed anew from rounded norms."""
    rows = [json.loads(line) for line in (run / "gradient_flow.jsonl").read_text().splitlines()]
    return [(row["step"], row["layer"], row["quantity"], row["from_end"]) for row in rows]


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_to_the_same_runs(
    command_line: Callable[..., Any], tmp_path: Path
) -> None:
    whole = command_line(*SHORT, *CHECKPOINTS, *SWEEP, "hydra.sweep.dir=whole")
    assert whole.status == 0, whole.output
    with pytest.MonkeyPatch.context() as patch:
        stop_at(11, patch)  # the first run has ended, the second has a checkpoint of its 4th step
        stopped = command_line(*SHORT, *CHECKPOINTS, *SWEEP, "hydra.sweep.dir=sweep")
    assert "interrupted: 1 of 4 runs done, 0 running, 0 diverged, 0 failed" in stopped.output
    assert "go on with seq2seq-train -m sweep.resume=sweep" in stopped.output
    assert [read_status(tmp_path / "sweep" / run)["status"] for run in "01"] == [
        *("finished", "interrupted"),
    ]
    assert "0,1,finished" in (tmp_path / "sweep" / "sweep.csv").read_text()
    first = (tmp_path / "sweep" / "0" / "metrics.json").stat()
    configs = {
        path: path.read_text() for path in (tmp_path / "sweep").rglob(".hydra/overrides.yaml")
    }

    resumed = command_line("sweep.resume=sweep", tiny=False)
    assert resumed.status == 0, resumed.output
    assert "sweep: 1 of 4 runs done" in resumed.output
    assert "4 runs: 4 finished" in resumed.output
    assert (tmp_path / "sweep" / "0" / "metrics.json").stat() == first
    for path, text in configs.items():
        assert path.read_text() == text
    for run in "0123":
        one, other = tmp_path / "whole" / run, tmp_path / "sweep" / run
        for name, tensor in weights(one).items():
            assert torch.equal(tensor, weights(other)[name]), (run, name)
        assert curve(one) == curve(other)
        assert norms(one) == norms(other)
        # Every run is described as Hydra describes it, also those that only began now.
        assert {path.name for path in (other / ".hydra").iterdir()} == {
            *("config.yaml", "hydra.yaml", "overrides.yaml"),
        }
        before, after = ((folder / ".hydra/overrides.yaml").read_text() for folder in (one, other))
        assert before == after
    again = command_line("sweep.resume=sweep", tiny=False)
    assert again.status == 0
    assert "test/loss" not in again.output.partition("4 runs: 4 finished")[0]


def test_a_run_without_a_checkpoint_begins_anew(
    command_line: Callable[..., Any], tmp_path: Path
) -> None:
    sweep = (*SHORT, *SWEEP, "callbacks=none", "hydra.sweep.dir=sweep")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(3, patch)
        command_line(*sweep)
    assert len(curve(tmp_path / "sweep" / "0")) == 3
    resumed = command_line("sweep.resume=sweep", tiny=False)
    assert "4 runs: 4 finished" in resumed.output
    assert list(curve(tmp_path / "sweep" / "0")) == [0, 1, 2, 3, 4, 5]


@pytest.mark.slow
def test_failed_runs_are_tried_again_and_diverged_ones_are_not(
    command_line: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:

        def broken(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("the disk is full")

        patch.setattr(TranslationModule, "training_step", broken)
        failed = command_line(
            *("model=rnn", "model.cell=rnn_relu", *SHORT, "callbacks=none"),
            *("optimizer=sgd", "optimizer.lr=1e38,0.1", "trainer.gradient_clip_val=null"),
            *("hydra.sweep.dir=sweep", "--multirun"),
        )
    assert failed.status == 1
    assert "0 diverged, 2 failed" in failed.output
    resumed = command_line("sweep.resume=sweep", tiny=False)
    assert "2 runs: 1 diverged, 1 finished" in resumed.output
    damaged = tmp_path / "sweep" / "1" / ".hydra" / "overrides.yaml"
    text = damaged.read_text()
    damaged.write_text("")
    refused = command_line("sweep.resume=sweep", tiny=False)
    assert str(refused.status).endswith(f"delete {tmp_path / 'sweep' / '1'} to run it again")
    damaged.write_text(text)
    record = (tmp_path / "sweep" / "0" / "status.json").read_text()
    again = command_line("sweep.resume=sweep", tiny=False)
    assert "2 runs: 1 diverged, 1 finished" in again.output
    assert (tmp_path / "sweep" / "0" / "status.json").read_text() == record


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the plan of a sweep that never began."""
    monkeypatch.chdir(tmp_path)
    plan = {
        "app": "seq2seq-train",
        "command": ["model=rnn", "seed=1,2", "hydra/launcher=joblib"],
        "swept": ["seed"],
        "jobs": 2,
        "started_in": str(tmp_path),
        "settings": {},
    }
    (tmp_path / "it's a sweep").mkdir()
    (tmp_path / "it's a sweep" / "sweep.json").write_text(json.dumps(plan))
    return Path("it's a sweep")


def test_without_a_folder_to_resume_the_command_line_stays_as_it_is() -> None:
    for arguments in (["model=rnn", "-m"], ["sweep.resume=null"], ["sweep.resume="]):
        assert resumed_arguments(arguments, app="seq2seq-train") == arguments


def test_a_sweep_goes_on_with_its_own_command_and_another_launcher(sweep: Path) -> None:
    typed = [f"sweep.resume={sweep}", "-m", "seed=1,2", "hydra/launcher=basic", "--cfg=job"]
    assert resumed_arguments(typed, app="seq2seq-train") == [
        *("--cfg=job", "--multirun", "model=rnn", "seed=1,2", "hydra/launcher=basic"),
        *(rf"hydra.sweep.dir='{Path.cwd()}/it\'s a sweep'", "hydra.output_subdir=null"),
        "hydra.callbacks.sweep.resume=true",
    ]


def test_options_of_a_launcher_go_with_it_and_paths_begin_where_the_sweep_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there" / "a, b").mkdir(parents=True)
    command = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "data.root=texts"]
    plan = SweepPlan("seq2seq-train", tuple(command), (), None, str(tmp_path / "there"), {})
    write_plan(tmp_path / "there" / "a, b", plan)
    for folder in ("there/a, b", "'there/a, b'"):  # as typed, and as Hydra would want it
        monkeypatch.chdir(tmp_path)
        typed = [f"sweep.resume={folder}", "hydra/launcher=basic"]
        resumed = resumed_arguments(typed, app="seq2seq-train")
        assert resumed[:3] == ["--multirun", "data.root=texts", "hydra/launcher=basic"]
        assert Path.cwd() == tmp_path / "there"
    monkeypatch.chdir(tmp_path)
    fewer = resumed_arguments(
        ["sweep.resume=there/a, b", "hydra.launcher.n_jobs=1"], app="seq2seq-train"
    )
    assert fewer[1:4] == ["hydra/launcher=joblib", "data.root=texts", "hydra.launcher.n_jobs=1"]


@pytest.mark.parametrize(
    "text",
    [
        "+hydra.callbacks.x._target_=os.system",
        "hydra.launcher._target_=os.system",
        "hydra.launcher={_target_: os.system}",
        "hydra.job.env_set.PATH=here",
        "hydra.searchpath=[here]",
        "+experiment@hydra.callbacks=other",
        "--config-dir=here",
    ],
)
def test_a_sweep_of_somebody_else_starts_nothing_but_runs(sweep: Path, text: str) -> None:
    path = sweep / "sweep.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "command": [*content["command"], text]}))
    with pytest.raises(ValueError, match="is not taken from a file: type it beside"):
        resumed_arguments([f"sweep.resume={sweep}"], app="seq2seq-train")


def test_other_settings_than_at_the_start_are_refused(
    command_line: Callable[..., Any], sweep: Path, tmp_path: Path
) -> None:
    path = tmp_path / sweep / "sweep.json"
    content = json.loads(path.read_text())
    content["settings"] = {"trainer.max_epochs": 7, "model.cell": "rnn_tanh", "optimizer.lr": 0.002}
    path.write_text(json.dumps(content))
    answer = command_line(f"sweep.resume={sweep}", "hydra/launcher=basic", tiny=False)
    assert "began with other settings than the config files have now" in str(answer.status)
    assert "trainer.max_epochs was 7 and is 6. Put" in str(answer.status)


@pytest.mark.parametrize(
    ("arguments", "app", "message"),
    [
        (["sweep.resume=gone"], "seq2seq-train", "gone is not a folder"),
        (["sweep.resume=."], "seq2seq-train", "sweep.json is missing"),
        (["sweep.resume=it's a sweep"], "seq2seq-inspect", "a sweep of seq2seq-train"),
        (["sweep.resume=it's a sweep", "seed=3"], "seq2seq-train", "without seed=3: leave that"),
    ],
)
@pytest.mark.usefixtures("sweep")
def test_what_can_not_go_on_is_refused(arguments: list[str], app: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resumed_arguments(arguments, app=app)


def test_a_damaged_plan_or_record_is_named(
    command_line: Callable[..., Any], sweep: Path, tmp_path: Path
) -> None:
    record = tmp_path / sweep / "0" / "status.json"
    record.parent.mkdir()
    record.write_text("{")
    answer = command_line(f"sweep.resume={sweep}", "hydra/launcher=basic", tiny=False)
    assert "status.json is no JSON file" in answer.output
    assert "0 to run it again" in answer.output
    (tmp_path / sweep / "sweep.json").write_text('{"app": 1}')
    answer = command_line(f"sweep.resume={sweep}", tiny=False)
    assert "sweep.json is damaged: it is no plan of a sweep" in answer.output


def test_a_sweep_that_is_still_going_is_left_alone(
    command_line: Callable[..., Any], sweep: Path, tmp_path: Path
) -> None:
    with held(tmp_path / sweep):
        answer = command_line(f"sweep.resume={sweep}", "hydra/launcher=basic", tiny=False)
    assert "is being worked in" in answer.output
    assert not (tmp_path / sweep / "0").exists()
