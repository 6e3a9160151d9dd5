"""The training loop's view of the network: steps, logged figures, optimizer. Thin.

What happens around the steps (gradient flow, checkpoints, sample translations) is the callbacks'.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.types import LRSchedulerTypeUnion, OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer

from seq2seq.checkpoint import KEY, describe
from seq2seq.data.batch import Batch
from seq2seq.data.datamodule import TranslationDataModule
from seq2seq.decoding import NoTokenPossible
from seq2seq.gradient_noise import GradientNoise
from seq2seq.losses import TokenLoss
from seq2seq.metrics import TranslationScores
from seq2seq.models.encoder_decoder import EncoderDecoder, Feeding
from seq2seq.penalty import Penalty
from seq2seq.scheduled_sampling import ScheduledSampling
from seq2seq.scoring import SplitScores, TranslatedPair, batch_loss
from seq2seq.status import Diverged
from seq2seq.translator import Translator


class TranslationModule(lightning.LightningModule):
    """Train an encoder-decoder by teacher forcing, and judge it on its own output.

    The loss of a batch is the cross-entropy summed over its target tokens, divided once by their
    number; with gradient accumulation, a step follows the mean of its batches' losses. Validation
    and test log teacher-forced figures (``loss``, ``perplexity``, ``token_accuracy``) and
    free-running ones (``bleu``, ``chrf``, ``exact_match``, ``edit_rate``), each below ``val/``,
    ``test/`` or ``test_longer/``.

    Args:
        model: the network.
        model_arguments: plain arguments that rebuild it; kept in every checkpoint.
        training_arguments, gradient_arguments: see :func:`~seq2seq.checkpoint.describe`; kept as
            well.
        optimizer: makes the optimizer of the parameters, or groups of them, that it is given.
        scheduler: makes Lightning's ``lr_scheduler`` dictionary of the optimizer and
            ``steps_per_epoch``.
        label_smoothing: probability spread over the vocabulary.
        penalties: what is added to the loss of a batch in training.
        weight_decay_on: ``all``, or ``matrices``: neither vectors (biases) nor embeddings, tied
            ones included, decay then (of biases Goodfellow et al. 2016, section 7.1).
        scheduled_sampling: how often training feeds the model's own tokens; never if None.
        gradient_noise: what is added to the gradient after clipping; nothing if None.
        bleu_tokenizer: see :class:`~seq2seq.metrics.TranslationScores`.
        validation_translator, test_translator: how these splits are translated.
    """

    def __init__(
        self,
        *,
        model: EncoderDecoder,
        model_arguments: Mapping[str, Any],
        training_arguments: Mapping[str, Any] | None = None,
        gradient_arguments: Mapping[str, Any] | None = None,
        optimizer: Callable[[Iterable[Any]], Optimizer],
        scheduler: Callable[..., dict[str, Any]],
        label_smoothing: float = 0.0,
        penalties: Sequence[Penalty] = (),
        weight_decay_on: str = "all",
        scheduled_sampling: ScheduledSampling | None = None,
        gradient_noise: GradientNoise | None = None,
        bleu_tokenizer: str = "13a",
        validation_translator: Translator,
        test_translator: Translator,
    ) -> None:
        super().__init__()
        self.model = model
        self.description = describe(
            model_arguments,
            test_translator.source_tokenizer,
            test_translator.target_tokenizer,
            training_arguments,
            gradient_arguments,
        )
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.label_smoothing = label_smoothing
        self.penalties = tuple(penalties)
        self.weight_decay_on = weight_decay_on
        self.scheduled_sampling = scheduled_sampling
        self.gradient_noise = gradient_noise
        self.bleu_tokenizer = bleu_tokenizer
        self.test_translator = test_translator
        self.validation_translator = validation_translator
        self.translated: dict[str, list[TranslatedPair]] = {}
        """Pairs of each split as last translated, in the order of the split."""
        self._scores: dict[str, SplitScores] = {}
        self._clipped: list[Tensor] = []  # of each step since the last that was logged, 1 or 0

    def on_train_start(self) -> None:
        """Forget the steps of an earlier fit."""
        self._clipped.clear()

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Mean loss per target token of one batch.

        Returns:
            ``loss``, what is trained on, and ``negative_log_likelihood``, the same without label
            smoothing and penalties.
        """
        feeding = self._feeding()
        loss, penalties = self.training_loss(batch)
        likelihood = loss.negative_log_likelihood.detach() / loss.tokens
        if self._is_logged():
            self.log("train/loss", likelihood, prog_bar=True, batch_size=loss.tokens)
            self.log("train/perplexity", likelihood.exp(), prog_bar=True, batch_size=loss.tokens)
            if feeding is not None:
                self.log("train/teacher_forcing", feeding.teacher_forcing, batch_size=1)
            for name, penalty in penalties.items():
                self.log(f"train/{name}", penalty.detach(), batch_size=loss.tokens)
        total = loss.sum / loss.tokens
        for penalty in penalties.values():
            total = total + penalty
        return {"loss": total, "negative_log_likelihood": likelihood}

    def training_loss(self, batch: Batch) -> tuple[TokenLoss, dict[str, Tensor]]:
        """Loss of a batch as the present step trains on it, and the penalties by name."""
        with ExitStack() as stack:
            watched = {
                penalty.name: stack.enter_context(penalty.watching(self.model))
                for penalty in self.penalties
            }
            loss, _ = batch_loss(
                self.model, batch, label_smoothing=self.label_smoothing, feeding=self._feeding()
            )
        lengths = {"source_lengths": batch.source_lengths, "target_lengths": batch.target_lengths}
        return loss, {name: one.penalty(**lengths) for name, one in watched.items()}

    def _feeding(self) -> Feeding | None:
        if not self.scheduled_sampling:
            return None
        return self.scheduled_sampling.feeding(self.trainer.global_step)

    def _is_logged(self) -> bool:
        """Whether what is logged in this step gets written.

        Lightning takes every figure of every step and drops most: a fifth of a toy model's time.
        """
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return bool((self.trainer.global_step + 1) % every == 0)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by global norm (Pascanu et al. 2013, algorithm 1), then add gradient noise.

        The norm is logged before and after clipping.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self._is_logged():
            self.log("train/gradient_norm", norm, batch_size=1)
        # A loss scaler expects overflows now and then, and skips those steps by itself.
        if self.trainer.scaler is None and not torch.isfinite(norm):
            self._refuse_gradient()
        if gradient_clip_val is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)
            self._log_clipping(norm, gradient_clip_val)
        if self.gradient_noise:
            self.gradient_noise.add(self.model, self.trainer.global_step)

    def _log_clipping(self, norm: Tensor, largest: float) -> None:
        self._clipped.append((norm > largest).float())
        if self._is_logged():
            self.log("train/clipped_steps", torch.stack(self._clipped).mean(), batch_size=1)
            after = norm.clamp(max=largest)
            self.log("train/gradient_norm_after_clipping", after, batch_size=1)
            self._clipped.clear()

    def _refuse_gradient(self) -> None:
        step = self.trainer.global_step
        bad = [
            name
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
        ]
        # Backward reaches the last parameters first.
        tensor = f"the gradient of {bad[-1]}" if bad else "the global gradient norm"
        raise Diverged(
            f"the gradient norm is not finite at step {step}, though the loss is: the first tensor "
            f"that went bad is {tensor}",
            step=step,
            tensor=tensor,
        )

    def on_validation_epoch_start(self) -> None:
        """Begin new figures."""
        self._begin(["val"])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the figures of the validation split."""
        self._score("val", "validation", batch, self.validation_translator)

    def on_validation_epoch_end(self) -> None:
        """Log the figures of the whole split, and let a plateau schedule look at them."""
        figures = self._finish()
        if self.trainer.sanity_checking:
            return
        for schedule in self.trainer.lr_scheduler_configs:
            if schedule.reduce_on_plateau:
                schedule.scheduler.step(figures[str(schedule.monitor)])  # type: ignore[arg-type]

    def lr_scheduler_step(self, scheduler: LRSchedulerTypeUnion, metric: Any | None) -> None:
        """Step every schedule but those on plateau.

        Lightning leaves them out in the first epoch of a resumed run, and steps them after the
        epoch's checkpoints are written: here they look at each validation as it ends.
        """
        if metric is None:
            scheduler.step()  # type: ignore[call-arg]

    def on_test_epoch_start(self) -> None:
        """Begin new figures for each test split."""
        self._begin(self._datamodule().test_names)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the figures of its test split."""
        name = self._datamodule().test_names[dataloader_idx]
        self._score(name, name, batch, self.test_translator)

    def on_test_epoch_end(self) -> None:
        """Log the figures of each test split."""
        self._finish()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer and schedule, both chosen by the config."""
        optimizer = self.make_optimizer(self._parameter_groups())
        # Fused optimizers can unscale fp16 gradients themselves, and Lightning would leave it to
        # them: clipping, which comes before, would then see gradients times the loss scale.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        return {  # type: ignore[return-value]
            "optimizer": optimizer,
            "lr_scheduler": self.make_scheduler(optimizer, steps_per_epoch=self._steps_per_epoch()),
        }

    def _parameter_groups(self) -> list[Any]:
        trained = [p for p in self.parameters() if p.requires_grad]
        if self.weight_decay_on == "all":
            return trained
        # A tied output layer is an embedding.
        embeddings = {
            module.weight for module in self.modules() if isinstance(module, torch.nn.Embedding)
        }
        decay = [p for p in trained if p.dim() > 1 and p not in embeddings]
        rest = [p for p in trained if p.dim() <= 1 or p in embeddings]
        return [{"params": decay}, {"params": rest, "weight_decay": 0.0}]

    def _steps_per_epoch(self) -> int:
        # Not from `trainer.estimated_stepping_batches`: it makes Lightning set up the loader before
        # a checkpoint is read, and a run resumed in mid-epoch then begins that epoch's data anew.
        batches = len(self._datamodule().train_dataloader())
        limit = self.trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        return max(1, -(-batches // self.trainer.accumulate_grad_batches))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what rebuilds the network and its tokenizers beside the weights."""
        checkpoint[KEY] = self.description

    def signatures(self) -> dict[str, str]:
        """sacrebleu's signatures of the BLEU and chrF that are logged."""
        return TranslationScores(bleu_tokenizer=self.bleu_tokenizer).signatures()

    def _datamodule(self) -> TranslationDataModule:
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(datamodule, TranslationDataModule):
            raise TypeError("TranslationModule trains on a TranslationDataModule")
        return datamodule

    def _begin(self, names: list[str]) -> None:
        self._scores = {
            name: SplitScores(bleu_tokenizer=self.bleu_tokenizer, device=self.device)
            for name in names
        }

    def _score(self, name: str, split: str, batch: Batch, translator: Translator) -> None:
        try:
            self._scores[name].add(batch, self._datamodule().pairs(split), translator)
        except NoTokenPossible as error:
            tensor = f"the log-probabilities of the {split} split"
            raise Diverged(str(error), step=self.trainer.global_step, tensor=tensor) from error

    def _finish(self) -> dict[str, float]:
        figures: dict[str, float] = {}
        for name, scores in self._scores.items():
            self.translated[name] = scores.translated()
            figures |= {f"{name}/{tag}": value for tag, value in scores.figures().items()}
        self.log_dict(figures)
        self._scores = {}
        return figures
