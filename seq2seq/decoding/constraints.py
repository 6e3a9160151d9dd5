"""What an output must hold and must not hold, whatever the model finds probable.

Each rule only makes tokens impossible; the log-probabilities of the others stay the model's own.
Which of them is chosen is left to the searches, which all ask here at every position.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Constraints:
    """Rules for the outputs of a batch, in the order of their strength.

    A forced prefix goes before everything: up to its end, its tokens are the only ones possible.
    Then blocked n-grams (Paulus, Xiong and Socher 2017, section 2.5): a token that would repeat an
    n-gram of its own output is impossible, except `<eos>`. Then the minimum length: before it,
    `<eos>` is impossible, unless nothing else is possible.

    Args:
        min_lengths: fewest predicted positions of each example, `<eos>` included; None for 1.
        block_ngram: n; 0 allows repetitions.
        prefixes: tokens that each output begins with, none of them `<pad>`, `<bos>` or `<eos>`;
            None for no prefixes.

    Shape:
        min_lengths [batch] int64 on the device of the step function.
    """

    min_lengths: Tensor | None = None
    block_ngram: int = 0
    prefixes: Sequence[Sequence[int]] | None = None

    def select(self, examples: Tensor) -> "Constraints":
        """The rules of `examples` (int64 [new_batch]) in that order; repeats are allowed."""
        return Constraints(
            min_lengths=None if self.min_lengths is None else self.min_lengths[examples],
            block_ngram=self.block_ngram,
            prefixes=self.prefixes and [self.prefixes[example] for example in examples.tolist()],
        )

    def check(self, limits: Sequence[int], *, control_ids: Sequence[int]) -> None:
        """Refuse rules that no output can follow.

        Args:
            limits: the maximum length of each example.
            control_ids: `<pad>`, `<bos>` and `<eos>`.

        Raises:
            ValueError: naming the rule, its value and the limit.
        """
        if self.block_ngram < 0:
            raise ValueError(f"block_ngram={self.block_ngram}: use 0 (none) or more.")
        if self.min_lengths is not None:
            for least, most in zip(self.min_lengths.tolist(), limits, strict=True):
                if least > most:
                    raise ValueError(f"The minimum length {least} exceeds the maximum {most}.")
        if self.prefixes is not None:
            for prefix, most in zip(self.prefixes, limits, strict=True):
                if len(prefix) > most:
                    raise ValueError(
                        f"A prefix of {len(prefix)} tokens exceeds the maximum length {most}."
                    )
                if set(control_ids) & set(prefix):
                    raise ValueError(f"The prefix {list(prefix)} holds a control token.")

    def apply(
        self, log_probs: Tensor, *, history: Tensor, examples: Sequence[int], eos_id: int
    ) -> None:
        """Make the tokens impossible, in place, that these rules forbid at the next position.

        Args:
            log_probs: of the next token of each row.
            history: the tokens of each row, without `<bos>`.
            examples: which example each row belongs to.
            eos_id: ends a hypothesis.

        Shape:
            log_probs [rows, vocabulary], history [rows, position].
        """
        position = history.size(1)
        forced = [
            (row, self.prefixes[example][position])
            for row, example in enumerate(examples)
            if self.prefixes is not None and position < len(self.prefixes[example])
        ]
        rows, tokens = (
            torch.tensor(forced, device=log_probs.device, dtype=torch.int64).view(-1, 2).T
        )
        wanted = log_probs[rows, tokens]
        ending = log_probs[:, eos_id].clone()
        if self.block_ngram:
            block_repeated(log_probs, history, self.block_ngram)
            log_probs[:, eos_id] = ending
        if self.min_lengths is not None:
            early = position + 1 < self.min_lengths[list(examples)]
            log_probs[early, eos_id] = -torch.inf
            stuck = early & (log_probs.amax(dim=1) == -torch.inf)
            log_probs[stuck, eos_id] = ending[stuck]
        log_probs[rows] = -torch.inf
        log_probs[rows, tokens] = wanted


def block_repeated(log_probs: Tensor, history: Tensor, size: int) -> None:
    """Make every token impossible, in place, that would complete an n-gram for a second time.

    Shape:
        log_probs [rows, vocabulary], history [rows, position].
    """
    if history.size(1) < size:
        return
    ngrams = history.unfold(1, size, 1)  # [rows, position - size + 1, size]
    latest = history[:, history.size(1) - size + 1 :].unsqueeze(1)  # the n-1 tokens just written
    begun_again = (ngrams[..., :-1] == latest).all(dim=2)
    rows, places = begun_again.nonzero(as_tuple=True)
    log_probs[rows, ngrams[rows, places, -1]] = -torch.inf
