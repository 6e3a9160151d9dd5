"""A network of a few units, a few batches, and a trainer: what the tests of callbacks train."""

from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from seq2seq.data.batch import Batch
from seq2seq.models.encoder_decoder import encoder_decoder

VOCABULARY = 12


def make_batch(seed: int, *, size: int = 8, longest: int = 12) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def ragged() -> tuple[Tensor, Tensor]:
        lengths = torch.randint(3, longest + 1, (size,), generator=generator)
        lengths[0] = longest
        ids = torch.randint(4, VOCABULARY, (size, longest), generator=generator)
        return ids.masked_fill(torch.arange(longest) >= lengths.unsqueeze(1), 0), lengths

    (source, source_lengths), (labels, target_lengths) = ragged(), ragged()
    real = torch.arange(longest) < target_lengths.unsqueeze(1)
    return Batch(
        source=source,
        source_lengths=source_lengths,
        target=nn.functional.pad(labels, (1, 0), value=1),
        target_lengths=target_lengths,
        target_positions=real.flatten().nonzero().squeeze(1),
        index=torch.arange(size),
        target_tokens=int(target_lengths.sum()),
    )


class Module(lightning.LightningModule):
    def __init__(self, *, factor: float = 1.0, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        values = {"cell": "lstm", "embedding_size": 8, "hidden_size": 8} | options
        self.model = encoder_decoder(
            source_vocabulary_size=VOCABULARY,
            target_vocabulary_size=VOCABULARY,
            pad_id=0,
            **values,
        )
        self.factor = factor

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        features = self.model(batch.source, batch.source_lengths, batch.decoder_input)
        logits = self.model.logits(features.flatten(0, 1)[batch.target_positions])
        return nn.functional.cross_entropy(logits.float(), batch.labels) * self.factor

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.training_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def fit(
    module: lightning.LightningModule,
    folder: Path,
    callbacks: list[lightning.Callback],
    *,
    batches: list[Batch] | None = None,
    tensorboard: bool = False,
    ckpt_path: Path | None = None,
    **options: Any,
) -> lightning.Trainer:
    lightning.seed_everything(1, verbose=False)
    batches = [make_batch(seed) for seed in range(20)] if batches is None else batches
    logger = TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
    trainer = lightning.Trainer(
        default_root_dir=folder,
        logger=logger if tensorboard else False,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        **({"accelerator": "cpu", "max_epochs": 1, "enable_checkpointing": False} | options),
    )
    loader = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    trainer.fit(module, loader, ckpt_path=ckpt_path)
    return trainer


class Scaled(MixedPrecision):
    """Loss scaling alone: the CPU has no LSTM in float16."""

    def autocast_context_manager(self) -> Any:
        return torch.autocast("cpu", enabled=False)


def loss_scaling(scale: float) -> list[Any]:
    """Plugins of a trainer that multiplies the loss."""
    return [Scaled("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))]


def alone(batch: Batch) -> Batch:
    """The first example of a batch, whose sequences are the longest."""
    return Batch(
        source=batch.source[:1],
        source_lengths=batch.source_lengths[:1],
        target=batch.target[:1],
        target_lengths=batch.target_lengths[:1],
        target_positions=torch.arange(int(batch.target_lengths[0])),
        index=batch.index[:1],
        target_tokens=int(batch.target_lengths[0]),
    )


def read_events(folder: Path) -> EventAccumulator:
    """Everything that a run wrote for TensorBoard."""
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "histograms": 0})
    events.Reload()
    return events


def hooks(module: Module) -> int:
    """Hooks on all recurrent layers."""
    return sum(
        len(layer._forward_hooks) + len(layer._forward_pre_hooks)
        for layer in module.model.recurrent_layers().values()
    )
