"""What the command line got wrong is said in one sentence that names the key and the choices."""

from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.hidden_sise=4", ("Key 'hidden_sise' not in 'ModelConfig'", "mean hidden_size?")),
        ("sweep.x=4", ("Key 'x' not in 'SweepConfig'", "it has resume, objective, report")),
        ("model=grux", ("Could not find 'model/grux'", "available options in 'model': bahdanau")),
        ("model.hidden_size=a", ("model.hidden_size=a", "could not be converted to Integer")),
        ("experiment=nosuch", ("Could not find 'experiment/nosuch'", "interview_scale")),
        ("model==3", ("Error parsing override 'model==3'",)),
        (
            "scheduled_sampling=linear",
            ("override scheduled_sampling=linear", "has keys of its own: schedule, k, c, floor"),
        ),
        ("callbacks.weight_average=null", ("callbacks.weight_average has", "of its own: decay")),
        ("optimizer.rho=0.9", ("Key 'rho' not in 'AdamConfig'", "it has lr, weight_decay, betas")),
        ("callbacks.early_stopping.patience=3", ("left out (null)", "callbacks=early_stopping")),
    ],
)
def test_a_mistake_is_one_sentence(
    command_line: Callable[..., Any], override: str, words: tuple[str, ...]
) -> None:
    answer = command_line(override)
    assert str(answer.status).startswith("error: ")
    assert "\n" not in str(answer.status)
    for noise in ("reference_type", "HYDRA_FULL_ERROR", "provider="):
        assert noise not in answer.output
    for word in words:
        assert word in answer.output


def test_an_interval_asks_for_a_search(command_line: Callable[..., Any]) -> None:
    answer = command_line("optimizer.lr=interval(0.1,1)", "--multirun")
    assert "add hydra/sweeper=optuna" in str(answer.status)


def test_an_error_of_the_program_itself_is_not_taken_for_the_users(
    command_line: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("this can't be")

    monkeypatch.setattr("seq2seq.train.train", broken)
    with pytest.raises(AssertionError, match="this can't be"):
        command_line()
