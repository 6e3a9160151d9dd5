"""The training benchmark: its floor is the same model, and its clocks count what they say."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from torch.testing import assert_close

from seq2seq.data.batch import EncodedSplit, TokenRows
from seq2seq.data.corpus import Pair
from seq2seq.data.tokenizer import BOS_ID, EOS_ID, PAD_ID
from seq2seq.models.encoder_decoder import encoder_decoder
from seq2seq.scoring import batch_loss

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@pytest.fixture(autouse=True)
def _scripts_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield
    for name in ("benchmark_training", "plain_training", "step_watches"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "options",
    [
        {"bidirectional": True, "bridge": "linear"},
        {"bidirectional": True, "bridge": "linear", "input_feeding": True},
        {"bidirectional": False, "bridge": "copy", "encoder_layers": 2},
        {
            "bidirectional": False,
            "bridge": "copy",
            "encoder_layers": 2,
            "input_feeding": True,
            "reverse_source": True,
        },
    ],
    ids=["fused", "input feeding", "fused, two layers", "input feeding, two layers, reversed"],
)
def test_floor_computes_the_loss_and_the_gradients_of_the_framework(
    options: dict[str, object],
) -> None:
    import plain_training

    torch.manual_seed(0)
    model = encoder_decoder(
        source_vocabulary_size=20,
        target_vocabulary_size=17,
        pad_id=PAD_ID,
        embedding_size=6,
        hidden_size=6,
        attention="general",
        **options,  # type: ignore[arg-type]
    ).double()
    floor = plain_training.plain_model(model)
    lengths = [(5, 2), (1, 6), (3, 3), (7, 1)]
    rows = [torch.randint(4, 17, (2, 8)).tolist() for _ in lengths]
    batch = EncodedSplit(
        pairs=[Pair("", "", 0)] * len(lengths),
        source=TokenRows(
            [[*row[0][:n], EOS_ID] for row, (n, _) in zip(rows, lengths, strict=True)]
        ),
        target=TokenRows(
            [[BOS_ID, *row[1][:n], EOS_ID] for row, (_, n) in zip(rows, lengths, strict=True)]
        ),
    ).batch(torch.arange(len(lengths)))

    ours, _ = batch_loss(model, batch)
    (ours.sum / ours.tokens).backward()
    prepared = plain_training.prepare(
        batch, reverse_source=bool(options.get("reverse_source", False))
    )
    theirs = floor.loss(prepared, floor.decode(prepared, floor.encode(prepared)))
    theirs.backward()

    assert_close(theirs, ours.sum / ours.tokens, rtol=1e-12, atol=0)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    names = plain_training.twins(floor)
    assert sorted(names.values()) == sorted(gradients)
    for name, parameter in floor.named_parameters():
        assert_close(parameter.grad, gradients[names[name]], rtol=1e-10, atol=1e-14, msg=name)


def test_time_of_a_part_does_not_count_for_the_part_around_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import step_watches

    now = 0.0
    monkeypatch.setattr(time, "process_time", lambda: now)
    parts = step_watches.Parts(torch.device("cpu"), steps=2)
    optimizer = torch.optim.SGD([torch.zeros(1)])
    with parts.part("Lightning, loop"):
        for step in range(step_watches.WARM_UP + 3):
            parts.tick([], optimizer)
            now += 1.0
            with parts.part("output layer, loss"):
                now += 2.0
                with parts.part("encoder"):
                    now += 4.0 if step >= step_watches.WARM_UP else 1000.0
    counted = {part: seconds for part, seconds in parts.seconds.items() if seconds}
    assert counted == {"Lightning, loop": 2.0, "output layer, loss": 4.0, "encoder": 8.0}


def test_peak_memory_counts_what_lasts_and_what_comes_and_goes() -> None:
    import step_watches

    weight = torch.nn.Parameter(torch.zeros(1000))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    watch = step_watches.MemoryPeak(torch.device("cpu"))
    for _ in range(step_watches.MEMORY_STEPS.stop + 1):
        watch.tick([weight], optimizer)
        temporary = torch.zeros(50_000)
        weight.grad = torch.ones(1000)
        optimizer.step()
        del temporary
    lasting, temporary_bytes = 3 * 4000, 4 * 50_000  # weight, gradient and momentum
    assert lasting + temporary_bytes <= watch.bytes < lasting + temporary_bytes + 20_000


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["fused", "input_feeding"])
def test_every_loop_is_measured_and_its_parts_are_named(
    decoder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import benchmark_training

    # Of the 12 steps after the warm-up, the 20th of the run is the one whose figures are logged.
    sizes = "--steps 12 --rounds 1 --hidden 4 --batch 3 --often 2".split()
    benchmark_training.main([*sizes, "--setting", "sentences", "--decoder", decoder])

    printed = capsys.readouterr().out.splitlines()
    tables = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in printed if "|" in line
    ]
    speeds = {row[0]: row[1:] for row in tables if row[0] in benchmark_training.LOOPS}
    parts = {row[0]: row[1:] for row in tables if row[0] in benchmark_training.PARTS}
    assert set(speeds) == set(benchmark_training.LOOPS)
    assert speeds["floor"][2] == "1.000"
    assert all(float(speed[0].replace(",", "")) > 0 for speed in speeds.values())
    assert set(parts) == set(benchmark_training.PARTS)
    floor, framework, with_diagnostics = (
        {part: float(row[index].split()[0]) for part, row in parts.items()} for index in range(3)
    )
    for part in ("encoder", "decoder, attention", "output layer, loss", "backward"):
        assert min(floor[part], framework[part], with_diagnostics[part]) > 0
    assert floor["logging"] == floor["callbacks"] == framework["diagnostics"] == 0
    assert framework["logging"] > 0 and framework["callbacks"] > 0
    assert with_diagnostics["diagnostics"] > 0

    groups = {row[0]: row[1:] for row in tables if row[0] in benchmark_training.GROUPS}
    assert set(groups) == set(benchmark_training.GROUPS)
    costs = {group: float(row[0]) for group, row in groups.items()}
    assert min(costs.values()) > 0
    assert costs["input_gradient"] < costs["gradient_flow"]
    (total,) = (row[3] for row in tables if row[0] == "sum")
    shares = [float(row[2].rstrip("%")) for row in groups.values()]
    assert float(total.rstrip("%")) >= sum(shares) - 0.1


def test_every_group_of_diagnostics_of_the_config_is_measured() -> None:
    import benchmark_training

    from seq2seq.config import CallbackConfig, CallbacksConfig

    of_its_own = {"attention_pictures", "sample_translations", "throughput"}
    groups = {
        name
        for name, kind in get_type_hints(CallbacksConfig).items()
        if any(
            isinstance(one, type) and issubclass(one, CallbackConfig)
            for one in (kind, *get_args(kind))
        )
    }
    assert groups - of_its_own == set(benchmark_training.GROUPS)


def test_steps_that_would_misstate_the_cost_of_a_group_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    import benchmark_training

    with pytest.raises(SystemExit):
        benchmark_training.arguments(["--steps", "72"])
    assert "--steps=72 must be a multiple of --often=5" in capsys.readouterr().err
