"""Groups that are the roles of the initializers, and ratios that are known beforehand."""

import math
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch

from seq2seq.config import config_folder, plain, register
from seq2seq.diagnostics.update_ratio import PARAMETER_GROUPS, parameter_group, update_ratios
from seq2seq.models.encoder_decoder import encoder_decoder

CONF = Path(__file__).resolve().parents[2] / "conf"


def make_model(**options: Any) -> torch.nn.Module:
    sizes = {"embedding_size": 6, "hidden_size": 6} | options
    return encoder_decoder(source_vocabulary_size=9, target_vocabulary_size=9, pad_id=0, **sizes)


def test_groups_are_the_roles_of_the_default_initializer() -> None:
    register()
    with hydra.initialize_config_dir(config_folder(), version_base="1.3"):
        roles = plain(hydra.compose("initializer/orthogonal").initializer)
    patterns = {
        role: value["pattern"]
        for role, value in roles.items()
        if isinstance(value, dict) and "pattern" in value
    }
    assert patterns | {"rest": "*"} == PARAMETER_GROUPS


@pytest.mark.parametrize(
    "options", [{}, {"attention": "additive", "input_feeding": True}, {"tie_embeddings": True}]
)
def test_every_parameter_of_every_model_has_a_group_of_its_own_name(
    options: dict[str, Any],
) -> None:
    names = [name for name, _ in make_model(**options).named_parameters()]
    groups = {parameter_group(f"model.{name}") for name in names}
    expected = set(PARAMETER_GROUPS) - {"rest"}
    assert groups == expected - ({"output"} if options.get("tie_embeddings") else set())


def test_a_group_that_grows_by_a_hundredth_has_that_ratio_whatever_the_others_do() -> None:
    model = make_model()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if parameter_group(name) == "recurrent":
                weight.mul_(1.01)
            elif parameter_group(name) == "output":
                weight.mul_(0.5)
    ratios = update_ratios(before, model.named_parameters())
    assert ratios.pop("recurrent") == pytest.approx(0.01, rel=1e-3)
    assert ratios.pop("output") == pytest.approx(0.5, rel=1e-5)
    assert set(ratios.values()) == {0.0}


def test_the_norm_is_over_all_parameters_of_a_group() -> None:
    before = {"a.weight_hh_l0": torch.full((2, 2), 2.0), "b.weight_hh_l0": torch.zeros(3)}
    after = {"a.weight_hh_l0": torch.full((2, 2), 2.0), "b.weight_hh_l0": torch.tensor([3.0, 4, 0])}
    assert update_ratios(before, after.items()) == {"recurrent": pytest.approx(5 / 4)}


def test_zero_weights_that_move_have_an_infinite_ratio() -> None:
    after = {"x.bias": torch.ones(2)}
    assert update_ratios({"x.bias": torch.zeros(2)}, after.items()) == {"linear_bias": math.inf}
