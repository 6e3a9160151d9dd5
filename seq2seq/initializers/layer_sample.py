"""One recurrent layer beside what it is given on one batch, to be run and measured again and again.

What is tried on it, and what a measurement should come to, is left to the methods of calibration.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from seq2seq.diagnostics.forward_signal import gate_values
from seq2seq.diagnostics.gradient_flow import (
    Call,
    RecordedScan,
    layer_flow,
    recorded_scan,
)
from seq2seq.diagnostics.gradient_profile import gradient_profiles
from seq2seq.diagnostics.layer_report import attenuation_over
from seq2seq.diagnostics.step_adjoint import cell_like
from seq2seq.initializers.blocks import KEEP_GATES
from seq2seq.models.recurrent import RecurrentLayer, RecurrentState

_MIN_EXAMPLES = 8


class LayerSample:
    """A layer, its inputs and first state on one batch, as they were when it was recorded.

    The inputs stay as they are while weights are tried. A decoder with input feeding would change
    them a little with every trial, since its output is part of them.

    Args:
        name: of the layer.
        layer: the layer, modified in place by whoever tries something.
        calls: one recorded pass of the network through it: one call, or one call a timestep.
        lengths: number of real timesteps of each example, int64 ``[batch]``.
        longest: timesteps that have to be bridged: the 95th percentile of the data's lengths.
        fixed: what must stay as it is: rule by parameter and gate, as in ``("weight_hh", "h")``.

    Raises:
        FloatingPointError: if an input is not finite.
    """

    def __init__(
        self,
        *,
        name: str,
        layer: RecurrentLayer,
        calls: list[Call],
        lengths: Tensor,
        longest: int,
        fixed: Mapping[tuple[str, str], str] | None = None,
    ) -> None:
        self.name = name
        self.layer = layer
        self.longest = longest
        self.fixed = fixed or {}
        self._lengths = lengths
        self._inputs = torch.cat([call.inputs for call in calls], dim=1)
        if not bool(self._inputs.isfinite().all()):
            raise FloatingPointError(f"what goes into {name} is not finite")
        first = calls[0]
        self._state: RecurrentState | None = None
        if first.hidden is not None:
            cell = None if first.cell is None else first.cell.unsqueeze(0)
            self._state = RecurrentState(first.hidden.unsqueeze(0), cell)

    @property
    def lengths(self) -> Tensor:
        """Number of real timesteps of each example, int64 ``[batch]``."""
        return self._lengths

    @property
    def gates(self) -> str:
        """The cell's gates, one letter each, in the order of the rows."""
        return self.layer.gates

    @property
    def keep_gate(self) -> str | None:
        """The letter of the gate that remembers, None in a plain RNN."""
        return next((gate for gate in self.gates if gate in KEEP_GATES), None)

    def parameter(self, name: str) -> nn.Parameter:
        """``weight_ih``, ``weight_hh``, ``bias_ih`` or ``bias_hh``."""
        return self.layer.rnn.get_parameter(f"{name}_l0")

    def block(self, name: str, gate: str) -> Tensor:
        """The rows of one gate of a parameter: to be read, or written in place."""
        blocks = self.parameter(name).detach().chunk(len(self.gates))
        return blocks[self.gates.index(gate)]

    def driven(self, gate: str) -> Tensor:
        """What inputs and biases alone give a gate, at real timesteps, ``[timesteps, units]``.

        In float64.
        """
        inputs = self._inputs[self.real.T].double()
        if (equations := self.layer.equations) is not None:
            driven = cell_like(equations, inputs).drive(inputs)
            return driven.chunk(len(self.gates), dim=1)[self.gates.index(gate)] + self.block(
                "bias_hh", gate
            )
        bias = (self.block("bias_ih", gate) + self.block("bias_hh", gate)).double()
        return inputs @ self.block("weight_ih", gate).double().T + bias

    def attenuation(self) -> float:
        """Logarithm of what is left of the transport over ``longest`` timesteps.

        Raises:
            FloatingPointError: if the layer overflows.
        """
        call = self._run()
        flow = layer_flow(self.layer, [call], lengths=self._lengths)
        norms = {"transport": flow.norms()["transport"]}
        (profile,) = gradient_profiles(
            0, self.name, norms, flow.lengths, min_examples=_MIN_EXAMPLES
        )
        return attenuation_over(profile, self.longest)

    def leak(self) -> float:
        """What the gate that remembers alone lets through over ``longest`` timesteps, as logarithm.

        ``T mean(ln f)`` over real timesteps and units; in the GRU of ``z``.

        Raises:
            FloatingPointError: if the layer overflows.
        """
        keep = self.keep_gate
        assert keep is not None
        scan = self.scan()
        values = gate_values(self.layer, scan)[keep][self.real]
        smallest = torch.finfo(values.dtype).tiny
        return self.longest * float(values.clamp_min(smallest).log().mean())

    def scan(self) -> RecordedScan:
        """One pass through the layer with its present weights, in the order of its own scan."""
        return recorded_scan(self.layer, [self._run()])

    @property
    def real(self) -> Tensor:
        """Bool ``[time, batch]``, True where a timestep of the scan is real."""
        steps = torch.arange(self._inputs.size(1), device=self._lengths.device)
        return steps.unsqueeze(1) < self._lengths

    @torch.no_grad()
    def _run(self) -> Call:
        result = self.layer(self._inputs, self._lengths, self._state)
        if not bool(result.output.isfinite().all()):
            raise FloatingPointError(f"the recurrent layer {self.name} overflows on the batch")
        state = self._state
        return Call(
            inputs=self._inputs,
            lengths=self._lengths,
            hidden=None if state is None else state.hidden[0],
            cell=None if state is None or state.cell is None else state.cell[0],
            outputs=result.output,
            precision=result.output.dtype,
        )
