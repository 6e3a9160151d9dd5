"""A trained network used as people use it: raw text in, raw text out.

Joins tokenizers, network and search, none of which knows the others. Reading files and scoring the
result are left to the entries and to `metrics.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seq2seq.data.batch import Batch, EncodedSplit
from seq2seq.data.corpus import Pair
from seq2seq.data.sampler import EvaluationLoader
from seq2seq.data.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Tokenizer
from seq2seq.decoding import (
    Constraints,
    Hypothesis,
    Step,
    beam_search,
    greedy,
    length_limits,
    sample,
)
from seq2seq.decoding.settings import check_decoding
from seq2seq.models.encoder_decoder import EncoderDecoder
from seq2seq.models.ensemble import Ensemble
from seq2seq.unknown_words import read_dictionary, replacements


class Alignment(NamedTuple):
    """Where the decoder looked while it wrote a translation.

    Shape:
        source: names of the source tokens, the end symbol included; target: of the tokens that the
        model wrote, with the end symbol if it came to an end; weights: ``[target, source]``.
    """

    source: list[str]
    target: list[str]
    weights: NDArray[np.float64]


class Translation(NamedTuple):
    """One output text.

    Args:
        text: plain text.
        score: what the search ranks by, see :func:`~seq2seq.decoding.beam_search`.
        finished: False if the text was cut at its maximum length.
        log_probability: of all its tokens together, in nats.
        alignment: if wanted, and the model has attention.
    """

    text: str
    score: float
    finished: bool
    log_probability: float
    alignment: Alignment | None = None


class Translator:
    """Translate text or ready batches with one network and one search.

    Args:
        model: the network, or several together; its mode is left as it is.
        source_tokenizer, target_tokenizer: the ones that it was trained with.
        strategy: ``greedy``, ``beam_search`` or ``sampling``.
        beam_size: hypotheses kept by beam search.
        n_best: outputs a source, best first; at most ``beam_size`` with beam search, 1 with
            greedy search.
        length_penalty: alpha of beam search's length normalisation (Wu et al. 2016, eq. 14).
        coverage_penalty: beta of beam search's coverage penalty (the same equation); 0 for none.
        temperature: of sampling; below 1 sharper, above 1 flatter than the model.
        top_k: sampling draws from the k most probable tokens only (Fan et al. 2018).
        top_p: sampling draws from the nucleus of this probability only (Holtzman et al. 2020).
        seed: of sampling.
        block_ngram: n of the n-grams that an output holds once at most (Paulus et al. 2017); 0
            allows repetitions.
        min_length_ratio, min_length_constant: outputs have at least
            ``ratio * source tokens + constant`` tokens.
        max_length_ratio, max_length_constant: outputs are cut at
            ``ratio * source tokens + constant`` tokens. All lengths count the end symbol.
        prefix: text that every output begins with.
        replace_unknown: whether unknown words of the output are copied from the source, see
            :func:`~seq2seq.unknown_words.replacements`.
        dictionary: file of translations to write in their place instead, or None.

    Raises:
        ValueError: for an unknown strategy, or values that it, or this model, can't use.
        FileNotFoundError: if the dictionary doesn't exist.
    """

    def __init__(
        self,
        *,
        model: EncoderDecoder | Ensemble,
        source_tokenizer: Tokenizer,
        target_tokenizer: Tokenizer,
        strategy: str = "greedy",
        beam_size: int = 5,
        n_best: int = 1,
        length_penalty: float = 1.0,
        coverage_penalty: float = 0.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 1,
        block_ngram: int = 0,
        min_length_ratio: float = 0.0,
        min_length_constant: int = 0,
        max_length_ratio: float = 2.0,
        max_length_constant: int = 10,
        prefix: str = "",
        replace_unknown: bool = False,
        dictionary: str | None = None,
    ) -> None:
        if isinstance(model, Ensemble):
            self.attends = model.attends
        else:
            self.attends = model.decoder.attention is not None
        check_decoding(
            strategy=strategy,
            beam_size=beam_size,
            n_best=n_best,
            length_penalty=length_penalty,
            coverage_penalty=coverage_penalty,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            block_ngram=block_ngram,
            min_length_ratio=min_length_ratio,
            min_length_constant=min_length_constant,
            max_length_ratio=max_length_ratio,
            max_length_constant=max_length_constant,
            replace_unknown=replace_unknown,
            dictionary=dictionary,
            attends=self.attends,
        )
        self.model = model
        self.source_tokenizer = source_tokenizer
        self.target_tokenizer = target_tokenizer
        self.strategy = strategy
        self.beam_size = beam_size
        self.n_best = n_best
        self.length_penalty = length_penalty
        self.coverage_penalty = coverage_penalty
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.generator = torch.Generator().manual_seed(seed)
        self.block_ngram = block_ngram
        self.min_length_ratio = min_length_ratio
        self.min_length_constant = min_length_constant
        self.max_length_ratio = max_length_ratio
        self.max_length_constant = max_length_constant
        self.prefix = self.encode_prefix(prefix)
        self.replace_unknown = replace_unknown
        self.dictionary = {} if dictionary is None else read_dictionary(dictionary)

    def encode_prefix(self, prefix: str) -> list[int]:
        """The tokens of a forced beginning.

        Raises:
            ValueError: if the target vocabulary lacks a part of it.
        """
        ids = self.target_tokenizer.encode(prefix)
        if UNK_ID in ids:
            piece = self.target_tokenizer.written(prefix)[ids.index(UNK_ID)].strip()
            raise ValueError(
                f"no translation can begin with {prefix!r}: {piece!r} is not in the target "
                "vocabulary"
            )
        return ids

    @torch.no_grad()
    def decode(
        self,
        batch: Batch,
        *,
        prefixes: Sequence[Sequence[int]] | None = None,
        alignments: bool = False,
    ) -> list[list[Hypothesis]]:
        """The best hypotheses of each source of a batch; the targets aren't looked at.

        Args:
            batch: on the model's device.
            prefixes: tokens that the outputs of each source begin with; None for the translator's
                own. They may exceed the maximum length, and are then followed by one token.
            alignments: whether to keep the attention weights.
        """
        # Both kinds of model take the state that they gave.
        step: Step[Any] = self._step if self.model.copies else self.model.step
        state: Any = self.model.start(batch.source, batch.source_lengths, batch.extended_source)
        max_lengths = length_limits(
            batch.source_lengths, ratio=self.max_length_ratio, constant=self.max_length_constant
        )
        if prefixes is None and self.prefix:
            prefixes = [self.prefix] * len(max_lengths)
        if prefixes is not None:
            needed = [len(prefix) + 1 for prefix in prefixes]
            max_lengths = max_lengths.maximum(torch.tensor(needed).to(max_lengths))
        min_lengths = None
        if self.min_length_ratio or self.min_length_constant:
            shortest = (self.min_length_ratio * batch.source_lengths).ceil().long()
            min_lengths = shortest + self.min_length_constant
        constraints = None
        if prefixes is not None or min_lengths is not None or self.block_ngram:
            constraints = Constraints(
                min_lengths=min_lengths, block_ngram=self.block_ngram, prefixes=prefixes
            )
        options: dict[str, Any] = {
            "max_lengths": max_lengths,
            "pad_id": PAD_ID,
            "bos_id": BOS_ID,
            "eos_id": EOS_ID,
            "constraints": constraints,
            "alignments": alignments,
        }
        if self.strategy == "greedy":
            return greedy(step, state, **options)
        if self.strategy == "sampling":
            return sample(
                step,
                state,
                generator=self.generator,
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                samples=self.n_best,
                **options,
            )
        return beam_search(
            step,
            state,
            beam_size=self.beam_size,
            n_best=self.n_best,
            length_penalty=self.length_penalty,
            coverage_penalty=self.coverage_penalty,
            source_lengths=batch.source_lengths,
            **options,
        )

    def _step(self, tokens: Tensor, state: Any) -> Any:
        """The model's own; what it copied from beyond the vocabulary, it reads as `<unk>`."""
        beyond = tokens >= self.target_tokenizer.vocabulary_size
        return self.model.step(tokens.masked_fill(beyond, UNK_ID), state)

    def texts(
        self,
        batch: Batch,
        sources: Sequence[str],
        *,
        prefixes: Sequence[Sequence[int]] | None = None,
        alignments: bool = False,
    ) -> list[list[Translation]]:
        """The best translations of each source of a batch, in the batch's order.

        Args:
            batch: on the model's device.
            sources: the text of each of its sources.
            prefixes: see :meth:`decode`.
            alignments: whether each translation comes with its alignment.
        """
        found = self.decode(batch, prefixes=prefixes, alignments=alignments or self.replace_unknown)
        ids = batch.source.tolist()
        return [
            [
                self._translation(hypothesis, source, tokens[:length], aligned=alignments)
                for hypothesis in hypotheses
            ]
            for hypotheses, source, tokens, length in zip(
                found, sources, ids, batch.source_lengths.tolist(), strict=True
            )
        ]

    def _translation(
        self, hypothesis: Hypothesis, source: str, source_ids: list[int], *, aligned: bool
    ) -> Translation:
        unknown = None
        if self.replace_unknown and UNK_ID in hypothesis.tokens:
            assert hypothesis.alignment is not None
            words = self.source_tokenizer.written(source)
            unknown = replacements(hypothesis.tokens, hypothesis.alignment, words, self.dictionary)
        copied = self.target_tokenizer.written(source) if self.model.copies else ()
        alignment = None
        if aligned and hypothesis.alignment is not None:
            written = [*hypothesis.tokens, *[EOS_ID] * hypothesis.finished]
            alignment = Alignment(
                source=_names(self.source_tokenizer, source_ids),
                target=_names(self.target_tokenizer, written, copied),
                # The rest are columns of padding.
                weights=hypothesis.alignment[:, : len(source_ids)].double().numpy(),
            )
        return Translation(
            text=self.target_tokenizer.decode(hypothesis.tokens, unknown, copied),
            score=hypothesis.score,
            finished=hypothesis.finished,
            log_probability=hypothesis.log_probability,
            alignment=alignment,
        )

    def translate(
        self,
        sources: Sequence[str],
        *,
        prefixes: Sequence[str] | None = None,
        alignments: bool = False,
        batch_size: int = 64,
        on_batch: Callable[[int], object] | None = None,
    ) -> Iterator[list[Translation]]:
        """The best translations of each source text, in the order given.

        An empty source is an empty translation: there is nothing to translate.

        Args:
            sources: plain texts.
            prefixes: text that the translations of each source begin with; None for the
                translator's own.
            alignments: whether each translation comes with its alignment.
            batch_size: sources translated together; sorted by length, so that little is padded.
            on_batch: called after each batch with its number of sources.

        Raises:
            ValueError: if the target vocabulary lacks a part of a prefix.
        """
        device = next(self.model.parameters()).device
        real = [index for index, source in enumerate(sources) if source.strip()]
        results = [[Translation("", 0.0, True, 0.0)] * self.n_best for _ in sources]
        begun = None
        if prefixes is not None:
            begun = [self.encode_prefix(prefixes[index]) for index in real]
        if real:
            pairs = [Pair(source=sources[index], target="", line=index + 1) for index in real]
            split = EncodedSplit.encode(
                pairs, self.source_tokenizer, self.target_tokenizer, copies=self.model.copies
            )
            for batch in EvaluationLoader(split, batch_size):
                places = batch.index.tolist()
                translated = self.texts(
                    batch.to(device),
                    [pairs[place].source for place in places],
                    prefixes=begun and [begun[place] for place in places],
                    alignments=alignments,
                )
                for place, best in zip(places, translated, strict=True):
                    results[real[place]] = best
                if on_batch is not None:
                    on_batch(len(places))
        yield from results


def _names(tokenizer: Tokenizer, ids: Sequence[int], copied: Sequence[str] = ()) -> list[str]:
    names = tokenizer.tokens(ids, copied)
    # Words come with the space before them; in smaller pieces it shows where a word begins.
    return [name.lstrip("▁") or name for name in names] if tokenizer.kind == "word" else names
