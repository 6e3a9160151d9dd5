"""The schema of every config: which keys exist, their types and their defaults.

Hydra checks each composed config against it, so that a wrong key or type fails before anything
runs. Free of torch, so that ``--help`` and ``--cfg job`` answer at once.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf


def config_folder() -> str:
    """Absolute path of ``conf/``: inside the installed package, or beside it in a checkout.

    Raises:
        FileNotFoundError: if neither exists.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return str(folder)
    raise FileNotFoundError(
        f"no conf/train.yaml in {package} or {package.parent}: reinstall seq2seq"
    )


@dataclass
class ModelConfig:
    """Arguments of :func:`seq2seq.models.encoder_decoder.encoder_decoder`."""

    cell: str = "lstm"
    embedding_size: int = 256
    embedding_rank: int | None = None
    hidden_size: int = 256
    projection_size: int | None = None
    encoder_layers: int = 1
    bidirectional: bool = True
    bidirectional_layers: int | None = None
    decoder_layers: int | None = None
    decoder_hidden_size: int | None = None
    attention: str = "general"
    attention_size: int | None = None
    attention_heads: int = 1
    attention_filters: int | None = None
    attention_kernel: int | None = None
    coverage: bool = False
    local_attention: str = "none"
    attention_window: int | None = None
    query_state: str = "current"
    input_feeding: bool = False
    bridge: str = "linear"
    layer_connection: str = "none"
    copy_mechanism: bool = False
    embedding_dropout: float = 0.0
    layer_dropout: float = 0.0
    output_dropout: float = 0.0
    word_dropout: float = 0.0
    weight_dropout: float = 0.0
    zoneout_hidden: float = 0.0
    zoneout_cell: float = 0.0
    truncation: int | None = None
    variational_dropout: bool = False
    tie_embeddings: bool = False
    share_embeddings: bool = False
    reverse_source: bool = False


@dataclass
class BatchConfig:
    """How pairs are grouped into batches."""

    size: int = 128
    unit: str = "sentences"
    evaluation_size: int = 256
    seed: int = MISSING
    curriculum: str = "none"
    curriculum_epochs: float | None = None
    curriculum_start: float | None = None


@dataclass
class TokenizerSideConfig:
    """One side's tokenizer; see :mod:`seq2seq.data.tokenizer`."""

    kind: str = MISSING
    size: int | None = None
    min_frequency: int = 1
    lowercase: bool = False
    normal_form: str | None = None


@dataclass
class TokenizerConfig:
    """Both tokenizers, or one shared."""

    shared: bool = False
    source: TokenizerSideConfig = field(default_factory=TokenizerSideConfig)
    target: TokenizerSideConfig = field(default_factory=TokenizerSideConfig)


@dataclass
class PretrainedVectorsConfig:
    """Files that embeddings begin with; see :mod:`seq2seq.data.torchtext_vectors`."""

    source: str | None = None
    target: str | None = None
    freeze: bool = False


@dataclass
class DecodingConfig:
    """How a trained model's distributions become output sequences."""

    strategy: str = "greedy"
    beam_size: int = 5
    n_best: int = 1
    length_penalty: float = 1.0
    coverage_penalty: float = 0.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 1
    block_ngram: int = 0
    min_length_ratio: float = 0.0
    min_length_constant: int = 0
    max_length_ratio: float = 2.0
    max_length_constant: int = 10
    prefix: str = ""
    replace_unknown: bool = False
    dictionary: str | None = None


@dataclass
class RuleConfig:
    """One initialization rule; see :class:`seq2seq.initializers.rules.Rule`."""

    pattern: str | None = None
    scheme: str | None = None
    gates: str | None = None
    scale: float | None = None
    gain: float | None = None
    value: float | None = None
    spectral_radius: float | None = None
    connections: int | None = None
    longest: float | None = None
    angle: float | None = None
    step: float | None = None
    damping: float | None = None
    feedback: float | None = None
    fused: str | None = None


@dataclass
class CalibrationConfig:
    """A method and its numbers; see :class:`seq2seq.initializers.calibration.Calibration`."""

    method: str | None = None
    attenuation: float | None = None
    variance: float | None = None
    tolerance: float | None = None
    trials: int | None = None


@dataclass
class InitializerConfig:
    """Rules by role, and the user's own before them; see ``rules_from_config``."""

    scale: float | None = None
    gain: float | None = None
    longest: float | None = None
    forget_bias: float | None = None
    rules: list[RuleConfig] = field(default_factory=list)
    special: dict[str, RuleConfig] = field(default_factory=dict)
    embedding: RuleConfig = field(default_factory=RuleConfig)
    recurrent: RuleConfig = field(default_factory=RuleConfig)
    input: RuleConfig = field(default_factory=RuleConfig)
    bias: RuleConfig = field(default_factory=RuleConfig)
    attention: RuleConfig = field(default_factory=RuleConfig)
    bridge: RuleConfig = field(default_factory=RuleConfig)
    output: RuleConfig = field(default_factory=RuleConfig)
    embedding_projection: RuleConfig = field(default_factory=RuleConfig)
    highway: RuleConfig = field(default_factory=RuleConfig)
    highway_bias: RuleConfig = field(default_factory=RuleConfig)
    norm_gain: RuleConfig = field(default_factory=RuleConfig)
    norm_bias: RuleConfig = field(default_factory=RuleConfig)
    cell_projection: RuleConfig = field(default_factory=RuleConfig)
    copy_gate: RuleConfig = field(default_factory=RuleConfig)
    linear_bias: RuleConfig = field(default_factory=RuleConfig)
    calibration: CalibrationConfig | None = field(default_factory=CalibrationConfig)


@dataclass
class DataConfig:
    """What every corpus config has in common: the function that makes the corpus."""

    _target_: str = MISSING


@dataclass
class PhrasebookConfig(DataConfig):
    """Arguments of :func:`seq2seq.data.phrasebook.phrasebook`."""

    source_locale: str = MISSING
    target_locale: str = MISSING
    train_size: int = MISSING
    validation_size: int = MISSING
    test_size: int = MISSING
    seed: int = MISSING
    max_length: int | None = None


@dataclass
class SyntheticConfig(DataConfig):
    """Arguments of :func:`seq2seq.data.synthetic.synthetic_task` that every task has."""

    task: str = MISSING
    min_length: int = MISSING
    max_length: int = MISSING
    test_max_length: int | None = None
    longer_max_length: int | None = None
    train_size: int = MISSING
    validation_size: int = MISSING
    test_size: int = MISSING
    longer_size: int = MISSING
    seed: int = MISSING


@dataclass
class SymbolsConfig(SyntheticConfig):
    """The tasks on symbols: copy, reverse, sort."""

    alphabet_size: int = MISSING


@dataclass
class RecallConfig(DataConfig):
    """Arguments of :func:`seq2seq.data.synthetic.recall`."""

    symbols: int = MISSING
    lag: int = MISSING
    longer_lag: int | None = None
    alphabet_size: int = MISSING
    train_size: int = MISSING
    validation_size: int = MISSING
    test_size: int = MISSING
    longer_size: int = MISSING
    seed: int = MISSING


@dataclass
class ParallelConfig(DataConfig):
    """Arguments of :func:`seq2seq.data.corpus.parallel_text`."""

    root: str = MISSING
    train: str | None = None
    train_source: str | None = None
    train_target: str | None = None
    validation: str | None = None
    validation_source: str | None = None
    validation_target: str | None = None
    test: str | None = None
    test_source: str | None = None
    test_target: str | None = None
    source_column: int = MISSING
    target_column: int = MISSING
    pattern: str | None = None
    validation_size: int = MISSING
    test_size: int = MISSING
    seed: int = MISSING
    max_length: int | None = None


@dataclass
class RootedConfig(DataConfig):
    """What the configs of known corpora have in common."""

    root: str | None = None
    max_length: int | None = None


@dataclass
class Multi30kConfig(RootedConfig):
    """Arguments of :func:`seq2seq.data.public_corpora.multi30k`."""

    source_language: str = MISSING
    target_language: str = MISSING


@dataclass
class TatoebaConfig(RootedConfig):
    """Arguments of :func:`seq2seq.data.public_corpora.tatoeba`."""

    file: str = MISSING
    source_column: int = MISSING
    target_column: int = MISSING
    validation_size: int = MISSING
    test_size: int = MISSING
    seed: int = MISSING


@dataclass
class G2pConfig(RootedConfig):
    """Arguments of :func:`seq2seq.data.public_corpora.g2p`."""

    language: str = MISSING


@dataclass
class ScanConfig(RootedConfig):
    """Arguments of :func:`seq2seq.data.public_corpora.scan`."""

    split: str = MISSING
    validation_size: int = MISSING
    seed: int = MISSING


@dataclass
class TorchtextConfig(RootedConfig):
    """Arguments of :func:`seq2seq.data.torchtext_corpus.torchtext_corpus`."""

    dataset: str = MISSING
    source_extension: str = MISSING
    target_extension: str = MISSING
    train: str | None = None
    validation: str | None = None
    test: str | None = None


@dataclass
class OptimizerConfig:
    """What every optimizer config has in common."""

    _target_: str = MISSING
    _partial_: bool = True
    lr: float = MISSING
    weight_decay: float = 0.0


@dataclass
class AdamConfig(OptimizerConfig):
    """`torch.optim.Adam` and `torch.optim.AdamW`."""

    betas: list[float] = MISSING
    eps: float = MISSING
    fused: bool = False


@dataclass
class SgdConfig(OptimizerConfig):
    """`torch.optim.SGD`."""

    momentum: float = MISSING
    nesterov: bool = False
    fused: bool = False


@dataclass
class AdafactorConfig(OptimizerConfig):
    """`torch.optim.Adafactor`."""

    beta2_decay: float = MISSING
    eps: list[float | None] = MISSING
    d: float = MISSING


@dataclass
class AdadeltaConfig(OptimizerConfig):
    """`torch.optim.Adadelta`."""

    rho: float = MISSING
    eps: float = MISSING


@dataclass
class RmspropConfig(OptimizerConfig):
    """`torch.optim.RMSprop`."""

    alpha: float = MISSING
    eps: float = MISSING
    momentum: float = MISSING
    centered: bool = False


@dataclass
class SchedulerConfig:
    """What every learning-rate schedule has in common."""

    _target_: str = MISSING
    _partial_: bool = True


@dataclass
class PlateauConfig(SchedulerConfig):
    """Arguments of :func:`seq2seq.schedules.plateau`."""

    monitor: str = MISSING
    mode: str = MISSING
    factor: float = MISSING
    patience: int = MISSING
    threshold: float = MISSING
    minimum_lr: float = MISSING


@dataclass
class InverseSquareRootConfig(SchedulerConfig):
    """Arguments of :func:`seq2seq.schedules.inverse_square_root`."""

    warmup_steps: int = MISSING


@dataclass
class HalvingConfig(SchedulerConfig):
    """Arguments of :func:`seq2seq.schedules.halving`."""

    start_epoch: float = MISSING
    every_epochs: float = MISSING
    factor: float = MISSING


@dataclass
class TrainerConfig:
    """Arguments of :class:`lightning.Trainer`, under its names."""

    _target_: str = "lightning.Trainer"
    accelerator: str = "auto"
    devices: int = 1
    precision: str = "32-true"
    max_epochs: int | None = None
    max_steps: int = -1
    max_time: str | None = None
    gradient_clip_val: float | None = None
    accumulate_grad_batches: int = 1
    # int: batches between validations; float: share of an epoch
    val_check_interval: Any = 1.0
    check_val_every_n_epoch: int = 1
    num_sanity_val_steps: int = 1
    limit_train_batches: Any = 1.0
    limit_val_batches: Any = 1.0
    limit_test_batches: Any = 1.0
    overfit_batches: Any = 0.0
    fast_dev_run: Any = False
    detect_anomaly: bool = False
    deterministic: bool = False
    log_every_n_steps: int = 20
    enable_progress_bar: bool = True
    enable_model_summary: bool = False


@dataclass
class CallbackConfig:
    """What every callback config has in common."""

    _target_: str = MISSING


@dataclass
class GradientFlowConfig(CallbackConfig):
    """Arguments of :class:`seq2seq.callbacks.gradient_flow.GradientFlow`."""

    every_n_steps: int = 50
    examples: int = 16
    min_examples: int = 8
    distances: list[int] = field(
        default_factory=lambda: [0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144]
    )
    heat_map_every: int = 20
    heat_map_lowest: float = -8.0
    heat_map_highest: float = 2.0
    ridge_max_length: int = 30
    max_tags: int = 500
    seed: int = 0


@dataclass
class InputGradientConfig(CallbackConfig):
    """Arguments of :class:`seq2seq.callbacks.input_gradient.InputGradient`."""

    every_n_steps: int = 1
    log_every_n_steps: int = 100
    min_examples: int = 8


@dataclass
class ForwardSignalConfig(CallbackConfig):
    """Arguments of :class:`seq2seq.callbacks.forward_signal.ForwardSignal`."""

    every_n_steps: int = 100
    examples: int = 16


@dataclass
class SpectrumConfig(CallbackConfig):
    """Arguments of :class:`seq2seq.callbacks.spectrum.Spectrum`."""

    every_n_steps: int = 1000
    examples: int = 16
    exponents: int = 32


@dataclass
class WeightGradientConfig(CallbackConfig):
    """Arguments of :class:`seq2seq.callbacks.weight_gradient.WeightGradient`."""

    every_n_steps: int = 100
    examples: int = 16


@dataclass
class UpdateRatioConfig(CallbackConfig):
    """Arguments of :class:`seq2seq.callbacks.update_ratio.UpdateRatio`."""

    every_n_steps: int = 100


@dataclass
class SampleTranslationsConfig(CallbackConfig):
    """Arguments of :class:`seq2seq.callbacks.sample_translations.SampleTranslations`."""

    count: int = 4


@dataclass
class AttentionPicturesConfig(CallbackConfig):
    """Arguments of :class:`seq2seq.callbacks.attention_pictures.AttentionPictures`."""

    count: int = 2


@dataclass
class ThroughputConfig(CallbackConfig):
    """Arguments of :class:`seq2seq.callbacks.progress.Throughput`."""

    every_n_steps: int = 20


@dataclass
class BestCheckpointConfig:
    """What the best checkpoint is judged by."""

    monitor: str = "val/loss"
    mode: str = "min"


@dataclass
class LastCheckpointConfig:
    """How often the checkpoint to resume from is written."""

    every_n_train_steps: int = 200


@dataclass
class EarlyStoppingConfig:
    """Arguments of :class:`lightning.pytorch.callbacks.EarlyStopping`."""

    monitor: str = "val/loss"
    mode: str = "min"
    patience: int = 3
    min_delta: float = 0.0


@dataclass
class StepsToTargetConfig:
    """Arguments of :class:`seq2seq.callbacks.steps_to_target.StepsToTarget`."""

    loss: float | None = None
    every_n_steps: int = 20


@dataclass
class WeightAverageConfig:
    """Arguments of :class:`seq2seq.callbacks.weight_average.WeightAverage`."""

    decay: float | None = None


@dataclass
class AverageCheckpointConfig:
    """Of how many validations the weights are averaged."""

    validations: int | None = None


@dataclass
class CallbacksConfig:
    """Every callback that a run can have; null leaves one out."""

    gradient_flow: GradientFlowConfig | None = None
    input_gradient: InputGradientConfig | None = None
    forward_signal: ForwardSignalConfig | None = None
    spectrum: SpectrumConfig | None = None
    weight_gradient: WeightGradientConfig | None = None
    update_ratio: UpdateRatioConfig | None = None
    sample_translations: SampleTranslationsConfig | None = None
    attention_pictures: AttentionPicturesConfig | None = None
    throughput: ThroughputConfig = field(default_factory=ThroughputConfig)
    best_checkpoint: BestCheckpointConfig | None = None
    last_checkpoint: LastCheckpointConfig | None = None
    early_stopping: EarlyStoppingConfig | None = None
    target: StepsToTargetConfig = field(default_factory=StepsToTargetConfig)
    weight_average: WeightAverageConfig = field(default_factory=WeightAverageConfig)
    average_checkpoint: AverageCheckpointConfig = field(default_factory=AverageCheckpointConfig)


@dataclass
class SweepConfig:
    """How a sweep goes on, what it tells its sweeper, and whether it ends in a page."""

    resume: str | None = None
    objective: str = "test/loss"
    report: bool = True


@dataclass
class FigureConfig:
    """Arguments of :func:`seq2seq.sweep.figure.draw`, beside the runs."""

    kind: str = "lines"
    x: str | None = None
    y: Any = field(default_factory=list)  # one name or a list of them
    lines: str | None = None
    panels: str | None = None
    logarithmic: Any = field(default_factory=list)
    title: str | None = None


@dataclass
class ScheduledSamplingConfig:
    """Arguments of :class:`seq2seq.scheduled_sampling.ScheduledSampling`."""

    schedule: str = "none"
    k: float | None = None
    c: float | None = None
    floor: float = 0.0
    fed: str = "sample"


@dataclass
class TrainConfig:
    """Everything about a run; ``conf/train.yaml`` fills it in."""

    data: DataConfig = MISSING
    tokenizer: TokenizerConfig = MISSING
    batch: BatchConfig = field(default_factory=BatchConfig)
    model: ModelConfig = MISSING
    initializer: InitializerConfig = MISSING
    pretrained_vectors: PretrainedVectorsConfig = field(default_factory=PretrainedVectorsConfig)
    optimizer: OptimizerConfig = MISSING
    scheduler: SchedulerConfig = MISSING
    label_smoothing: float = 0.0
    weight_decay_on: str = "all"
    activation_regularization: float = 0.0
    temporal_activation_regularization: float = 0.0
    coverage_loss: float = 0.0
    gradient_noise: float = 0.0
    scheduled_sampling: ScheduledSamplingConfig = field(default_factory=ScheduledSamplingConfig)
    trainer: TrainerConfig = MISSING
    callbacks: CallbacksConfig = MISSING
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    bleu_tokenizer: str = "13a"
    seed: int = 1
    initialization_seed: int = MISSING
    threads: int | None = None
    inspect: bool = False
    sweep: SweepConfig = field(default_factory=SweepConfig)
    figure: FigureConfig = field(default_factory=FigureConfig)
    ckpt_path: str | None = None
    run_folder: str = "${hydra:runtime.output_dir}"
    debug: Any = None
    experiment: Any = None


@dataclass
class RunConfig:
    """What evaluation and translation have in common: a trained run and how it decodes."""

    run: Any = None  # a path, or a list of them
    checkpoint: Any = None
    bundle: Any = None
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    batch_size: int = 64
    accelerator: str = "auto"


@dataclass
class EvaluateConfig(RunConfig):
    """A parallel text and how it is scored; ``conf/evaluate.yaml`` fills it in."""

    source: str | None = None
    target: str | None = None
    file: str | None = None
    source_column: int = 1
    target_column: int = 2
    bleu_tokenizer: str = "13a"
    output: str | None = None
    metrics: str | None = None


@dataclass
class TranslateConfig(RunConfig):
    """Lines to translate; ``conf/translate.yaml`` fills it in."""

    input: str = "-"
    output: str = "-"
    prefixes: bool = False
    format: str = "text"
    scores: bool = False
    alignments: bool = False


@dataclass
class BundleConfig:
    """A run to hand on; ``conf/bundle.yaml`` fills it in."""

    run: str | None = None
    checkpoint: str | None = None
    output: str | None = None
    graphs: bool = False


_GROUPS: dict[str, dict[str, type]] = {
    "data": {
        "phrasebook": PhrasebookConfig,
        "addition": SyntheticConfig,
        "symbols": SymbolsConfig,
        "recall": RecallConfig,
        "parallel": ParallelConfig,
        "multi30k": Multi30kConfig,
        "tatoeba": TatoebaConfig,
        "g2p": G2pConfig,
        "scan": ScanConfig,
        "torchtext": TorchtextConfig,
    },
    "optimizer": {
        "adam": AdamConfig,
        "sgd": SgdConfig,
        "adafactor": AdafactorConfig,
        "adadelta": AdadeltaConfig,
        "rmsprop": RmspropConfig,
    },
    "scheduler": {
        "constant": SchedulerConfig,
        "plateau": PlateauConfig,
        "inverse_square_root": InverseSquareRootConfig,
        "halving": HalvingConfig,
    },
}


def register() -> None:
    """Put every schema into Hydra's store; the YAML files name them in their defaults."""
    store = ConfigStore.instance()
    for name, schema in (
        ("train", TrainConfig),
        ("evaluate", EvaluateConfig),
        ("translate", TranslateConfig),
        ("bundle", BundleConfig),
    ):
        store.store(name=f"{name}_schema", node=schema)
    for group, schemas in _GROUPS.items():
        for name, node in schemas.items():
            store.store(group=f"hydra/schema/{group}", name=name, node=node)


def plain(node: Any) -> Any:
    """A config node as plain dicts and lists, every interpolation resolved."""
    return OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
