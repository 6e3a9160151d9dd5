"""Encoder and decoder step of a trained network as graphs, for programs without this package.

Anything that has torch reads them with `torch.export.load`: the encoder maps sources to the state
before the first target token, the decoder step one more token of every row and that state to the
log-probabilities of the next token and the state after. Which tokens follow is the caller's choice.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from seq2seq.models.encoder_decoder import EncoderDecoder

ENCODER, DECODER_STEP = "encoder.pt2", "decoder_step.pt2"

# Batches of which no size is the same: what changes between the last two is batch or time. A graph
# is made with the last; the first is the smallest there is, which torch likes to take for fixed.
_SIZES = ((1, 2), (2, 3), (3, 5))


class Graph(NamedTuple):
    """A graph and what goes in and comes out, in order.

    Args:
        program: what `torch.export` made.
        inputs, outputs: of each tensor its name, type and shape, whose sizes are numbers, ``batch``
            or ``source_time``.
    """

    program: ExportedProgram
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]


class _Encoder(nn.Module):
    """From sources and their lengths to the tensors of the state, one after the other."""

    def __init__(self, model: EncoderDecoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, source: Tensor, source_lengths: Tensor) -> tuple[Tensor, ...]:
        return tuple(_tensors(self.model.start(source, source_lengths)).values())


class _DecoderStep(nn.Module):
    """From tokens and the tensors of a state to log-probabilities, alignment and state after."""

    def __init__(self, model: EncoderDecoder, pattern: Any) -> None:
        super().__init__()
        self.model = model
        self.pattern = pattern

    def forward(self, tokens: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        before = _like(self.pattern, iter(state))
        log_probabilities, after, alignment = self.model.step(tokens, before)
        answers = [log_probabilities] if alignment is None else [log_probabilities, alignment]
        # An output that is an input must not be the same tensor.
        unchanged = {id(tensor) for tensor in state}
        values = _tensors(after).values()
        return (*answers, *(one.clone() if id(one) in unchanged else one for one in values))


def write_graphs(graphs: dict[str, Graph], folder: Path) -> dict[str, Any]:
    """Write each graph to the file of its name.

    Returns:
        What a program must know of each: its inputs and outputs.
    """
    for name, graph in graphs.items():
        torch.export.save(graph.program, folder / name)
    return {
        name: {"inputs": graph.inputs, "outputs": graph.outputs} for name, graph in graphs.items()
    }


@torch.no_grad()
def export_graphs(model: EncoderDecoder) -> dict[str, Graph]:
    """Both graphs, for any number of sources of any lengths from 2 tokens on.

    The state is handed over as tensors, named by their place in
    :class:`~seq2seq.models.encoder_decoder.DecodingState`; the step returns them in the order in
    which it takes them, after the log-probabilities and, with attention, the alignment.

    Args:
        model: in evaluation mode, on the CPU; its weights need no gradient from then on.

    Returns:
        The graphs by the names of their files, :data:`ENCODER` and :data:`DECODER_STEP`.

    Raises:
        ValueError: if the network copies, torch can't export it, or its graph answers otherwise.
    """
    if model.copies:
        raise ValueError(
            "graphs=true, but this network copies words of the source, and which they are is known "
            "to its tokenizers alone: write the bundle with graphs=false"
        )
    model.requires_grad_(False)
    pattern = None
    sources, states, steps = [], [], []
    for batch, time in _SIZES:
        source = torch.ones(batch, time, dtype=torch.int64)
        lengths = torch.arange(time, time - batch, -1)  # but one end in padding
        sources.append({"source": source, "source_lengths": lengths})
        pattern = model.start(source, lengths)
        states.append(_tensors(pattern))
        tokens = torch.ones(batch, dtype=torch.int64)
        log_probabilities, after, alignment = model.step(tokens, pattern)
        answers = {"log_probabilities": log_probabilities}
        if alignment is not None:
            answers["alignment"] = alignment
        steps.append(({"tokens": tokens, **states[-1]}, {**answers, **_tensors(after)}))
    return {
        ENCODER: _graph(_Encoder(model), sources, states),
        DECODER_STEP: _graph(
            _DecoderStep(model, pattern), [one for one, _ in steps], [one for _, one in steps]
        ),
    }


def _graph(
    module: nn.Module, inputs: Sequence[dict[str, Tensor]], outputs: Sequence[dict[str, Tensor]]
) -> Graph:
    given, answered = _described(*inputs[-2:]), _described(*outputs[-2:])
    dims = {"batch": Dim("batch"), "source_time": Dim("source_time", min=2)}
    dynamic = tuple(
        {axis: dims[size] for axis, size in enumerate(one["shape"]) if isinstance(size, str)}
        for one in given
    )
    shapes: Any = dynamic
    if isinstance(module, _DecoderStep):
        shapes = (dynamic[0], dynamic[1:])  # the state is one argument with a star
    example = tuple(inputs[-1].values())
    try:
        program = torch.export.export(module.eval(), example, dynamic_shapes=shapes)
    except Exception as error:  # of many kinds, most of them torch's own
        raise _refused(_first_line(error)) from error
    _leave_out_unused_weights(program)
    _check(program, inputs, outputs)
    return Graph(program, given, answered)


def _check(
    program: ExportedProgram,
    inputs: Sequence[dict[str, Tensor]],
    outputs: Sequence[dict[str, Tensor]],
) -> None:
    """Compare the graph with the network, on batches of other sizes than it was made with too."""
    run = program.module()
    for given, expected in zip(inputs, outputs, strict=True):
        try:
            found = run(*given.values())
            torch.testing.assert_close(dict(zip(expected, found, strict=True)), expected)
        except (AssertionError, RuntimeError) as error:
            raise _refused(f"on another batch it fails: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _refused(reason: str) -> ValueError:
    return ValueError(
        f"graphs=true, but torch.export can't make a graph of this network ({reason}): write the "
        "bundle with graphs=false"
    )


def _leave_out_unused_weights(program: ExportedProgram) -> None:
    """Each graph was made of the whole network and reads about half of it."""
    unused = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
    unused = {name: node for name, node in unused.items() if not node.users}
    for spec in list(program.graph_signature.input_specs):
        if spec.kind == InputKind.PARAMETER and spec.arg.name in unused:
            program.graph.erase_node(unused[spec.arg.name])
            program.graph_signature.input_specs.remove(spec)
            program.state_dict.pop(str(spec.target), None)
    program.graph_module.recompile()


def _described(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Name, type and shape, in which sizes that differ are called by their name."""
    names = dict(zip(zip(*_SIZES[-2:], strict=True), ("batch", "source_time"), strict=True))
    described = []
    for name, one in first.items():
        shape = []
        for pair in zip(one.shape, second[name].shape, strict=True):
            if pair[0] != pair[1] and pair not in names:
                raise _refused(f"{name} has a size that is neither batch nor source_time")
            shape.append(pair[0] if pair[0] == pair[1] else names[pair])
        dtype = str(one.dtype).removeprefix("torch.")
        described.append({"name": name, "type": dtype, "shape": shape})
    return described


def _tensors(state: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors in nested named tuples, by their dotted names; None is left out."""
    if state is None:
        return {}
    if isinstance(state, Tensor):
        return {name: state}
    found: dict[str, Tensor] = {}
    for field in state._fields:
        found |= _tensors(getattr(state, field), f"{name}.{field}" if name else field)
    return found


def _like(pattern: Any, tensors: Iterator[Tensor]) -> Any:
    """The same nested named tuples with other tensors in them."""
    if pattern is None:
        return None
    if isinstance(pattern, Tensor):
        return next(tensors)
    return type(pattern)(*(_like(one, tensors) for one in pattern))
