import math

import pytest
import torch
from torch.nn import functional as F

from seq2seq.losses import TokenLoss, correct_tokens, cross_entropy

SMOOTHINGS = [0.0, 0.1, 0.5]


def random_batch(tokens=50, vocabulary=13, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(tokens, vocabulary, generator=generator, dtype=dtype)
    return logits, torch.randint(vocabulary, (tokens,), generator=generator)


@pytest.mark.parametrize("label_smoothing", SMOOTHINGS)
def test_value_and_gradient_equal_the_library(label_smoothing):
    logits, labels = random_batch()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    result = cross_entropy(ours, labels, label_smoothing=label_smoothing)
    wanted = F.cross_entropy(theirs, labels, label_smoothing=label_smoothing, reduction="sum")
    result.sum.backward()
    wanted.backward()
    torch.testing.assert_close(result.sum, wanted)
    torch.testing.assert_close(ours.grad, theirs.grad)
    plain = F.cross_entropy(logits, labels, reduction="sum")
    torch.testing.assert_close(result.negative_log_likelihood, plain)


def test_value_equals_a_calculation_by_hand():
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]).log()
    labels = torch.tensor([0, 1])
    plain = -math.log(0.5) - math.log(0.2)
    result = cross_entropy(logits, labels)
    assert result.sum.item() == pytest.approx(plain)
    spread = -sum(map(math.log, (0.5, 0.25, 0.25, 0.2, 0.2, 0.6))) / 3
    smoothed = cross_entropy(logits, labels, label_smoothing=0.3)
    assert smoothed.sum.item() == pytest.approx(0.7 * plain + 0.3 * spread)
    assert smoothed.negative_log_likelihood.item() == pytest.approx(plain)
    assert result.tokens == smoothed.tokens == 2


@pytest.mark.parametrize("label_smoothing", SMOOTHINGS)
def test_the_gradient_is_softmax_minus_target(label_smoothing):
    logits, labels = random_batch()
    logits.requires_grad_()
    cross_entropy(logits, labels, label_smoothing=label_smoothing).sum.backward()
    target = torch.full_like(logits, label_smoothing / 13)
    target[torch.arange(50), labels] += 1 - label_smoothing
    torch.testing.assert_close(logits.grad, logits.detach().softmax(dim=1) - target)


def test_sums_of_parts_add_up_to_the_whole():
    logits, labels = random_batch()
    whole = cross_entropy(logits, labels, label_smoothing=0.1)
    parts = [
        cross_entropy(logits[rows], labels[rows], label_smoothing=0.1)
        for rows in (slice(0, 7), slice(7, 8), slice(8, 50))
    ]
    for field in range(3):
        torch.testing.assert_close(
            torch.as_tensor(sum(part[field] for part in parts)), torch.as_tensor(whole[field])
        )


def test_only_the_sum_carries_a_gradient():
    logits, labels = random_batch()
    result = cross_entropy(logits.requires_grad_(), labels, label_smoothing=0.1)
    assert result.sum.requires_grad
    assert not result.negative_log_likelihood.requires_grad
    assert isinstance(result, TokenLoss) and isinstance(result.tokens, int)


@pytest.mark.parametrize("label_smoothing", SMOOTHINGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_to_float32_inside_autocast(dtype, label_smoothing):
    logits, labels = random_batch(dtype=torch.float32)
    logits = logits.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = cross_entropy(logits, labels, label_smoothing=label_smoothing)
    result.sum.backward()
    wanted = cross_entropy(logits.detach().float(), labels, label_smoothing=label_smoothing)
    assert result.sum.dtype == result.negative_log_likelihood.dtype == torch.float32
    torch.testing.assert_close(result.sum, wanted.sum)
    assert logits.grad.dtype == dtype


def test_no_tokens_is_a_loss_of_zero():
    logits = torch.zeros(0, 5, requires_grad=True)
    result = cross_entropy(logits, torch.zeros(0, dtype=torch.int64), label_smoothing=0.1)
    result.sum.backward()
    assert result.sum.item() == 0 and result.tokens == 0


def test_correct_tokens_counts_the_best_tokens():
    logits = torch.tensor([[1.0, 2.0, 0.0], [3.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    assert correct_tokens(logits, torch.tensor([1, 1, 2])).item() == 2


@pytest.mark.parametrize("label_smoothing", [-0.1, 1.0, float("nan")])
def test_a_smoothing_outside_zero_to_one_is_refused(label_smoothing):
    logits, labels = random_batch()
    with pytest.raises(ValueError, match="label_smoothing="):
        cross_entropy(logits, labels, label_smoothing=label_smoothing)


def test_padded_shapes_are_refused():
    with pytest.raises(ValueError, match="gather the real positions first"):
        cross_entropy(torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"not \[4, 5\] and \[3\]"):
        cross_entropy(torch.zeros(4, 5), torch.zeros(3, dtype=torch.int64))
