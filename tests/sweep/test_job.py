"""What a run of a sweep answers its sweeper."""

import math

import pytest

from seq2seq.sweep.job import WORST, check_objective, objective_value


@pytest.mark.parametrize("bad", [{}, {"test/loss": math.nan}, {"test/loss": math.inf}])
def test_a_sweeper_never_gets_what_it_can_not_compare(bad: dict[str, float]) -> None:
    assert objective_value(bad, "test/loss") == WORST
    assert objective_value(bad, "test/bleu") == -WORST
    assert math.isfinite(WORST)


def test_the_objective_is_the_figure_itself_within_bounds() -> None:
    assert objective_value({"val/bleu": 3.5}, "val/bleu") == 3.5
    assert objective_value({"test/perplexity": 1e300}, "test/perplexity") == WORST


@pytest.mark.parametrize("name", ["loss", "train/loss", "test/los", "val/"])
def test_an_objective_that_no_run_has_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="sweep.objective=.*choose test/ or val/"):
        check_objective(name, validated=True)


def test_a_validation_figure_needs_validations() -> None:
    check_objective("val/loss", validated=True)
    check_objective("test/loss", validated=False)
    with pytest.raises(ValueError, match="trainer.limit_val_batches=1.0"):
        check_objective("val/loss", validated=False)
