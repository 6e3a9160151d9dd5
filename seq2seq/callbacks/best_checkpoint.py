"""Keeps `best.ckpt`, the checkpoint that is tested and used.

The checkpoint to resume from is `last_checkpoint.py`'s.
"""

import os
import shutil
from pathlib import Path
from typing import Any

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

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best checkpoint so far, with its file if the run goes on elsewhere."""
        former = Path(state_dict["best_model_path"] or ".")
        if not former.is_file():
            return  # the next validation is the best there is
        if former.resolve() != self.path.resolve():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(former, self.path)
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
