"""The coverage loss against plain loops over real timesteps, and what must not change it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from seq2seq.config_checks import check_sizes
from seq2seq.coverage_loss import CoverageLoss
from seq2seq.models.encoder_decoder import EncoderDecoder, encoder_decoder
from seq2seq.train import train

SOURCE_LENGTHS, TARGET_LENGTHS = torch.tensor([6, 1, 4]), torch.tensor([2, 5, 1])
WEIGHT = 0.7


def build(**options: Any) -> EncoderDecoder:
    torch.manual_seed(0)
    sizes = {"source_vocabulary_size": 9, "target_vocabulary_size": 9, "pad_id": 0}
    values = {"embedding_size": 4, "hidden_size": 6} | options
    return encoder_decoder(**sizes, **values).double()


def tokens(time: int) -> Tensor:
    return torch.randint(1, 9, (3, time), generator=torch.Generator().manual_seed(1))


def penalty(model: EncoderDecoder, source: Tensor, target: Tensor) -> Tensor:
    with CoverageLoss(WEIGHT).watching(model) as watched:
        model(source, SOURCE_LENGTHS, target)
    return watched.penalty(source_lengths=SOURCE_LENGTHS, target_lengths=TARGET_LENGTHS)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attention": "scaled_dot", "attention_heads": 2},
        {"attention": "additive", "coverage": True},
        {"attention": "location", "coverage": True, "input_feeding": True},
        {"input_feeding": True, "query_state": "previous"},
    ],
    ids=str,
)
def test_it_is_what_real_timesteps_attend_to_again(options: dict[str, Any]) -> None:
    model = build(**options)
    state = model.start(tokens(6), SOURCE_LENGTHS)
    alignments = []  # as in decoding, one timestep after the other
    for token in tokens(5).T:
        _, state, alignment = model.step(token, state)
        alignments.append(alignment)
    expected = 0.0
    for row, length in enumerate(TARGET_LENGTHS.tolist()):
        covered = [0.0] * 6
        for time in range(length):
            weights = alignments[time][row].tolist()
            expected += sum(min(a, c) for a, c in zip(weights, covered, strict=True))
            covered = [c + a for c, a in zip(covered, weights, strict=True)]
    found = penalty(model, tokens(6), tokens(5))
    assert float(found.detach()) == pytest.approx(WEIGHT * expected / 8, abs=1e-12)
    found.backward()
    for name, parameter in model.decoder.attention.named_parameters():
        if name.startswith(("value_projection", "output_projection")):
            continue  # of the contexts of several heads, which no later alignment depends on
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name
    assert model.encoder.embedding.weight.grad.any()


def test_it_takes_no_sum_that_a_gpu_refuses_where_it_must_be_deterministic() -> None:
    class Operations(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.add(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    seen: set[str] = set()
    model = build()
    with CoverageLoss(WEIGHT).watching(model) as watched:
        model(tokens(6), SOURCE_LENGTHS, tokens(5))
    with Operations():
        watched.penalty(source_lengths=SOURCE_LENGTHS, target_lengths=TARGET_LENGTHS)
    assert "minimum" in seen
    assert "cumsum" not in seen


def test_half_precision_of_the_network_leaves_it_exact() -> None:
    model = build().float()
    with CoverageLoss(WEIGHT).watching(model) as watched:
        model(tokens(6), SOURCE_LENGTHS, tokens(5))
    lengths = {"source_lengths": SOURCE_LENGTHS, "target_lengths": TARGET_LENGTHS}
    expected = watched.penalty(**lengths)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(watched.penalty(**lengths), expected)


def test_padding_changes_neither_the_loss_nor_its_gradient() -> None:
    results = []
    for more in (0, 3):
        model = build(attention="location", coverage=True)
        pad = torch.nn.functional.pad
        found = penalty(model, pad(tokens(6), (0, more)), pad(tokens(5), (0, more)))
        found.backward()
        weights = [found.detach(), *(one.grad for one in model.decoder.attention.parameters())]
        results.append(weights)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


def test_it_lies_between_zero_and_its_weight() -> None:
    model = build(hidden_size=40, attention="additive")
    found = []
    for scale in (0.0, 300.0):  # attention that is the same everywhere, and that picks by content
        with torch.no_grad():
            model.decoder.attention.energy.weight.fill_(scale)
        found.append(float(penalty(model, tokens(6), tokens(5)).detach()))
    assert all(0 <= one <= WEIGHT for one in found)
    # The same everywhere: all but each sequence's first timestep read only what was read.
    assert found[0] == pytest.approx(WEIGHT * 5 / 8)


def test_the_hook_is_gone_afterwards_and_what_cannot_be_is_refused(
    compose: Callable[..., DictConfig],
) -> None:
    model = build()
    penalty(model, tokens(6), tokens(5))
    assert not model.decoder.attention._forward_hooks
    assert not CoverageLoss(0.0)
    with pytest.raises(ValueError, match=r"coverage_loss=-1 must be at least 0"):
        CoverageLoss(-1)
    with pytest.raises(ValueError, match=r"coverage_loss=1.0 .* model.attention=none has none"):
        check_sizes(compose("coverage_loss=1", "model.attention=none"))


def test_coverage_in_the_score_lets_attention_learn_not_to_repeat_itself() -> None:
    lowest = {}
    for coverage in (False, True):
        model = build(attention="additive", coverage=coverage)
        # Queries that are all the same leave nothing but coverage to tell timesteps apart.
        with torch.no_grad():
            model.decoder.attention.query_projection.weight.zero_()
        others = [p for n, p in model.decoder.attention.named_parameters() if "query" not in n]
        optimizer = torch.optim.Adam(others, lr=0.1)
        for _ in range(60):
            optimizer.zero_grad()
            loss = penalty(model, tokens(6), tokens(5))
            loss.backward()
            optimizer.step()
        lowest[coverage] = float(loss.detach())
    # Of the 8 target tokens, 4 have a source of one position, which they can only read again.
    inevitable = WEIGHT * 4 / 8
    assert lowest[False] == pytest.approx(WEIGHT * 5 / 8)
    assert lowest[True] == pytest.approx(inevitable, abs=0.02)


def test_training_logs_it(compose: Callable[..., DictConfig], tmp_path: Path) -> None:
    overrides = ("coverage_loss=1", f"run_folder={tmp_path}", "trainer.log_every_n_steps=1")
    train(compose(*overrides, "model.attention=additive", "model.coverage=true"))
    lines = (tmp_path / "curves.jsonl").read_text()
    assert "train/coverage_loss" in lines
    assert "val/coverage_loss" not in lines
