"""Corpus metrics, exact over any cut into batches: every state is a sum or the texts themselves.

`TeacherForcedScores` reads the loss with the true history, `TranslationScores` the text that the
model produced on its own. The two say different things and never share a name. Decoding the text
and naming the split (`val/`, `test/`) are the caller's.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from torch import Tensor
from torchmetrics import Metric

BLEU_TOKENIZERS = ("13a", "none", "intl", "char", "zh")

_END_OF_TEXT = b"\xff"  # a byte that UTF-8 never uses


class TeacherForcedScores(Metric):
    """Loss, perplexity and token accuracy with the true target history.

    loss = sum of negative log-likelihoods / tokens, without label smoothing; perplexity = exp(loss)
    of the whole corpus; token_accuracy = correct / tokens, between 0 and 1.
    """

    is_differentiable = False
    full_state_update = False

    negative_log_likelihood: Tensor
    correct: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        zero = torch.zeros((), dtype=torch.float64)
        self.add_state("negative_log_likelihood", default=zero.clone(), dist_reduce_fx="sum")
        self.add_state("correct", default=zero.long(), dist_reduce_fx="sum")
        self.add_state("tokens", default=zero.long(), dist_reduce_fx="sum")

    def update(self, *, negative_log_likelihood: Tensor, correct: Tensor, tokens: int) -> None:
        """Add one batch.

        Args:
            negative_log_likelihood: summed over the target tokens, in nats.
            correct: number of positions whose most probable token was the label.
            tokens: number of target tokens, `<eos>` included, padding not.
        """
        self.negative_log_likelihood += negative_log_likelihood
        self.correct += correct
        self.tokens += tokens

    def compute(self) -> dict[str, Tensor]:
        """Returns "loss", "perplexity" and "token_accuracy".

        Raises:
            ValueError: if no token was added.
        """
        if self.tokens == 0:
            raise ValueError("No target token has been scored: the split to score is empty.")
        loss = self.negative_log_likelihood / self.tokens
        return {
            "loss": loss,
            "perplexity": loss.exp(),
            "token_accuracy": self.correct.double() / self.tokens,
        }


class TranslationScores(Metric):
    """BLEU, chrF, exact match and edit rate of produced texts against one reference each.

    - bleu, chrf: sacrebleu's corpus scores (Post 2018), 0 to 100. BLEU counts words up to four in a
      row, so it is 0 where no text has four tokens, however right they are.
    - exact_match: fraction of texts equal to their reference up to whitespace, 0 to 1.
    - edit_rate: Levenshtein distance in whitespace-separated words, summed over the corpus, divided
      by the number of reference words: 0 is perfect, above 1 is possible.

    Args:
        bleu_tokenizer: sacrebleu's tokenizer, one of `BLEU_TOKENIZERS`. "13a" for plain text,
            "none" for text that is already separated by spaces, "char" for single characters.

    Raises:
        ValueError: if `bleu_tokenizer` isn't one of them.
    """

    is_differentiable = False
    full_state_update = False

    hypotheses: list[Tensor]
    references: list[Tensor]
    exact: Tensor
    edits: Tensor
    reference_words: Tensor

    def __init__(self, *, bleu_tokenizer: str = "13a") -> None:
        if bleu_tokenizer not in BLEU_TOKENIZERS:
            raise ValueError(
                f"bleu_tokenizer={bleu_tokenizer!r}: choose one of {', '.join(BLEU_TOKENIZERS)}."
            )
        super().__init__()
        self.bleu_tokenizer = bleu_tokenizer
        # UTF-8 bytes: states must be tensors to move between devices and processes
        self.add_state("hypotheses", default=[], dist_reduce_fx="cat")
        self.add_state("references", default=[], dist_reduce_fx="cat")
        for name in ("exact", "edits", "reference_words"):
            self.add_state(name, default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, *, hypotheses: Sequence[str], references: Sequence[str]) -> None:
        """Add a batch of texts; keyword-only, as BLEU changes when the two are swapped.

        Args:
            hypotheses: what the model produced; empty texts are allowed.
            references: what is right, in the same order.

        Raises:
            ValueError: if there aren't as many hypotheses as references.
        """
        for name, texts in (("hypotheses", hypotheses), ("references", references)):
            if isinstance(texts, str):
                raise ValueError(f"{name} must be a list of texts, not one text: {texts[:40]!r}.")
        if len(hypotheses) != len(references):
            raise ValueError(
                f"There are {len(hypotheses)} hypotheses and {len(references)} references: every "
                "hypothesis needs its one reference."
            )
        wanted = [reference.split() for reference in references]
        produced = [hypothesis.split() for hypothesis in hypotheses]
        edits = [edit_distance(*pair) for pair in zip(produced, wanted, strict=True)]
        self.exact += edits.count(0)
        self.edits += sum(edits)
        self.reference_words += sum(map(len, wanted))
        if hypotheses:
            self.hypotheses.append(_to_bytes(hypotheses).to(self.device))
            self.references.append(_to_bytes(references).to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """Returns "bleu", "chrf", "exact_match" and "edit_rate".

        Raises:
            ValueError: if no text was added or no reference contains a word.
        """
        hypotheses, references = self._texts()
        scores = {
            "bleu": self._bleu().corpus_score(hypotheses, [references]).score,
            "chrf": CHRF().corpus_score(hypotheses, [references]).score,
            "exact_match": int(self.exact) / len(references),
            "edit_rate": int(self.edits) / int(self.reference_words),
        }
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in scores.items()}

    def signatures(self) -> dict[str, str]:
        """Signatures of sacrebleu, to be written beside the scores: keys "bleu" and "chrf"."""
        metrics: dict[str, BLEU | CHRF] = {"bleu": self._bleu(), "chrf": CHRF()}
        signatures = {}
        for name, metric in metrics.items():
            metric.corpus_score(["a"], [["a"]])  # sacrebleu signs only what has been scored
            signatures[name] = str(metric.get_signature())
        return signatures

    def _bleu(self) -> BLEU:
        # force: no advice to detokenize; the choice of the tokenizer is made and documented here
        return BLEU(tokenize=self.bleu_tokenizer, force=True)

    def _texts(self) -> tuple[list[str], list[str]]:
        hypotheses, references = _to_texts(self.hypotheses), _to_texts(self.references)
        if not references:
            raise ValueError("No translation has been scored: the split to score is empty.")
        if self.reference_words == 0:
            raise ValueError(
                f"All {len(references)} references are empty: nothing can be scored against them."
            )
        return hypotheses, references


def edit_distance(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Levenshtein distance: fewest insertions, deletions and substitutions (Levenshtein 1966).

    The row recurrence min(above + 1, diagonal + cost, left + 1) with the dependence on the left
    neighbour written as a running minimum of (value - column): a row is a few array operations.
    """
    if first == second:
        return 0
    if not first or not second:
        return max(len(first), len(second))
    numbers: dict[Any, int] = {}
    columns = np.array([numbers.setdefault(item, len(numbers)) for item in second])
    offsets = np.arange(len(second) + 1)
    row = offsets.copy()
    for item in first:
        changed = columns != numbers.get(item, -1)
        above = row + 1
        above[1:] = np.minimum(above[1:], row[:-1] + changed)
        row = np.minimum.accumulate(above - offsets) + offsets
    return int(row[-1])


def _to_bytes(texts: Sequence[str]) -> Tensor:
    joined = b"".join(text.encode() + _END_OF_TEXT for text in texts)
    return torch.frombuffer(bytearray(joined), dtype=torch.uint8)


def _to_texts(chunks: list[Tensor] | Tensor) -> list[str]:
    # after a gather between processes, torchmetrics has joined the list into one tensor
    if isinstance(chunks, Tensor):
        chunks = [chunks]
    joined = b"".join(chunk.cpu().numpy().tobytes() for chunk in chunks)
    return [text.decode() for text in joined.split(_END_OF_TEXT)[:-1]]
