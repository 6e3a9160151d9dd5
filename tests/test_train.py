"""Training end to end: what a run leaves behind, how it stops, and what it refuses."""

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.plugins.precision import MixedPrecision
from omegaconf import DictConfig
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from seq2seq.assembly import build_datamodule, build_module, initialize_weights
from seq2seq.checkpoint import load_trained
from seq2seq.figures import FIGURES
from seq2seq.models.decoder import Decoder
from seq2seq.models.encoder_decoder import EncoderDecoder
from seq2seq.module import TranslationModule
from seq2seq.status import Diverged
from seq2seq.train import train

CONF = Path(__file__).resolve().parents[1] / "conf"
GENERATED_DATA = ("phrasebook", "copy", "reverse", "sort", "addition", "recall")
Compose = Callable[..., DictConfig]


def group(name: str) -> list[str]:
    return sorted(path.stem for path in (CONF / name).glob("*.yaml"))


def data_of(name: str) -> list[str]:
    """Overrides that make a generated corpus tiny."""
    sizes = ["train_size=64", "validation_size=8", "test_size=8"]
    longer = [] if name == "phrasebook" else ["longer_size=8"]
    return [f"data={name}", *(f"data.{size}" for size in sizes + longer)]


def scalars(folder: Path) -> dict[str, float]:
    """Last value of every scalar that TensorBoard shows of a run."""
    found: dict[str, float] = {}
    for file in sorted((folder / "tensorboard").glob("events*")):
        events = EventAccumulator(str(file)).Reload()
        found |= {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}
    return found


def texts(folder: Path) -> set[str]:
    found: set[str] = set()
    for file in sorted((folder / "tensorboard").glob("events*")):
        found |= set(EventAccumulator(str(file)).Reload().Tags()["tensors"])
    return found


def test_a_run_leaves_figures_under_the_keys_of_tensorboard(
    compose: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="seq2seq")
    figures = train(
        compose(
            *("trainer.max_epochs=2", "trainer.log_every_n_steps=2"),
            "callbacks.gradient_flow.every_n_steps=5",
        )
    )
    run = tmp_path / "run"
    assert json.loads((run / "metrics.json").read_text()) == figures

    tested = {name: value for name, value in figures.items() if name.startswith("test")}
    assert tested.keys() == {
        f"{split}/{name}" for split in ("test", "test_longer") for name in FIGURES
    }
    shown = scalars(run)
    for name, value in tested.items():
        assert shown[name] == pytest.approx(value, rel=1e-6)
    assert {f"val/{name}" for name in FIGURES} <= shown.keys()
    assert {
        "train/loss",
        "train/perplexity",
        "train/gradient_norm",
        "train/clipped_steps",
    } <= shown.keys()
    assert {f"hp/{name}" for name in FIGURES} <= shown.keys()
    assert any("samples" in tag for tag in texts(run))
    assert any("initialization" in tag for tag in texts(run))
    assert "samples of the validation split after 12 steps" in caplog.text

    assert figures["test/perplexity"] == pytest.approx(
        float(torch.tensor(figures["test/loss"]).exp()), rel=1e-4
    )
    assert figures["run"] == str(run)
    assert Path(str(figures["checkpoint"])) == run / "checkpoints" / "best.ckpt"
    assert str(figures["tensorboard"]) in str(figures["open_tensorboard"])
    trained = load_trained(run / "checkpoints" / "best.ckpt")
    assert figures["parameters"] == sum(p.numel() for p in trained.model.parameters())


def test_the_same_seed_gives_bitwise_the_same_run(compose: Compose) -> None:
    options = ("model.output_dropout=0.2", "callbacks.gradient_flow.every_n_steps=2")
    runs = [
        train(compose(*options, *more, folder=folder))
        for folder, more in (
            ("first", []),
            ("second", []),
            ("weights", ["initialization_seed=2"]),
        )
    ]
    first, second, weights = (
        {name: value for name, value in run.items() if name.startswith("test")} for run in runs
    )
    assert first == second
    assert first["test/loss"] != weights["test/loss"]


@pytest.mark.parametrize("name", group("model"))
def test_every_model_of_the_config_runs(compose: Compose, name: str) -> None:
    probe = "callbacks.gradient_flow.every_n_steps=1"
    figures = train(compose(f"model={name}", "debug=fast_dev_run", probe))
    assert figures["test/loss"] > 0


@pytest.mark.parametrize("name", GENERATED_DATA)
def test_every_generated_corpus_runs(compose: Compose, name: str) -> None:
    figures = train(compose(*data_of(name), "debug=fast_dev_run", tiny_task=False))
    assert figures["test/loss"] > 0
    assert ("test_longer/loss" in figures) == (name != "phrasebook")


def test_every_corpus_of_the_config_is_generated_or_reads_files() -> None:
    needs_files = {"parallel", "multi30k", "tatoeba", "g2p", "scan", "torchtext"}
    assert set(group("data")) == {*GENERATED_DATA, *needs_files}


def write_multi30k(folder: Path) -> list[str]:
    """Files of Multi30k's layout, with sentences of our own."""
    folder.mkdir()
    for split in ("train", "val", "test_2016_flickr"):
        german = [f"ein Hund läuft {number} mal ." for number in range(40)]
        english = [f"a dog runs {number} times ." for number in range(40)]
        (folder / f"{split}.de").write_text("\n".join(german) + "\n")
        (folder / f"{split}.en").write_text("\n".join(english) + "\n")
    return [f"data.root={folder}", "tokenizer.source.size=60"]


def write_g2p(folder: Path) -> list[str]:
    """Files of the layout of SIGMORPHON's task, with words of our own."""
    folder.mkdir()
    for split in ("train", "dev", "test"):
        (folder / f"fre_{split}.tsv").write_text("ami\ta m i\nmai\tm ɛ\n" * 20)
    return [f"data.root={folder}"]


def write_scan(folder: Path) -> list[str]:
    """Files of SCAN's layout."""
    folder.mkdir()
    for split in ("train", "test"):
        lines = [f"IN: {'run ' * n}and run OUT: {'I_RUN ' * n}I_RUN\n" for n in range(1, 41)]
        (folder / f"simple_{split}.txt").write_text("".join(lines))
    return [f"data.root={folder}", "data.validation_size=4"]


def test_own_text_trains_and_translates_back_to_text(compose: Compose, tmp_path: Path) -> None:
    write_multi30k(tmp_path / "corpus")
    config = compose(
        "data=parallel",
        f"data.root={tmp_path / 'corpus'}",
        *("data.train_source=train.de", "data.train_target=train.en"),
        *("data.validation_size=4", "data.test_size=4"),
        tiny_task=False,
    )
    assert train(config)["test/loss"] > 0


LAYOUTS = {"multi30k": write_multi30k, "g2p": write_g2p, "scan": write_scan}


def test_targets_that_decoding_cuts_short_are_told_of(
    compose: Compose, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "pairs.tsv").write_text("a b c\tx y\na b c\tx y\na\tx y z x y z x y z\n" * 20)
    options = ["data=parallel", f"data.root={tmp_path}", "data.train=pairs.tsv"]
    for split in ("validation", "test"):
        options.append(f"data.{split}=pairs.tsv")
    options += ["tokenizer=whitespace", "decoding.max_length_constant=0", "debug=fast_dev_run"]
    said = "33.33% of the targets of the validation split are longer than "
    train(compose(*options, folder="cut", tiny_task=False))
    assert said in caplog.text
    # Nine words; a source has one word and its end.
    assert "decoding.max_length_ratio=4.5 suffices" in caplog.text
    caplog.clear()
    train(compose(*options, "decoding.max_length_ratio=4.5", folder="whole", tiny_task=False))
    assert "suffices" not in caplog.text


# The sweeps among them are run by test_experiments.py.
SINGLE_RUNS = [name for name in group("experiment") if not name.startswith("interview_")]


@pytest.mark.parametrize("name", SINGLE_RUNS)
def test_every_experiment_of_the_config_runs(compose: Compose, tmp_path: Path, name: str) -> None:
    config = compose(f"experiment={name}", tiny_task=False)
    data = config.data._target_.rpartition(".")[2]
    if data in LAYOUTS:
        tiny = LAYOUTS[data](tmp_path / "corpus")
    elif data == "synthetic_task":
        tiny = data_of(config.data.task)[1:]
    else:
        pytest.fail(f"this test knows no tiny corpus for {data}")
    sizes = [
        f"model.{key}=8"
        for key in ("embedding_size", "hidden_size", "decoder_hidden_size")
        if config.model[key] is not None
    ]
    figures = train(
        compose(f"experiment={name}", *tiny, *sizes, "debug=fast_dev_run", tiny_task=False)
    )
    assert figures["test/loss"] > 0


def test_fast_dev_run_saves_nothing(compose: Compose, tmp_path: Path) -> None:
    train(compose("debug=fast_dev_run"))
    assert not list(tmp_path.rglob("*.ckpt"))


def test_overfitting_repeats_the_same_batches_until_they_are_known(
    compose: Compose, tmp_path: Path
) -> None:
    config = compose(
        "debug=overfit",
        *("trainer.overfit_batches=1", "trainer.max_epochs=60", "optimizer.lr=0.02"),
        *("batch.size=4", "model.hidden_size=16", "trainer.check_val_every_n_epoch=60"),
        "trainer.log_every_n_steps=1",
    )
    train(config)
    assert scalars(tmp_path / "run")["train/loss"] < 0.1


@pytest.mark.slow
def test_detect_nan_runs(compose: Compose) -> None:
    assert train(compose("debug=detect_nan"))["test/loss"] > 0


def test_every_debug_config_has_a_test() -> None:
    assert group("debug") == ["detect_nan", "fast_dev_run", "overfit"]


@pytest.mark.parametrize(
    "options",
    [
        ("trainer.accumulate_grad_batches=4",),
        ("trainer.precision=bf16-mixed",),
        ("trainer.precision=bf16-mixed", "model.input_feeding=true", "model.cell=gru"),
        ("trainer.precision=64-true",),
        ("batch.unit=target_tokens", "batch.size=60", "label_smoothing=0.1"),
        ("trainer.gradient_clip_val=null", "optimizer=sgd", "scheduler=halving"),
        ("decoding.strategy=beam_search", "decoding.beam_size=2", "decoding.n_best=2"),
        ("decoding.strategy=sampling", "bleu_tokenizer=none"),
        ("trainer.val_check_interval=0.5", "scheduler=plateau"),
        (
            "callbacks.gradient_flow=null",
            "callbacks.sample_translations=null",
            "callbacks.best_checkpoint=null",
            "callbacks.last_checkpoint=null",
        ),
    ],
    ids=lambda options: options[0],
)
def test_every_way_of_training_runs(compose: Compose, options: tuple[str, ...]) -> None:
    figures = train(compose(*options))
    assert all(
        torch.isfinite(torch.tensor(value))
        for name, value in figures.items()
        if name.startswith("test")
    )


def test_accumulated_batches_take_the_step_of_one_large_batch(compose: Compose) -> None:
    """Each batch divides its loss by its own tokens, so equal batches are needed to compare."""
    options = (
        *("data.min_length=4", "data.max_length=4", "data.longer_max_length=5"),
        *("data.train_size=32", "callbacks.gradient_flow=null", "optimizer=sgd"),
    )
    large = train(compose(*options, "batch.size=32", folder="large"))
    small = train(
        compose(*options, "batch.size=8", "trainer.accumulate_grad_batches=4", folder="accumulated")
    )
    assert small["test/loss"] == pytest.approx(large["test/loss"], rel=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_fp16_gradients_are_clipped_after_the_loss_scale_is_taken_out(
    compose: Compose, fused: bool
) -> None:
    norms: dict[str, list[float]] = {}
    for name in ("32-true", "16-mixed"):
        # No LSTM: processors without half precision have no kernel for it.
        config = compose("model.cell=gru", f"optimizer.fused={fused}".lower())
        lightning.seed_everything(1, verbose=False)
        datamodule = build_datamodule(config)
        module = build_module(config, datamodule)
        initialize_weights(config, module, datamodule.split("train"))
        plugins = []
        if name == "16-mixed":
            scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
            plugins = [MixedPrecision("16-mixed", "cpu", scaler)]
        trainer = lightning.Trainer(
            accelerator="cpu",
            plugins=plugins,
            max_steps=3,
            log_every_n_steps=1,
            gradient_clip_val=0.01,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(module, datamodule)
        figures = trainer.logged_metrics
        assert figures["train/clipped_steps"] == 1
        norms[name] = [float(figures["train/gradient_norm"])]
    assert norms["16-mixed"] == pytest.approx(norms["32-true"], rel=0.05)


def test_training_ends_early_when_validation_stops_improving(
    compose: Compose, tmp_path: Path
) -> None:
    config = compose(
        "callbacks=early_stopping",
        *("callbacks.early_stopping.patience=1", "optimizer.lr=1e-12"),
        *("callbacks.early_stopping.min_delta=0.01", "trainer.max_epochs=50"),
        "trainer.log_every_n_steps=1",
    )
    train(config)
    assert scalars(tmp_path / "run")["epoch"] <= 2


# A network whose weights explode in the first optimizer step: its second loss is NaN.
EXPLODING = ("model.cell=rnn_relu", "optimizer.lr=1e30", "trainer.gradient_clip_val=null")


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch(
    compose: Compose, tmp_path: Path
) -> None:
    with pytest.raises(Diverged, match=r"the loss is nan at step 1: .* batch is kept in") as error:
        train(compose(*EXPLODING))
    assert error.value.step == 1
    assert error.value.tensor in str(error.value)
    batch = torch.load(tmp_path / "run" / "diverged_batch.pt", weights_only=True)
    assert batch["source"].shape[0] == len(batch["source_lengths"]) == 16
    assert batch["target_tokens"] == int(batch["target_lengths"].sum())


def exploding_encoder(gain: float) -> list[str]:
    """A ReLU network without attention that multiplies its state by `gain` at every timestep."""
    rule = f"{{pattern: 'encoder*weight_hh*', scheme: identity, gain: {gain}}}"
    return [
        *("model=rnn", "model.cell=rnn_relu", f"initializer.rules=[{rule}]"),
        *("data.min_length=6", "trainer.num_sanity_val_steps=0"),
    ]


def test_divergence_names_the_first_layer_and_timestep_that_went_bad(compose: Compose) -> None:
    with pytest.raises(Diverged, match="at step 0") as error:
        train(compose(*exploding_encoder(1e20)))
    # 1e20 times 1e20 is more than float32 holds.
    assert error.value.tensor == ("the output of encoder.layers.0.forward_layer at timestep 2")


class Infinite:
    """A penalty that is no number."""

    name = "odd_penalty"

    @contextmanager
    def watching(self, model: EncoderDecoder) -> Iterator["Infinite"]:
        yield self

    def penalty(self, *, source_lengths: Tensor, target_lengths: Tensor) -> Tensor:
        return torch.tensor(torch.inf)


def test_divergence_names_a_penalty(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seq2seq.assembly.penalties", lambda config: [Infinite()])
    with pytest.raises(Diverged, match="the odd penalty itself .every output .* is finite"):
        train(compose())


def test_divergence_is_looked_for_with_the_tokens_that_were_fed(
    compose: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Decoder.step

    def own_tokens_overflow(decoder: Decoder, *arguments: Any) -> Any:
        output = step(decoder, *arguments)
        return output._replace(features=output.features * torch.inf)

    monkeypatch.setattr(Decoder, "step", own_tokens_overflow)
    options = ("schedule=linear", "k=0.5", "fed=argmax")
    sampling = [f"scheduled_sampling.{option}" for option in options]
    with pytest.raises(Diverged, match="went bad is the output of decoder.output"):
        train(compose(*sampling, "trainer.num_sanity_val_steps=0"))


def test_what_happens_once_alone_is_not_blamed_on_a_tensor(
    compose: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    training_step = TranslationModule.training_step

    def bad(module: TranslationModule, *arguments: Any) -> dict[str, Tensor]:
        result = training_step(module, *arguments)
        return result | {"loss": result["loss"] * torch.nan}

    monkeypatch.setattr(TranslationModule, "training_step", bad)
    with pytest.raises(Diverged, match="bad is not to be found again: with other random numbers"):
        train(compose())


def test_a_gradient_that_is_not_finite_stops_the_run_and_is_named(
    compose: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_backward(module: TranslationModule) -> None:
        weight = module.model.recurrent_layers()["encoder/layer0/backward"].rnn.weight_hh_l0
        weight.register_hook(lambda gradient: gradient * torch.nan)

    monkeypatch.setattr(TranslationModule, "on_train_start", break_backward)
    named = r"the gradient of encoder\.layers\.0\.backward_layer\.rnn\.weight_hh_l0"
    with pytest.raises(Diverged, match=rf"not finite at step 0, though the loss is: .*{named}"):
        train(compose())


@pytest.mark.parametrize(
    ("override", "said"),
    [
        # keys, groups and types: refused while the config is composed
        ("model.hidden_sise=4", "Key 'hidden_sise' not in 'ModelConfig'"),
        ("trainer.foo=1", "Key 'foo' not in 'TrainerConfig'"),
        ("model=transformer", "bahdanau2015"),
        ("experiment=nope", "available options in 'experiment'"),
        ("model.hidden_size=abc", "model.hidden_size"),
        ("optimizer.momentum=0.9", "Key 'momentum' not in 'AdamConfig'"),
        # one of each kind of error that is raised later
        ("model.hidden_size=0", "hidden_size is 0, but it must be at least 1"),
        ("trainer.accelerator=abacus", "accelerator='abacus'"),
        ("ckpt_path=gone.ckpt", "there is no checkpoint gone.ckpt"),
    ],
)
def test_a_mistake_of_the_user_is_answered_with_a_sentence_that_names_it(
    command_line: Callable[..., Any], override: str, said: str
) -> None:
    finished = command_line(*override.split())
    assert finished.status not in (0, None)
    assert said in finished.output
    assert "Traceback" not in finished.output


@pytest.mark.parametrize(
    ("override", "said"),
    [
        # values that don't fit: refused before data is read
        ("model.attention=dot", "size 8 with encoder outputs of size 16"),
        ("initializer.recurrent.scheme=magic", "initializer.recurrent.scheme"),
        ("initializer.rules=[{pattern: nope, scheme: zeros}]", "initializer.rules[0]"),
        ("decoding.strategy=astar", "decoding.strategy='astar' is unknown"),
        # data, tokenizers, batches
        ("data.train_size=0", "data.train_size=0"),
        ("tokenizer.source.kind=letters", "tokenizer.source.kind='letters'"),
        ("tokenizer.shared=true tokenizer.target.lowercase=true", "tokenizer.shared=true"),
        ("batch.size=0", "batch.size=0 must be at least 1"),
        ("batch.unit=words", "batch.unit='words' is unknown"),
        # training
        ("trainer.devices=2", "trainer.devices=2 must be 1"),
        ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1.0 must be above 0"),
        ("trainer.max_epochs=-2", "`max_epochs` must be a non-negative integer or -1"),
        ("scheduler=plateau scheduler.monitor=val/mood", "scheduler.monitor=val/mood is not"),
        ("callbacks.best_checkpoint.monitor=bleu", "callbacks.best_checkpoint.monitor=bleu"),
        (
            "callbacks=early_stopping callbacks.early_stopping.monitor=x",
            "callbacks.early_stopping.monitor=x is not logged: choose one of val/loss",
        ),
        (
            "callbacks.last_checkpoint.every_n_train_steps=0",
            "callbacks.last_checkpoint.every_n_train_steps=0 must be at least 1",
        ),
        ("model.share_embeddings=true", "share_embeddings=true needs one vocabulary for both"),
        ("optimizer.lr=-1", "optimizer.lr=-1.0 must be at least 0"),
        ("optimizer.betas=[0.9]", "optimizer.betas=[0.9] must be two numbers"),
        ("optimizer=adafactor optimizer.eps=[1]", "optimizer.eps=[1.0] must be two numbers"),
        ("optimizer=adadelta optimizer.rho=2", "optimizer.rho=2.0, optimizer.eps=1e-06 can't be"),
        ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches=0 must be at least"),
        ("callbacks.best_checkpoint.monitor=val/bleu", "use callbacks.best_checkpoint.mode=max"),
        ("batch.curriculum=cubic", "batch.curriculum='cubic' is unknown; choose one of none"),
        ("batch.curriculum=sqrt debug=overfit", "batch.curriculum=sqrt needs all batches"),
        (
            "batch.curriculum_epochs=-3",
            "batch.curriculum_epochs=-3.0 does nothing with batch.curri",
        ),
        ("batch.curriculum_start=0.2", "batch.curriculum_start=0.2 does nothing with batch.curric"),
        ("scheduled_sampling.schedule=exponential", "scheduled_sampling.k=null must be above 0"),
        ("scheduled_sampling.k=0.5", "scheduled_sampling.k=0.5 does nothing with schedule=none"),
        ("label_smoothing=2", "label_smoothing=2.0"),
        ("bleu_tokenizer=moses", "bleu_tokenizer='moses'"),
        ("callbacks.sample_translations.count=0", "callbacks.sample_translations.count=0"),
        ("callbacks.gradient_flow.every_n_steps=0", "every_n_steps is 0"),
        ("data=multi30k", "data.root"),
    ],
)
def test_a_value_that_can_not_be_is_refused_with_a_sentence_that_names_it(
    compose: Compose, override: str, said: str
) -> None:
    """By errors of which the test above sees that the command says them and nothing else."""
    overrides = [override] if "{" in override else override.split()
    config = compose(*overrides, tiny_task="data=multi30k" not in overrides)
    with pytest.raises((ValueError, OSError, MisconfigurationException), match=re.escape(said)):
        train(config)


@pytest.mark.parametrize(
    "override",
    [
        "data._target_=os.system",
        "data._target_=builtins.open",
        "optimizer._target_=torch.load",
        "scheduler._target_=torch.hub.load",
        "trainer._target_=subprocess.run",
        "callbacks.sample_translations._target_=seq2seq.train.main",
        "callbacks.gradient_flow._target_=seq2seq.instantiate.allow_target",
    ],
)
def test_a_foreign_target_is_refused_before_anything_is_built(
    command_line: Callable[..., Any], tmp_path: Path, override: str
) -> None:
    finished = command_line(override)
    key, _, target = override.partition("=")
    assert finished.status not in (0, None)
    assert f"{key}: '{target}'" in finished.output
    assert "Traceback" not in finished.output
    assert "pairs:" not in finished.output


def test_resuming_another_model_is_refused_with_both_values(
    compose: Compose, command_line: Callable[..., Any], tmp_path: Path
) -> None:
    train(compose())
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    finished = command_line(f"ckpt_path={best}", "model.hidden_size=12")
    assert "hidden_size is 8 there and 12 here" in finished.output
    assert "Traceback" not in finished.output


def test_a_diverged_run_ends_with_a_sentence(
    command_line: Callable[..., Any], tmp_path: Path
) -> None:
    finished = command_line(*EXPLODING)
    assert str(finished.status).startswith("error: training diverged: the loss is nan at step 1")
    assert "Traceback" not in finished.output


def test_two_runs_in_the_same_second_have_folders_of_their_own(
    command_line: Callable[..., Any], tmp_path: Path
) -> None:
    for _ in range(2):
        finished = command_line("debug=fast_dev_run")
        assert finished.status == 0
        assert "test/exact_match" in finished.output  # the table at the end
    folders = [path.parent for path in tmp_path.rglob("metrics.json")]
    assert len(folders) == 2
    for folder in folders:
        assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}", folder.name)
        assert (folder / ".hydra" / "config.yaml").is_file()


def test_a_sweep_returns_the_loss_of_every_job(
    command_line: Callable[..., Any], tmp_path: Path
) -> None:
    finished = command_line("seed=1,2", "debug=fast_dev_run", "--multirun")
    assert finished.status == 0, finished.output
    losses = [
        json.loads(path.read_text())["test/loss"] for path in sorted(tmp_path.rglob("metrics.json"))
    ]
    assert len(losses) == 2
    assert losses[0] != losses[1]


def test_the_config_is_shown_without_training(command_line: Callable[..., Any]) -> None:
    finished = command_line("--cfg", "job", "--resolve", "-p", "model")
    assert finished.status == 0
    assert "hidden_size: 8" in finished.output


def test_a_folder_that_holds_a_run_is_not_trained_over(compose: Compose) -> None:
    train(compose())
    with pytest.raises(ValueError, match="holds a run already: choose another"):
        train(compose())


def test_a_run_resumed_in_another_folder_keeps_the_best_checkpoint_so_far(
    compose: Compose, tmp_path: Path
) -> None:
    def options(epochs: int) -> tuple[str, ...]:
        # far too fast: nothing after the first epoch is better than it
        return (f"trainer.max_epochs={epochs}", "optimizer.lr=2")

    first = train(compose(*options(3), folder="first"))
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    second = train(compose(*options(4), f"ckpt_path={last}", folder="second"))
    assert second["test/loss"] == first["test/loss"]
    assert second["checkpoint"] == str(tmp_path / "second" / "checkpoints" / "best.ckpt")


def test_a_run_that_trains_otherwise_is_refused_on_resume(compose: Compose, tmp_path: Path) -> None:
    train(compose(folder="first"))
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    for override, said in (
        ("optimizer.lr=0.5", "optimizer.lr is 0.002 there and 0.5 here"),
        ("label_smoothing=0.1", "label_smoothing is 0.0 there and 0.1 here"),
        ("activation_regularization=2", "activation_regularization is 0.0 there and 2.0 here"),
        ("coverage_loss=1", "coverage_loss is 0.0 there and 1.0 here"),
        ("trainer.accumulate_grad_batches=2", "accumulate_grad_batches is 1 there and 2 here"),
        (
            "gradient_noise=1 coverage_loss=1",
            "coverage_loss is 0.0 .*; gradient_noise is None there",
        ),
    ):
        with pytest.raises(ValueError, match=f"was trained otherwise: .*{said}"):
            train(compose(*override.split(), f"ckpt_path={last}", folder="second"))
