"""Finds and loads what a user wants to translate with: runs, checkpoints or bundles.

What each of them holds is said in `checkpoint.py` and `bundle.py`.
"""

from collections.abc import Sequence
from pathlib import Path

from seq2seq.bundle import SETTINGS, read_bundle
from seq2seq.checkpoint import Trained, find_checkpoint, load_trained
from seq2seq.models.encoder_decoder import EncoderDecoder
from seq2seq.models.ensemble import Ensemble


def find_trained(
    *,
    run: str | list[str] | None = None,
    checkpoint: str | list[str] | None = None,
    bundle: str | list[str] | None = None,
) -> list[Path]:
    """The checkpoint files, or folders of bundles, that the user means: one, or an ensemble's.

    Args:
        run: folder of a training run, or several; see :func:`find_checkpoint`.
        checkpoint: a file, or several, instead.
        bundle: a bundle's folder, or several, instead.

    Raises:
        ValueError: unless just one of the three is given, or if a list is empty.
        FileNotFoundError: if there is no such folder, or no checkpoint in it.
    """
    given = {"run": run, "checkpoint": checkpoint, "bundle": bundle}
    chosen = [(key, value) for key, value in given.items() if value is not None]
    if len(chosen) != 1:
        raise ValueError(
            "give either run=FOLDER of a training run or checkpoint=FILE or bundle=FOLDER; "
            "several, as an ensemble, as run=[FOLDER,FOLDER]"
        )
    key, value = chosen[0]
    several = value if isinstance(value, list) else [value]
    if not several or not all(isinstance(one, str) and one for one in several):
        raise ValueError(f"{key}={value} must be a path or a list of paths")
    for one in several:
        if key == "bundle" and not (Path(one) / SETTINGS).is_file():
            raise FileNotFoundError(f"bundle={one} is not the folder of a bundle: no {SETTINGS}")
    return [find_checkpoint(one) if key == "run" else Path(one) for one in several]


def load_together(paths: Sequence[Path]) -> Trained:
    """Rebuild one network, or an ensemble of several, from checkpoints and bundles.

    Raises:
        FileNotFoundError, ValueError: see :func:`~seq2seq.checkpoint.load_trained`
            and :func:`~seq2seq.bundle.read_bundle`; also if their vocabularies differ.
    """
    first, *others = members = [
        read_bundle(path) if (path / SETTINGS).is_file() else load_trained(path) for path in paths
    ]
    for path, other in zip(paths[1:], others, strict=True):
        for side in ("source_tokenizer", "target_tokenizer"):
            if getattr(first, side).state() != getattr(other, side).state():
                raise ValueError(
                    f"{paths[0]} and {path} can't translate together: their "
                    f"{side.replace('_', ' ')}s differ; train them on the same data with the same "
                    "tokenizer"
                )
    networks = [one.model for one in members if isinstance(one.model, EncoderDecoder)]
    return first._replace(model=Ensemble(networks).eval()) if others else first
