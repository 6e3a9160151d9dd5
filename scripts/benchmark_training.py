"""Training speed of the framework beside a minimal loop of the same model in plain PyTorch.

Three loops take turns in one process, on the same batches and from the same weights: the plain one
(the floor), the framework without its diagnostics, and the framework with all of them at their
default cadences. Then each group of diagnostics takes a turn alone, more often than by default, for
what it costs a time. What is printed is meant to be read as ratios; `docs/benchmarks.md` says how.
"""

import argparse
import contextlib
import functools
import logging
import os
import random
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from types import MappingProxyType
from typing import Any, NamedTuple

import lightning
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig
from plain_training import plain_model, prepare, train_plainly
from step_watches import MEMORY_STEPS, PARTS, WARM_UP, MemoryPeak, Moment, Parts, StepTimes, Watch

from seq2seq import assembly
from seq2seq.callbacks.charts import Charted
from seq2seq.config import config_folder, plain, register
from seq2seq.data.corpus import Corpus, Pair
from seq2seq.data.datamodule import TranslationDataModule
from seq2seq.data.tokenizer import train_tokenizers
from seq2seq.instantiate import instantiate
from seq2seq.module import TranslationModule

LOOPS = ("floor", "framework", "with diagnostics")
DECODERS = {"fused": "lstm_attention", "input_feeding": "luong2015"}
SETTINGS = ("phrasebook", "sentences")

# Config nodes of the diagnostics below `callbacks`.
GROUPS = (
    "gradient_flow",
    "input_gradient",
    "forward_signal",
    "weight_gradient",
    "spectrum",
    "update_ratio",
)

STEP_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


class Experiment:
    """One setting and one decoder: the framework's objects as its entry builds them, and the floor.

    Args:
        setting: one of `SETTINGS`.
        decoder: one of `DECODERS`.
        overrides: of the config, after those that the setting needs.
        steps: measured in a round.
        device: `cpu` or `cuda`.
        folder: for what the runs write.
    """

    def __init__(
        self,
        *,
        setting: str,
        decoder: str,
        overrides: Sequence[str],
        steps: int,
        device: torch.device,
        folder: Path,
    ) -> None:
        self.steps = steps
        self.device = device
        self.folder = folder
        self.overrides = [
            f"run_folder={folder}",
            f"model={DECODERS[decoder]}",
            f"trainer.accelerator={'gpu' if device.type == 'cuda' else 'cpu'}",
            *overrides,
        ]
        config = self.config()
        self.cadences = {group: config.callbacks[group].every_n_steps for group in GROUPS}
        self.heat_map_every: int = config.callbacks.gradient_flow.heat_map_every
        self.save_every: int = config.callbacks.last_checkpoint.every_n_train_steps
        needed = WARM_UP + steps + 1
        if setting == "phrasebook":
            corpus = instantiate(config.data)
        else:
            # One batch more, so that no epoch ends in a round and nothing is validated.
            corpus = random_sentences((needed + 1) * config.batch.size)
        source, target = train_tokenizers(corpus.train, **plain(config.tokenizer))
        self.datamodule = TranslationDataModule(
            corpus=corpus,
            source_tokenizer=source,
            target_tokenizer=target,
            batch_size=config.batch.size,
            seed=config.batch.seed,
        )
        with quiet():
            self.module = assembly.build_module(config, self.datamodule)
            assembly.initialize_weights(config, self.module, self.datamodule.split("train"))
        self.floor = plain_model(self.module.model).to(device)
        loader = self.datamodule.train_dataloader()
        order = loader.batch_order.batches(0)[:needed]
        if len(order) < needed:
            raise SystemExit(
                f"error: --steps={steps} needs {needed} batches with the warm-up, but an epoch of "
                f"the {setting} setting has {len(order)}: use a smaller --steps"
            )
        batches = [loader.split.batch(index) for index in order]
        self.target_tokens = sum(batch.target_tokens for batch in batches[WARM_UP:-1])
        self.batches = [
            prepare(batch, reverse_source=config.model.reverse_source) for batch in batches
        ]

    def config(self, *overrides: str) -> DictConfig:
        """The default experiment's config with this one's overrides, and further ones."""
        register()
        with initialize_config_dir(config_folder(), version_base="1.3"):
            return compose("train", [*self.overrides, *overrides])

    def run_floor(self, watch: Watch, *, steps: int) -> None:
        """The minimal loop."""
        train_plainly(self.floor, self.batches[:steps], watch, device=self.device)

    def run_framework(
        self,
        watch: Watch,
        *,
        steps: int,
        groups: Mapping[str, int] = MappingProxyType({}),
        overrides: Sequence[str] = (),
    ) -> "RareCosts":
        """Lightning's Trainer with the default callbacks, of the diagnostics only these groups.

        Args:
            watch: what is told when steps begin.
            steps: how many.
            groups: optimizer steps from one look to the next, by group.
            overrides: further ones, of the config.
        """
        config = self.config(
            f"trainer.max_steps={steps}",
            *(f"callbacks.{group}=null" for group in GROUPS if group not in groups),
            *(f"callbacks.{group}.every_n_steps={every}" for group, every in groups.items()),
            *overrides,
        )
        callbacks = assembly.build_callbacks(config, self.folder)
        drawers = [callback for callback in callbacks if isinstance(callback, Charted)]
        with quiet(), contextlib.ExitStack() as stack:
            trainer: lightning.Trainer = instantiate(
                config.trainer,
                callbacks=[Announcer(watch), *callbacks],
                logger=TensorBoardLogger(
                    save_dir=self.folder, name="", version="tensorboard", default_hp_metric=False
                ),
                default_root_dir=self.folder,
            )
            if isinstance(watch, Parts):
                stack.enter_context(
                    counted_parts(watch, trainer, callbacks, self.module, self.datamodule)
                )
            drawing = [time_calls(callback, "on_train_end") for callback in drawers]
            trainer.fit(self.module, self.datamodule)
            saving = time_calls(trainer, "save_checkpoint")
            trainer.save_checkpoint(self.folder / "measured.ckpt")
        return RareCosts(
            drawing=sum(map(sum, drawing)),
            drawing_every=self.heat_map_every,
            saving=sum(saving),
            saving_every=self.save_every,
        )


class RareCosts(NamedTuple):
    """CPU seconds of what comes too rarely for a round: drawing the heat maps, a checkpoint."""

    drawing: float
    drawing_every: int  # probes
    saving: float
    saving_every: int  # optimizer steps


class Announcer(lightning.Callback):
    """Tells the watch when steps begin: between two of them lies everything that a step costs."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.watch.tick(list(pl_module.parameters()), trainer.optimizers[0])


def time_calls(owner: Any, method: str) -> list[float]:
    """A list that receives the CPU seconds of each call of `owner.method` from now on."""
    seconds: list[float] = []
    inner = getattr(owner, method)

    @functools.wraps(inner)
    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.process_time()
        result = inner(*args, **kwargs)
        seconds.append(time.process_time() - began)
        return result

    setattr(owner, method, timed)
    return seconds


@contextlib.contextmanager
def counted_parts(
    parts: Parts,
    trainer: lightning.Trainer,
    callbacks: Sequence[lightning.Callback],
    module: TranslationModule,
    datamodule: TranslationDataModule,
) -> Iterator[None]:
    """Count the framework's time by part while the block runs."""
    model = module.model
    named: list[tuple[Any, str, str]] = [
        (trainer.fit_loop.epoch_loop, "run", "Lightning, loop"),
        (datamodule.split("train"), "batch", "data"),
        (model.encoder, "forward", "encoder"),
        (model.bridge, "forward", "decoder, attention"),
        (model.decoder, "forward", "decoder, attention"),
        (model.decoder.attention, "memory", "decoder, attention"),
        (module, "training_step", "output layer, loss"),
        (module, "backward", "backward"),
        (module, "configure_gradient_clipping", "clipping, optimizer"),
        (module, "log", "logging"),
        *((logger, "log_metrics", "logging") for logger in trainer.loggers),
    ]
    for callback in callbacks:
        kind = group_of(callback) if isinstance(callback, Charted) else "callbacks"
        own = [hook for hook in STEP_HOOKS if hook_is_used(callback, hook)]
        named += [(callback, hook, kind) for hook in own]
    for owner, method, name in named:
        parts.wrap(owner, method, name)

    step = module.optimizer_step

    def optimizer_step(epoch: int, batch_idx: int, optimizer: Any, closure: Any) -> None:
        def rest_of_the_step() -> (
            Any
        ):  # forward and backward passes run inside the optimizer's step
            with parts.part("Lightning, loop"):
                return closure()

        with parts.part("clipping, optimizer"):
            step(epoch, batch_idx, optimizer, rest_of_the_step)

    def count_hook(register: Any) -> Any:
        def registered(owner: Any, hook: Any, **options: Any) -> Any:
            def counted(*args: Any, **kwargs: Any) -> Any:
                with parts.part(group_of(hook)):
                    return hook(*args, **kwargs)

            return register(owner, counted, **options)

        return registered

    # What a group does inside the forward and backward passes, it does in hooks.
    registering = [
        (torch.Tensor, "register_hook"),
        (torch.nn.Module, "register_forward_hook"),
        (torch.nn.Module, "register_forward_pre_hook"),
    ]
    originals = [(owner, method, getattr(owner, method)) for owner, method in registering]
    for owner, method, original in originals:
        setattr(owner, method, count_hook(original))
    module.optimizer_step = optimizer_step  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        for owner, method, original in originals:
            setattr(owner, method, original)
        # What was set on the instance hides the class's own method until it is deleted.
        for owner, method, _ in named:
            delattr(owner, method)
        del module.optimizer_step


def group_of(watcher: Any) -> str:
    """The group that a callback or a hook on the network works for, by the file it comes from.

    The record that several groups share counts for the gradient flow.
    """
    module = getattr(watcher, "__module__", "").rpartition(".")[2]
    return module if module in GROUPS else "gradient_flow"


def hook_is_used(callback: lightning.Callback, hook: str) -> bool:
    return getattr(type(callback), hook) is not getattr(lightning.Callback, hook)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, no reports, no advice."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "seq2seq")]
    levels = [logger.level for logger in loggers]
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def random_sentences(pairs: int) -> Corpus:
    """Random words in the sizes of Multi30k: 8,000 and 6,000 of them, 13 a sentence, at most 40."""
    draw = random.Random(0)

    def sentence(words: int, length: float) -> str:
        length = min(max(round(length), 4), 40)
        return " ".join(f"w{draw.randrange(words)}" for _ in range(length))

    def pair() -> Pair:
        length = draw.gammavariate(10, 1.3)
        return Pair(sentence(8000, length), sentence(6000, length + draw.gauss(0, 2)), 0)

    train_pairs = [pair() for _ in range(pairs)]
    return Corpus(train=train_pairs, validation=train_pairs[:1], test=train_pairs[:1], origin={})


# --- rounds and report ---------------------------------------------------------------------------


class Round(NamedTuple):
    """What one round measured of each of `LOOPS`."""

    total: Mapping[str, Moment]
    steps: Mapping[str, Sequence[Moment]]
    rare: RareCosts


def measure_round(experiment: Experiment) -> Round:
    """Every loop once, one after the other."""
    times = {loop: StepTimes(experiment.device, steps=experiment.steps) for loop in LOOPS}
    steps = len(experiment.batches)
    experiment.run_floor(times["floor"], steps=steps)
    experiment.run_framework(times["framework"], steps=steps)
    rare = experiment.run_framework(
        times["with diagnostics"], steps=steps, groups=experiment.cadences
    )
    return Round(
        total={loop: watch.total() for loop, watch in times.items()},
        steps={loop: watch.each() for loop, watch in times.items()},
        rare=rare,
    )


def measure_groups(experiment: Experiment, *, often: int) -> dict[str, float]:
    """Seconds that each group takes a time, when all look together and share a record."""
    cadences = {group: min(often, every) for group, every in experiment.cadences.items()}
    watch = Parts(experiment.device, steps=experiment.steps)
    experiment.run_framework(
        watch,
        steps=len(experiment.batches),
        groups=cadences,
        overrides=[
            "callbacks.gradient_flow.heat_map_every=1000000",  # drawing is counted apart
            f"callbacks.input_gradient.log_every_n_steps={min(100, experiment.steps)}",
        ],
    )
    return {
        group: watch.seconds[group]
        / sum((step + WARM_UP) % every == 0 for step in range(experiment.steps))
        for group, every in cadences.items()
    }


def measure_parts(experiment: Experiment) -> dict[str, dict[str, float]]:
    """Milliseconds a step, by loop and part, in a run of its own: watching costs time too."""
    watches = {loop: Parts(experiment.device, steps=experiment.steps) for loop in LOOPS}
    steps = len(experiment.batches)
    experiment.run_floor(watches["floor"], steps=steps)
    experiment.run_framework(watches["framework"], steps=steps)
    experiment.run_framework(watches["with diagnostics"], steps=steps, groups=experiment.cadences)
    for watch in watches.values():
        watch.seconds["diagnostics"] = sum(watch.seconds.pop(group, 0.0) for group in GROUPS)
    return {
        loop: {part: 1e3 * watch.seconds[part] / experiment.steps for part in PARTS}
        for loop, watch in watches.items()
    }


def measure_memory(experiment: Experiment) -> dict[str, float]:
    """Peak memory in MB, by loop; every group takes a look in the steps that are watched."""
    watches = {loop: MemoryPeak(experiment.device) for loop in LOOPS}
    steps = MEMORY_STEPS.stop + 1
    experiment.run_floor(watches["floor"], steps=steps)
    experiment.run_framework(watches["framework"], steps=steps)
    experiment.run_framework(
        watches["with diagnostics"], steps=steps, groups=dict.fromkeys(GROUPS, 2)
    )
    return {loop: watch.bytes / 1e6 for loop, watch in watches.items()}


def seconds(rounds: Sequence[Round], loop: str, clock: str, *, gpu: bool) -> float:
    """Time of the measured steps of one loop, `wall` or `cpu`, undisturbed by what else ran."""
    if gpu:  # a step's end is not waited for, so only whole rounds have a duration
        totals: list[float] = [getattr(one.total[loop], clock) for one in rounds]
        return median(totals)
    return sum(step_seconds(rounds, loop, clock))


def step_seconds(rounds: Sequence[Round], loop: str, clock: str) -> list[float]:
    """Of each step, which has the same batch in every round, the median of the rounds."""
    steps = zip(*(one.steps[loop] for one in rounds), strict=True)
    return [median(getattr(moment, clock) for moment in moments) for moments in steps]


def speed_table(
    rounds: Sequence[Round], *, tokens: int, memory: Mapping[str, float], gpu: bool
) -> str:
    """Tokens a second, and how much of the floor's that is."""
    rows = []
    for loop in LOOPS:
        wall, cpu = (tokens / seconds(rounds, loop, clock, gpu=gpu) for clock in ("wall", "cpu"))
        ratios = [
            seconds(rounds, "floor", clock, gpu=gpu) / seconds(rounds, loop, clock, gpu=gpu)
            for clock in ("cpu", "wall")
        ]
        single = sorted(one.total["floor"].cpu / one.total[loop].cpu for one in rounds)
        rows.append(
            (
                loop,
                f"{wall:,.0f}",
                f"{cpu:,.0f}",
                *(f"{ratio:.3f}" for ratio in ratios),
                f"{single[0]:.2f} to {single[-1]:.2f}",
                f"{memory[loop]:,.0f}",
            )
        )
    columns = (
        "loop",
        "target tokens/s",
        "tokens/CPU s",
        "ratio, CPU",
        "ratio, wall",
        "single rounds",
        "peak MB",
    )
    return markdown(columns, rows)


def parts_table(parts: Mapping[str, Mapping[str, float]]) -> str:
    """Milliseconds a step and share of each part."""
    sums = {loop: sum(of.values()) for loop, of in parts.items()}
    rows = [
        (part, *(f"{of[part]:.2f} ({of[part] / sums[loop]:.1%})" for loop, of in parts.items()))
        for part in PARTS
    ]
    rows.append(("all", *(f"{total:.2f}" for total in sums.values())))
    return markdown(("ms a step (share)", *parts), rows)


def groups_table(
    groups: Mapping[str, float],
    rounds: Sequence[Round],
    *,
    cadences: Mapping[str, int],
    gpu: bool,
) -> str:
    """What each group costs a time, and what share of the framework's time that is by default."""
    a_step = mean(step_seconds(rounds, "framework", "wall" if gpu else "cpu"))
    drawing = median(one.rare.drawing for one in rounds)
    between = rounds[0].rare.drawing_every * cadences["gradient_flow"]
    costs = [(group, a_time, cadences[group]) for group, a_time in groups.items()]
    costs.append(("heat maps, drawn", drawing, between))
    shares = [a_time / (cadence * a_step) for _, a_time, cadence in costs]
    rows = [
        (name, f"{1e3 * a_time:.2f}", f"{cadence}", f"{share:.2%}")
        for (name, a_time, cadence), share in zip(costs, shares, strict=True)
    ]
    rows.append(("sum", "", "", f"{sum(shares):.2%}"))
    return markdown(("group", "ms a time", "every so many steps", "share of the time"), rows)


def rest_sentence(rounds: Sequence[Round], *, gpu: bool) -> str:
    """Whole rounds with and without the diagnostics, and what isn't in the rounds."""
    clock = "wall" if gpu else "cpu"
    overall = 1 - (
        seconds(rounds, "framework", clock, gpu=gpu)
        / seconds(rounds, "with diagnostics", clock, gpu=gpu)
    )
    a_step = mean(step_seconds(rounds, "framework", clock))
    saving, save_every = median(one.rare.saving for one in rounds), rounds[0].rare.saving_every
    return (
        f"Whole rounds with and without all diagnostics differ by {overall:.2%}. Not in the "
        f"rounds: a checkpoint, {1e3 * saving:.0f} ms once in {save_every} steps, "
        f"{saving / (save_every * a_step):.2%}."
    )


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [columns, *rows]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100, help="measured in each round")
    parser.add_argument("--rounds", type=int, default=5, help="each runs every loop once")
    parser.add_argument("--hidden", type=int, default=256, help="width of embeddings and layers")
    parser.add_argument("--batch", type=int, default=128, help="sentences in a batch")
    parser.add_argument("--threads", type=int, help="PyTorch's by default")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--setting", choices=SETTINGS, action="append", help="both by default")
    parser.add_argument("--decoder", choices=DECODERS, action="append", help="both by default")
    parser.add_argument(
        "--often", type=int, default=5, help="steps from one look to the next of a group alone"
    )
    chosen = parser.parse_args(given)
    for name in ("steps", "rounds", "hidden", "batch", "often"):
        if getattr(chosen, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if chosen.steps % chosen.often:
        parser.error(
            f"--steps={chosen.steps} must be a multiple of --often={chosen.often}, or the cost of "
            "a group would be over- or understated"
        )
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device=cuda, but PyTorch finds no GPU here")
    return chosen


def main(given: Sequence[str] | None = None) -> None:
    chosen = arguments(given)
    if chosen.threads is not None:
        torch.set_num_threads(chosen.threads)
    device = torch.device(chosen.device)
    gpu = device.type == "cuda"
    overrides = [
        f"model.hidden_size={chosen.hidden}",
        f"model.embedding_size={chosen.hidden}",
        f"batch.size={chosen.batch}",
    ]
    print(
        f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, device {device}; "
        f"{chosen.rounds} rounds of {chosen.steps} steps, batch {chosen.batch}, hidden "
        f"{chosen.hidden}"
    )
    for setting in chosen.setting or SETTINGS:
        for decoder in chosen.decoder or DECODERS:
            with tempfile.TemporaryDirectory() as folder:
                experiment = Experiment(
                    setting=setting,
                    decoder=decoder,
                    overrides=overrides,
                    steps=chosen.steps,
                    device=device,
                    folder=Path(folder),
                )
                print(f"\n## {setting}, {decoder.replace('_', ' ')}\n", flush=True)
                rounds = [measure_round(experiment) for _ in range(chosen.rounds)]
                groups = measure_groups(experiment, often=chosen.often)
                memory = measure_memory(experiment)
                print(speed_table(rounds, tokens=experiment.target_tokens, memory=memory, gpu=gpu))
                print()
                print(groups_table(groups, rounds, cadences=experiment.cadences, gpu=gpu))
                print(f"\n{rest_sentence(rounds, gpu=gpu)}\n")
                parts = measure_parts(experiment)
                print(parts_table(parts), flush=True)


if __name__ == "__main__":
    main()
