import torch

from seq2seq.decoding import greedy


def follow_by_hand(step, example, limit, ids):
    before, last, tokens = 0, ids["bos_id"], []
    while len(tokens) < limit:
        row = step.table[example, before, last].tolist()
        best = max((token for token in range(len(row)) if token not in (0, 1)), key=row.__getitem__)
        if best == ids["eos_id"]:
            return tokens, True
        tokens.append(best)
        before, last = last, best
    return tokens, False


def test_greedy_takes_the_most_probable_token_at_every_position(markov, ids):
    step = markov(examples=50, vocabulary=12, seed=3)
    limits = torch.randint(1, 15, (50,), generator=torch.Generator().manual_seed(1))
    results = greedy(step, step.start(), max_lengths=limits, **ids)
    found = [(result[0].tokens, result[0].finished) for result in results]
    wanted = [follow_by_hand(step, e, limit, ids) for e, limit in enumerate(limits.tolist())]
    assert found == wanted
    assert {finished for _, finished in found} == {True, False}


def test_batch_of_one_equals_batch_of_many(markov, ids):
    step = markov(examples=30, seed=5)
    limits = torch.randint(1, 12, (30,), generator=torch.Generator().manual_seed(2))
    together = greedy(step, step.start(), max_lengths=limits, **ids)
    for example in range(30):
        alone = greedy(step, step.start(example), max_lengths=limits[example : example + 1], **ids)
        assert alone[0] == together[example]


def test_ties_go_to_the_smaller_token(markov, ids):
    step = markov()
    step.table[:] = -1.0
    step.table[..., ids["eos_id"]] = -2.0
    result = greedy(step, step.start(), max_lengths=torch.tensor([4]), **ids)
    assert result[0][0].tokens == [3, 3, 3, 3]


def test_dropping_finished_rows_saves_most_of_the_work(markov, ids):
    step = markov(examples=200, seed=7)
    results = greedy(step, step.start(), max_lengths=torch.full((200,), 60), **ids)
    needed = sum(len(result[0].tokens) + result[0].finished for result in results)
    # at most a quarter of the rows are done at the start of a step, so a third more than needed
    assert needed <= sum(step.rows_computed) <= 4 / 3 * needed + 1
