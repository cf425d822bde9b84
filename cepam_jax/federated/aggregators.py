"""How the server weighs decoded updates.

An aggregator gives a weight to each client, or to each tensor of each client; the round adds up
weight * update chunk by chunk and divides by the sum of the weights, so no more than a chunk of
updates exists at a time.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

_SMALLEST_ERROR = 1e-20  # of a tensor that was sent without error


class Aggregator(NamedTuple):
    """A rule for weights.

    Attributes:
      weigh: (examples of the client f32[], mean squared error of each of its tensors f32[tensors]) ->
        f32[] or f32[tensors].
      per_tensor: whether weights differ from tensor to tensor.
    """

    weigh: Callable
    per_tensor: bool = False


AGGREGATORS = {
    # Every participant counts the same.
    "mean": Aggregator(lambda examples, errors: jnp.float32(1)),
    # By number of examples (FedAvg, 1602.05629). Reveals data-set sizes, which no mechanism covers.
    "examples": Aggregator(lambda examples, errors: examples),
    # By inverse quantization error, tensor by tensor (2405.13365): clients send their errors, which
    # depend on their data, instead of their data-set sizes.
    "inverse_error": Aggregator(lambda examples, errors: 1 / (errors + _SMALLEST_ERROR), per_tensor=True),
}
