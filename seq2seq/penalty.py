"""What is added to the loss for something that the network does, read while it runs.

The network itself knows nothing of it, and validation has none of it. Each penalty has a file of
its own.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from seq2seq.models.encoder_decoder import EncoderDecoder


class Watched(Protocol):
    """One forward pass that was watched."""

    def penalty(self, *, source_lengths: Tensor, target_lengths: Tensor) -> Tensor:
        """What is added to the mean loss per target token of the batch, a scalar.

        Shape:
            source_lengths, target_lengths: int64 ``[batch]``, real timesteps.
        """
        ...


class Penalty(Protocol):
    """Something that is added to the loss in training, logged as ``train/`` and its name."""

    name: str

    def watching(self, model: EncoderDecoder) -> AbstractContextManager[Watched]:
        """Watch one forward pass."""
        ...


@contextmanager
def kept_outputs(
    modules: Mapping[str, nn.Module], read: Callable[[Any], Tensor], *, option: str
) -> Iterator[dict[str, list[Tensor]]]:
    """What modules give during one forward pass, by name: of one call, or of one a timestep.

    Args:
        modules: by name.
        read: takes the tensor from what a module returned.
        option: the config key that asks for it, for the message.

    Raises:
        RuntimeError: on leaving, if one was hidden, as in a compiled network.
    """
    kept: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, arguments: Any, result: Any) -> None:
            if not torch.compiler.is_compiling():
                kept.setdefault(name, []).append(read(result))

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
    if len(kept) < len(handles):
        raise RuntimeError(
            f"{option} reads what parts of the network give, but this network is compiled and "
            f"hides it: set {option} to 0, or don't compile"
        )
