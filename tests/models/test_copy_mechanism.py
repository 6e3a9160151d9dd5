"""The mixture of generating and copying, against one that adds up word by word."""

import math
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from seq2seq.losses import correct_tokens, cross_entropy
from seq2seq.models.copy_mechanism import CopyMechanism, CopyMixture, SourceWords
from seq2seq.models.encoder_decoder import EncoderDecoder, Feeding, encoder_decoder

PAD, VOCABULARY = 0, 9
# Each source ends with a symbol that isn't copied; unknown words are named by their first position.
EXTENDED = torch.tensor(
    [
        [4, VOCABULARY + 1, 4, VOCABULARY + 1, 7, PAD],  # a known and an unknown word stand twice
        [VOCABULARY + 0, 5, VOCABULARY + 2, PAD, PAD, PAD],
        [PAD, PAD, PAD, PAD, PAD, PAD],  # an empty source
    ]
)
SOURCE = torch.tensor([[4, 3, 4, 3, 7, 2], [3, 5, 3, 2, 0, 0], [2, 0, 0, 0, 0, 0]])
LENGTHS = torch.tensor([6, 4, 1])
TARGET = torch.tensor([[1, 3, 4, 3], [1, 5, 3, 0], [1, 0, 0, 0]])

WAYS: list[dict[str, Any]] = [
    {"attention": "general"},
    {"attention": "additive", "input_feeding": True},
    {"attention": "additive", "input_feeding": True, "query_state": "previous", "cell": "gru"},
    {"attention": "dot", "bidirectional": False, "tie_embeddings": True, "embedding_size": 6},
]
every_way = pytest.mark.parametrize(
    "options", WAYS, ids=lambda options: "-".join(str(value) for value in options.values())
)


def build(**options: Any) -> EncoderDecoder:
    torch.manual_seed(0)
    sizes = {"source_vocabulary_size": 8, "target_vocabulary_size": VOCABULARY, "pad_id": PAD}
    values = {"embedding_size": 4, "hidden_size": 6, "copy_mechanism": True}
    model = encoder_decoder(**(sizes | values | options)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def random_parts(rows: int = 12, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Logits, gates and alignments of some positions of each of the three sources."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return 2 * torch.randn(3, rows, *shape, generator=generator, dtype=dtype)

    scores = normal(EXTENDED.size(1)).masked_fill(~real().unsqueeze(1), -math.inf)
    return {"logits": normal(VOCABULARY), "gate": normal(1), "alignment": scores.softmax(dim=2)}


def real() -> Tensor:
    return torch.arange(EXTENDED.size(1)) < LENGTHS.unsqueeze(1)


def mixed(logits: Tensor, gate: Tensor, alignment: Tensor) -> CopyMixture:
    mechanism = CopyMechanism(context_size=1, hidden_size=1, input_size=1, pad_id=PAD)
    scores = mechanism.scores(gate, alignment, SourceWords.of(EXTENDED))
    rows = EXTENDED.repeat_interleave(logits.size(1), dim=0)
    return mechanism.mixture(logits.flatten(0, 1), scores.flatten(0, 1), rows)


def added_up(logits: Tensor, gate: Tensor, alignment: Tensor, words: list[int]) -> list[float]:
    """P of every extended id at one position, by a dictionary of words."""
    p_gen = 1 / (1 + math.exp(-float(gate)))
    total = sum(math.exp(float(logit)) for logit in logits)
    p: dict[int, float] = defaultdict(float)
    for word, logit in enumerate(logits):
        p[word] += p_gen * math.exp(float(logit)) / total
    for word, weight in zip(words, alignment, strict=True):
        if word != PAD:
            p[word] += (1 - p_gen) * float(weight)
    whole = sum(p.values())
    return [p[word] / whole for word in range(VOCABULARY + len(words))]


def test_every_word_has_the_probability_that_adding_up_gives() -> None:
    parts = random_parts()
    wanted = [
        added_up(logits, gate, alignment, words)
        for source, words in enumerate(EXTENDED.tolist())
        for logits, gate, alignment in zip(*(part[source] for part in parts.values()), strict=True)
    ]
    found = mixed(**parts).log_probabilities()
    torch.testing.assert_close(found.exp(), torch.tensor(wanted, dtype=torch.float64))
    torch.testing.assert_close(found.exp().sum(dim=1), torch.ones(36, dtype=torch.float64))
    # What isn't in a source is impossible, not just improbable.
    assert torch.equal(found == -math.inf, torch.tensor(wanted) == 0)


def test_an_empty_source_leaves_the_vocabulary_alone() -> None:
    parts = random_parts()
    found = mixed(**parts).log_probabilities()[24:]
    expected = parts["logits"][2].log_softmax(dim=1)
    torch.testing.assert_close(found[:, :VOCABULARY], expected)
    assert (found[:, VOCABULARY:] == -math.inf).all()


LABELS = torch.tensor(
    [4, VOCABULARY + 1, 7, 5, 8, 3, VOCABULARY + 1, 4, 0, 1, 2, 6]
    + [VOCABULARY + 2, VOCABULARY, 5, 4, 3, 2, 1, 0, 8, 7, 6, 5]
    + [2] * 12
)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_loss_and_gradients_are_those_of_the_whole_distribution(label_smoothing: float) -> None:
    """The loss mixes the labels alone; PyTorch's own, of everything, needs one tensor."""
    results = []
    for way in ("ours", "theirs"):
        parts = {name: part.clone().requires_grad_() for name, part in random_parts().items()}
        mixture = mixed(**parts)
        if way == "ours":
            loss = cross_entropy(mixture, LABELS, label_smoothing=label_smoothing).sum
        else:
            every = mixture.log_probabilities()
            wanted = torch.zeros_like(every)
            wanted[:, :VOCABULARY] = label_smoothing / VOCABULARY
            wanted[torch.arange(36), LABELS] += 1 - label_smoothing
            loss = -(wanted * every.masked_fill(wanted == 0, 0.0)).sum()
        results.append([loss, *torch.autograd.grad(loss, list(parts.values()))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
    plain = cross_entropy(mixed(**random_parts()), LABELS)
    smoothed = cross_entropy(mixed(**random_parts()), LABELS, label_smoothing=label_smoothing)
    assert torch.equal(plain.negative_log_likelihood, smoothed.negative_log_likelihood)


def test_gradients_are_those_of_finite_differences() -> None:
    parts = [part.requires_grad_() for part in random_parts(rows=2).values()]
    labels = torch.tensor([4, VOCABULARY + 1, VOCABULARY, 6, 2, 2])
    assert torch.autograd.gradcheck(
        lambda *values: cross_entropy(mixed(*values), labels, label_smoothing=0.1).sum, parts
    )
    # A word that is impossible has no finite difference; the vocabulary's have.
    assert torch.autograd.gradcheck(
        lambda *values: mixed(*values).log_probabilities()[:, :VOCABULARY], parts
    )


def test_copies_count_as_correct() -> None:
    parts = random_parts()
    best = mixed(**parts).log_probabilities().argmax(dim=1)
    assert (best >= VOCABULARY).any()
    assert int(correct_tokens(mixed(**parts), best)) == 36
    assert int(correct_tokens(mixed(**parts), (best + 1) % VOCABULARY)) == 0


@pytest.mark.parametrize("gate", [-300.0, 300.0])
@pytest.mark.parametrize("peak", [0, 1, 5])
def test_nothing_overflows_where_probabilities_underflow(gate: float, peak: int) -> None:
    """Single precision, all attention on one position, and a gate that is open or shut."""
    parts = random_parts(dtype=torch.float32)
    parts["gate"] = torch.full_like(parts["gate"], gate)
    parts["alignment"] = torch.zeros_like(parts["alignment"])
    parts["alignment"][..., peak] = 1.0
    parts["logits"] = 100 * parts["logits"]
    for part in parts.values():
        part.requires_grad_()
    result = cross_entropy(mixed(**parts), LABELS, label_smoothing=0.1)
    result.sum.backward()
    assert torch.isfinite(result.sum)
    assert all(torch.isfinite(part.grad).all() for part in parts.values())
    # A logarithm of several hundred has an absolute error of 1e-5.
    sums = mixed(**parts).log_probabilities().exp().sum(dim=1)
    torch.testing.assert_close(sums, torch.ones(36), atol=1e-4, rtol=0)


@every_way
def test_steps_give_what_teacher_forcing_gives(options: dict[str, Any]) -> None:
    model = build(**options)
    features = model(SOURCE, LENGTHS, TARGET, extended_source=EXTENDED)
    assert features.shape == (3, 4, 6 + 6)
    rows = torch.tensor([2, 0, 1, 0])
    state = model.start(SOURCE, LENGTHS, EXTENDED).select(rows)
    for position in range(4):
        forced = model.mixture(features[rows, position], EXTENDED[rows]).log_probabilities()
        found, state, _ = model.step(TARGET[rows, position], state)
        assert found.shape == (4, VOCABULARY + 6)
        torch.testing.assert_close(found, forced)


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor has that was computed."""

    numbers = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


def test_a_step_compares_no_words_of_the_source_with_each_other() -> None:
    """That is done once a source, whose words stay the same."""
    model, time = build(), 60
    source = torch.randint(3, 8, (2, time))
    state = model.start(source, torch.tensor([time, time]), source).select(torch.tensor([1, 0, 1]))
    with Largest() as seen, torch.no_grad():
        model.step(torch.tensor([4, 5, 6]), state)
    assert seen.numbers < time * time


@every_way
def test_the_gate_reads_context_hidden_state_and_input(options: dict[str, Any]) -> None:
    """And the distribution is the one that adding up gives, from what the network itself says."""
    model = build(**options).requires_grad_(False)
    seen: dict[str, Tensor] = {}
    layer = model.decoder.layers[-1]
    assert model.decoder.copy_mechanism is not None
    gate = model.decoder.copy_mechanism.gate
    gate.register_forward_hook(lambda _, inputs, output: seen.update(x=inputs[0], gate=output))
    layer.register_forward_hook(
        lambda _, inputs, output: seen.update(input=inputs[0], hidden=output.output)
    )
    model.decoder.output.register_forward_hook(lambda _, inputs, output: seen.update(logits=output))
    state = model.start(SOURCE, LENGTHS, EXTENDED)
    assert state.memory is not None
    for position in range(4):
        found, after, alignment = model.step(TARGET[:, position], state)
        assert alignment is not None
        context = (alignment.unsqueeze(1) @ state.memory.values).squeeze(1)
        expected = torch.cat([context, seen["hidden"][:, 0], seen["input"][:, 0]], dim=1)
        torch.testing.assert_close(seen["x"].squeeze(1), expected)
        wanted = [
            added_up(seen["logits"][row], seen["gate"][row], alignment[row], words)
            for row, words in enumerate(EXTENDED.tolist())
        ]
        torch.testing.assert_close(found.exp(), torch.tensor(wanted, dtype=torch.float64))
        state = after


def test_own_tokens_in_training_may_be_copies_and_are_read_as_unknown() -> None:
    """Scheduled sampling: every token after the first is what the steps say is most probable."""
    model = build().requires_grad_(False)
    assert model.decoder.copy_mechanism is not None
    model.decoder.copy_mechanism.gate.bias -= 30
    feeding = Feeding(0.0, "argmax", unknown_id=3)
    features = model(SOURCE, LENGTHS, TARGET, feeding, extended_source=EXTENDED)
    state, tokens, copied = model.start(SOURCE, LENGTHS, EXTENDED), TARGET[:, 0], 0
    for position in range(4):
        found, state, _ = model.step(tokens, state)
        own = model.mixture(features[:, position], EXTENDED).log_probabilities()
        torch.testing.assert_close(own, found)
        best = found.argmax(dim=1)
        copied += int((best >= VOCABULARY).sum())
        tokens = best.where(best < VOCABULARY, 3)
    assert copied


def test_padding_of_the_source_changes_no_probability() -> None:
    model = build()
    wide = [F.pad(tensor, (0, 3)) for tensor in (SOURCE, EXTENDED)]
    found, _, _ = model.step(TARGET[:, 0], model.start(wide[0], LENGTHS, wide[1]))
    expected, _, _ = model.step(TARGET[:, 0], model.start(SOURCE, LENGTHS, EXTENDED))
    torch.testing.assert_close(found[:, : VOCABULARY + 6], expected)
    assert (found[:, VOCABULARY + 6 :] == -math.inf).all()


def test_half_precision_mixes_in_single() -> None:
    model = build().float()
    exact, _, _ = model.step(TARGET[:, 0], model.start(SOURCE, LENGTHS, EXTENDED))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _, _ = model.step(TARGET[:, 0], model.start(SOURCE, LENGTHS, EXTENDED))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.exp().sum(dim=1), torch.ones(3))
    torch.testing.assert_close(found.exp(), exact.exp(), atol=0.05, rtol=0)


def test_without_copying_no_weight_is_added_and_none_is_drawn_otherwise() -> None:
    plain, copying = build(copy_mechanism=False).state_dict(), build().state_dict()
    assert copying.keys() - plain.keys() == {
        "decoder.copy_mechanism.gate.weight",
        "decoder.copy_mechanism.gate.bias",
    }
    assert not plain.keys() - copying.keys()
    assert copying["decoder.copy_mechanism.gate.weight"].shape == (1, 2 * 6 + 6 + 4)


def test_what_cannot_copy_is_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match="copy_mechanism=true .* attention=none has none"):
        build(attention="none")
    model = build()
    with pytest.raises(ValueError, match="encode the split with copies=True"):
        model.logits(model(SOURCE, LENGTHS, TARGET))
    with pytest.raises(ValueError, match="this network copies nothing"):
        build(copy_mechanism=False)(SOURCE, LENGTHS, TARGET, extended_source=EXTENDED)
