import datetime
import logging
import random
from itertools import islice

import babel
import pytest
from babel import Locale

from seq2seq.data import phrasebook as phrasebook_module
from seq2seq.data.corpus import Corpus, CorpusError, Pair
from seq2seq.data.phrasebook import phrasebook

pinned = pytest.mark.skipif(
    babel.__version__ != "2.18.0", reason="texts are those of the CLDR in Babel 2.18.0"
)


def small(**arguments) -> Corpus:
    sizes = {"train_size": 400, "validation_size": 50, "test_size": 60}
    return phrasebook(**(sizes | arguments))


def all_pairs(corpus: Corpus) -> list[Pair]:
    return [*corpus.train, *corpus.validation, *corpus.test]


@pinned
def test_pairs_are_translations() -> None:
    translations = {pair.source: pair.target for pair in all_pairs(small(train_size=8000))}
    for source, target in {
        "January 2, 1927": "2 janvier 1927",
        "Monday, May 17, 1993": "lundi 17 mai 1993",
        "59 years ago": "il y a 59 ans",
        "in 3 days": "dans 3 jours",
        "7 hours": "7 heures",
        "6,000 miles per hour": "6 000 miles par heure",
        "Kanuri and Ganda": "kanouri et ganda",
    }.items():
        assert translations[source] == target


@pinned
@pytest.mark.parametrize(
    ("locale", "texts"),
    [
        ("tr", {"22 dakika önce", "2 Ocak 1927"}),
        ("ja", {"22 分前", "1927年1月2日"}),
        ("pt-BR", {"há 41 minutos", "2 de janeiro de 1927"}),
    ],
)
def test_any_locale_is_a_target(locale: str, texts: set[str]) -> None:
    assert texts <= {pair.target for pair in small(target_locale=locale).train}


@pinned
def test_any_locale_is_a_source() -> None:
    pair = small(source_locale="fr", target_locale="tr").train[0]
    assert pair == Pair("2 janvier 1927", "2 Ocak 1927", 0)


def test_every_kind_of_phrase_is_drawn() -> None:
    sources = [pair.source for pair in small().train]
    for part in (", 19", " ago", "hour", "dollar", " or "):
        assert sum(part in source for source in sources) >= 3, part


def test_sizes_are_those_asked_for_and_no_source_occurs_twice() -> None:
    corpus = small()
    assert (len(corpus.train), len(corpus.validation), len(corpus.test)) == (400, 50, 60)
    assert len({pair.source for pair in all_pairs(corpus)}) == 510
    assert all(pair.target for pair in all_pairs(corpus))


def test_same_seed_same_phrasebook() -> None:
    assert small(seed=1) == small(seed=1)
    assert small(seed=1).train != small(seed=2).train


def test_held_out_sizes_do_not_change_what_is_trained_on() -> None:
    assert small(validation_size=3, test_size=4).train == small().train


@pytest.mark.parametrize("locale", ["fr", "fr_CH", "nb", "uk"])
def test_no_break_spaces_become_spaces(locale: str) -> None:
    texts = [text for pair in all_pairs(small(target_locale=locale)) for text in pair[:2]]
    assert not [text for text in texts if "\u00a0" in text or "\u202f" in text]
    assert any(" 000 " in text for text in texts)


# Locales that lack words for many things, write from right to left, or have a script of their own.
@pytest.mark.parametrize("locale", ["aa", "ar", "he", "kgp", "root", "sr_Latn", "vo", "zh_Hant"])
def test_locales_with_holes_give_no_identifiers(locale: str) -> None:
    units = {unit for unit in Locale("en").unit_display_names if "-" in str(unit)}
    for pair in small(target_locale=locale).train:
        assert pair.target
        assert not any(word in units for word in pair.target.split()), pair


def test_every_sampled_locale_of_babel_works() -> None:
    identifiers = sorted(babel.localedata.locale_identifiers())
    for locale in islice(identifiers, 0, None, 25):
        if locale not in ("en", "root"):
            small(target_locale=locale, train_size=40, validation_size=5, test_size=5)


@pytest.mark.parametrize(
    ("locale", "suggestion"),
    [("french", "did you mean fr"), ("fr_XX", "did you mean fr"), ("enn", "en"), ("", "try en")],
)
def test_unknown_locale_is_refused_with_a_suggestion(locale: str, suggestion: str) -> None:
    with pytest.raises(CorpusError, match=f"locale '{locale}' is unknown to Babel.*{suggestion}"):
        small(target_locale=locale)


def test_one_locale_on_both_sides_is_refused() -> None:
    with pytest.raises(CorpusError, match="both en_GB"):
        small(source_locale="en_GB", target_locale="en-gb")


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_empty_split_is_refused(split: str) -> None:
    with pytest.raises(CorpusError, match=f"data.{split}_size=0"):
        small(**{f"{split}_size": 0})


def test_more_pairs_than_there_are_is_refused_with_the_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(phrasebook_module, "_kinds", lambda *_: [phrasebook_module._draw_date])
    monkeypatch.setattr(
        phrasebook_module, "LAST_DAY", phrasebook_module.FIRST_DAY + datetime.timedelta(99)
    )
    with pytest.raises(
        CorpusError, match="510 pairs are asked for, but en to fr has only about 200"
    ):
        small()


def test_durations_stay_in_their_unit() -> None:
    generator = random.Random(0)
    for _ in range(2000):
        text = phrasebook_module._draw_duration(generator)(Locale("en"))
        number = int(next(word for word in text.split() if word.isdigit()))
        assert 1 <= number <= 99


def test_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        small()
    assert not caplog.records
