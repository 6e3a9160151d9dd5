"""Input gradients against each example walked through alone, and beside the exact profile."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seq2seq.diagnostics.gradient_flow import GradientRecorder, layer_flow
from seq2seq.diagnostics.gradient_profile import GradientProfile, gradient_profiles
from seq2seq.diagnostics.input_gradient import InputGradients
from seq2seq.models.encoder_decoder import EncoderDecoder, encoder_decoder
from seq2seq.models.recurrent import CELLS

VOCABULARY = 11
SOURCE = torch.tensor([5, 9, 3, 1, 7, 9])
TARGET = torch.tensor([4, 2, 8, 6, 1, 8])

MODELS: dict[str, dict[str, Any]] = {
    "attention": {"encoder_layers": 2},
    "no attention": {"attention": "none", "bridge": "linear"},
    "input feeding": {"cell": "gru", "input_feeding": True},
    "previous query": {"cell": "rnn_tanh", "input_feeding": True, "query_state": "previous"},
    "relu, reversed": {"cell": "rnn_relu", "reverse_source": True},
}


def make_model(**options: Any) -> EncoderDecoder:
    torch.manual_seed(1)
    values = {"source_vocabulary_size": VOCABULARY, "target_vocabulary_size": VOCABULARY}
    values |= {"pad_id": 0, "embedding_size": 5, "hidden_size": 4}
    return encoder_decoder(**(values | options)).double()


def ids(lengths: Tensor, seed: int, padding: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = (len(lengths), int(lengths.max()))
    tokens = torch.randint(1, VOCABULARY, size, generator=generator)
    tokens = tokens.masked_fill(torch.arange(size[1]) >= lengths.unsqueeze(1), 0)
    return nn.functional.pad(tokens, (0, padding))


def summed_loss(
    model: EncoderDecoder, source: Tensor, lengths: Tensor, fed: Tensor, labels: Tensor
) -> Tensor:
    logits = model.logits(model(source, lengths, fed))
    return nn.functional.cross_entropy(
        logits.transpose(1, 2), labels, ignore_index=0, reduction="sum"
    )


def watched(
    model: EncoderDecoder, *, padding: int = 0, scale: float = 1.0, times: int = 1
) -> dict[str, GradientProfile]:
    gradients = InputGradients(model.recurrent_layers())
    gradients.attach()
    tokens = [ids(lengths, seed, padding) for seed, lengths in enumerate((SOURCE, TARGET, TARGET))]
    for _ in range(times):
        gradients.start()
        loss = summed_loss(model, tokens[0], SOURCE, *tokens[1:])
        gradients.stop()
        (loss / scale).backward()
        assert gradients.add({"encoder": SOURCE, "decoder": TARGET}, scale=scale)
    return {profile.layer: profile for profile in gradients.profiles(3, min_examples=1)}


def one_by_one(model: EncoderDecoder) -> dict[str, tuple[float, ...]]:
    """Root mean square by distance, from examples without padding in batches of one."""
    squares: dict[str, dict[int, list[float]]] = {}
    inputs: dict[str, list[Tensor]] = {name: [] for name in model.recurrent_layers()}
    for name, layer in model.recurrent_layers().items():

        def keep(_: nn.Module, args: tuple[Any, ...], name: str = name) -> tuple[Any, ...]:
            x = args[0].clone()
            x.retain_grad()
            inputs[name].append(x)
            return (x, *args[1:])

        layer.register_forward_pre_hook(keep)
    for row in range(len(SOURCE)):
        source, target = int(SOURCE[row]), int(TARGET[row])
        one = slice(row, row + 1)
        summed_loss(
            model,
            ids(SOURCE, 0)[one, :source],
            SOURCE[one],
            ids(TARGET, 1)[one, :target],
            ids(TARGET, 2)[one, :target],
        ).backward()
        for name, layer in model.recurrent_layers().items():
            parts = [torch.zeros_like(x) if x.grad is None else x.grad for x in inputs[name]]
            inputs[name].clear()
            norms = torch.cat(parts, dim=1)[0].norm(dim=1)
            norms = norms if layer.reverse else norms.flip(0)
            for distance, norm in enumerate(norms.tolist()):
                squares.setdefault(name, {}).setdefault(distance, []).append(norm**2)
    return {
        name: tuple(math.sqrt(sum(all_) / len(all_)) for _, all_ in sorted(found.items()))
        for name, found in squares.items()
    }


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_norms_are_those_of_each_example_alone_whatever_the_padding_and_the_batch(
    options: dict[str, Any],
) -> None:
    model = make_model(**options)
    expected = one_by_one(copy.deepcopy(model))
    for found in (watched(model), watched(model, padding=3, scale=1 / 37, times=2)):
        assert found.keys() == expected.keys()
        for name, profile in found.items():
            assert profile.from_end == pytest.approx(expected[name], rel=1e-9), name
            assert (profile.step, profile.quantity) == (3, "input")


@pytest.mark.parametrize("gain", [0.5, 1.0, 1.7, 2.0])
@pytest.mark.parametrize("cell", CELLS)
def test_the_log_profile_runs_parallel_to_the_exact_one(cell: str, gain: float) -> None:
    model = make_model(
        cell=cell,
        embedding_size=32,
        hidden_size=32,
        bidirectional=False,
        attention="none",
        bridge="copy",
    )
    layers = model.recurrent_layers()
    for name, parameter in model.named_parameters():
        if "weight_hh" in name:
            parameter.data.mul_(gain * math.sqrt(3))  # spectral radius near the gain
    lengths = torch.randint(20, 41, (32,), generator=torch.Generator().manual_seed(0))
    gradients = InputGradients(layers)
    gradients.attach()
    gradients.start()
    with GradientRecorder(layers, rows=torch.arange(len(lengths))) as recorder:
        loss = summed_loss(model, ids(lengths, 0), lengths, *(ids(lengths, s) for s in (1, 2)))
    gradients.stop()
    loss.backward()
    gradients.add({"encoder": lengths, "decoder": lengths})
    name = "encoder/layer0/forward"
    (input_profile,) = (p for p in gradients.profiles(0, min_examples=8) if p.layer == name)
    flow = layer_flow(layers[name], recorder.calls[name], lengths=lengths)
    exact = gradient_profiles(0, name, flow.norms(), lengths, min_examples=8)[0]
    assert exact.quantity == "hidden"
    pair = torch.tensor([exact.log10(), input_profile.log10()])
    pair = pair[:, ~pair.isnan().any(0)]  # float32 can't hold the squares of norms below 1e-15
    assert pair.size(1) > 10
    if float(pair.std(dim=1)[0]) > 0.5:  # decades; of a flat profile only the noise is left
        assert float(torch.corrcoef(pair)[0, 1]) > 0.995
    # Normalising the cell state adds a factor that depends on its size, and so on the timestep.
    tolerance = 0.08 if cell == "layer_norm_lstm" else 0.03
    assert input_profile.slope == pytest.approx(exact.slope, rel=tolerance, abs=0.001)


def test_a_batch_with_an_infinite_gradient_counts_for_nothing() -> None:
    model = make_model(attention="none", bridge="linear")
    sides = {"encoder": SOURCE, "decoder": TARGET}
    gradients = InputGradients(model.recurrent_layers())
    gradients.attach()
    for factor in (1.0, math.inf):
        gradients.start()
        loss = summed_loss(model, ids(SOURCE, 0), SOURCE, ids(TARGET, 1), ids(TARGET, 2))
        gradients.stop()
        (loss * factor).backward()
        gradients.add(sides, scale=torch.ones(()))
    found = {profile.layer: profile for profile in gradients.profiles(0, min_examples=1)}
    expected = one_by_one(copy.deepcopy(model))
    for name, profile in found.items():
        assert profile.from_end == pytest.approx(expected[name], rel=1e-9)
    assert gradients.profiles(0, min_examples=1) == []  # read, and begun anew


def test_distances_that_few_examples_reach_are_left_open() -> None:
    model = make_model()
    gradients = InputGradients(model.recurrent_layers())
    gradients.attach()
    gradients.start()
    loss = summed_loss(model, ids(SOURCE, 0), SOURCE, ids(TARGET, 1), ids(TARGET, 2))
    gradients.stop()
    loss.backward()
    gradients.add({"encoder": SOURCE, "decoder": TARGET})
    profile = gradients.profiles(0, min_examples=8)[0]  # at most half of six are asked for
    assert [not math.isnan(norm) for norm in profile.from_end] == [True] * 7 + [False] * 2


@pytest.mark.parametrize("name", MODELS)
def test_frozen_embeddings_change_no_profile_and_watching_them_no_gradient(name: str) -> None:
    model = make_model(**MODELS[name])
    expected = watched(model)
    trained = [one for kind, one in model.named_parameters() if "embedding" not in kind]
    learned = [one.grad for one in trained]
    model.zero_grad()
    for embedding in (model.encoder.embedding, model.decoder.embedding):
        embedding.requires_grad_(False)
    assert watched(model) == expected
    for one, gradient in zip(trained, learned, strict=True):
        assert one.grad is not None and gradient is not None
        assert torch.equal(one.grad, gradient)


def test_nothing_is_seen_where_nothing_is_trained() -> None:
    model = make_model(attention="none", bridge="linear").requires_grad_(False)
    model.decoder.output.weight.requires_grad_(True)
    gradients = InputGradients(model.recurrent_layers())
    gradients.attach()
    gradients.start()
    loss = summed_loss(model, ids(SOURCE, 0), SOURCE, ids(TARGET, 1), ids(TARGET, 2))
    gradients.stop()
    loss.backward()
    assert not gradients.add({"encoder": SOURCE, "decoder": TARGET})
