"""Which hyperparameters a run is shown by."""

from collections.abc import Callable

from omegaconf import DictConfig

from seq2seq.event_log import hyperparameters

Compose = Callable[..., DictConfig]


def test_a_single_run_is_shown_by_its_whole_config(compose: Compose) -> None:
    shown = hyperparameters(compose("seed=7", "model=gru"), swept=None)
    assert (shown["seed"], shown["model.cell"], shown["batch.size"]) == (7, "gru", 16)
    assert {name.split(".")[0] for name in shown} == {
        *("seed", "model", "initializer", "optimizer", "scheduler", "data", "batch"),
    }


def test_a_run_of_a_sweep_is_shown_by_what_was_swept_and_the_seed(compose: Compose) -> None:
    swept = {"seed": 7, "initializer": "orthogonal", "trainer.gradient_clip_val": None}
    shown = hyperparameters(compose("seed=7", "initializer=orthogonal"), swept=swept)
    assert list(shown.items()) == [
        ("initializer", "orthogonal"),
        ("trainer.gradient_clip_val", None),
        ("seed", 7),
    ]
