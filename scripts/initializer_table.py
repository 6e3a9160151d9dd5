"""Measures what the schemes and presets of docs/initializers.md draw, as its two tables.

    .venv/bin/python scripts/initializer_table.py

One draw each, of one layer with 256 inputs and 256 hidden units, seed 0.
"""

import inspect
import math
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Generator, Tensor, nn

from seq2seq.config import config_folder
from seq2seq.diagnostics.spectrum import gate_blocks, largest_singular_value, spectral_radius
from seq2seq.initializers.blocks import KEEP_GATES, Block
from seq2seq.initializers.catalogue import BLOCK_SCHEMES
from seq2seq.initializers.rules import initialize, rules_from_config
from seq2seq.models.recurrent import gates_of

SIZE = 256
# What a scheme needs and has no default for.
NEEDED = {"scale": 0.08, "spectral_radius": 1.0, "longest": 50.0, "value": 0.0}
CELLS = (nn.LSTM, nn.GRU, nn.RNN)
FOLDER = Path(config_folder()) / "initializer"


def preset(name: str) -> DictConfig:
    """A preset with the one that it builds on."""
    config = OmegaConf.load(FOLDER / f"{name}.yaml")
    assert isinstance(config, DictConfig)
    bases = [preset(base) for base in config.pop("defaults", []) if base != "_self_"]
    merged = OmegaConf.merge(*bases, config)
    assert isinstance(merged, DictConfig)
    return merged


def scheme_rows() -> list[str]:
    """Spectral radius, largest singular value, gain (root mean square of singular values)."""
    rows = [
        "| scheme | spectral radius | largest singular value | gain |",
        "| --- | --- | --- | --- |",
    ]
    block = Block((SIZE, SIZE), SIZE, SIZE, "recurrent", "f")
    for name, scheme in sorted(BLOCK_SCHEMES.items()):
        taken = inspect.signature(scheme).parameters
        arguments = {
            argument: value
            for argument, value in NEEDED.items()
            if argument in taken and taken[argument].default is inspect.Parameter.empty
        }
        drawn = scheme(block, generator=Generator().manual_seed(0), **arguments)
        given = f"({', '.join(f'{key}={value:g}' for key, value in arguments.items())})"
        rows.append(
            f"| `{name}`{given if arguments else ''} | {spectral_radius(drawn):.2f} | "
            f"{largest_singular_value(drawn):.2f} | {float(drawn.norm()) / math.sqrt(SIZE):.2f} |"
        )
    return rows


def preset_rows() -> list[str]:
    """For each cell the mean spectral radius of its gates, and the keep gate: 10, 50, 90 %."""
    rows = [
        "| preset | LSTM: radius | forget gate | GRU: radius | update gate | RNN: radius |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted(FOLDER.glob("*.yaml")):
        config = OmegaConf.to_container(preset(path.stem))
        assert isinstance(config, dict)
        rules = rules_from_config(
            {str(key): value for key, value in config.items()}, longest=NEEDED["longest"]
        )
        cells = []
        for cell in CELLS:
            rnn = cell(SIZE, SIZE)
            initialize(rnn, rules, seed=0, pad_id=0)
            gates = gates_of(rnn)
            blocks = gate_blocks(rnn.weight_hh_l0.detach(), gates)
            radii = [spectral_radius(block) for block in blocks.values()]
            cells.append(f"{sum(radii) / len(radii):.2f}")
            keep = gate_blocks((rnn.bias_ih_l0 + rnn.bias_hh_l0).detach(), gates)
            cells += [quantiles(keep[gate].sigmoid()) for gate in gates if gate in KEEP_GATES]
        rows.append(f"| `{path.stem}` | {' | '.join(cells)} |")
    return rows


def quantiles(values: Tensor) -> str:
    """One number if all are alike."""
    low, middle, high = (f"{float(values.quantile(q)):.2f}" for q in (0.1, 0.5, 0.9))
    return middle if low == high else f"{low} {middle} {high}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("\n".join([*scheme_rows(), "", *preset_rows()]))
