"""Which hyperparameters a run is shown by."""

from collections.abc import Callable

from omegaconf import DictConfig

from seq2seq.event_log import hyperparameters

Compose = Callable[..., DictConfig]


def test_a_single_run_is_shown_by_its_whole_config(compose: Compose) -> None:
    shown = hyperparameters(compose("seed=7", "model=gru"), swept=None)
    assert (shown["seed"], shown["model.cell"], shown["batch.size"]) == (7, "gru", 16)
    assert {"initializer", "optimizer", "scheduler", "data"} < {one.split(".")[0] for one in shown}


def test_a_single_run_is_shown_by_what_is_added_to_its_training(compose: Compose) -> None:
    chosen = {
        "label_smoothing": 0.1,
        "weight_decay_on": "matrices",
        "coverage_loss": 1.0,
        "gradient_noise": 0.01,
        "activation_regularization": 2.0,
        "temporal_activation_regularization": 1.0,
        "scheduled_sampling.schedule": "linear",
        "callbacks.weight_average.decay": 0.9,
        "pretrained_vectors.source": "words.vec",
    }
    config = compose(*(f"{key}={value}" for key, value in chosen.items()))
    shown = hyperparameters(config, swept=None)
    assert {key: shown.get(key) for key in chosen} == chosen


def test_a_run_of_a_sweep_is_shown_by_what_was_swept_and_the_seed(compose: Compose) -> None:
    swept = {"seed": 7, "initializer": "orthogonal", "trainer.gradient_clip_val": None}
    shown = hyperparameters(compose("seed=7", "initializer=orthogonal"), swept=swept)
    assert list(shown.items()) == [
        ("initializer", "orthogonal"),
        ("trainer.gradient_clip_val", None),
        ("seed", 7),
    ]
