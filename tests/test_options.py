"""Every option that ships works: built, initialized, trained for two steps, and decoded with.

The values are read from the package and from `conf/`, so that a new one is tested or fails here.
"""

import dataclasses
import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from itertools import combinations, cycle, product
from pathlib import Path
from typing import Any, get_args, get_type_hints

import hydra
import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from seq2seq.assembly import build_callbacks
from seq2seq.config import (
    CallbackConfig,
    CallbacksConfig,
    DecodingConfig,
    ModelConfig,
    config_folder,
    plain,
    register,
)
from seq2seq.data.batch import Batch
from seq2seq.data.datamodule import TranslationDataModule
from seq2seq.data.sampler import UNITS
from seq2seq.data.synthetic import synthetic_task
from seq2seq.data.tokenizer import KINDS, PAD_ID, train_tokenizers
from seq2seq.decoding.settings import STRATEGIES
from seq2seq.diagnostics.spectrum import gate_blocks
from seq2seq.initializers.blocks import KEEP_GATES
from seq2seq.initializers.rules import initialize, rules_from_config
from seq2seq.instantiate import instantiate
from seq2seq.models.attention import ATTENTIONS
from seq2seq.models.bridge import BRIDGES
from seq2seq.models.connection import LAYER_CONNECTIONS
from seq2seq.models.decoder import QUERY_STATES
from seq2seq.models.encoder_decoder import EncoderDecoder, encoder_decoder
from seq2seq.models.local_attention import LOCAL_ATTENTIONS
from seq2seq.models.recurrent import CELLS, has_cell_state
from seq2seq.scoring import batch_loss
from seq2seq.translator import Translator

CONF = Path(__file__).resolve().parents[1] / "conf"
SIZE = 6
CASES = 209  # so many models; where two values never meet, a number nearby has them meet
LONGEST = 20.0  # timesteps, where an initializer asks
SQUARE = {"echo_state", "irnn", "np_rnn"}  # initializers of square recurrent matrices alone


def group(name: str) -> list[str]:
    return sorted(path.stem for path in (CONF / name).glob("*.yaml"))


def model_options() -> Iterator[dict[str, Any]]:
    """Some combinations of cell, directions, depths and attention; the rest changes along."""
    ways = [
        {"attention": attention, "input_feeding": feeding, "query_state": query}
        for attention, feeding, query in product(ATTENTIONS, [False, True], QUERY_STATES)
        if (attention != "none" or not feeding) and (feeding or query == "current")
        if attention != "location"  # takes turns with the additive score that it adds to
    ]
    additives = cycle(product(["additive", "location"], [False, True]))
    places = cycle(["none", *LOCAL_ATTENTIONS, "none"])  # five, to meet all others
    rest = cycle(product(BRIDGES, [False, True], [False, True]))
    initializers = cycle(group("initializer"))
    connections = cycle(LAYER_CONNECTIONS)
    projections = cycle([4, 2, None])
    copying = cycle([True, False, False, True, False, False, False])
    truncations = cycle([None, 2, None, 3, None, 1, None])
    embeddings = cycle([(False, None), (False, 3), (True, None), (True, 3), (False, None)])
    combined = list(product(CELLS, [False, True], [(1, 1), (2, 1), (2, 2), (1, 2)], ways))
    # Evenly spread, and out of step with the product, so that every two values meet.
    spread = (combined[index * len(combined) // CASES] for index in range(CASES))
    for cell, bidirectional, depths, chosen in spread:
        way = dict(chosen)
        bridge, tie, reverse = next(rest)
        if way["attention"] == "none" and bridge == "zero":
            bridge = "linear"  # nothing of the source would reach the decoder
        joined = SIZE * (1 + bidirectional)
        equal = bridge == "copy" or "dot" in way["attention"]
        decoder = joined if equal else 7
        initializer = next(initializers)
        narrows = cell == "lstm" and initializer not in SQUARE and not (equal and bidirectional)
        projection = next(projections) if narrows else None
        share, rank = next(embeddings)
        additive, coverage = way["attention"] == "additive", False
        if additive:
            way["attention"], coverage = next(additives)
        local = next(places) if way["attention"] != "none" else "none"
        heads = tie and (way["attention"] == "scaled_dot" or (additive and not coverage))
        located = way["attention"] == "location"
        connection = next(connections) if max(depths) > 1 else "none"
        lower = bidirectional and depths[0] > 1 and not equal
        # Something must be left that a connection can go around.
        lower = lower and (connection == "none" or depths[1] > 1)
        if depths[1] == 1 and way["attention"] == "none":
            connection = "none"
        yield {
            "cell": cell,
            "bidirectional": bidirectional,
            "bidirectional_layers": 1 if lower else None,
            "encoder_layers": depths[0],
            "decoder_layers": depths[1],
            **way,
            "attention_size": 4 if additive and tie else None,
            "attention_heads": 2 if heads and not located else 1,
            "attention_filters": 3 if located and tie else None,
            "attention_kernel": 5 if located and reverse else None,
            "coverage": coverage,
            "local_attention": local,
            "attention_window": 2 if local != "none" and reverse else None,
            "bridge": bridge,
            "layer_connection": connection,
            "copy_mechanism": way["attention"] != "none" and next(copying),
            "tie_embeddings": tie,
            "share_embeddings": share,
            "embedding_rank": rank,
            "reverse_source": reverse,
            "embedding_size": (projection or decoder) if tie else 4,
            "hidden_size": SIZE,
            "projection_size": projection,
            "decoder_hidden_size": None if decoder == SIZE else decoder,
            "embedding_dropout": 0.1 if tie else 0.0,
            "layer_dropout": 0.1 if max(depths) > 1 else 0.0,
            "output_dropout": 0.1 if reverse else 0.0,
            "word_dropout": 0.1 if bidirectional else 0.0,
            "weight_dropout": 0.1 if connection == "residual" or tie else 0.0,
            "zoneout_hidden": 0.1 if equal else 0.0,
            "zoneout_cell": 0.1 if has_cell_state(cell) and (tie or equal) else 0.0,
            "truncation": next(truncations),
            "variational_dropout": bidirectional and connection == "none",
            "initializer": initializer,
        }


OPTIONS = list(model_options())


def corpus() -> Any:
    return synthetic_task(
        task="reverse",
        alphabet_size=8,
        min_length=1,
        max_length=5,
        test_max_length=None,
        longer_max_length=None,
        train_size=24,
        validation_size=4,
        test_size=4,
        longer_size=0,
        seed=0,
    )


def make_data(
    unit: str = "sentences", size: int = 8, copies: bool = False, **tokenizer: Any
) -> TranslationDataModule:
    kind = {"kind": "whitespace"}
    data = corpus()
    settings = {"source": kind, "target": kind} | tokenizer
    source, target = train_tokenizers(data.train, **settings)
    return TranslationDataModule(
        corpus=data,
        source_tokenizer=source,
        target_tokenizer=target,
        batch_size=size,
        batch_unit=unit,
        copies=copies,
    )


@pytest.fixture(scope="module")
def data() -> TranslationDataModule:
    return make_data()


@pytest.fixture(scope="module")
def presets() -> dict[str, dict[str, Any]]:
    """Every initializer of the config as plain values."""
    with hydra.initialize_config_dir(config_folder(), version_base="1.3"):
        return {
            name: plain(hydra.compose(f"initializer/{name}").initializer)
            for name in group("initializer")
        }


@cache
def composed(*overrides: str) -> DictConfig:
    register()
    with hydra.initialize_config_dir(config_folder(), version_base="1.3"):
        return hydra.compose("train", list(overrides))


def build(data: TranslationDataModule, **options: Any) -> EncoderDecoder:
    torch.manual_seed(0)
    small = {"embedding_size": SIZE, "hidden_size": SIZE}
    return encoder_decoder(
        source_vocabulary_size=data.source_tokenizer.vocabulary_size,
        target_vocabulary_size=data.target_tokenizer.vocabulary_size,
        pad_id=PAD_ID,
        **(small | options),
    )


def take_two_steps(
    model: EncoderDecoder,
    batches: list[Batch],
    optimizer: torch.optim.Optimizer | None = None,
    after_step: Callable[[Tensor], None] = lambda loss: None,
) -> None:
    """Two optimizer steps that must change every parameter by finite amounts."""
    # Double precision and a tiny eps, so that the smallest of gradients moves its weight.
    optimizer = optimizer or torch.optim.Adam(model.double().parameters(), lr=0.01, eps=1e-30)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model.train()
    for batch in batches[:2]:
        optimizer.zero_grad()
        loss, _ = batch_loss(model, batch)
        assert torch.isfinite(loss.sum)
        (loss.sum / loss.tokens).backward()
        optimizer.step()
        after_step(loss.sum.detach())
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), name
        assert not torch.equal(parameter, before[name]), f"{name} was not trained"


def translations(model: EncoderDecoder, data: TranslationDataModule, **options: Any) -> list[str]:
    translator = Translator(
        model=model.eval(),
        source_tokenizer=data.source_tokenizer,
        target_tokenizer=data.target_tokenizer,
        **options,
    )
    sources = [pair.source for pair in data.corpus.test]
    best = list(translator.translate(sources))
    assert len(best) == len(sources)
    assert all(math.isfinite(each.score) for several in best for each in several)
    assert all(len(several) == options.get("n_best", 1) for several in best)
    return [several[0].text for several in best]


@pytest.mark.parametrize(
    "options", OPTIONS, ids=lambda options: "-".join(str(value) for value in options.values())
)
def test_every_model_trains_and_decodes(
    data: TranslationDataModule, presets: dict[str, dict[str, Any]], options: dict[str, Any]
) -> None:
    data = make_data(copies=True) if options["copy_mechanism"] else data
    options = dict(options)
    rules = rules_from_config(presets[options.pop("initializer")], longest=LONGEST)
    model = build(data, **options)
    done = initialize(model, rules, seed=0, pad_id=PAD_ID)
    assert len(done.assignments) == len(list(model.parameters()))
    take_two_steps(model, list(data.train_dataloader()))
    translations(model, data)


def test_every_two_values_of_model_options_meet() -> None:
    varied = [
        *("cell", "bidirectional", "encoder_layers", "decoder_layers", "attention"),
        *("input_feeding", "query_state", "bridge", "tie_embeddings", "reverse_source"),
        *("layer_connection", "share_embeddings", "embedding_rank"),
        *("coverage", "local_attention", "copy_mechanism"),
    ]
    met = Counter(
        pair
        for options in OPTIONS
        for pair in combinations([(key, options[key]) for key in varied], 2)
    )
    values = {key: {options[key] for options in OPTIONS} for key in varied}
    assert values["cell"] == set(CELLS)
    assert values["attention"] == set(ATTENTIONS)
    assert values["local_attention"] == set(LOCAL_ATTENTIONS)
    assert values["bridge"] == set(BRIDGES)
    assert values["query_state"] == set(QUERY_STATES)
    assert values["layer_connection"] == set(LAYER_CONNECTIONS)
    assert {(options["cell"], options["initializer"]) for options in OPTIONS} == set(
        product(CELLS, group("initializer"))
    )
    without_coverage = set(ATTENTIONS) - {"additive", "location"}
    impossible = {
        (("attention", "none"), ("input_feeding", True)),
        (("attention", "none"), ("query_state", "previous")),
        (("attention", "none"), ("bridge", "zero")),
        *((("attention", kind), ("coverage", True)) for kind in without_coverage),
        *((("attention", "none"), ("local_attention", kind)) for kind in LOCAL_ATTENTIONS[1:]),
        (("attention", "none"), ("copy_mechanism", True)),
        (("input_feeding", False), ("query_state", "previous")),
    }
    for first, second in combinations(varied, 2):
        for pair in product(
            [(first, v) for v in values[first]], [(second, v) for v in values[second]]
        ):
            assert met[pair] > 0 or pair in impossible, pair


@pytest.mark.parametrize("name", sorted(SQUARE))
def test_an_initializer_of_square_matrices_says_that_a_projection_leaves_none(
    data: TranslationDataModule, presets: dict[str, dict[str, Any]], name: str
) -> None:
    model = build(data, projection_size=4)
    rules = rules_from_config(presets[name], longest=LONGEST)
    with pytest.raises(ValueError, match=r"weight_hh_l0 .*a square matrix, .* 6 x 4: choose"):
        initialize(model, rules, seed=0, pad_id=PAD_ID)


def test_every_argument_of_the_model_config_is_varied_here() -> None:
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    assert fields == OPTIONS[0].keys() - {"initializer"}
    for name in fields - {"hidden_size"}:
        assert len({options[name] for options in OPTIONS}) > 1, name


@pytest.mark.parametrize("name", group("model"))
def test_every_model_of_the_config_trains_and_decodes(
    data: TranslationDataModule, name: str
) -> None:
    config = composed(f"model={name}", "model.embedding_size=6", "model.hidden_size=6")
    model = build(data, **plain(config.model))
    initialize(
        model, rules_from_config(plain(config.initializer), longest=LONGEST), seed=0, pad_id=PAD_ID
    )
    take_two_steps(model, list(data.train_dataloader()))
    translations(model, data)


# Standard deviation of a recurrent weight at `WIDTH` hidden units, and the sum of both biases of
# the gate that remembers: exactly, or None where it is drawn. What the headings of all other
# presets promise is held by `initializers/test_presets.py`.
WIDTH = 48
STATISTICS: dict[str, tuple[float, float | None]] = {
    "normal": (0.01, 0.0),
    "orthogonal": (1 / math.sqrt(WIDTH), 1.0),
    "pytorch": (1 / math.sqrt(3 * WIDTH), None),
    "uniform": (0.08 / math.sqrt(3), None),
    "xavier": (1 / math.sqrt(WIDTH), 0.0),
}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", group("initializer"))
def test_every_initializer_sets_every_weight_of_every_cell(
    data: TranslationDataModule, presets: dict[str, dict[str, Any]], name: str, cell: str
) -> None:
    model = build(data, cell=cell, hidden_size=WIDTH)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    initialize(model, rules_from_config(presets[name], longest=LONGEST), seed=0, pad_id=PAD_ID)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    for embedding in (model.encoder.embedding, model.decoder.embedding):
        assert not embedding.weight[PAD_ID].any()
        assert embedding.weight[PAD_ID + 1 :].any(dim=1).all()
    if name not in STATISTICS:
        return
    deviation, keep = STATISTICS[name]
    for layer in model.recurrent_layers().values():
        rnn = layer.rnn
        gates = layer.gates
        for block in gate_blocks(rnn.weight_hh_l0.detach(), gates).values():
            assert float(block.std()) == pytest.approx(deviation, rel=0.08)
            assert abs(float(block.mean())) < 4 * deviation / WIDTH
            if name == "orthogonal":
                torch.testing.assert_close(block @ block.T, torch.eye(WIDTH), atol=1e-5, rtol=0)
        biases = gate_blocks((rnn.bias_ih_l0 + rnn.bias_hh_l0).detach(), gates)
        for gate, bias in biases.items():
            if keep is not None:
                assert (bias == (keep if gate in KEEP_GATES else 0.0)).all()
            else:
                assert bias.any()


@pytest.mark.parametrize("scheduler", group("scheduler"))
@pytest.mark.parametrize("optimizer", group("optimizer"))
def test_every_optimizer_goes_with_every_schedule(
    data: TranslationDataModule, optimizer: str, scheduler: str
) -> None:
    chosen = composed(f"optimizer={optimizer}").optimizer
    model = build(data)
    built = instantiate(chosen)(model.parameters())
    make_schedule = instantiate(composed(f"scheduler={scheduler}").scheduler)
    schedule = make_schedule(built, steps_per_epoch=2)["scheduler"]

    def after_step(loss: Tensor) -> None:
        if scheduler == "plateau":
            schedule.step(loss)
        else:
            schedule.step()

    take_two_steps(model, list(data.train_dataloader()), built, after_step)
    assert 0 < built.param_groups[0]["lr"] <= chosen.lr
    translations(model, data)


@pytest.mark.parametrize("name", group("tokenizer"))
@pytest.mark.parametrize("shared", [False, True])
def test_every_tokenizer_trains_and_decodes_to_text(name: str, shared: bool) -> None:
    settings = plain(composed(f"tokenizer={name}", "data=copy").tokenizer) | {"shared": shared}
    if shared and settings["source"] != settings["target"]:
        with pytest.raises(ValueError, match="tokenizer.shared=true needs the same settings"):
            make_data(**settings)
        return
    data = make_data(**settings)
    assert (data.source_tokenizer is data.target_tokenizer) == shared
    model = build(data)
    take_two_steps(model, list(data.train_dataloader()))
    assert all(isinstance(text, str) for text in translations(model, data))


def test_every_kind_of_tokenizer_is_shipped_in_a_config() -> None:
    shipped = [composed(f"tokenizer={name}", "data=copy").tokenizer for name in group("tokenizer")]
    assert {config.source.kind for config in shipped} == set(KINDS)


def callback_groups() -> dict[str, Any]:
    """The schemas of the callbacks that are instantiated from their arguments, by config node."""
    kinds = {
        name: next(iter(get_args(kind)), kind)
        for name, kind in get_type_hints(CallbacksConfig).items()
    }
    return {name: kind for name, kind in kinds.items() if issubclass(kind, CallbackConfig)}


@pytest.mark.parametrize("name", callback_groups())
def test_every_key_of_a_callback_is_an_argument_and_has_its_default(name: str) -> None:
    node = plain(composed().callbacks[name])
    schema = dataclasses.asdict(callback_groups()[name]())
    arguments = inspect.signature(type(instantiate(composed().callbacks[name]))).parameters
    defaults = {key: argument.default for key, argument in arguments.items() if key != "folder"}
    if "distances" in defaults:
        defaults["distances"] = list(defaults["distances"])
    assert {key: value for key, value in node.items() if key != "_target_"} == defaults
    assert {key: value for key, value in schema.items() if key != "_target_"} == defaults


@pytest.mark.parametrize("name", sorted(callback_groups().keys() - {"throughput"}))
def test_null_leaves_a_callback_out(name: str, tmp_path: Path) -> None:
    kind = type(instantiate(composed().callbacks[name]))
    folder = f"run_folder={tmp_path}"
    every = build_callbacks(composed(folder), tmp_path)
    without = build_callbacks(composed(folder, f"callbacks.{name}=null"), tmp_path)
    assert [type(one) for one in without] == [type(one) for one in every if type(one) is not kind]
    assert len(without) == len(every) - 1


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("attention", ["none", "general"])
def test_every_search_decodes_from_every_kind_of_model(
    data: TranslationDataModule, strategy: str, attention: str
) -> None:
    n_best = 1 if strategy == "greedy" else 3
    model = build(data, attention=attention)
    translations(model, data, strategy=strategy, beam_size=4, n_best=n_best)


@pytest.mark.parametrize("unit", UNITS)
def test_every_unit_of_batches_covers_the_corpus(unit: str) -> None:
    data = make_data(unit, size=30 if unit == "target_tokens" else 5)
    batches = list(data.train_dataloader())
    assert sorted(torch.cat([batch.index for batch in batches]).tolist()) == list(range(24))
    if unit == "target_tokens":
        assert max(batch.decoder_input.numel() for batch in batches) <= 30
    take_two_steps(build(data), batches)


# Every key of `decoding` beside the strategy, with a value that isn't its default.
DECODINGS: list[dict[str, Any]] = [
    {"strategy": "beam_search", "beam_size": 4, "n_best": 3, "length_penalty": 0.5},
    {"strategy": "beam_search", "coverage_penalty": 0.2},
    {"strategy": "sampling", "temperature": 0.7, "seed": 5},
    {"strategy": "sampling", "top_k": 3},
    {"strategy": "sampling", "top_p": 0.8},
    {"block_ngram": 2},
    {"min_length_ratio": 1.0, "min_length_constant": 1, "strategy": "beam_search"},
    {"max_length_ratio": 1.0, "max_length_constant": 3},
    {"prefix": "3 1"},
    {"replace_unknown": True, "dictionary": "words.tsv"},
]


@pytest.mark.parametrize(
    "options", DECODINGS, ids=lambda options: "-".join(map(str, options.values()))
)
def test_every_option_of_decoding_decodes(
    data: TranslationDataModule,
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.tsv").write_text("unheard\tof\n")
    overrides = [f'decoding.{key}="{value}"' for key, value in options.items()]
    decoding = plain(composed(*overrides).decoding)
    assert {key: decoding[key] for key in options} == options
    translations(build(data), data, **decoding)


def test_every_key_of_decoding_is_varied_here_and_an_argument_with_its_default() -> None:
    defaults = dataclasses.asdict(DecodingConfig())
    varied = {key for options in DECODINGS for key, value in options.items()}
    assert varied == defaults.keys()
    assert all(value != defaults[key] for options in DECODINGS for key, value in options.items())
    arguments = inspect.signature(Translator).parameters
    assert {key: arguments[key].default for key in defaults} == defaults
    for name in ("train", "translate", "evaluate"):
        with hydra.initialize_config_dir(config_folder(), version_base="1.3"):
            assert plain(hydra.compose(name).decoding) == defaults
