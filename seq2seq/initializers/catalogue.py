"""Every scheme by its name in the config."""

from collections.abc import Callable, Mapping

from torch import Tensor

from seq2seq.initializers.gate_biases import chrono, recommended_bias, uniform_gate
from seq2seq.initializers.recurrent_schemes import (
    antisymmetric,
    echo_state,
    identity,
    mean_field,
    nonnormal_chain,
    positive_definite,
    recommended_recurrent,
    rotations,
    uniform_radius,
)
from seq2seq.initializers.schemes import (
    constant,
    he_normal,
    he_uniform,
    lecun_normal,
    lecun_uniform,
    nematus,
    normal,
    orthogonal,
    pytorch,
    random_walk,
    sparse,
    truncated_normal,
    uniform,
    xavier_normal,
    xavier_uniform,
    zeros,
)

# For any block, or for square ones.
BLOCK_SCHEMES: Mapping[str, Callable[..., Tensor]] = {
    scheme.__name__: scheme
    for scheme in (
        zeros,
        constant,
        uniform,
        normal,
        truncated_normal,
        xavier_uniform,
        xavier_normal,
        lecun_uniform,
        lecun_normal,
        he_uniform,
        he_normal,
        orthogonal,
        sparse,
        random_walk,
        pytorch,
        nematus,
        identity,
        uniform_radius,
        echo_state,
        positive_definite,
        rotations,
        antisymmetric,
        nonnormal_chain,
        mean_field,
        recommended_recurrent,
    )
}
# For the bias of a whole recurrent layer, whose gates depend on each other: (gate letters, hidden
# size) -> value of each gate.
GATE_BIAS_SCHEMES: Mapping[str, Callable[..., dict[str, Tensor]]] = {
    scheme.__name__: scheme for scheme in (chrono, uniform_gate, recommended_bias)
}
SCHEMES = {**BLOCK_SCHEMES, **GATE_BIAS_SCHEMES}
# A recurrent layer adds two bias vectors. These schemes say what their sum is.
BIAS_SUM_SCHEMES = frozenset({"constant", *GATE_BIAS_SCHEMES})
