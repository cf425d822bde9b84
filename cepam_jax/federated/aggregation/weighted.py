"""Weighted means of decoded updates: rules that stream."""

import jax.numpy as jnp
import numpy as np

from cepam_jax.federated.aggregation.base import AGGREGATORS, Aggregator

_SMALLEST_ERROR = 1e-20  # of a tensor that was sent without error


def mean() -> Aggregator:
    """Every participant counts the same."""
    return Aggregator(
        lambda examples, errors: jnp.float32(1), public_weights=lambda counts: np.ones(len(counts))
    )


def examples() -> Aggregator:
    """By number of examples (McMahan and others: FedAvg, arXiv 1602.05629). Reveals data-set sizes."""
    return Aggregator(
        lambda examples, errors: examples,
        public_weights=lambda counts: np.asarray(counts, np.float64),
        exposes=("numbers of examples, which are the weights of the aggregation (assumed to be public)",),
    )


def inverse_error() -> Aggregator:
    """By inverse quantization error, tensor by tensor (arXiv 2405.13365).

    Clients send their errors, which depend on their data, instead of their data-set sizes.
    """
    return Aggregator(
        lambda examples, errors: 1 / (errors + _SMALLEST_ERROR),
        per_tensor=True,
        refused="weights by inverse error are functions of the noise itself, and the errors are sent without "
        "noise: a small error tells that the decoded update is the update",
        exposes=("weights by inverse error, computed from the updates without noise",),
    )


for _rule in (mean, examples, inverse_error):
    AGGREGATORS.register(_rule.__name__, _rule())
