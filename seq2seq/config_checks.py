"""What is refused before any data is read: keys of the config that can't be, or not together.

Each is one sentence with the key, its value and the rule. What a corpus or a file must be like is
checked where it is read.
"""

from omegaconf import DictConfig, OmegaConf

from seq2seq.config import plain
from seq2seq.figures import FIGURES, SMALLER_IS_BETTER
from seq2seq.instantiate import instantiate
from seq2seq.training_options import (
    curriculum,
    gradient_noise,
    penalties,
    scheduled_sampling,
    vector_files,
)


def check_sizes(config: DictConfig) -> None:
    """Refuse a network or initializer that can't be built, before any data is read.

    Raises:
        ValueError: naming the key, its value and the rule.
    """
    import torch

    from seq2seq.data.extended_vocabulary import check_copying
    from seq2seq.data.tokenizer import PAD_ID
    from seq2seq.decoding.settings import check_decoding
    from seq2seq.initializers.calibration import calibration_from_config
    from seq2seq.initializers.rules import SHORTEST_SPREAD, assign, rules_from_config
    from seq2seq.models.encoder_decoder import encoder_decoder
    from seq2seq.unknown_words import read_dictionary

    decoding = {
        key: value for key, value in plain(config.decoding).items() if key not in ("seed", "prefix")
    }
    check_decoding(**decoding, attends=config.model.attention != "none")
    if config.model.copy_mechanism:
        check_copying(**plain(config.tokenizer))
    if config.decoding.dictionary is not None:
        read_dictionary(config.decoding.dictionary)
    if config.model.share_embeddings and not config.tokenizer.shared:
        raise ValueError(
            "model.share_embeddings=true needs one vocabulary for both sides: set "
            "tokenizer.shared=true, or model.share_embeddings=false"
        )
    with torch.device("meta"):
        model = encoder_decoder(
            source_vocabulary_size=8, target_vocabulary_size=8, pad_id=PAD_ID, **plain(config.model)
        )
    # Any length will do: how long the data is isn't known yet.
    assign(model, rules_from_config(plain(config.initializer), longest=SHORTEST_SPREAD))
    calibration_from_config(plain(config.initializer))
    penalties(config)
    if config.pretrained_vectors.freeze or vector_files(config):
        from seq2seq.pretrained import check_pretrained

        check_pretrained(
            vector_files(config),
            freeze=config.pretrained_vectors.freeze,
            model=model,
            resumed=config.ckpt_path is not None,
        )


def check_training(config: DictConfig) -> None:
    """Refuse values of the training loop that would fail late, or silently do something else.

    Raises:
        ValueError: naming the key, its value and the rule.
    """
    if config.trainer.devices != 1:
        raise ValueError(
            f"trainer.devices={config.trainer.devices} must be 1: batches are made for one device, "
            "and each of several would train on the same pairs"
        )
    for key in ("accumulate_grad_batches", "check_val_every_n_epoch", "log_every_n_steps"):
        if config.trainer[key] < 1:
            raise ValueError(f"trainer.{key}={config.trainer[key]} must be at least 1")
    _check_optimizer(config)
    gradient_noise(config)
    scheduled_sampling(config)
    if curriculum(config) is not None and config.trainer.overfit_batches:
        raise ValueError(
            f"batch.curriculum={config.batch.curriculum} needs all batches, but "
            f"trainer.overfit_batches={config.trainer.overfit_batches} repeats a few: set "
            "batch.curriculum=none"
        )
    clip = config.trainer.gradient_clip_val
    if clip is not None and not clip > 0:
        raise ValueError(
            f"trainer.gradient_clip_val={clip} must be above 0; set it to null for no clipping"
        )
    _check_validation(config)


def _check_optimizer(config: DictConfig) -> None:
    if config.weight_decay_on not in ("all", "matrices"):
        raise ValueError(
            f"weight_decay_on={config.weight_decay_on} is unknown; choose one of all, matrices"
        )
    if config.weight_decay_on != "all" and not config.optimizer.weight_decay:
        raise ValueError(
            f"weight_decay_on={config.weight_decay_on} says where weights decay, but "
            "optimizer.weight_decay is 0: set it, or weight_decay_on=all"
        )
    if config.optimizer.lr < 0:
        raise ValueError(f"optimizer.lr={config.optimizer.lr} must be at least 0")
    for key, such_as in (("betas", "[0.9,0.999]"), ("eps", "[null,0.001]")):
        pair = OmegaConf.select(config, f"optimizer.{key}")
        if OmegaConf.is_list(pair) and len(pair) != 2:
            raise ValueError(f"optimizer.{key}={list(pair)} must be two numbers, such as {such_as}")
    _check_made(config.optimizer)


def _check_made(config: DictConfig) -> None:
    import torch

    try:  # torch knows the rules of each, and says them when one is made
        instantiate(config)([torch.nn.Parameter(torch.zeros(1))])
    except ValueError as error:
        given = {key: value for key, value in plain(config).items() if not key.startswith("_")}
        values = ", ".join(f"optimizer.{key}={value}" for key, value in given.items())
        raise ValueError(f"{values} can't be: {error}") from error


def _check_validation(config: DictConfig) -> None:
    if config.trainer.limit_val_batches == 0:
        for key in ("scheduler", "callbacks.early_stopping"):
            if OmegaConf.select(config, f"{key}.monitor") is not None:
                raise ValueError(
                    f"{key}.monitor asks for validation, but trainer.limit_val_batches=0 leaves it "
                    "out: set trainer.limit_val_batches=1.0"
                )
        validations = config.callbacks.average_checkpoint.validations
        if validations is not None:
            raise ValueError(
                f"callbacks.average_checkpoint.validations={validations} averages the weights at "
                "validations, but trainer.limit_val_batches=0 leaves them out: set "
                "trainer.limit_val_batches=1.0"
            )
    logged = [f"val/{figure}" for figure in FIGURES]
    for key in ("scheduler", "callbacks.best_checkpoint", "callbacks.early_stopping"):
        monitor = OmegaConf.select(config, f"{key}.monitor")
        if monitor is None:
            continue
        if monitor not in logged:
            raise ValueError(
                f"{key}.monitor={monitor} is not logged: choose one of {', '.join(logged)}"
            )
        mode = OmegaConf.select(config, f"{key}.mode")
        better = "min" if monitor.removeprefix("val/") in SMALLER_IS_BETTER else "max"
        if mode != better:
            raise ValueError(
                f"{key}.mode={mode} would take the worst {monitor} for the best: use "
                f"{key}.mode={better}"
            )
