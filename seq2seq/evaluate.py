"""Score a trained run on a parallel text.

Started as ``seq2seq-evaluate run=FOLDER source=FILE target=FILE``; every argument is a Hydra
override of ``conf/evaluate.yaml``.
"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from seq2seq import user_errors
from seq2seq.config import config_folder, plain, register
from seq2seq.figures import Figures, table
from seq2seq.records import write_json


def evaluate(config: DictConfig) -> Figures:
    """Translate and score every pair.

    Args:
        config: composed from ``conf/evaluate.yaml``, of type
            :class:`~seq2seq.config.EvaluateConfig`.

    Returns:
        The figures by name, with sacrebleu's signatures.

    Raises:
        ValueError, FileNotFoundError: one sentence for whatever the user can mend.
    """
    from seq2seq.checkpoint import chosen_device
    from seq2seq.data.batch import EncodedSplit
    from seq2seq.data.corpus import read_pairs
    from seq2seq.data.sampler import EvaluationLoader
    from seq2seq.metrics import TranslationScores
    from seq2seq.scoring import SplitScores
    from seq2seq.trained import find_trained, load_together
    from seq2seq.translator import Translator

    for key in ("output", "metrics"):
        if config[key] is not None and not Path(config[key]).absolute().parent.is_dir():
            raise FileNotFoundError(f"{key}={config[key]}: there is no such folder")
    pairs = read_pairs(
        *_files(config), source_column=config.source_column, target_column=config.target_column
    )
    # Lists may be among them.
    given = {key: plain(config)[key] for key in ("run", "checkpoint", "bundle")}
    paths = find_trained(**given)
    device = chosen_device(config.accelerator)
    trained = load_together(paths)
    trained.model.to(device)
    translator = Translator(**trained._asdict(), **plain(config.decoding))
    split = EncodedSplit.encode(
        pairs,
        trained.source_tokenizer,
        trained.target_tokenizer,
        copies=trained.model.copies,
    )
    scores = SplitScores(bleu_tokenizer=config.bleu_tokenizer, device=device)
    for batch in EvaluationLoader(split, config.batch_size):
        scores.add(batch.to(device), pairs, translator)
    if config.output is not None:
        lines = (pair.translation + "\n" for pair in scores.translated())
        Path(config.output).write_text("".join(lines), encoding="utf-8")
    signatures = TranslationScores(bleu_tokenizer=config.bleu_tokenizer).signatures()
    figures: Figures = {
        **scores.figures(),
        "pairs": len(pairs),
        "bleu_signature": signatures["bleu"],
        "chrf_signature": signatures["chrf"],
        "checkpoint": ", ".join(map(str, paths)),
    }
    if config.metrics is not None:
        write_json(Path(config.metrics), figures)
    return figures


def _files(config: DictConfig) -> list[Path]:
    if config.file is not None and config.source is None and config.target is None:
        return [Path(config.file)]
    if config.file is None and config.source is not None and config.target is not None:
        return [Path(config.source), Path(config.target)]
    raise ValueError("give either source=FILE and target=FILE, or file=FILE with both sides")


register()


@hydra.main(version_base="1.3", config_path=config_folder(), config_name="evaluate")
def _hydra_main(config: DictConfig) -> None:
    try:
        figures = evaluate(config)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(table(figures))


def main() -> None:
    """Entry of ``seq2seq-evaluate``."""
    with user_errors.told():
        _hydra_main()


if __name__ == "__main__":
    main()
