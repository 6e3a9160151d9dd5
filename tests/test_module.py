"""What the training module logs of its gradients."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from seq2seq.assembly import build_datamodule, build_module
from seq2seq.config_checks import check_training
from seq2seq.train import train

Compose = Callable[..., DictConfig]


def curve(folder: Path, tag: str) -> dict[int, float]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


def test_norms_before_and_after_clipping_and_the_share_of_clipped_steps_are_curves(
    compose: Compose, tmp_path: Path
) -> None:
    options = ("data.train_size=192", "trainer.gradient_clip_val=0.25", "trainer.max_epochs=2")
    for folder, every in (("each", 1), ("some", 5)):
        train(compose(*options, f"trainer.log_every_n_steps={every}", folder=folder))
    norms = curve(tmp_path / "each", "train/gradient_norm")
    assert len(norms) == 24
    after = curve(tmp_path / "each", "train/gradient_norm_after_clipping")
    assert after == pytest.approx({step: min(norm, 0.25) for step, norm in norms.items()}, rel=1e-5)

    clipped = [norm > 0.25 for norm in norms.values()]
    shares = curve(tmp_path / "some", "train/clipped_steps")
    assert list(shares) == [4, 9, 14, 19]
    expected = [sum(clipped[step - 4 : step + 1]) / 5 for step in shares]
    assert list(shares.values()) == pytest.approx(expected)
    assert any(0 < share < 1 for share in expected)


def test_only_matrices_decay_where_that_is_asked_for(compose: Compose) -> None:
    tied = (
        *("model.tie_embeddings=true", "model.embedding_size=6", "model.hidden_size=6"),
        *("model.share_embeddings=true", "model.embedding_rank=4", "tokenizer.shared=true"),
    )
    options = (*tied, "optimizer.weight_decay=0.1", "weight_decay_on=matrices")
    config = compose(*options)
    datamodule = build_datamodule(config)
    module = build_module(config, datamodule)
    parameters = dict(module.model.named_parameters())
    decayed, kept = module.make_optimizer(module._parameter_groups()).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    names = {name for name, one in parameters.items() if any(one is p for p in decayed["params"])}
    assert len(decayed["params"]) + len(kept["params"]) == len(parameters)
    assert names == {
        name for name in parameters if "weight" in name and not name.endswith("embedding.weight")
    }
    assert module.description["training"]["weight_decay_on"] == "matrices"
    plain = build_module(compose(*tied), datamodule)
    assert "weight_decay_on" not in plain.description["training"]
    assert all(isinstance(one, torch.Tensor) for one in plain._parameter_groups())
    for wrong in (("weight_decay_on=matrices",), ("weight_decay_on=some",)):
        with pytest.raises(ValueError, match="weight_decay_on="):
            check_training(compose(*wrong))


def test_without_clipping_there_is_nothing_to_show_of_it(compose: Compose, tmp_path: Path) -> None:
    train(compose("trainer.gradient_clip_val=null", "trainer.log_every_n_steps=1"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert "train/gradient_norm" in tags
    assert not [tag for tag in tags if "clip" in tag]
