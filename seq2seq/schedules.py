"""Learning-rate schedules, each a function that returns Lightning's `lr_scheduler` dictionary.

All are called the same way, `schedule(optimizer, steps_per_epoch=...)`. Steps are optimizer steps,
so gradient accumulation needs nothing more. The schedulers hold plain numbers only: their state
loads with `weights_only=True`, and a resumed run goes on where it stopped.
"""

from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, ReduceLROnPlateau


def constant(optimizer: Optimizer, *, steps_per_epoch: int) -> dict[str, Any]:
    """The optimizer's learning rate throughout."""
    # A scheduler all the same: the learning rate is logged and stored alike under every schedule.
    return _every_step(ConstantLR(optimizer, factor=1.0, total_iters=0))


def plateau(
    optimizer: Optimizer,
    *,
    steps_per_epoch: int,
    monitor: str = "val/loss",
    mode: Literal["min", "max"] = "min",
    factor: float = 0.5,
    patience: int = 2,
    threshold: float = 1e-4,
    minimum_lr: float = 0.0,
) -> dict[str, Any]:
    """Multiply the learning rate by `factor` when `monitor` has stopped improving.

    Args:
        optimizer: whose learning rate is scheduled.
        steps_per_epoch: optimizer steps in an epoch; not used by this schedule.
        monitor: logged figure, looked at after each validation.
        mode: "min" if smaller is better, "max" if larger (`val/bleu`).
        factor: between 0 and 1.
        patience: validations without improvement that are borne; the next one reduces.
        threshold: smallest relative change that counts as an improvement.
        minimum_lr: the learning rate never falls below.

    Raises:
        ValueError: if `mode`, `factor` or `patience` is out of range.
    """
    if mode not in ("min", "max"):
        raise ValueError(f"scheduler.mode={mode!r}: use 'min' (losses) or 'max' (BLEU, accuracy).")
    _check_factor(factor)
    if patience < 0:
        raise ValueError(f"scheduler.patience={patience}: the number of epochs can't be negative.")
    scheduler = ReduceLROnPlateau(
        optimizer,
        mode=mode,
        factor=factor,
        patience=patience,
        threshold=threshold,
        min_lr=minimum_lr,
    )
    return {
        "scheduler": scheduler,
        "interval": "epoch",
        "frequency": 1,
        "monitor": monitor,
        "strict": True,
        "reduce_on_plateau": True,
    }


def inverse_square_root(
    optimizer: Optimizer, *, steps_per_epoch: int, warmup_steps: int = 1000
) -> dict[str, Any]:
    """Linear warm-up, then decay with the square root of the step; see `InverseSquareRoot`."""
    return _every_step(InverseSquareRoot(optimizer, warmup_steps=warmup_steps))


def halving(
    optimizer: Optimizer,
    *,
    steps_per_epoch: int,
    start_epoch: float = 5.0,
    every_epochs: float = 0.5,
    factor: float = 0.5,
) -> dict[str, Any]:
    """Constant for some epochs, then halved again and again; see `Halving`."""
    scheduler = Halving(
        optimizer,
        steps_per_epoch=steps_per_epoch,
        start_epoch=start_epoch,
        every_epochs=every_epochs,
        factor=factor,
    )
    return _every_step(scheduler)


class InverseSquareRoot(LRScheduler):
    """Linear warm-up, then decay with the inverse square root of the step.

    lr(s) = lr * min(s / w, sqrt(w / s)) for the s-th optimizer step, s = 1, 2, ... This is equation
    3 of Vaswani et al. 2017 times sqrt(d_model * w), so that the highest learning rate, at s = w,
    is the one configured in the optimizer.

    Args:
        optimizer: its learning rate is the peak.
        warmup_steps: w, in optimizer steps.

    Raises:
        ValueError: if `warmup_steps` is below 1.
    """

    def __init__(self, optimizer: Optimizer, *, warmup_steps: int) -> None:
        if warmup_steps < 1:
            raise ValueError(
                f"scheduler.warmup_steps={warmup_steps}: use at least 1 optimizer step."
            )
        self.warmup_steps = warmup_steps
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        step = self.last_epoch + 1  # last_epoch counts the optimizer steps taken
        scale = min(step / self.warmup_steps, (self.warmup_steps / step) ** 0.5)
        return [base_lr * scale for base_lr in self.base_lrs]


class Halving(LRScheduler):
    """Constant for `start_epoch` epochs, then multiplied by `factor` every `every_epochs` epochs.

    Sutskever et al. 2014, section 3.4: lr 0.7, "after 5 epochs, we began halving the learning rate
    every half epoch", 7.5 epochs in all. The first halving stands at `start_epoch` itself. A step
    uses the learning rate of the epochs completed before it.

    Args:
        optimizer: its learning rate is the first one.
        steps_per_epoch: optimizer steps in an epoch.
        start_epoch: epochs before the first halving; fractions allowed.
        every_epochs: epochs between two halvings; fractions allowed.
        factor: between 0 and 1.

    Raises:
        ValueError: if a value is out of range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        steps_per_epoch: int,
        start_epoch: float,
        every_epochs: float,
        factor: float,
    ) -> None:
        if steps_per_epoch < 1:
            raise ValueError(
                f"steps_per_epoch={steps_per_epoch}: halving counts epochs, so it needs to know "
                "how many optimizer steps (at least 1) an epoch has."
            )
        if start_epoch < 0:
            raise ValueError(f"scheduler.start_epoch={start_epoch}: it can't be negative.")
        if every_epochs <= 0:
            raise ValueError(f"scheduler.every_epochs={every_epochs}: it must be positive.")
        _check_factor(factor)
        self.steps_per_epoch = steps_per_epoch
        self.start_epoch = start_epoch
        self.every_epochs = every_epochs
        self.factor = factor
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        epoch = self.last_epoch / self.steps_per_epoch  # last_epoch counts optimizer steps
        # the tolerance, far below one step, keeps rounding from delaying a halving by a step
        halvings = max(0, int((epoch - self.start_epoch) / self.every_epochs + 1 + 1e-9))
        return [base_lr * self.factor**halvings for base_lr in self.base_lrs]


def _every_step(scheduler: LRScheduler) -> dict[str, Any]:
    return {"scheduler": scheduler, "interval": "step", "frequency": 1}


def _check_factor(factor: float) -> None:
    if not 0.0 < factor < 1.0:
        raise ValueError(
            f"scheduler.factor={factor}: the learning rate is multiplied by it, so it must lie "
            "between 0 and 1."
        )
