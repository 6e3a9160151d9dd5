"""What a config may build, and that everything else is refused before it does anything."""

import functools
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue

from seq2seq import instantiate as module
from seq2seq.data.corpus import Corpus
from seq2seq.instantiate import (
    LISTED_TARGETS,
    REFUSED_MODULES,
    allow_target,
    check_targets,
    instantiate,
)

PACKAGE = Path(module.__file__).parent
SYNTHETIC = {
    "_target_": "seq2seq.data.synthetic.synthetic_task",
    "task": "copy",
    "train_size": 8,
    "validation_size": 2,
    "test_size": 2,
    "longer_size": 0,
}


@pytest.fixture(autouse=True)
def _nothing_stays_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_allowed_by_user", set())


def foreign_open(folder: Path) -> dict[str, Any]:
    return {"_target_": "builtins.open", "file": str(folder / "written"), "mode": "w"}


@pytest.mark.parametrize(
    "target",
    [
        "builtins.open",
        "builtins.eval",
        "os.system",
        "subprocess.run",
        "torch.load",
        "torch.hub.load",
        "torch.nn.init.torch.load",
        "torch.optim.adam.torch.load",
        "torch.optim.Adam.__init__",
        "lightning.pytorch.trainer.trainer.torch.load",
        "hydra.utils.instantiate",
        "seq2seq_other.thing",
        "seq2seq",
        " torch.optim.Adam",
        "",
        None,
        7,
        ["builtins.open"],
    ],
)
def test_a_foreign_target_is_refused_with_its_key_and_the_way_to_allow_it(target: Any) -> None:
    config = OmegaConf.create({"outer": {"thing": {"_target_": target}}})
    with pytest.raises(ValueError, match="outer.thing._target_") as refusal:
        instantiate(config.outer)
    assert repr(target) in str(refusal.value)
    assert "SEQ2SEQ_ALLOW_TARGETS" in str(refusal.value)


@pytest.mark.parametrize(
    "target",
    [
        "seq2seq.data.sampler.torch.load",
        "seq2seq.data.sampler.torch",
        "seq2seq.data.corpus.Path",
        "seq2seq.data.corpus.gzip.open",
        "seq2seq.data.corpus.__builtins__.open",
        "seq2seq.data.corpus.parallel_text.__globals__",
        "seq2seq.data.corpus._anything",
        "seq2seq.data..corpus.parallel_text",
        "seq2seq.data.corpus.",
        "seq2seq..os.system",
        "seq2seq.os.system",
        "seq2seq.__version__",
        "seq2seq.data",
        "seq2seq.data.tokenizer.SPECIAL_TOKENS",
        "seq2seq.../../os.system",
        "seq2seq.instantiate.allow_target",
        "seq2seq.instantiate.instantiate",
        "seq2seq.instantiate.importlib.import_module",
        "seq2seq.config.config_folder",
    ],
)
def test_a_path_through_this_package_leads_nowhere_else(target: str) -> None:
    with pytest.raises(ValueError, match="_target_: "):
        instantiate({"_target_": target})


def test_nothing_is_called_or_imported_when_any_part_is_refused(tmp_path: Path) -> None:
    (tmp_path / "surprise.py").write_text(f"open({str(tmp_path / 'written')!r}, 'w')")
    for foreign in (foreign_open(tmp_path), {"_target_": "surprise.call"}):
        for config in (
            {"first": SYNTHETIC, "second": foreign},
            {"list": [[SYNTHETIC], [1, {"deep": foreign}]]},
            {**SYNTHETIC, "seed": foreign},
            {**SYNTHETIC, "_args_": [foreign]},
            {**SYNTHETIC, "_recursive_": False, "seed": foreign},
            {"_target_": "torch.optim.Adam", "_partial_": True, "params": foreign},
        ):
            with pytest.raises(ValueError, match="not among the targets"):
                instantiate(OmegaConf.create(config))
    assert not (tmp_path / "written").exists()


def test_a_whole_config_can_be_checked_before_its_first_part_is_built(tmp_path: Path) -> None:
    config = OmegaConf.create(
        {"data": {**SYNTHETIC, "root": "???"}, "callbacks": {"odd": foreign_open(tmp_path)}}
    )
    with pytest.raises(ValueError, match=r"^callbacks.odd._target_: 'builtins.open'"):
        check_targets(config)
    del config.callbacks.odd
    check_targets(config)


def test_the_imports_of_a_refused_target_do_not_happen(tmp_path: Path) -> None:
    (tmp_path / "surprise.py").write_text("print('imported')")
    code = (
        "import sys\n"
        "from seq2seq.instantiate import instantiate\n"
        "for name in ('surprise.f', 'torch.load', 'seq2seq.data.datamodule.torch.load'):\n"
        "    try: instantiate({'_target_': name})\n"
        "    except ValueError: pass\n"
        "print([name for name in ('surprise', 'torch', 'lightning') if name in sys.modules])\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout == "[]\n"


def test_interpolation_does_not_hide_a_target(tmp_path: Path) -> None:
    config = OmegaConf.create(
        {
            "name": "builtins.open",
            "whole": foreign_open(tmp_path),
            "by_name": {"_target_": "${name}"},
            "by_node": {"inner": "${whole}"},
            "by_parts": {"_target_": "builtins.${part}"},
            "part": "open",
        }
    )
    for key in ("by_name", "by_node", "by_parts"):
        with pytest.raises(ValueError, match=f"{key}.*'builtins.open' is not among"):
            instantiate(config[key])


def test_an_interpolation_that_appears_only_after_the_first_one_is_refused(tmp_path: Path) -> None:
    hidden = "\\${oc.create:{_target_: builtins.open, file: " + str(tmp_path / "written") + "}}"
    with pytest.raises(ValueError, match=r"node.seed: .* still holds"):
        instantiate(OmegaConf.create({"node": {**SYNTHETIC, "seed": hidden}}).node)


def test_a_target_chosen_by_a_changing_resolver_is_built_as_it_was_checked() -> None:
    answers = iter(["copy", "reverse", "sort"])
    OmegaConf.register_new_resolver("next_answer", lambda: next(answers), replace=True)
    try:
        config = OmegaConf.create({**SYNTHETIC, "task": "${next_answer:}"})
        corpus = instantiate(config)
    finally:
        OmegaConf.clear_resolver("next_answer")
    assert all(pair.source == pair.target for pair in corpus.train)


def test_our_own_function_is_built_from_config_and_keyword_arguments() -> None:
    corpus = instantiate(OmegaConf.create(SYNTHETIC), seed=3, train_size=5)
    assert isinstance(corpus, Corpus)
    assert len(corpus.train) == 5


def test_every_listed_target_exists() -> None:
    for name in LISTED_TARGETS - {"lightning.pytorch.callbacks.RichProgressBar"}:
        assert callable(instantiate({"_target_": name, "_partial_": True})), name


def test_every_target_that_ships_can_be_built() -> None:
    files = sorted((PACKAGE.parent / "conf").rglob("*.yaml"))
    targets = {
        target for file in files for target in re.findall(r"_target_: *(\S+)", file.read_text())
    }
    assert targets
    # What stands under `hydra:` is built by Hydra itself.
    for target in sorted(targets - {"seq2seq.sweep.record.SweepRecord"}):
        assert callable(instantiate({"_target_": target, "_partial_": True})), target


def test_a_partial_keeps_its_arguments_for_later() -> None:
    optimizer = instantiate({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5})
    weight = torch.nn.Parameter(torch.ones(1))
    assert optimizer([weight]).param_groups[0]["lr"] == 0.5
    with_momentum = instantiate(
        {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5}, momentum=0.9
    )
    assert isinstance(with_momentum, functools.partial)
    assert with_momentum([weight]).param_groups[0]["momentum"] == 0.9


def test_a_group_without_target_gives_a_dict_of_objects_and_plain_containers() -> None:
    config = OmegaConf.create(
        {
            "stop": {
                "_target_": "lightning.pytorch.callbacks.EarlyStopping",
                "monitor": "val/loss",
                "mode": "min",
            },
            "plain": {"numbers": [1, 2]},
        }
    )
    built = instantiate(config)
    assert type(built) is dict
    assert built["stop"].monitor == "val/loss"
    assert type(built["plain"]) is dict
    assert type(built["plain"]["numbers"]) is list


def test_a_list_gives_a_list_and_nothing_gives_nothing() -> None:
    built = instantiate(OmegaConf.create([SYNTHETIC, 3]))
    assert isinstance(built[0], Corpus)
    assert built[1:] == [3]
    assert instantiate(None) is None


@dataclass(frozen=True)
class Precious:
    items: tuple[int, ...]


def echo(**values: Any) -> dict[str, Any]:
    return values


def complain(text: str = "nothing") -> None:
    raise ValueError(f"text is {text!r}: it must be shorter")


def test_keyword_values_reach_the_target_untouched() -> None:
    allow_target(f"{__name__}.echo")
    precious = Precious(items=(1, 2))
    values = {"_target_": "just a word"}
    got = instantiate({"_target_": f"{__name__}.echo", "list": [1]}, a=precious, b=values)
    assert got["a"] is precious
    assert got["b"] is values
    assert got["list"] == [1]


@pytest.mark.parametrize("nested", [False, True])
def test_an_error_of_the_target_stays_its_own_sentence(nested: bool) -> None:
    allow_target(f"{__name__}.complain")
    node: dict[str, Any] = {"_target_": f"{__name__}.complain", "text": "long"}
    with pytest.raises(ValueError, match=r"^text is 'long': it must be shorter$"):
        instantiate({"inner": node} if nested else node)


def test_a_missing_value_names_its_key() -> None:
    config = OmegaConf.create({"data": {**SYNTHETIC, "task": "???"}})
    with pytest.raises(MissingMandatoryValue, match="data.task"):
        instantiate(config.data)


def test_keyword_arguments_without_a_target_are_refused() -> None:
    with pytest.raises(ValueError, match="group has no _target_ to take seed"):
        instantiate(OmegaConf.create({"group": {"a": 1}}).group, seed=1)


def test_a_target_that_the_user_allowed_in_python_is_built() -> None:
    config = {"_target_": "fractions.Fraction", "_args_": [1, 3]}
    with pytest.raises(ValueError, match="fractions.Fraction"):
        instantiate(config)
    allow_target("fractions.Fraction")
    assert instantiate(config) * 3 == 1
    with pytest.raises(ValueError, match="fractions.gcd"):
        instantiate({"_target_": "fractions.gcd"})


def test_the_environment_allows_targets_only_from_before_the_import() -> None:
    code = (
        "import os\n"
        "from seq2seq.instantiate import instantiate\n"
        "print(instantiate({'_target_': 'fractions.Fraction', '_args_': [1, 3]}))\n"
        "os.environ['SEQ2SEQ_ALLOW_TARGETS'] = 'builtins.len'\n"
        "try: instantiate({'_target_': 'builtins.len', '_args_': ['ab']})\n"
        "except ValueError: print('refused')\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "PYTHONPATH": str(PACKAGE.parent),
            "SEQ2SEQ_ALLOW_TARGETS": "fractions.Fraction, other.name",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout == "1/3\nrefused\n"


def test_training_reads_the_environment_before_hydra_can_change_it() -> None:
    code = "import sys, seq2seq.train; print('seq2seq.instantiate' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout == "True\n", "seq2seq/train.py imports instantiate at its top"


def test_no_module_of_the_hydra_layer_can_be_a_target() -> None:
    for file in PACKAGE.glob("*.py"):
        uses_hydra = "import hydra" in file.read_text() or "from hydra" in file.read_text()
        assert not uses_hydra or file.stem in REFUSED_MODULES, file.name
