"""A batch now and then, recorded once for all callbacks that look into the recurrent layers.

What is read from the record is left to them.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from seq2seq.callbacks.charts import Charts
from seq2seq.data.batch import Batch
from seq2seq.diagnostics.gradient_flow import (
    GradientRecorder,
    LayerFlow,
    RecomputationError,
    layer_flow,
)
from seq2seq.models.recurrent import RecurrentLayer

logger = logging.getLogger(__name__)


class Recording:
    """The batch that is being watched, and what was found in it.

    Args:
        examples: of the batch that are followed, evenly spaced over it.
        seed: of the random vectors whose transport is measured.
    """

    def __init__(self, *, examples: int, seed: int) -> None:
        self.examples = examples
        self.seed = seed
        self._recorder: GradientRecorder | None = None
        self._flows: dict[str, LayerFlow] | None = None
        self._lengths: dict[str, Tensor] = {}
        self._target_tokens = 0
        self._step = 0
        self._blind = False
        self._said: set[str] = set()

    def start(self, layers: Mapping[str, RecurrentLayer], batch: Batch, step: int) -> None:
        """Watch the next forward pass, unless it is watched already."""
        if self._blind or self._recorder is not None:
            return
        size = len(batch.source_lengths)
        count = min(self.examples, size)
        rows = torch.arange(count, device=batch.source_lengths.device) * size // count
        self._lengths = {
            "encoder": batch.source_lengths[rows],
            "decoder": batch.target_lengths[rows],
        }
        self._target_tokens = batch.target_tokens
        self._step = step
        self._recorder = GradientRecorder(layers, rows=rows).start()

    def stop(self) -> None:
        """Watch no further forward pass."""
        if self._recorder is not None:
            self._recorder.stop()

    def drop(self) -> None:
        """Forget the batch."""
        self.stop()
        self._recorder = self._flows = None

    def flows(self, trainer: Trainer, layers: Mapping[str, RecurrentLayer]) -> dict[str, LayerFlow]:
        """What was found in each layer, after the backward pass; nothing if a gradient overflowed.

        Norms are those of each example's own summed loss.
        """
        if self._recorder is None:
            return {}
        if self._flows is None:
            scale = self._target_tokens * trainer.accumulate_grad_batches / _loss_scale(trainer)
            self._flows = self._follow(layers, self._recorder, scale)
        return self._flows

    def _follow(
        self, layers: Mapping[str, RecurrentLayer], recorder: GradientRecorder, scale: float
    ) -> dict[str, LayerFlow]:
        if not any(recorder.calls.values()):
            self._blind = True
            self._say_once(
                "blind",
                "no recurrent layer could be watched, because the network is compiled or nothing "
                "in it is trained; there will be no profiles",
            )
            return {}
        flows: dict[str, LayerFlow] = {}
        for name, layer in layers.items():
            if not recorder.calls[name]:
                continue
            lengths = self._lengths["decoder" if name.startswith("decoder") else "encoder"]
            try:
                flows[name] = layer_flow(
                    layer, recorder.calls[name], lengths=lengths, scale=scale, seed=self.seed
                )
            except FloatingPointError as error:
                self._say_once(
                    "overflow",
                    f"{error}; such probes, the first at step {self._step}, are left out "
                    "(while 16-bit precision looks for its loss scale, a few are normal)",
                )
                return {}
            except RecomputationError as error:
                self._say_once(name, f"{name} is left out: {error}")
        return flows

    def _say_once(self, kind: str, sentence: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            logger.warning("gradient flow: %s", sentence)


class LayerProbe(Callback, ABC):
    """Read something from a recorded batch, every so many optimizer steps.

    The batch is the first of every ``every_n_steps``-th optimizer step, counted from 0, so that the
    first one sees the initialized weights. Probes of a trainer that ask for the same examples share
    one record. In a distributed run the first process probes its own share. A compiled network
    hides its layers: then nothing is read, and a line in the log says so.

    Args:
        group: name of the config node, for messages.
        every_n_steps: optimizer steps from one probe to the next.
        examples: examples of the batch that are followed, evenly spaced over it.
        seed: of the random vectors whose transport is measured.

    Raises:
        ValueError: if ``every_n_steps`` or ``examples`` is below 1.
    """

    def __init__(self, *, group: str, every_n_steps: int, examples: int, seed: int = 0) -> None:
        check_at_least_one(group, every_n_steps=every_n_steps, examples=examples)
        self.group = group
        self.every_n_steps = every_n_steps
        self.recording = Recording(examples=examples, seed=seed)
        self._layers: dict[str, RecurrentLayer] = {}
        self._probed_step = -1
        self._due = False

    @abstractmethod
    def tags(self, pl_module: LightningModule) -> list[str]:
        """Every TensorBoard tag that may be written in a run of this module."""

    @abstractmethod
    def charts(self, pl_module: LightningModule) -> Charts:
        """Charts of them."""

    @abstractmethod
    def read(
        self,
        trainer: Trainer,
        step: int,
        layers: Mapping[str, RecurrentLayer],
        flows: Mapping[str, LayerFlow],
    ) -> None:
        """Look at a probe, before the weights change.

        Args:
            trainer: whose loggers get the result.
            step: optimizer steps done before.
            layers: every recurrent layer by name.
            flows: what was found, at least in one of them.
        """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the probes of this trainer that need the same record."""
        self._layers = recurrent_layers(pl_module, self.group)
        own = (self.recording.examples, self.recording.seed)
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(other, LayerProbe):
                theirs = (other.recording.examples, other.recording.seed)
                if theirs == own:
                    self.recording = other.recording
                    return

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._probed_step = -1

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Watch this batch's forward pass if a probe is due."""
        step = trainer.global_step
        if step % self.every_n_steps or step == self._probed_step or not trainer.is_global_zero:
            return
        self._probed_step = step
        self._due = True
        self.recording.start(self._layers, batch, step)

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """The forward pass is over: watch no further."""
        self.recording.stop()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All gradients have arrived."""
        if not self._due:
            return
        self._due = False
        flows = self.recording.flows(trainer, self._layers)
        if flows:
            self.read(trainer, self._probed_step, self._layers, flows)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Forget the batch, also if there was no backward pass."""
        self._due = False
        self.recording.drop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Stop watching, whatever broke."""
        self._due = False
        self.recording.drop()


def recurrent_layers(pl_module: LightningModule, group: str) -> dict[str, RecurrentLayer]:
    """The recurrent layers by name of the network that a module holds as ``model``.

    Args:
        pl_module: the module.
        group: config node of the callback that asks, for the message.

    Raises:
        ValueError: if there is no such network.
    """
    network: Any = getattr(pl_module, "model", None)
    if not hasattr(network, "recurrent_layers"):
        raise ValueError(
            f"callbacks.{group} needs a module whose attribute model has recurrent_layers(), but "
            f"{type(pl_module).__name__} has none: remove the callback {group}"
        )
    layers: dict[str, RecurrentLayer] = network.recurrent_layers()
    return layers


def check_at_least_one(group: str, **numbers: int) -> None:
    """Refuse a cadence or a count below 1.

    Raises:
        ValueError: naming the config key.
    """
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(
                f"callbacks.{group}.{name} is {value}, but it must be at least 1; set "
                f"callbacks.{group} to null for none"
            )


def _loss_scale(trainer: Trainer) -> float:
    """What automatic mixed precision multiplies the loss by; 1 without it."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())
