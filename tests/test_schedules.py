from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from seq2seq.config import config_folder, register
from seq2seq.instantiate import instantiate
from seq2seq.schedules import constant, halving, inverse_square_root, plateau

CONF = Path(__file__).resolve().parents[1] / "conf"
SCHEDULES = ["constant", "plateau", "inverse_square_root", "halving"]
OPTIMIZERS = ["adafactor", "adam", "adamw", "adadelta", "rmsprop", "sgd"]


def sgd(lr=0.8):
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def learning_rates(schedule, steps, *, steps_per_epoch=4, **options):
    """The learning rate of each optimizer step, as training would use it."""
    optimizer = sgd()
    scheduler = schedule(optimizer, steps_per_epoch=steps_per_epoch, **options)["scheduler"]
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def configured(group, name, **overrides):
    """What a config file makes, checked against its schema."""
    register()
    with initialize_config_dir(config_folder(), version_base="1.3"):
        config = compose(
            f"{group}/{name}", [f"{group}.{key}={value}" for key, value in overrides.items()]
        )
    return instantiate(config[group])


def test_constant_never_changes():
    assert learning_rates(constant, 50) == [0.8] * 50


def test_inverse_square_root_rises_to_the_configured_rate_and_falls():
    rates = learning_rates(inverse_square_root, 100, warmup_steps=10)
    assert rates[:10] == pytest.approx([0.08 * step for step in range(1, 11)])
    assert max(rates) == rates[9] == 0.8
    assert rates[39] == pytest.approx(0.4)
    # equation 3 of Vaswani et al. 2017 for d_model = 512, up to one factor
    wanted = [512**-0.5 * min(s**-0.5, s * 10**-1.5) for s in range(1, 101)]
    assert rates == pytest.approx([0.8 / wanted[9] * rate for rate in wanted])


def test_inverse_square_root_without_warm_up_starts_at_the_peak():
    rates = learning_rates(inverse_square_root, 4, warmup_steps=1)
    assert rates == pytest.approx([0.8, 0.8 / 2**0.5, 0.8 / 3**0.5, 0.4])


def test_halving_follows_sutskever_2014():
    rates = learning_rates(halving, 7 * 4 + 2, steps_per_epoch=4)
    wanted = [0.8] * 20 + [0.4] * 2 + [0.2] * 2 + [0.1] * 2 + [0.05] * 2 + [0.025] * 2
    assert rates == pytest.approx(wanted)


@pytest.mark.parametrize("steps_per_epoch", [3, 7, 10, 997])
def test_halvings_stand_at_the_first_step_past_their_epoch(steps_per_epoch):
    rates = learning_rates(
        halving,
        4 * steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        start_epoch=1.2,
        every_epochs=0.7,
        factor=0.1,
    )
    for step, rate in enumerate(rates):
        # in tenths of an epoch and in integers: no rounding
        passed = sum(10 * step >= (12 + 7 * k) * steps_per_epoch for k in range(10))
        assert rate == pytest.approx(0.8 * 0.1**passed)


def test_halving_from_the_start_halves_the_first_step():
    rates = learning_rates(halving, 8, start_epoch=0.0, every_epochs=1.0)
    assert rates == pytest.approx([0.4] * 4 + [0.2] * 4)


@pytest.mark.parametrize(
    ("mode", "figures"), [("min", [3, 2, 2, 2, 2, 1, 1, 1]), ("max", [1, 2, 2, 2, 2, 3, 3, 3])]
)
def test_plateau_reduces_after_patience_is_used_up(mode, figures):
    optimizer = sgd()
    settings = plateau(optimizer, steps_per_epoch=4, mode=mode, patience=1, factor=0.1)
    rates = []
    for figure in figures:
        settings["scheduler"].step(figure)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.8, 0.8, 0.8, 0.08, 0.08, 0.08, 0.08, 0.008])


def test_plateau_options_reach_the_scheduler():
    optimizer = sgd()
    settings = plateau(
        optimizer,
        steps_per_epoch=4,
        monitor="val/bleu",
        patience=0,
        factor=0.5,
        threshold=0.5,
        minimum_lr=0.3,
    )
    assert settings["monitor"] == "val/bleu" and settings["interval"] == "epoch"
    rates = []
    for figure in (10.0, 6.0, 2.0, 2.0, 2.0):  # 6 is less than half better than 10
        settings["scheduler"].step(figure)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.8, 0.4, 0.4, 0.3, 0.3])


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        (inverse_square_root, {"warmup_steps": 0}, "warmup_steps=0"),
        (halving, {"start_epoch": -1.0}, "start_epoch=-1.0"),
        (halving, {"every_epochs": 0.0}, "every_epochs=0.0"),
        (halving, {"factor": 1.0}, "factor=1.0"),
        (halving, {"steps_per_epoch": 0}, "steps_per_epoch=0"),
        (plateau, {"factor": 0.0}, "factor=0.0"),
        (plateau, {"mode": "least"}, "mode='least'"),
        (plateau, {"patience": -1}, "patience=-1"),
    ],
)
def test_impossible_values_are_refused(schedule, options, message):
    with pytest.raises(ValueError, match=message):
        schedule(sgd(), **{"steps_per_epoch": 4, **options})


@pytest.mark.parametrize("name", SCHEDULES)
def test_state_loads_with_weights_only_and_continues_the_schedule(name, tmp_path):
    def started():
        optimizer = sgd()
        settings = configured("scheduler", name)(optimizer, steps_per_epoch=4)
        return optimizer, settings["scheduler"]

    def step(optimizer, scheduler):
        optimizer.step()
        scheduler.step(*([1.0] if name == "plateau" else []))
        return optimizer.param_groups[0]["lr"]

    optimizer, scheduler = started()
    for _ in range(25):
        step(optimizer, scheduler)
    state = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    torch.save(state, tmp_path / "state.pt")
    straight = [step(optimizer, scheduler) for _ in range(25)]

    optimizer, scheduler = started()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    assert [step(optimizer, scheduler) for _ in range(25)] == straight


class Tiny(LightningModule):
    def __init__(self, name, **options):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.name, self.options = name, options
        self.rates = []

    def training_step(self, batch, index):
        return self.layer(batch).square().mean()

    def validation_step(self, batch, index):
        self.log("val/loss", 1.0)

    def on_before_optimizer_step(self, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.8)
        scheduler = configured("scheduler", self.name, **self.options)
        return {"optimizer": optimizer, "lr_scheduler": scheduler(optimizer, steps_per_epoch=4)}


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        ("constant", {}, [0.8] * 12),
        ("plateau", {"patience": 0}, [0.8] * 8 + [0.4] * 4),
        ("inverse_square_root", {"warmup_steps": 4}, [0.2, 0.4, 0.6, 0.8, 0.8 * 0.8**0.5]),
        ("halving", {"start_epoch": 1.0}, [0.8] * 4 + [0.4] * 2 + [0.2] * 2 + [0.1] * 2),
    ],
)
def test_under_accumulation_the_trainer_counts_optimizer_steps(tmp_path, name, options, wanted):
    data = torch.utils.data.DataLoader(torch.ones(7, 1))  # 4 steps: two batches each, one alone
    module = Tiny(name, **options)
    trainer = Trainer(
        max_epochs=3,
        accumulate_grad_batches=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, data, data)
    assert len(module.rates) == 12
    assert module.rates[: len(wanted)] == pytest.approx(wanted)


def test_every_file_of_the_two_groups_is_tested():
    assert sorted(path.stem for path in (CONF / "scheduler").glob("*.yaml")) == sorted(SCHEDULES)
    assert sorted(path.stem for path in (CONF / "optimizer").glob("*.yaml")) == sorted(OPTIMIZERS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_file_learns_and_saves_a_plain_state(name, dtype, tmp_path):
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(5, 5, generator=generator, dtype=dtype))
    before = weight.detach().clone()
    optimizer = configured("optimizer", name)([weight])
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = weight.square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]
    assert not torch.equal(weight, before)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    torch.load(tmp_path / "optimizer.pt", weights_only=True)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_fused_kernel_equals_the_plain_one(name):
    def trained(fused):
        generator = torch.Generator().manual_seed(0)
        weight = nn.Parameter(torch.randn(30, 30, generator=generator, dtype=torch.float64))
        optimizer = configured("optimizer", name, fused=fused)([weight])
        for _ in range(20):
            optimizer.zero_grad()
            weight.sin().sum().backward()
            optimizer.step()
        return weight.detach()

    torch.testing.assert_close(trained(True), trained(False), rtol=0, atol=1e-12)
