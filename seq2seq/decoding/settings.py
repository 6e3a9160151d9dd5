"""Which decoding values work together: asked before anything is trained or translated with them."""

from collections.abc import Mapping

STRATEGIES = ("greedy", "beam_search", "sampling")

# The keys that one strategy reads, with the value that asks for nothing.
_ONLY_FOR: Mapping[str, tuple[str, float | None]] = {
    "top_k": ("sampling", None),
    "top_p": ("sampling", None),
    "temperature": ("sampling", 1.0),
    "coverage_penalty": ("beam_search", 0.0),
}


def check_decoding(
    *,
    strategy: str,
    beam_size: int,
    n_best: int,
    length_penalty: float,
    coverage_penalty: float,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    block_ngram: int,
    min_length_ratio: float,
    min_length_constant: int,
    max_length_ratio: float,
    max_length_constant: int,
    replace_unknown: bool,
    dictionary: str | None,
    attends: bool,
) -> None:
    """Refuse decoding values that can't work, or that would be ignored.

    ``beam_size`` and ``length_penalty`` have defaults for a beam search, and may stand beside any
    strategy.

    Args:
        attends: whether the model has attention; the rest are the keys of `decoding`, except
            `seed` and `prefix`, which nothing here depends on.

    Raises:
        ValueError: naming the config key, its value and the rule.
    """
    if strategy not in STRATEGIES:
        raise ValueError(
            f"decoding.strategy={strategy!r} is unknown: choose one of {', '.join(STRATEGIES)}"
        )
    if beam_size < 1:
        raise ValueError(f"decoding.beam_size={beam_size} must be at least 1")
    most = {"greedy": 1, "beam_search": beam_size}.get(strategy)
    if n_best < 1 or (most is not None and n_best > most):
        bound = {None: "at least 1", 1: "1"}.get(most, f"between 1 and {most}")
        raise ValueError(f"decoding.n_best={n_best} must be {bound} with strategy {strategy}")
    for key, least in (
        ("length_penalty", length_penalty),
        ("coverage_penalty", coverage_penalty),
        ("block_ngram", block_ngram),
        ("min_length_ratio", min_length_ratio),
        ("max_length_ratio", max_length_ratio),
    ):
        if not least >= 0:
            raise ValueError(f"decoding.{key}={least} must be at least 0")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"decoding.temperature={temperature} must be above 0, and finite")
    if top_k is not None and top_k < 1:
        raise ValueError(f"decoding.top_k={top_k} must be at least 1; set it to null for all")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(
            f"decoding.top_p={top_p} must be above 0 and at most 1; set it to null for all tokens"
        )
    given = {
        "top_k": top_k,
        "top_p": top_p,
        "temperature": temperature,
        "coverage_penalty": coverage_penalty,
    }
    for key, (only, nothing) in _ONLY_FOR.items():
        if given[key] != nothing and strategy != only:
            raise ValueError(
                f"decoding.{key}={given[key]} has no meaning with strategy {strategy}: set "
                f"decoding.strategy={only}"
            )
    # Both limits are straight lines over the source length, which is at least 1.
    shortest, longest = (
        min_length_ratio + min_length_constant,
        max_length_ratio + max_length_constant,
    )
    if longest <= 0:
        raise ValueError(
            f"decoding.max_length_ratio={max_length_ratio} and max_length_constant="
            f"{max_length_constant} leave no room for a token: their sum must be above 0"
        )
    if min_length_ratio > max_length_ratio or shortest > longest:
        raise ValueError(
            f"the minimum length, decoding.min_length_ratio={min_length_ratio} and "
            f"min_length_constant={min_length_constant}, exceeds the maximum, "
            f"max_length_ratio={max_length_ratio} and max_length_constant={max_length_constant}, "
            "of some sources"
        )
    for key, wanted in (
        ("coverage_penalty", coverage_penalty),
        ("replace_unknown", replace_unknown),
    ):
        if wanted and not attends:
            raise ValueError(
                f"decoding.{key}={str(wanted).lower()} needs a model with attention: this one has "
                "none"
            )
    if dictionary is not None and not replace_unknown:
        raise ValueError(
            f"decoding.dictionary={dictionary} is for replacing unknown words: set "
            "decoding.replace_unknown=true"
        )
