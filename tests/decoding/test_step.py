import pytest
import torch

from seq2seq.decoding import (
    Hypothesis,
    beam_search,
    greedy,
    length_limits,
    length_normalizer,
    sample,
)


def test_length_normalizer_is_equation_14_of_wu_2016():
    assert length_normalizer(1, 0.7) == 1.0
    assert length_normalizer(7, 1.0) == 2.0
    assert length_normalizer(19, 0.5) == 2.0
    assert length_normalizer(100, 0.0) == 1.0


def test_length_limits_follow_the_source_length():
    lengths = torch.tensor([1, 4, 10])
    assert length_limits(lengths, ratio=1.5, constant=5).tolist() == [7, 11, 20]
    assert length_limits(lengths, ratio=0.0, constant=3).tolist() == [3, 3, 3]
    assert length_limits(lengths, ratio=2.0, constant=-1).tolist() == [1, 7, 19]


def test_length_limits_without_room_are_refused():
    with pytest.raises(ValueError, match="must be positive"):
        length_limits(torch.tensor([3]), ratio=0.0, constant=0)
    with pytest.raises(ValueError, match=r"-1\.0 \* source length"):
        length_limits(torch.tensor([3]), ratio=-1.0, constant=50)


def test_equality_of_hypotheses_leaves_the_alignment_out():
    first = Hypothesis([3], -1.0, -1.0, True, torch.ones(2, 2))
    assert first == Hypothesis([3], -1.0, -1.0, True, torch.zeros(2, 2))


def searches():
    return {
        "greedy": greedy,
        "beam_search": beam_search,
        "sample": lambda *arguments, **options: sample(
            *arguments, generator=torch.Generator().manual_seed(0), **options
        ),
    }


@pytest.mark.parametrize("name", ["greedy", "beam_search", "sample"])
class TestEverySearch:
    def test_refuses_what_cannot_work_in_one_sentence(self, name, markov, ids):
        step, search = markov(), searches()[name]
        cases = [
            ({"max_lengths": torch.tensor([0])}, "max_lengths holds 0"),
            ({"max_lengths": torch.tensor([[3]])}, "must be integers"),
            ({"max_lengths": torch.tensor([3.0])}, "must be integers"),
            ({"max_lengths": torch.tensor([3]), "eos_id": ids["pad_id"]}, "no output could end"),
            ({"max_lengths": torch.tensor([3]), "length_penalty": -0.5}, "length_penalty=-0.5"),
        ]
        for options, message in cases:
            with pytest.raises(ValueError, match=message):
                search(step, step.start(), **{**ids, **options})

    def test_never_generates_padding_or_the_begin_symbol(self, name, markov, ids):
        step = markov(examples=8)
        step.table[..., [ids["pad_id"], ids["bos_id"]]] += 5.0  # by far the most probable
        before = step.table.clone()
        results = searches()[name](
            step, step.start(), max_lengths=torch.full((8,), 12), length_penalty=1.0, **ids
        )
        for hypothesis, *_ in results:
            assert not {ids["pad_id"], ids["bos_id"], ids["eos_id"]} & set(hypothesis.tokens)
        assert torch.equal(step.table, before)

    @pytest.mark.parametrize("value", [float("nan"), float("-inf"), float("inf")])
    def test_names_position_and_example_when_no_token_is_possible(self, name, value, markov, ids):
        step = markov(examples=3)
        step.table[..., ids["eos_id"]] = -1e9
        if value == value:
            step.table[1, 1:] = value  # example 1, from the second position on
        else:
            step.table[1, 1:, :, 5] = value  # one NaN is enough
        with pytest.raises(ValueError, match="position 2 of example 1") as error:
            searches()[name](step, step.start(), max_lengths=torch.full((3,), 4), **ids)
        assert "\n" not in str(error.value)

    def test_an_example_may_end_at_once(self, name, markov, ids):
        step = markov(examples=2)
        step.table[0, 0] = torch.full((7,), -50.0)
        step.table[0, 0, :, ids["eos_id"]] = 0.0
        first = searches()[name](step, step.start(), max_lengths=torch.tensor([5, 5]), **ids)[0][0]
        assert first == Hypothesis([], 0.0, 0.0, True)

    def test_cuts_at_each_examples_own_limit(self, name, markov, ids):
        step = markov(examples=4)
        step.table[..., ids["eos_id"]] = -1e9
        limits = torch.tensor([1, 6, 3, 2])
        results = searches()[name](step, step.start(), max_lengths=limits, **ids)
        assert [len(result[0].tokens) for result in results] == limits.tolist()
        assert not any(result[0].finished for result in results)

    def test_an_end_at_the_limit_counts_as_finished(self, name, markov, ids):
        step = markov()
        step.table[0, 1] = torch.full((7,), -50.0)  # at the second position
        step.table[0, 1, :, ids["eos_id"]] = 0.0
        step.table[0, 0, :, ids["eos_id"]] = -50.0
        result = searches()[name](step, step.start(), max_lengths=torch.tensor([2]), **ids)[0][0]
        assert len(result.tokens) == 1 and result.finished

    def test_score_is_the_normalised_sum_of_the_models_log_probabilities(self, name, markov, ids):
        step = markov(examples=6)
        results = searches()[name](
            step, step.start(), max_lengths=torch.full((6,), 9), length_penalty=0.8, **ids
        )
        for example, (hypothesis, *_) in enumerate(results):
            predicted = hypothesis.tokens + [ids["eos_id"]] * hypothesis.finished
            history = [0, ids["bos_id"], *predicted]
            total = sum(
                step.table[example, before, last, token].item()
                for before, last, token in zip(history, history[1:], history[2:], strict=False)
            )
            assert hypothesis.log_probability == pytest.approx(total, abs=1e-12)
            lp = ((5 + len(predicted)) / 6) ** 0.8
            assert hypothesis.score == pytest.approx(total / lp, abs=1e-12)

    def test_alignments_belong_to_the_tokens_they_predicted(self, name, markov, ids):
        step = markov(examples=9)
        results = searches()[name](
            step, step.start(), max_lengths=torch.full((9,), 8), alignments=True, **ids
        )
        for hypothesis, *_ in results:
            predicted = hypothesis.tokens + [ids["eos_id"]] * hypothesis.finished
            inputs = [ids["bos_id"], *predicted[:-1]]
            assert hypothesis.alignment.argmax(dim=1).tolist() == inputs

    def test_alignments_are_none_unless_wanted_and_given(self, name, markov, recurrent, ids):
        limits = torch.tensor([4])
        without = markov()
        result = searches()[name](without, without.start(), max_lengths=limits, **ids)
        assert result[0][0].alignment is None
        never = recurrent()
        result = searches()[name](never, never.start(), max_lengths=limits, alignments=True, **ids)
        assert result[0][0].alignment is None

    def test_an_empty_batch_gives_an_empty_result(self, name, markov, ids):
        step = markov()
        nothing = torch.zeros(0, dtype=torch.int64)
        state = step.start().select(nothing)
        assert searches()[name](step, state, max_lengths=nothing, **ids) == []

    def test_rows_that_are_done_leave_the_batch(self, name, markov, ids):
        step = markov(examples=40)
        limits = torch.tensor([1] * 30 + [20] * 10)
        searches()[name](step, step.start(), max_lengths=limits, **ids)
        assert step.rows_computed[0] == 40
        assert step.rows_computed[1] <= 10 * (5 if name == "beam_search" else 1)

    def test_keeps_no_graph(self, name, markov, ids):
        step = markov()
        step.table.requires_grad_()
        result = searches()[name](
            step, step.start(), max_lengths=torch.tensor([3]), alignments=True, **ids
        )
        assert not result[0][0].alignment.requires_grad

    @pytest.mark.gpu
    def test_a_gpu_gives_the_same_outputs(self, name, markov, ids):
        step = markov(examples=30, seed=1)
        limits = torch.randint(1, 15, (30,), generator=torch.Generator().manual_seed(0))
        options = {"length_penalty": 0.7, "alignments": True, **ids}
        wanted = searches()[name](step, step.start(), max_lengths=limits, **options)
        step.table = step.table.cuda()
        start = step.start()
        start.example, start.history = start.example.cuda(), start.history.cuda()
        found = searches()[name](step, start, max_lengths=limits.cuda(), **options)
        assert found == wanted
        assert found[0][0].alignment.device.type == "cpu"
