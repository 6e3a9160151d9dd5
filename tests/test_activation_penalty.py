"""AR and TAR against plain loops over real timesteps, and what must not change them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from seq2seq.activation_penalty import ActivationPenalty
from seq2seq.models.encoder_decoder import EncoderDecoder, encoder_decoder
from seq2seq.train import train

SOURCE_LENGTHS, TARGET_LENGTHS = torch.tensor([6, 1, 4]), torch.tensor([2, 5, 1])
PENALTY = ActivationPenalty(activation=2.0, temporal=0.5)


def build(**options: Any) -> EncoderDecoder:
    torch.manual_seed(0)
    sizes = {"source_vocabulary_size": 9, "target_vocabulary_size": 9, "pad_id": 0}
    values = {"embedding_size": 4, "hidden_size": 6, "encoder_layers": 2} | options
    return encoder_decoder(**sizes, **values).double()


def tokens(time: int) -> Tensor:
    return torch.randint(1, 9, (3, time), generator=torch.Generator().manual_seed(1))


def penalty(model: EncoderDecoder, source: Tensor, target: Tensor) -> Tensor:
    with PENALTY.watching(model) as watched:
        model(source, SOURCE_LENGTHS, target)
    return watched.penalty(source_lengths=SOURCE_LENGTHS, target_lengths=TARGET_LENGTHS)


@pytest.mark.parametrize("input_feeding", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_penalty_is_the_mean_of_squares_over_real_timesteps_of_the_top_layers(
    input_feeding: bool, bidirectional: bool
) -> None:
    model = build(input_feeding=input_feeding, bidirectional=bidirectional)
    outputs: dict[str, list[Tensor]] = {"encoder": [], "decoder": []}
    pair = model.encoder.layers[1]
    for layer in (pair.forward_layer, pair.backward_layer):
        if layer is not None:
            layer.register_forward_hook(lambda *call: outputs["encoder"].append(call[2].output))
    model.decoder.layers[1].register_forward_hook(
        lambda *call: outputs["decoder"].append(call[2].output)
    )
    found = penalty(model, tokens(6), tokens(5))
    expected = 0.0
    for part, lengths in (("encoder", SOURCE_LENGTHS), ("decoder", TARGET_LENGTHS)):
        sizes, changes = [], []
        joined = torch.cat(outputs[part], dim=2 if part == "encoder" else 1)
        for row, length in enumerate(lengths.tolist()):
            for time in range(length):
                sizes.append(joined[row, time].square().mean())
                if time:
                    changes.append((joined[row, time] - joined[row, time - 1]).square().mean())
        expected += 2.0 * torch.stack(sizes).mean() + 0.5 * torch.stack(changes).mean()
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def test_padding_changes_neither_the_penalty_nor_its_gradient() -> None:
    gradients = []
    for more in (0, 3):
        model = build()
        pad = torch.nn.functional.pad
        found = penalty(model, pad(tokens(6), (0, more)), pad(tokens(5), (0, more)))
        found.backward()
        weights = (model.encoder.layers[0].forward_layer, model.decoder.layers[1])
        gradients.append([found.detach(), *(one.rnn.weight_hh_l0.grad for one in weights)])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


def test_the_hooks_are_gone_afterwards_and_a_number_below_zero_is_refused() -> None:
    model = build()
    penalty(model, tokens(6), tokens(5))
    assert not any(layer._forward_hooks for layer in model.recurrent_layers().values())
    assert not ActivationPenalty()
    with pytest.raises(ValueError, match=r"temporal_activation_regularization=-1 must be"):
        ActivationPenalty(temporal=-1)


def test_training_with_it_logs_it_and_makes_the_outputs_smaller(
    compose: Callable[..., DictConfig], tmp_path: Path
) -> None:
    weights = []
    for alpha in (0.0, 50.0):
        config = compose(
            f"activation_regularization={alpha}",
            f"run_folder={tmp_path / str(alpha)}",
            "trainer.log_every_n_steps=1",
        )
        train(config)
        lines = (tmp_path / str(alpha) / "curves.jsonl").read_text()
        assert ("train/activation_penalty" in lines) == bool(alpha)
        checkpoint = next((tmp_path / str(alpha) / "checkpoints").glob("last.ckpt"))
        weights.append(torch.load(checkpoint, weights_only=True)["state_dict"])
    name = "model.decoder.layers.0.rnn.bias_ih_l0"
    assert not torch.equal(weights[0][name], weights[1][name])
