"""Stops a run whose loss is no longer a number, and says where it went wrong."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from seq2seq.data.batch import Batch
from seq2seq.module import TranslationModule
from seq2seq.status import Diverged


class StopOnDivergence(Callback):
    """Raise :class:`~seq2seq.status.Diverged` before a bad loss can reach the weights.

    Args:
        folder: where the batch is kept, as ``diverged_batch.pt``: a dict of tensors that loads
            with ``weights_only=True``.
    """

    def __init__(self, *, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._batch: Batch | None = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Hold on to the batch until its loss is known."""
        self._batch = batch

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Look at the loss."""
        batch, self._batch = self._batch, None
        if torch.isfinite(loss) or batch is None or not isinstance(pl_module, TranslationModule):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "diverged_batch.pt"
        torch.save(asdict(batch.to("cpu")), path)
        tensor = first_bad_tensor(pl_module, batch)
        raise Diverged(
            f"the loss is {loss.item()} at step {trainer.global_step}: the first tensor that went "
            f"bad is {tensor}; the batch is kept in {path}",
            step=trainer.global_step,
            tensor=tensor,
        )


def first_bad_tensor(module: TranslationModule, batch: Batch) -> str:
    """Name the first tensor that isn't finite: a parameter, or else an output of a submodule.

    The forward pass is repeated to find it, as the step trains on it, with its own tokens and
    penalties, but with other random numbers than the first time. Outputs of recurrent layers are
    named with the first bad timestep.
    """
    for name, parameter in module.model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"the parameter {name} (an earlier gradient was too large)"
    bad: list[str] = []
    handles = []
    for name, submodule in module.model.named_modules():

        def look(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if bad or not isinstance(tensor, Tensor) or torch.isfinite(tensor).all():
                return
            where = f"the output of {name or 'the network'}"
            if tensor.dim() == 3:
                steps = (~torch.isfinite(tensor)).any(dim=2).any(dim=0).nonzero()
                where += f" at timestep {int(steps[0])}"
            bad.append(where)

        handles.append(submodule.register_forward_hook(look))
    try:
        precision = module.trainer.precision_plugin
        with torch.no_grad(), torch.random.fork_rng(), precision.train_step_context():
            loss, penalties = module.training_loss(batch)
    finally:
        for handle in handles:
            handle.remove()
    if bad:
        return bad[0]
    for name, value in (("loss", loss.sum), *penalties.items()):
        if not torch.isfinite(value):
            return f"the {name.replace('_', ' ')} itself (every output of the network is finite)"
    return "not to be found again: with other random numbers everything is finite"
