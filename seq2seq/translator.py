"""A trained network used as people use it: raw text in, raw text out.

Joins tokenizers, network and search, none of which knows the others. Reading files and scoring the
result are left to the entries and to `metrics.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from seq2seq.data.batch import Batch, EncodedSplit
from seq2seq.data.corpus import Pair
from seq2seq.data.sampler import EvaluationLoader
from seq2seq.data.tokenizer import BOS_ID, EOS_ID, PAD_ID, Tokenizer
from seq2seq.decoding import Hypothesis, beam_search, greedy, length_limits, sample
from seq2seq.models.encoder_decoder import EncoderDecoder

_SEARCHES: dict[str, Callable[..., list[list[Hypothesis]]]] = {
    "greedy": greedy,
    "beam_search": beam_search,
    "sampling": sample,
}
STRATEGIES = tuple(_SEARCHES)


class Translation(NamedTuple):
    """One output text.

    Args:
        text: plain text.
        score: what the search ranks by: log-probability over the length normaliser, in nats.
        finished: False if the text was cut at its maximum length.
    """

    text: str
    score: float
    finished: bool


class Translator:
    """Translate text or ready batches with one network and one search.

    Args:
        model: the network; its mode is left as it is.
        source_tokenizer, target_tokenizer: the ones that it was trained with.
        strategy: ``greedy``, ``beam_search`` or ``sampling``.
        beam_size: hypotheses kept by beam search.
        n_best: outputs a source, best first; at most ``beam_size`` with beam search, 1 with
            greedy search.
        length_penalty: alpha of beam search's length normalisation (Wu et al. 2016, eq. 14).
        temperature: of sampling; below 1 sharper, above 1 flatter than the model.
        seed: of sampling.
        max_length_ratio, max_length_constant: outputs are cut at
            ``ratio * source tokens + constant`` tokens.

    Raises:
        ValueError: for an unknown strategy or a value that the strategy can't use.
    """

    def __init__(
        self,
        *,
        model: EncoderDecoder,
        source_tokenizer: Tokenizer,
        target_tokenizer: Tokenizer,
        strategy: str = "greedy",
        beam_size: int = 5,
        n_best: int = 1,
        length_penalty: float = 1.0,
        temperature: float = 1.0,
        seed: int = 1,
        max_length_ratio: float = 2.0,
        max_length_constant: int = 10,
    ) -> None:
        check_decoding(
            strategy=strategy, beam_size=beam_size, n_best=n_best, temperature=temperature
        )
        self.model = model
        self.source_tokenizer = source_tokenizer
        self.target_tokenizer = target_tokenizer
        self.strategy = strategy
        self.beam_size = beam_size
        self.n_best = n_best
        self.length_penalty = length_penalty
        self.temperature = temperature
        self.generator = torch.Generator().manual_seed(seed)
        self.max_length_ratio = max_length_ratio
        self.max_length_constant = max_length_constant

    @torch.no_grad()
    def decode(self, batch: Batch) -> list[list[Hypothesis]]:
        """The best hypotheses of each source of a batch; the targets aren't looked at."""
        state = self.model.start(batch.source, batch.source_lengths)
        max_lengths = length_limits(
            batch.source_lengths, ratio=self.max_length_ratio, constant=self.max_length_constant
        )
        options: dict[str, Any] = {}
        if self.strategy == "beam_search":
            options = {"beam_size": self.beam_size, "n_best": self.n_best}
            options["length_penalty"] = self.length_penalty
        elif self.strategy == "sampling":
            options = {"generator": self.generator, "temperature": self.temperature}
            options["samples"] = self.n_best
        return _SEARCHES[self.strategy](
            self.model.step,
            state,
            max_lengths=max_lengths,
            pad_id=PAD_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            **options,
        )

    def texts(self, batch: Batch) -> list[list[Translation]]:
        """The best translations of each source of a batch, in the batch's order."""
        return [
            [
                Translation(
                    self.target_tokenizer.decode(hypothesis.tokens),
                    hypothesis.score,
                    hypothesis.finished,
                )
                for hypothesis in hypotheses
            ]
            for hypotheses in self.decode(batch)
        ]

    def translate(
        self, sources: Sequence[str], *, batch_size: int = 64
    ) -> Iterator[list[Translation]]:
        """The best translations of each source text, in the order given.

        An empty source is an empty translation: there is nothing to translate.
        """
        device = next(self.model.parameters()).device
        real = [index for index, source in enumerate(sources) if source.strip()]
        results = [[Translation("", 0.0, True)] * self.n_best for _ in sources]
        if real:
            pairs = [Pair(source=sources[index], target="", line=index + 1) for index in real]
            split = EncodedSplit.encode(pairs, self.source_tokenizer, self.target_tokenizer)
            for batch in EvaluationLoader(split, batch_size):
                for place, best in zip(
                    batch.index.tolist(), self.texts(batch.to(device)), strict=True
                ):
                    results[real[place]] = best
        yield from results


def check_decoding(*, strategy: str, beam_size: int, n_best: int, temperature: float) -> None:
    """Refuse decoding values that can't work, before anything is trained with them.

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
    if temperature <= 0:
        raise ValueError(f"decoding.temperature={temperature} must be above 0")
