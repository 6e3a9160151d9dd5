"""Train encoder-decoder RNNs and see the gradient norm at every timestep.

Imports nothing heavy, so that `--help` and `--cfg job` answer at once.
"""

__version__ = "0.1.0"
