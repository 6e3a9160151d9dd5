"""A phrasebook between any two locales: dates, times, quantities, money and lists of names.

Both sides of a pair are rendered from the same object by Babel, from the human translations of
the Unicode CLDR, so that a real translation corpus needs no file and no network. What comes out
depends on Babel's version, since CLDR is revised with it.
"""

import datetime
import difflib
import random
from collections.abc import Callable

import babel
from babel import Locale, UnknownLocaleError, localedata
from babel.dates import format_date, format_timedelta
from babel.lists import format_list
from babel.numbers import format_currency
from babel.units import format_unit

from seq2seq.data.corpus import Corpus, CorpusError, Pair, normalize

FIRST_DAY = datetime.date(1900, 1, 1)
LAST_DAY = datetime.date(2049, 12, 31)
# Largest count that stays in its own unit: 60 seconds would be a minute.
DURATIONS = {
    "second": (datetime.timedelta(seconds=1), 59),
    "minute": (datetime.timedelta(minutes=1), 59),
    "hour": (datetime.timedelta(hours=1), 23),
    "day": (datetime.timedelta(days=1), 6),
    "week": (datetime.timedelta(weeks=1), 4),
    "month": (datetime.timedelta(days=30), 11),
    "year": (datetime.timedelta(days=365), 99),
}
UNIT_GROUPS = (
    "area",
    "digital",
    "duration",
    "energy",
    "length",
    "mass",
    "power",
    "speed",
    "temperature",
    "volume",
)
# Few enough for each to be seen often, with thousands for the locale's separator.
NUMBERS = (*range(1, 100), *range(100, 1000, 100), *range(1000, 11000, 1000))
# Codes for "unknown", "several" or "for testing", which name nothing.
PLACEHOLDERS = {"ZZ", "XA", "XB", "und", "mul", "mis", "zxx", "XTS", "XXX"}
# Draws without a new source, in a row, after which a locale pair counts as exhausted.
PATIENCE = 2000
SPACES = str.maketrans({"\u00a0": " ", "\u202f": " "})

# Renders one object in one locale; None where the locale has no words for it.
Phrase = Callable[[Locale], str | None]


def phrasebook(
    *,
    source_locale: str = "en",
    target_locale: str = "fr",
    train_size: int = 20000,
    validation_size: int = 1000,
    test_size: int = 1000,
    seed: int = 0,
    max_length: int | None = None,
) -> Corpus:
    """Generates the phrasebook of two locales; no source stands in it twice.

    Args:
        source_locale: Locale identifier of the source side, such as en, pt_BR, zh_Hant.
        target_locale: Locale identifier of the target side.
        train_size: Pairs to train on.
        validation_size: Pairs for model selection.
        test_size: Pairs for the test.
        seed: Seed of the draw.
        max_length: Longest side of a training pair, in tokens; None for no limit.

    Raises:
        CorpusError: If a locale is unknown, both are the same, a size is below 1, or the locales
            don't have that many different phrases.
    """
    source, target = _locale(source_locale), _locale(target_locale)
    if source == target:
        raise CorpusError(
            f"data.source_locale and data.target_locale are both {source}; give two locales."
        )
    sizes = {"train": train_size, "validation": validation_size, "test": test_size}
    for split, size in sizes.items():
        if size < 1:
            raise CorpusError(f"data.{split}_size={size}: give at least 1 pair.")
    pairs = _draw_pairs(source, target, sum(sizes.values()), random.Random(f"phrasebook {seed}"))
    validation_end = train_size + validation_size
    description = f"phrasebook {source} to {target}, CLDR of Babel {babel.__version__}, seed {seed}"
    return Corpus(
        train=pairs[:train_size],
        validation=pairs[train_size:validation_end],
        test=pairs[validation_end:],
        max_length=max_length,
        origin=dict.fromkeys(sizes, description),
    )


def _locale(identifier: str) -> Locale:
    wanted = identifier.replace("-", "_")
    try:
        return Locale.parse(wanted)
    except (UnknownLocaleError, ValueError, TypeError) as error:
        known = localedata.locale_identifiers()
        english_names = {name.lower(): code for code, name in Locale("en").languages.items()}
        language = english_names.get(wanted.lower(), wanted.partition("_")[0].lower())
        close = difflib.get_close_matches(wanted, known, n=2)
        suggestions = [language, *close] if language in known else close
        raise CorpusError(
            f"locale {identifier!r} is unknown to Babel {babel.__version__}; "
            + (f"did you mean {' or '.join(suggestions)}?" if suggestions else "try en or pt_BR.")
        ) from error


def _draw_pairs(source: Locale, target: Locale, size: int, generator: random.Random) -> list[Pair]:
    """Draws pairs until `size` different sources are found, every kind of phrase in its turn."""
    draws = _kinds(source, target)
    targets: dict[str, str] = {}
    misses = 0
    while len(targets) < size:
        phrase = generator.choice(draws)(generator)
        source_text, target_text = _render(phrase, source), _render(phrase, target)
        if not source_text or not target_text or source_text in targets:
            misses += 1
            if misses >= PATIENCE:
                raise CorpusError(
                    f"{size} pairs are asked for, but {source} to {target} has only about "
                    f"{len(targets)} different ones; make data.train_size smaller."
                )
            continue
        targets[source_text] = target_text
        misses = 0
    return [Pair(source_text, target_text, 0) for source_text, target_text in targets.items()]


def _render(phrase: Phrase, locale: Locale) -> str:
    return normalize((phrase(locale) or "").translate(SPACES))


def _kinds(source: Locale, target: Locale) -> list[Callable[[random.Random], Phrase]]:
    """Returns the draws of all kinds of phrase that both locales have words for."""
    units = sorted(_units(source) & _units(target))
    currencies = sorted((source.currencies.keys() & target.currencies.keys()) - PLACEHOLDERS)
    names = [
        (group, code)
        for group in ("territories", "languages")
        for code in sorted(getattr(source, group).keys() & getattr(target, group).keys())
        # No numbered regions, no variants of a language.
        if code.isalpha() and code not in PLACEHOLDERS
    ]
    draws: list[Callable[[random.Random], Phrase]] = [_draw_date, _draw_duration]
    if units:
        draws.append(lambda generator: _draw_quantity(generator, units))
    if currencies:
        draws.append(lambda generator: _draw_money(generator, currencies))
    if names:
        draws.append(lambda generator: _draw_list(generator, names))
    return draws


def _units(locale: Locale) -> set[str]:
    units = map(str, locale.unit_display_names)
    return {unit for unit in units if unit.partition("-")[0] in UNIT_GROUPS}


def _draw_date(generator: random.Random) -> Phrase:
    day = FIRST_DAY + datetime.timedelta(generator.randint(0, (LAST_DAY - FIRST_DAY).days))
    if generator.random() < 0.5:
        return lambda locale: format_date(day, format="full", locale=locale)
    return lambda locale: format_date(day, format="long", locale=locale)


def _draw_duration(generator: random.Random) -> Phrase:
    unit = generator.choice(list(DURATIONS))
    length, largest = DURATIONS[unit]
    delta = generator.choice((-1, 1)) * generator.randint(1, largest) * length
    directed = generator.random() < 0.75
    return lambda locale: format_timedelta(
        delta,
        granularity=unit,  # type: ignore[arg-type]  # a Literal of these very names
        threshold=1,
        add_direction=directed,
        locale=locale,
    )


def _draw_quantity(generator: random.Random, units: list[str]) -> Phrase:
    unit, number = generator.choice(units), generator.choice(NUMBERS)

    def render(locale: Locale) -> str | None:
        text = format_unit(number, unit, length="long", locale=locale)
        # Where CLDR has no words Babel writes its own identifier.
        return None if unit in text else text

    return render


def _draw_money(generator: random.Random, currencies: list[str]) -> Phrase:
    currency, number = generator.choice(currencies), generator.choice(NUMBERS)
    return lambda locale: format_currency(
        number, currency, format_type="name", currency_digits=False, locale=locale
    )


def _draw_list(generator: random.Random, names: list[tuple[str, str]]) -> Phrase:
    chosen = generator.sample(names, generator.randint(1, min(3, len(names))))
    style = generator.choice(("standard", "or"))
    return lambda locale: format_list(
        [getattr(locale, group)[code] for group, code in chosen],
        style=style,  # type: ignore[arg-type]  # a Literal of these very names
        locale=locale,
    )
