"""How often training feeds the true token, and how often the model's own, as it goes on.

The coins are drawn, and the tokens fed, by the network; when, is the training module's.
"""

import math

from seq2seq.data.tokenizer import UNK_ID
from seq2seq.models.encoder_decoder import FED_TOKENS, Feeding

SCHEDULES = ("linear", "exponential", "inverse_sigmoid")
LINEAR_DECAY = 0.0001


class ScheduledSampling:
    """Scheduled sampling (Bengio et al. 2015, section 2.4).

    In training, each token that the decoder is fed, but the begin symbol, is the true one with
    probability ``epsilon_i`` after i optimizer steps, and otherwise one from the model's own
    distribution at the step before; no gradient passes through that choice.

    * linear: ``max(floor, k - c i)``;
    * exponential: ``max(floor, k^i)`` with ``k < 1``;
    * inverse_sigmoid: ``max(floor, k / (k + exp(i / k)))`` with ``k >= 1``, one half after
      ``k ln k`` steps.

    The floor is the paper's for the linear schedule.

    Args:
        schedule: ``none``, or one of these.
        k: see above; None is 1 for the linear schedule.
        c: what is taken off a step; of the linear schedule alone, where None is 0.0001.
        floor: smallest probability.
        fed: ``sample``, a token drawn from the model, or ``argmax``, its most probable one.

    Raises:
        ValueError: for an unknown schedule, a number out of range, or one without a meaning.
    """

    def __init__(
        self,
        *,
        schedule: str = "none",
        k: float | None = None,
        c: float | None = None,
        floor: float = 0.0,
        fed: str = "sample",
    ) -> None:
        def refuse(key: str, value: object, rule: str) -> None:
            shown = "null" if value is None else value
            raise ValueError(f"scheduled_sampling.{key}={shown} {rule}")

        if schedule not in ("none", *SCHEDULES):
            refuse("schedule", schedule, f"is unknown; choose one of none, {', '.join(SCHEDULES)}")
        if fed not in FED_TOKENS:
            refuse("fed", fed, f"is unknown; choose one of {', '.join(FED_TOKENS)}")
        if not 0 <= floor <= 1:
            refuse("floor", floor, "is a probability: it must be at least 0 and at most 1")
        if schedule == "linear":
            k, c = (1.0 if k is None else k), (LINEAR_DECAY if c is None else c)
            if not 0 <= k <= 1:
                refuse("k", k, "is the probability at step 0: it must be at least 0 and at most 1")
            if not c >= 0:
                refuse("c", c, "is taken off at every step: it must be at least 0")
        elif schedule == "exponential" and not (k is not None and 0 < k < 1):
            refuse("k", k, "must be above 0 and below 1 for schedule=exponential, such as 0.9999")
        elif schedule == "inverse_sigmoid" and not (k is not None and k >= 1):
            refuse("k", k, "must be at least 1 for schedule=inverse_sigmoid, such as 1000")
        if schedule != "linear" and c is not None:
            refuse("c", c, f"is of schedule=linear, but schedule is {schedule}: set it to null")
        if schedule == "none":
            for key, value, off in (("k", k, None), ("floor", floor, 0), ("fed", fed, "sample")):
                if value != off:
                    refuse(key, value, "does nothing with schedule=none: choose a schedule")
        self.schedule = schedule
        self.k = 1.0 if k is None else k
        self.c = LINEAR_DECAY if c is None else c
        self.floor = floor
        self.fed = fed

    def __bool__(self) -> bool:
        return self.schedule != "none"

    def feeding(self, step: int) -> Feeding:
        """What is fed after ``step`` optimizer steps."""
        return Feeding(max(self.floor, self._epsilon(step)), self.fed, UNK_ID)

    def _epsilon(self, step: int) -> float:
        if self.schedule == "linear":
            return self.k - self.c * step
        if self.schedule == "exponential":
            return float(self.k**step)
        if self.schedule == "inverse_sigmoid":
            # k / (k + exp(i / k)) with the numerator's exponential taken out: exp never overflows.
            return self.k * math.exp(-step / self.k) / (self.k * math.exp(-step / self.k) + 1)
        return 1.0
