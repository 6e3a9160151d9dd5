import math
import random
from collections import Counter
from functools import cache

import pytest
import sacrebleu
import torch
from torch.nn import functional as F
from torchmetrics.metric import Metric

from seq2seq.losses import correct_tokens, cross_entropy
from seq2seq.metrics import (
    BLEU_TOKENIZERS,
    TeacherForcedScores,
    TranslationScores,
    edit_distance,
)

WORDS = "le chat noir dort sur la table , et il fait 12,5 °C — déjà 東京 !"


def random_corpus(pairs=60, seed=0):
    """References and their damaged copies: words dropped, doubled, replaced."""
    chance = random.Random(seed)
    references = [
        " ".join(chance.choices(WORDS.split(), k=chance.randint(1, 15))) for _ in range(pairs)
    ]
    hypotheses = []
    for reference in references:
        damaged = []
        for word in reference.split():
            damaged += chance.choices(
                [[word], [], [word, word], [chance.choice(WORDS.split())]], [12, 1, 1, 1]
            )[0]
        hypotheses.append(" ".join(damaged))
    return hypotheses, references


def scored(hypotheses, references, *, batch_size=1000, **options):
    metric = TranslationScores(**options)
    for first in range(0, len(hypotheses), batch_size):
        rows = slice(first, first + batch_size)
        metric.update(hypotheses=hypotheses[rows], references=references[rows])
    return {name: value.item() for name, value in metric.compute().items()}


@cache
def recursive_distance(first, second):
    if not first or not second:
        return len(first) + len(second)
    return min(
        recursive_distance(first[1:], second) + 1,
        recursive_distance(first, second[1:]) + 1,
        recursive_distance(first[1:], second[1:]) + (first[0] != second[0]),
    )


@pytest.mark.parametrize("tokenizer", BLEU_TOKENIZERS)
def test_bleu_and_chrf_equal_sacrebleus_direct_call(tokenizer):
    hypotheses, references = random_corpus()
    found = scored(hypotheses, references, batch_size=7, bleu_tokenizer=tokenizer)
    bleu = sacrebleu.corpus_bleu(hypotheses, [references], tokenize=tokenizer, force=True)
    assert found["bleu"] == bleu.score
    assert found["chrf"] == sacrebleu.corpus_chrf(hypotheses, [references]).score


def test_bleu_equals_equations_1_to_3_of_papineni_2002():
    hypotheses, references = random_corpus(seed=1)
    matches, totals, produced, wanted = [0] * 4, [0] * 4, 0, 0
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        h, r = hypothesis.split(), reference.split()
        produced, wanted = produced + len(h), wanted + len(r)
        for n in range(1, 5):
            counts = Counter(zip(*(h[i:] for i in range(n)), strict=False))
            clipped = counts & Counter(zip(*(r[i:] for i in range(n)), strict=False))
            matches[n - 1] += clipped.total()
            totals[n - 1] += counts.total()
    precision = math.exp(sum(math.log(m / t) for m, t in zip(matches, totals, strict=True)) / 4)
    brevity = min(1.0, math.exp(1 - wanted / produced))
    found = scored(hypotheses, references, bleu_tokenizer="none")
    assert found["bleu"] == pytest.approx(100 * brevity * precision)


def test_chrf_equals_its_definition_in_popovic_2015():
    hypotheses, references = random_corpus(seed=2)
    matches, produced, wanted = [0] * 6, [0] * 6, [0] * 6
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        h, r = hypothesis.replace(" ", ""), reference.replace(" ", "")
        for n in range(1, 7):
            in_h = Counter(h[i : i + n] for i in range(len(h) - n + 1))
            in_r = Counter(r[i : i + n] for i in range(len(r) - n + 1))
            matches[n - 1] += (in_h & in_r).total()
            # as sacrebleu does, hypothesis n-grams count only where the reference has any
            produced[n - 1] += in_h.total() if in_r else 0
            wanted[n - 1] += in_r.total()
    precision = sum(m / p for m, p in zip(matches, produced, strict=True)) / 6
    recall = sum(m / w for m, w in zip(matches, wanted, strict=True)) / 6
    wanted_score = 100 * 5 * precision * recall / (4 * precision + recall)
    assert scored(hypotheses, references)["chrf"] == pytest.approx(wanted_score)


def test_exact_match_and_edit_rate_by_hand():
    found = scored(
        ["a b c", "a  b ", "", "x a b c y", "51"],
        ["a b c", "a b", "a b", "a b c", "52"],
    )
    assert found["exact_match"] == 2 / 5  # spaces don't count
    assert found["edit_rate"] == (0 + 0 + 2 + 2 + 1) / (3 + 2 + 2 + 3 + 1)


def test_edit_distance_equals_the_recursive_definition():
    chance = random.Random(3)
    for _ in range(300):
        first, second = (tuple(chance.choices("abcd", k=chance.randint(0, 7))) for _ in range(2))
        assert edit_distance(first, second) == recursive_distance(first, second)


@pytest.mark.parametrize("batch_size", [1, 7, 60])
def test_batches_change_nothing(batch_size):
    hypotheses, references = random_corpus()
    assert scored(hypotheses, references, batch_size=batch_size) == scored(hypotheses, references)


def test_swapping_hypotheses_and_references_takes_naming_them_wrongly():
    metric = TranslationScores()
    with pytest.raises(TypeError):
        metric.update(["a"], ["b"])
    hypotheses, references = random_corpus()
    short = [" ".join(text.split()[:3]) for text in hypotheses]
    assert scored(short, references)["bleu"] != scored(references, short)["bleu"]


def test_perfect_and_empty_hypotheses_have_the_extreme_scores():
    _, references = random_corpus()
    perfect = scored(references, references)
    assert perfect == pytest.approx(
        {"bleu": 100.0, "chrf": 100.0, "exact_match": 1.0, "edit_rate": 0.0}
    )
    empty = scored([""] * len(references), references)
    assert empty == {"bleu": 0.0, "chrf": 0.0, "exact_match": 0.0, "edit_rate": 1.0}


def test_any_unicode_text_comes_back_from_the_state():
    texts = ["", "a\nb\x00c", "東京 ÿ þ", "\U0001f600", " spaces  kept ", "\x85\u2028"]
    metric = TranslationScores()
    metric.update(hypotheses=texts, references=texts)
    metric.update(hypotheses=[], references=[])
    assert metric._texts() == (texts, texts)


def test_signatures_are_those_of_sacrebleu():
    signatures = TranslationScores(bleu_tokenizer="none").signatures()
    bleu = sacrebleu.BLEU(tokenize="none")
    bleu.corpus_score(["a"], [["a"]])
    assert signatures["bleu"] == str(bleu.get_signature())
    assert "tok:none" in signatures["bleu"] and sacrebleu.__version__ in signatures["bleu"]
    assert signatures["chrf"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no")


def test_tokenized_text_brings_no_advice_on_the_terminal(caplog, capfd):
    texts = ["1 2 3 4 ."] * 150
    scored(texts, texts, bleu_tokenizer="none")
    assert not caplog.records and capfd.readouterr() == ("", "")


def test_what_cannot_be_scored_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match="bleu_tokenizer='moses': choose one of 13a, none"):
        TranslationScores(bleu_tokenizer="moses")
    metric = TranslationScores()
    with pytest.raises(ValueError, match="2 hypotheses and 1 references"):
        metric.update(hypotheses=["a", "b"], references=["a"])
    with pytest.raises(ValueError, match="hypotheses must be a list of texts"):
        metric.update(hypotheses="ab", references=["a", "b"])
    metric.update(hypotheses=[], references=[])
    with pytest.raises(ValueError, match="No translation has been scored"):
        metric.compute()
    metric = TranslationScores()
    metric.update(hypotheses=["a", ""], references=["", " "])
    with pytest.raises(ValueError, match="All 2 references are empty"):
        metric.compute()


def teacher_forced_batches():
    generator = torch.Generator().manual_seed(0)
    for tokens in (3, 40, 11):
        yield (
            2 * torch.randn(tokens, 9, generator=generator),
            torch.randint(9, (tokens,), generator=generator),
        )


def test_teacher_forced_scores_weight_every_token_alike():
    metric = TeacherForcedScores()
    for logits, labels in teacher_forced_batches():
        loss = cross_entropy(logits, labels, label_smoothing=0.2)
        metric.update(
            negative_log_likelihood=loss.negative_log_likelihood,
            correct=correct_tokens(logits, labels),
            tokens=loss.tokens,
        )
    logits = torch.cat([logits for logits, _ in teacher_forced_batches()])
    labels = torch.cat([labels for _, labels in teacher_forced_batches()])
    wanted = F.cross_entropy(logits, labels).item()  # without the smoothing
    found = {name: value.item() for name, value in metric.compute().items()}
    assert found["loss"] == pytest.approx(wanted)
    assert found["perplexity"] == pytest.approx(math.exp(wanted))
    assert found["token_accuracy"] == (logits.argmax(dim=1) == labels).sum().item() / 54


def test_perplexity_is_not_the_mean_of_batch_perplexities():
    metric = TeacherForcedScores()
    for loss in (1.0, 3.0):
        metric.update(negative_log_likelihood=torch.tensor(loss), correct=torch.tensor(0), tokens=1)
    assert metric.compute()["perplexity"].item() == pytest.approx(math.exp(2.0))


def test_scoring_no_token_is_refused():
    metric = TeacherForcedScores()
    metric.update(negative_log_likelihood=torch.tensor(0.0), correct=torch.tensor(0), tokens=0)
    with pytest.raises(ValueError, match="No target token"):
        metric.compute()


def update_teacher_forced(metric):
    metric.update(negative_log_likelihood=torch.tensor(2.0), correct=torch.tensor(1), tokens=2)


def update_translation(metric):
    metric.update(hypotheses=["a b c d"], references=["a b c d"])


@pytest.mark.parametrize(
    ("metric", "update"),
    [
        (TeacherForcedScores(), update_teacher_forced),
        (TranslationScores(), update_translation),
    ],
)
def test_reset_forgets_everything(metric: Metric, update):
    update(metric)
    first = metric.compute()
    metric.reset()
    update(metric)
    assert metric.compute() == first
    assert all(value.dtype == torch.float64 for value in first.values())


def in_two_processes(rank, address, results):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{address}", rank=rank, world_size=2
    )
    hypotheses, references = random_corpus()
    metric = TranslationScores()
    rows = slice(0, 13) if rank == 0 else slice(13, None)
    metric.update(hypotheses=hypotheses[rows], references=references[rows])
    results[rank] = {name: value.item() for name, value in metric.compute().items()}
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_score_the_whole_corpus(tmp_path):
    context = torch.multiprocessing.get_context("fork")
    with context.Manager() as manager:
        results = manager.dict()
        processes = [
            context.Process(target=in_two_processes, args=(rank, tmp_path / "store", results))
            for rank in range(2)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout=60)
        assert results[0] == results[1] == scored(*random_corpus())
