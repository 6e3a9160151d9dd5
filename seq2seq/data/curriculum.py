"""Which share of the training pairs, the shortest first, a model may see at which time.

How batches are made of that share is the sampler's.
"""

from dataclasses import dataclass

CURRICULA = ("linear", "sqrt")


@dataclass(frozen=True)
class Curriculum:
    """Competence-based curriculum (Platanios et al. 2019, section 3).

    At time t a batch is drawn from the pairs whose length is among the shortest share c(t):
    ``min(1, c0 + (1 - c0) t / T)`` (linear), or ``min(1, sqrt(c0^2 + (1 - c0^2) t / T))`` (sqrt),
    under which every pair that is new gets the same time until the next ones come.

    Args:
        kind: `linear` or `sqrt`.
        epochs: T; after so many epochs every epoch has each pair once, as without a curriculum.
        start: c0, the share at the start.

    Raises:
        ValueError: If the kind is unknown or a number is out of range.
    """

    kind: str
    epochs: float = 5.0
    start: float = 0.01

    def __post_init__(self) -> None:
        if self.kind not in CURRICULA:
            raise ValueError(
                f"batch.curriculum={self.kind!r} is unknown; choose one of none, "
                f"{', '.join(CURRICULA)}"
            )
        if not 0 < self.epochs < float("inf"):
            raise ValueError(
                f"batch.curriculum_epochs={self.epochs} must be above 0; for no curriculum set "
                "batch.curriculum=none"
            )
        if not 0 < self.start <= 1:
            raise ValueError(
                f"batch.curriculum_start={self.start} is a share of the pairs: it must be above 0 "
                "and at most 1"
            )

    def __str__(self) -> str:
        return f"{self.kind} from {self.start} over {self.epochs} epochs"

    def competence(self, epochs: float) -> float:
        """The share of pairs after so many epochs, or parts of one."""
        power = 2 if self.kind == "sqrt" else 1
        first = self.start**power
        return float(min(1.0, first + (1.0 - first) * epochs / self.epochs) ** (1 / power))
