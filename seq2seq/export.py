"""Write a trained run as a bundle for sharing.

Started as ``seq2seq-bundle run=FOLDER output=FOLDER``; every argument is a Hydra override of
``conf/bundle.yaml``. What a bundle holds is said in :mod:`seq2seq.bundle`.
"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from seq2seq import user_errors
from seq2seq.config import config_folder, register


def export(config: DictConfig) -> Path:
    """Write the bundle.

    Args:
        config: composed from ``conf/bundle.yaml``, of type
            :class:`~seq2seq.config.BundleConfig`.

    Returns:
        Its folder.

    Raises:
        ValueError, FileNotFoundError: one sentence for whatever the user can mend.
    """
    from seq2seq.bundle import write_bundle
    from seq2seq.trained import find_trained

    if config.output is None:
        raise ValueError("give output=FOLDER, the folder of the bundle")
    (path,) = find_trained(run=config.run, checkpoint=config.checkpoint)
    write_bundle(path, Path(config.output), graphs=config.graphs)
    return Path(config.output)


register()


@hydra.main(version_base="1.3", config_path=config_folder(), config_name="bundle")
def _hydra_main(config: DictConfig) -> None:
    try:
        folder = export(config)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"seq2seq-translate bundle={folder}")


def main() -> None:
    """Entry of ``seq2seq-bundle``."""
    with user_errors.told():
        _hydra_main()


if __name__ == "__main__":
    main()
