"""An ensemble is the average of its networks, step by step and teacher forced."""

import pytest
import torch

from seq2seq.models.encoder_decoder import EncoderDecoder, encoder_decoder
from seq2seq.models.ensemble import Ensemble

SOURCE, LENGTHS = torch.tensor([[4, 5, 6, 2], [7, 2, 0, 0]]), torch.tensor([4, 2])
TARGET = torch.tensor([[1, 5, 4], [1, 6, 3]])


def network(seed: int, **options: object) -> EncoderDecoder:
    torch.manual_seed(seed)
    sizes = {"source_vocabulary_size": 9, "target_vocabulary_size": 8, "embedding_size": 4}
    return encoder_decoder(**sizes, pad_id=0, **{"hidden_size": 5, **options}).double().eval()


def members() -> list[EncoderDecoder]:
    """Different cells, widths and depths; one without attention."""
    return [
        network(1),
        network(2, cell="gru", hidden_size=7, encoder_layers=2, input_feeding=True),
        network(3, attention="none"),
    ]


def test_probabilities_are_the_mean_of_the_networks_teacher_forced() -> None:
    each = members()
    together = Ensemble(each)
    features = together(SOURCE, LENGTHS, TARGET)
    assert features.shape == (2, 3, 5 + 7 + 5)
    expected = sum(
        torch.softmax(one.logits(one(SOURCE, LENGTHS, TARGET)), dim=-1) for one in each
    ) / len(each)
    found = together.distribution(features, None)
    torch.testing.assert_close(found.exp(), expected)
    # A loss takes them for logits, and finds the same.
    torch.testing.assert_close(torch.log_softmax(found, dim=-1), found)
    # Positions that were picked out, as the loss does it, are the same.
    torch.testing.assert_close(together.distribution(features[:, 1], None), found[:, 1])


def test_steps_give_what_teacher_forcing_gives_and_rows_can_be_chosen() -> None:
    each = members()
    together = Ensemble(each)
    forced = together.distribution(together(SOURCE, LENGTHS, TARGET), None)
    state = together.start(SOURCE, LENGTHS).select(torch.tensor([1, 0, 1]))
    for position in range(3):
        found, state, alignment = together.step(TARGET[[1, 0, 1], position], state)
        torch.testing.assert_close(found, forced[[1, 0, 1], position])
        assert alignment is not None
        torch.testing.assert_close(alignment.sum(dim=1), torch.ones(3, dtype=torch.float64))
    start = [one.start(SOURCE, LENGTHS) for one in each[:2]]
    alone = [one.step(TARGET[:, 0], begun)[2] for one, begun in zip(each, start, strict=False)]
    alignment = together.step(TARGET[:, 0], together.start(SOURCE, LENGTHS))[2]
    torch.testing.assert_close(alignment, (alone[0] + alone[1]) / 2)


def test_an_ensemble_of_equals_is_the_network_itself() -> None:
    one = network(1)
    found, _, alignment = Ensemble([one, one]).step(
        TARGET[:, 0], Ensemble([one, one]).start(SOURCE, LENGTHS)
    )
    expected, _, attention = one.step(TARGET[:, 0], one.start(SOURCE, LENGTHS))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(alignment, attention)


def test_without_attention_there_is_no_alignment() -> None:
    together = Ensemble([network(1, attention="none"), network(2, attention="none")])
    assert not together.attends
    assert together.step(TARGET[:, 0], together.start(SOURCE, LENGTHS))[2] is None


def test_an_empty_ensemble_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one network"):
        Ensemble([])


def test_networks_that_copy_mix_over_the_words_of_the_source_too() -> None:
    each = [network(seed, copy_mechanism=True, hidden_size=3 + seed) for seed in (1, 2)]
    together = Ensemble(each)
    extended = torch.tensor([[4, 9, 6, 0], [8, 0, 0, 0]])
    features = together(SOURCE, LENGTHS, TARGET, extended_source=extended)
    expected = sum(
        one.mixture(one(SOURCE, LENGTHS, TARGET, extended_source=extended)[:, 1], extended)
        .log_probabilities()
        .exp()
        for one in each
    )
    found = together.distribution(features[:, 1], extended)
    torch.testing.assert_close(found.exp(), expected / 2)
    state = together.start(SOURCE, LENGTHS, extended)
    for position in range(2):
        steps, state, _ = together.step(TARGET[:, position], state)
    torch.testing.assert_close(steps, found)


def test_networks_that_copy_and_others_are_refused_together() -> None:
    with pytest.raises(ValueError, match=r"copy_mechanism=true and others don't"):
        Ensemble([network(1), network(2, copy_mechanism=True)])
