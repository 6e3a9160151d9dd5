"""Everything that is measured of a recurrent layer before training, gathered from one batch.

The measurements themselves are in the files beside this one; what they mean is left to `verdict`,
tables and pictures to whoever shows them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from seq2seq.diagnostics.adjoint import linearize
from seq2seq.diagnostics.forward_signal import ForwardSignal, forward_signal
from seq2seq.diagnostics.gradient_flow import (
    GradientRecorder,
    RecordedScan,
    layer_flow,
    recorded_scan,
)
from seq2seq.diagnostics.gradient_profile import GradientProfile, gradient_profiles
from seq2seq.diagnostics.linearization import Zoneout
from seq2seq.diagnostics.lyapunov import lyapunov_exponents, memory_dimension
from seq2seq.diagnostics.spectrum import GateSpectrum, gate_spectra
from seq2seq.models.recurrent import RecurrentLayer, recurrent_map

# By the largest width they are for: examples and directions that are followed. More directions than
# any task here has to remember; of wide layers, where each costs with the square of the width,
# twice as many as a verdict asks for.
_FOLLOWED = {256: (4, 128), 512: (2, 128), math.inf: (1, 32)}
_MIN_EXAMPLES = 8


@dataclass(frozen=True)
class DataLengths:
    """How long the sequences of one side are in the training split, ``<eos>`` included.

    Args:
        side: ``sources`` or ``targets``.
        median: half of them are at most so long.
        long: 95 of 100 are at most so long.
    """

    side: str
    median: int
    long: int

    @classmethod
    def of(cls, side: str, lengths: Tensor) -> "DataLengths":
        """From the lengths of a whole split, int64 ``[pairs]``."""
        ordered = lengths.sort().values
        median, long = (int(ordered[math.ceil(share * len(ordered)) - 1]) for share in (0.5, 0.95))
        return cls(side, median, long)


@dataclass(frozen=True)
class LayerReport:
    """One recurrent layer on one batch.

    Args:
        layer: its name.
        cell: one of :data:`~seq2seq.models.recurrent.CELLS`.
        hidden_size: units.
        directions: size of the state: of ``h``, with a cell state of ``h`` and ``c``.
        lengths: of the sequences that it scans.
        spectra: of each gate's block of the recurrent matrix.
        signal: of the forward pass.
        gradient: profiles of the total derivatives of each example's own loss: ``hidden``, and
            ``cell`` where there is a cell state.
        transport: what is left of a random unit vector without any loss.
        exponents: leading Lyapunov exponents, averaged over a few examples.
    """

    layer: str
    cell: str
    hidden_size: int
    directions: int
    lengths: DataLengths
    spectra: dict[str, GateSpectrum]
    signal: ForwardSignal
    gradient: dict[str, GradientProfile]
    transport: GradientProfile
    exponents: tuple[float, ...]

    @property
    def attenuation(self) -> float:
        """``ln n(T - 1) - ln n(0)`` of the transport, ``T`` the 95th percentile of the lengths."""
        return attenuation_over(self.transport, self.lengths.long)

    @property
    def slope(self) -> float:
        """Change of the transport's logarithm per step; over a few steps the mean change."""
        slope = self.transport.slope
        return slope if math.isfinite(slope) else self.attenuation / max(1, self.lengths.long - 1)

    @property
    def half_life(self) -> float:
        """Steps in which the transport halves; negative if it grows: minus the steps to double."""
        return math.log(2) / -self.slope if self.slope else math.inf

    @property
    def vanilla(self) -> bool:
        """Whether it is a plain RNN, without a gate that remembers."""
        return self.cell.startswith("rnn")

    def all_kept(self, count: int) -> bool:
        """Whether ``count`` is all the directions that were followed, and not all there are."""
        return count == len(self.exponents) < self.directions

    def memory_dimension(self, length: int) -> int:
        """Directions still there after so many steps, at most as many as were followed."""
        return memory_dimension(self.exponents, length)


def attenuation_over(profile: GradientProfile, length: int) -> float:
    """Natural logarithm of what is left after ``length`` timesteps, that is ``length - 1`` steps.

    Where the batch has no example that long, the profile's slope goes on from its end.
    """
    logarithms = [math.log(10) * value for value in profile.log10() if not math.isnan(value)]
    steps = max(0, length - 1)
    known = min(steps, len(logarithms) - 1)
    if known < 0:
        return math.nan
    beyond = 0.0 if known == steps else (steps - known) * profile.slope
    return logarithms[known] - logarithms[0] + beyond


def report_layers(
    layers: Mapping[str, RecurrentLayer],
    loss: Callable[[], Tensor],
    *,
    real: Mapping[str, Tensor],
    data: Mapping[str, DataLengths],
) -> list[LayerReport]:
    """Measure every layer during one forward and backward pass; gradients of weights stay unset.

    Args:
        layers: by name, ``encoder/...`` or ``decoder/...``.
        loss: runs the network and returns the loss, summed over examples.
        real: number of real timesteps of each example, int64 ``[batch]``, and
        data: lengths in the training split, both under ``encoder`` and ``decoder``.

    Raises:
        FloatingPointError: if the network overflows on this batch.
    """
    rows = torch.arange(len(real["encoder"]))
    with GradientRecorder(layers, rows=rows) as recorder:
        total = loss()
    if not bool(total.isfinite()):
        raise FloatingPointError("the loss of the first batch is not finite")
    total.backward()  # type: ignore[no-untyped-call]
    reports = []
    for name, layer in layers.items():
        part = name.partition("/")[0]
        calls, lengths = recorder.calls[name], real[part]
        flow = layer_flow(layer, calls, lengths=lengths)
        profiles = {
            profile.quantity: profile
            for profile in gradient_profiles(
                0, name, flow.norms(), flow.lengths, min_examples=_MIN_EXAMPLES
            )
        }
        scan = recorded_scan(layer, calls)
        reports.append(
            LayerReport(
                layer=name,
                cell=layer.cell,
                hidden_size=layer.hidden_size,
                directions=flow.linearization.state_size,
                lengths=data[part],
                spectra=gate_spectra(recurrent_map(layer.rnn), layer.gates),
                signal=forward_signal(layer, scan, lengths=lengths),
                transport=profiles.pop("transport"),
                gradient=profiles,
                exponents=_exponents(layer, scan, lengths),
            )
        )
    return reports


def transport_profiles(
    layers: Mapping[str, RecurrentLayer],
    forward: Callable[[], object],
    *,
    real: Mapping[str, Tensor],
) -> dict[str, GradientProfile]:
    """The transport of every layer alone, which needs no loss and no backward pass."""
    rows = torch.arange(len(real["encoder"]))
    with GradientRecorder(layers, rows=rows) as recorder:
        forward()
    found = {}
    for name, layer in layers.items():
        lengths = real[name.partition("/")[0]]
        flow = layer_flow(layer, recorder.calls[name], lengths=lengths)
        norms = {"transport": flow.norms()["transport"]}
        (found[name],) = gradient_profiles(0, name, norms, flow.lengths, min_examples=_MIN_EXAMPLES)
    return found


def _exponents(layer: RecurrentLayer, scan: RecordedScan, lengths: Tensor) -> tuple[float, ...]:
    """Exponents along the longest examples, cut to the shortest of these."""
    examples, most = next(both for width, both in _FOLLOWED.items() if layer.hidden_size <= width)
    longest = lengths.argsort(descending=True, stable=True)[:examples]
    time = int(lengths[longest].min())
    linearization = linearize(
        layer,
        scan.inputs[:time, longest],
        scan.previous_hidden[:time, longest],
        None if scan.initial_cell is None else scan.initial_cell[longest],
        scan.recurrent_mask,
        None if scan.zoneout is None else Zoneout(*(kept[:time, longest] for kept in scan.zoneout)),
    )
    count = min(layer.hidden_size, most)
    mean = lyapunov_exponents(linearization, count=count, orthonormal_every=4).mean(0)
    return tuple(mean.tolist())
