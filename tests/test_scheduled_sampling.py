"""Scheduled sampling: its schedules, what is fed, and that training counts just what was fed."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from seq2seq.models.encoder_decoder import EncoderDecoder, Feeding, encoder_decoder
from seq2seq.scheduled_sampling import ScheduledSampling
from seq2seq.train import train

Compose = Callable[..., DictConfig]
VOCABULARY, LOUD = 13, 12
# As close to teacher forcing as a probability below 1 is: the coins are tossed, and all say true.
ALWAYS_TRUE = Feeding(1 - 1e-12, "sample")

WAYS: list[dict[str, Any]] = [
    {"attention": "none", "bidirectional": False, "bridge": "copy"},
    {"attention": "general", "decoder_layers": 2, "cell": "gru"},
    {"attention": "additive", "input_feeding": True, "query_state": "previous"},
    {"attention": "additive", "input_feeding": True, "coverage": True},
]
every_way = pytest.mark.parametrize(
    "options", WAYS, ids=["no attention", "attention", "previous", "coverage"]
)


def build(**options: Any) -> EncoderDecoder:
    torch.manual_seed(0)
    values = {"cell": "lstm", "embedding_size": 4, "hidden_size": 6, "pad_id": 0}
    sizes = {"source_vocabulary_size": VOCABULARY, "target_vocabulary_size": VOCABULARY}
    model = encoder_decoder(**(sizes | values | options)).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embedding" not in name:
                parameter.normal_(std=0.5)
    return model


def tokens(batch: int, time: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, LOUD, (batch, time), generator=generator)


def watch_fed(model: EncoderDecoder, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the decoder is fed, one entry a timestep."""
    fed: list[Tensor] = []
    step = model.decoder.step

    def watched(tokens: Tensor, *rest: Any) -> Any:
        fed.append(tokens)
        return step(tokens, *rest)

    monkeypatch.setattr(model.decoder, "step", watched)
    return fed


@pytest.mark.parametrize(
    ("options", "epsilon"),
    [
        ({"schedule": "linear", "c": 0.01}, lambda i: 1 - 0.01 * i),
        ({"schedule": "linear", "k": 0.9, "c": 0.01, "floor": 0.3}, lambda i: 0.9 - 0.01 * i),
        ({"schedule": "exponential", "k": 0.98}, lambda i: 0.98**i),
        ({"schedule": "inverse_sigmoid", "k": 20}, lambda i: 20 / (20 + math.exp(i / 20))),
    ],
)
def test_the_probability_falls_as_the_formula_says_down_to_the_floor(
    options: dict[str, Any], epsilon: Callable[[int], float]
) -> None:
    schedule = ScheduledSampling(**options)
    for step in (0, 1, 30, 75, 1000):
        expected = max(options.get("floor", 0.0), epsilon(step))
        assert schedule.feeding(step).teacher_forcing == pytest.approx(expected)
    assert schedule.feeding(10**8).teacher_forcing == options.get("floor", 0.0)  # no overflow


@every_way
def test_if_every_token_is_the_true_one_it_is_teacher_forcing(options: dict[str, Any]) -> None:
    model = build(**options)
    source, lengths, reference = tokens(4, 7), torch.tensor([4, 1, 7, 2]), tokens(4, 5, seed=2)
    expected = model(source, lengths, reference)
    for feeding in (Feeding(1.0, "sample"), ALWAYS_TRUE):
        features = model(source, lengths, reference, feeding)
        torch.testing.assert_close(features, expected, rtol=0, atol=1e-12)


@every_way
def test_if_no_token_is_the_true_one_it_is_greedy_decoding(options: dict[str, Any]) -> None:
    model = build(**options)
    source, lengths, reference = tokens(4, 7), torch.tensor([4, 1, 7, 2]), tokens(4, 5, seed=2)
    logits = model.logits(model(source, lengths, reference, Feeding(0.0, "argmax")))
    state, current = model.start(source, lengths), reference[:, 0]
    for time in range(5):
        scores, state, _ = model.step(current, state)
        torch.testing.assert_close(logits[:, time].log_softmax(1), scores, rtol=0, atol=1e-12)
        current = scores.argmax(1)


@every_way
def test_loss_and_gradient_are_those_of_forcing_what_was_fed(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(**options)
    source, lengths, reference = tokens(8, 7), torch.full((8,), 7), tokens(8, 6, seed=2)
    with monkeypatch.context() as patched:
        fed = watch_fed(model, patched)
        model.logits(
            model(source, lengths, reference, Feeding(0.5, "sample"))
        ).cos().sum().backward()
    history = torch.stack(fed, dim=1)
    assert torch.equal(history[:, 0], reference[:, 0])
    assert 0.1 < (history == reference).double().mean() < 0.9
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.logits(model(source, lengths, history)).cos().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("fed", ["sample", "argmax"])
def test_the_share_of_true_tokens_is_the_probability(
    fed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, share, batch, time = build(attention="none"), 0.7, 200, 41
    with torch.no_grad():
        model.decoder.output.bias[LOUD] = 1000.0  # all that it says, and no true token is this
    seen = watch_fed(model, monkeypatch)
    model(tokens(batch, 3), torch.full((batch,), 3), tokens(batch, time), Feeding(share, fed))
    true = float((torch.stack(seen[1:]) != LOUD).double().mean())
    assert (torch.stack(seen[1:]) == LOUD).any(dim=0).float().mean() > 0.9  # a coin for each token
    assert abs(true - share) < 4 * math.sqrt(share * (1 - share) / (batch * (time - 1)))


class Waits(TorchDispatchMode):
    """How often the processor needs a number, for which it would wait for a GPU."""

    number = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += op.overloadpacket.__name__ in (
            "nonzero",
            "multinomial",
            "_local_scalar_dense",
        )
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("fed", ["sample", "argmax"])
def test_no_step_waits_for_a_gpu(fed: str) -> None:
    model, waits = build(), []
    for time in (3, 12):
        with Waits() as seen:
            source, lengths = tokens(4, 5), torch.full((4,), 5)
            model(source, lengths, tokens(4, time, seed=2), Feeding(0.5, fed))
        waits.append(seen.number)
    assert waits[0] == waits[1] > 0


def test_sampled_tokens_come_as_often_as_the_model_says(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(attention="none")
    probabilities = torch.softmax(torch.arange(VOCABULARY) / 4.0, dim=0).double()
    with torch.no_grad():
        model.decoder.output.weight.zero_()
        model.decoder.output.bias.copy_(probabilities.log())
    seen = watch_fed(model, monkeypatch)
    model(tokens(300, 3), torch.full((300,), 3), tokens(300, 31), Feeding(0.0, "sample"))
    counts = torch.stack(seen[1:]).flatten().bincount(minlength=VOCABULARY)
    expected = probabilities * counts.sum()
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert chi_squared < 32.9  # one in a thousand with 12 degrees of freedom


def test_a_run_shows_the_probability_and_its_gradient_at_every_timestep(
    compose: Compose, tmp_path: Path
) -> None:
    train(
        compose(
            *("scheduled_sampling.schedule=linear", "scheduled_sampling.c=0.1"),
            *("callbacks.gradient_flow.every_n_steps=5", "trainer.log_every_n_steps=1"),
        )
    )
    lines = (tmp_path / "run" / "curves.jsonl").read_text().splitlines()
    shown = [json.loads(line).get("train/teacher_forcing") for line in lines]
    found = [value for value in shown if value is not None]
    assert found == pytest.approx([1 - 0.1 * step for step in range(len(found))])
    table = (tmp_path / "run" / "gradient_flow.jsonl").read_text().splitlines()
    layers = {(json.loads(line)["step"], json.loads(line)["layer"]) for line in table}
    assert len({step for step, layer in layers if layer == "decoder/layer0"}) > 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"schedule": "cosine"}, "scheduled_sampling.schedule=cosine is unknown"),
        ({"schedule": "linear", "k": 1.5}, "scheduled_sampling.k=1.5 is the probability"),
        ({"schedule": "linear", "c": -1.0}, "scheduled_sampling.c=-1.0 is taken off"),
        ({"schedule": "exponential"}, "scheduled_sampling.k=null must be above 0 and below 1"),
        ({"schedule": "inverse_sigmoid", "k": 0.5}, "scheduled_sampling.k=0.5 must be at least 1"),
        ({"floor": 2.0}, "scheduled_sampling.floor=2.0 is a probability"),
        ({"fed": "beam"}, "scheduled_sampling.fed=beam is unknown"),
        ({"k": 0.5}, "scheduled_sampling.k=0.5 does nothing with schedule=none"),
        ({"c": -3.0}, "scheduled_sampling.c=-3.0 is of schedule=linear, but schedule is none"),
        ({"floor": 0.1}, "scheduled_sampling.floor=0.1 does nothing with schedule=none"),
        ({"fed": "argmax"}, "scheduled_sampling.fed=argmax does nothing with schedule=none"),
        (
            {"schedule": "exponential", "k": 0.9, "c": 0.1},
            "scheduled_sampling.c=0.1 is of schedule=linear, but schedule is exponential",
        ),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ScheduledSampling(**options)
