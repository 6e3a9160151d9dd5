"""Keeps the state of the random number generators in every checkpoint.

Lightning stores none, and dropout draws from the global generator: without it a resumed run would
go on with other masks than the run that was never stopped.
"""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer


class RandomState(Callback):
    """Store and restore torch's generators, of the CPU and of every CUDA device."""

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The states as tensors."""
        return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the states until training begins."""
        self._restored = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore only now: nothing before the first step may draw from the restored state."""
        if self._restored is None:
            return
        torch.set_rng_state(self._restored["cpu"])
        if len(self._restored["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(self._restored["cuda"])
        self._restored = None
