"""Keeps `best.ckpt`, the checkpoint that is tested and used.

The checkpoint to resume from is `last_checkpoint.py`'s.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """Keep the best checkpoint by one figure of the validation, over a resumed run as well.

    Args:
        folder: where it is written.
        monitor: the figure.
        mode: ``min`` or ``max``.
    """

    def __init__(self, *, folder: str | os.PathLike[str], monitor: str, mode: str) -> None:
        super().__init__(
            dirpath=Path(folder),
            filename="best",
            monitor=monitor,
            mode=mode,
            save_top_k=1,
            enable_version_counter=False,
        )
        self.path = Path(folder) / "best.ckpt"
        self.figures: dict[str, float] = {}
        """Figures of the validation that was the best so far, by TensorBoard's names."""

    # Lightning judges in one of these two, depending on how often it validates.
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge what was just validated."""
        before = self.best_model_score
        super().on_validation_end(trainer, pl_module)
        self._note(trainer, better=self.best_model_score is not before)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge what was just validated."""
        before = self.best_model_score
        super().on_train_epoch_end(trainer, pl_module)
        self._note(trainer, better=self.best_model_score is not before)

    def _note(self, trainer: Trainer, *, better: bool) -> None:
        if better:
            self.figures = validation_figures(trainer)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        return {**super().state_dict(), "figures": self.figures}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best checkpoint so far, with its file if the run goes on elsewhere."""
        former = Path(state_dict["best_model_path"] or ".")
        if not former.is_file():
            former = self.path  # the run's folder was moved
        if not former.is_file():
            return  # the next validation is the best there is
        if former.resolve() != self.path.resolve():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(former, self.path)
        self.figures = state_dict.get("figures", {})
        place = str(self.path)
        super().load_state_dict(
            {
                **state_dict,
                "dirpath": str(self.dirpath),
                "best_model_path": place,
                "kth_best_model_path": place,
                "best_k_models": {place: state_dict["best_model_score"]},
            }
        )


def validation_figures(trainer: Trainer) -> dict[str, float]:
    """What the last validation found."""
    figures = sorted(trainer.callback_metrics.items())
    return {name: float(value) for name, value in figures if name.startswith("val/")}
