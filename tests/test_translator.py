"""Text to text with an untrained network: what the options promise about the output."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seq2seq.data.corpus import Pair
from seq2seq.data.tokenizer import EOS_ID, PAD_ID, UNK_ID, train_tokenizers
from seq2seq.models.encoder_decoder import encoder_decoder
from seq2seq.translator import Translator

WORDS = "anna bob carl dora emil fritz gerd hans".split()
SOURCES = ["anna bob", "carl Zoe dora emil", "fritz", "hans gerd anna anna bob", "Zoe", "dora carl"]


def translator(
    *, attention: str = "general", unknown: float = 0.0, copied: float | None = None, **options: Any
) -> Translator:
    """A network in double precision, so that batches don't differ by rounding.

    Args:
        unknown: added to the score of `<unk>`.
        copied: how much is copied, a logit; None for a network that copies nothing.
    """
    pairs = [Pair(" ".join(WORDS), " ".join(WORDS).upper(), 1)]
    source, target = train_tokenizers(pairs, source={"kind": "word"}, target={"kind": "word"})
    torch.manual_seed(3)
    model = encoder_decoder(
        source_vocabulary_size=source.vocabulary_size,
        target_vocabulary_size=target.vocabulary_size,
        pad_id=PAD_ID,
        embedding_size=6,
        hidden_size=6,
        attention=attention,
        copy_mechanism=copied is not None,
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
        model.decoder.output.bias[UNK_ID] += unknown
        model.decoder.output.bias[EOS_ID] -= 2
        if model.decoder.copy_mechanism is not None and copied is not None:
            model.decoder.copy_mechanism.gate.bias[:] = -copied
    return Translator(
        model=model.eval(), source_tokenizer=source, target_tokenizer=target, **options
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strategy": "beam_search", "n_best": 3, "coverage_penalty": 0.3, "block_ngram": 2},
        {"strategy": "sampling", "n_best": 2, "top_k": 4, "top_p": 0.9},
        {"min_length_ratio": 1.0, "min_length_constant": 2, "prefix": "DORA"},
        {"replace_unknown": True},
        {"copied": 2.0, "strategy": "beam_search", "n_best": 3, "block_ngram": 2},
        {"copied": 2.0, "strategy": "sampling", "n_best": 2},
    ],
    ids=[
        *("greedy", "beam_search", "sampling", "lengths", "unknown"),
        *("copying_beam_search", "copying_sampling"),
    ],
)
def test_batches_change_no_result_and_no_order(options: dict[str, Any]) -> None:
    def found(batch_size: int) -> list[list[tuple[str, float, bool]]]:
        made = translator(unknown=1.0, **options).translate(SOURCES, batch_size=batch_size)
        return [[(one.text, round(one.score, 9), one.finished) for one in best] for best in made]

    alone = found(1)
    assert alone == found(2) == found(64)
    if options.get("strategy") != "sampling":
        one_by_one = translator(unknown=1.0, **options)
        each = [next(one_by_one.translate([source])) for source in SOURCES]
        assert [[one.text for one in best] for best in each] == [
            [text for text, _, _ in best] for best in alone
        ]


def test_prefixes_are_kept_line_by_line() -> None:
    prefixes = ["", "EMIL BOB", "BOB", "", "HANS HANS HANS", ""]
    several = translator(strategy="beam_search", n_best=3)
    plain = list(several.translate(SOURCES))
    forced = list(several.translate(SOURCES, prefixes=prefixes, batch_size=2))
    for without, best, prefix in zip(plain, forced, prefixes, strict=True):
        assert all(one.text.startswith(prefix) for one in best)
        if not prefix:
            assert [one.text for one in best] == [one.text for one in without]
    everywhere = translator(prefix="EMIL BOB").translate(SOURCES)
    assert all(best[0].text.startswith("EMIL BOB") for best in everywhere)


def test_a_prefix_may_be_longer_than_any_output() -> None:
    short = translator(max_length_ratio=0.0, max_length_constant=2, prefix="BOB EMIL DORA CARL")
    for (best,) in short.translate(SOURCES):
        assert 4 <= len(best.text.split()) <= 5
        assert best.text.startswith("BOB EMIL DORA CARL")


def test_a_prefix_outside_the_vocabulary_is_refused_by_its_word() -> None:
    with pytest.raises(ValueError, match=r"'BOB Zoe': 'Zoe' is not in the target vocabulary"):
        translator(prefix="BOB Zoe")
    with pytest.raises(ValueError, match=r"'Zoe' is not in the target vocabulary"):
        list(translator().translate(["anna"], prefixes=["Zoe"]))


def test_lengths_follow_the_source() -> None:
    made = translator(
        min_length_ratio=2.0,
        min_length_constant=1,
        max_length_ratio=3.0,
        strategy="beam_search",
        max_length_constant=0,
    )
    for source, (best,) in zip(SOURCES, made.translate(SOURCES), strict=True):
        source_tokens = len(source.split()) + 1  # the end symbol counts, on both sides
        tokens = len(best.text.split()) + best.finished
        assert 2 * source_tokens + 1 <= tokens <= 3 * source_tokens


def test_unknown_words_come_from_where_the_attention_lies(tmp_path: Path) -> None:
    (tmp_path / "words.tsv").write_text("Zoe\tZOÉ\n", encoding="utf-8")
    shown = translator(unknown=30.0, max_length_constant=0)
    copied = translator(unknown=30.0, max_length_constant=0, replace_unknown=True)
    looked_up = translator(
        unknown=30.0,
        max_length_constant=0,
        replace_unknown=True,
        dictionary=str(tmp_path / "words.tsv"),
    )
    sources = [*SOURCES, ""]
    for source, (plain,), (words,), (entries,) in zip(
        sources,
        shown.translate(sources, alignments=True),
        copied.translate(sources),
        looked_up.translate(sources),
        strict=True,
    ):
        assert set(plain.text.split()) <= {"<unk>"}
        if not source:
            assert words.text == ""
            continue
        assert plain.alignment is not None
        best = plain.alignment.weights[:, :-1].argmax(axis=1)  # without the end symbol
        expected = [source.split()[index] for index in best]
        assert words.text.split() == expected[: len(plain.text.split())]
        assert entries.text == words.text.replace("Zoe", "ZOÉ")
        assert words.score == plain.score


@pytest.mark.parametrize("strategy", ["greedy", "beam_search", "sampling"])
def test_copied_words_are_the_words_of_the_source(strategy: str) -> None:
    copying = translator(copied=40.0, strategy=strategy)
    for source, (best,) in zip(
        SOURCES, copying.translate(SOURCES, alignments=True, batch_size=3), strict=True
    ):
        # Nothing of it is in the target vocabulary, which is upper case.
        assert best.text and set(best.text.split()) <= set(source.split())
        assert best.alignment is not None
        assert best.alignment.target == best.text.split()
        assert not best.finished  # the end symbol isn't copied


def test_a_copied_word_may_be_blocked_and_is_read_as_an_unknown_one() -> None:
    (best,) = next(translator(copied=40.0, block_ngram=1).translate(["anna bob carl Zoe"]))
    written = best.text.split()[:4]
    assert sorted(written) == ["Zoe", "anna", "bob", "carl"]
    both = translator(copied=40.0), translator(copied=40.0)
    with torch.no_grad():  # what an unknown word is embedded as decides what comes next
        both[0].model.decoder.embedding.weight[UNK_ID + 1 :] = 0.0
    one, other = (next(each.translate(["anna bob carl Zoe"])) for each in both)
    assert one[0].log_probability == other[0].log_probability


def test_what_is_neither_known_nor_copied_can_still_be_replaced() -> None:
    options = {"copied": -40.0, "unknown": 30.0, "max_length_constant": 0}
    shown = list(translator(**options).translate(SOURCES))
    assert all(set(best.text.split()) == {"<unk>"} for (best,) in shown)
    replaced = translator(**options, replace_unknown=True).translate(SOURCES)
    for source, (best,) in zip(SOURCES, replaced, strict=True):
        assert best.text and set(best.text.split()) <= set(source.split())


def test_alignments_are_rows_of_shares_without_padding() -> None:
    for source, best in zip(
        SOURCES,
        translator(strategy="beam_search", n_best=2).translate(SOURCES, alignments=True),
        strict=True,
    ):
        for one in best:
            assert one.alignment is not None
            known = [word if word in WORDS else "<unk>" for word in source.split()]
            assert one.alignment.source == [*known, "<eos>"]
            assert one.alignment.target == [*one.text.split(), *["<eos>"] * one.finished]
            assert one.alignment.weights.shape == (
                len(one.alignment.target),
                len(one.alignment.source),
            )
            np.testing.assert_allclose(one.alignment.weights.sum(axis=1), 1, rtol=1e-9)


def test_a_model_without_attention_has_no_alignments() -> None:
    (best,) = translator(attention="none").translate(["anna"], alignments=True)
    assert best[0].alignment is None
    for options in (
        {"replace_unknown": True},
        {"strategy": "beam_search", "coverage_penalty": 0.1},
    ):
        with pytest.raises(ValueError, match="needs a model with attention"):
            translator(attention="none", **options)
