"""Gradient noise: its size by the formula, and that nothing else sees its draws."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import nn

from seq2seq.config_checks import check_training
from seq2seq.data.batch import Batch
from seq2seq.gradient_noise import GradientNoise
from seq2seq.module import TranslationModule
from seq2seq.train import train

Compose = Callable[..., DictConfig]


def gradients(step: int, *, seed: int = 3, eta: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a matrix and an embedding whose gradients were 2 before."""
    module = nn.ModuleDict({"linear": nn.Linear(400, 500, bias=False)})
    module["embedding"] = nn.Embedding(6, 5, padding_idx=1)
    module["frozen"] = nn.Linear(3, 3)
    for name in ("linear", "embedding"):
        module[name].weight.grad = torch.full_like(module[name].weight, 2.0)
    GradientNoise(eta=eta, seed=seed).add(module, step)
    assert module["frozen"].weight.grad is None
    return module["linear"].weight.grad, module["embedding"].weight.grad


@pytest.mark.parametrize("step", [0, 1, 99])
def test_variance_falls_with_the_step_as_the_formula_says(step: int) -> None:
    noise = gradients(step)[0] - 2
    assert float(noise.var()) == pytest.approx(0.3 / (1 + step) ** 0.55, rel=0.02)
    assert abs(float(noise.mean())) < 4 * float(noise.std()) / 400


def test_noise_is_a_function_of_seed_and_step_and_leaves_the_padding_alone() -> None:
    first, embedding = gradients(7)
    assert torch.equal(gradients(7)[0], first)
    assert not torch.equal(gradients(8)[0], first)
    assert not torch.equal(gradients(7, seed=4)[0], first)
    assert torch.equal(embedding[1], torch.full((5,), 2.0))
    assert (embedding[[0, 2, 3, 4, 5]] != 2).all()


def test_neither_dropout_nor_the_order_of_the_data_sees_the_draws(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []  # pairs of each batch of the run
    training_step = TranslationModule.training_step

    def watched(module: TranslationModule, batch: Batch, batch_idx: int) -> Any:
        seen.append(batch.index.tolist())
        return training_step(module, batch, batch_idx)

    monkeypatch.setattr(TranslationModule, "training_step", watched)

    def generator(*options: str, folder: str) -> torch.Tensor:
        train(compose("model.output_dropout=0.2", *options, folder=folder))
        path = tmp_path / folder / "checkpoints" / "last.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        noise = checkpoint["seq2seq"]["training"].get("gradient_noise")
        assert noise == (0.01 if options else None)
        state: torch.Tensor = checkpoint["callbacks"]["RandomState"]["cpu"]
        return state

    noisy = generator("gradient_noise=0.01", "trainer.gradient_clip_val=null", folder="noisy")
    batches = seen[:]
    seen.clear()
    assert torch.equal(noisy, generator(folder="plain"))
    assert len(batches) > 1
    assert batches == seen


def test_a_variance_below_zero_is_refused(compose: Compose) -> None:
    with pytest.raises(ValueError, match="gradient_noise=-1.0 is a variance"):
        check_training(compose("gradient_noise=-1"))
