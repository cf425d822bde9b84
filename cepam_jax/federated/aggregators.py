"""How the server weighs decoded updates.

An aggregator gives a weight to each client, or to each tensor of each client; the round adds up
weight * update chunk by chunk and divides by the sum of the weights, so no more than a chunk of
updates exists at a time.

What a rule means for privacy is part of it. A rule that states nothing has no guarantee: neither an
adversary's view of the model nor the bound on one client's influence follows from the other parts of a run.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

_SMALLEST_ERROR = 1e-20  # of a tensor that was sent without error


class Aggregator(NamedTuple):
    """A rule for weights.

    Attributes:
      weigh: (examples of the client f32[], mean squared error of each of its tensors f32[tensors]) ->
        f32[] or f32[tensors].
      per_tensor: whether weights differ from tensor to tensor.
      public_weights: for a weighted sum of decoded updates whose weights everybody may know: numbers of
        examples int[clients] -> f64[clients], the weights up to a common factor. None for other rules.
      post_processing: whether the result follows from decoded updates and public facts alone, for a rule that
        is no such sum. Weights that follow from errors do not: an error is a function of the update itself.
      refused: why nothing can be guaranteed, for a rule that states neither.
    """

    weigh: Callable
    per_tensor: bool = False
    public_weights: Callable | None = None
    post_processing: bool = False
    refused: str = ""


AGGREGATORS = {
    # Every participant counts the same.
    "mean": Aggregator(
        lambda examples, errors: jnp.float32(1), public_weights=lambda counts: np.ones(len(counts))
    ),
    # By number of examples (FedAvg, 1602.05629). Reveals data-set sizes, which no mechanism covers.
    "examples": Aggregator(
        lambda examples, errors: examples, public_weights=lambda counts: np.asarray(counts, np.float64)
    ),
    # By inverse quantization error, tensor by tensor (2405.13365): clients send their errors, which
    # depend on their data, instead of their data-set sizes.
    "inverse_error": Aggregator(
        lambda examples, errors: 1 / (errors + _SMALLEST_ERROR),
        per_tensor=True,
        refused="weights by inverse error are functions of the noise itself, and the errors are sent without "
        "noise: a small error tells that the decoded update is the update",
    ),
}
