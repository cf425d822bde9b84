"""How the server combines decoded updates. See `base` for the contract."""

from cepam_jax.federated.aggregation.base import (
    AGGREGATORS,
    Aggregator,
    Facts,
    Public,
    Published,
)
from cepam_jax.federated.aggregation.checks import check, check_weights
from cepam_jax.federated.aggregation.guarded import guarded, of_config
from cepam_jax.federated.aggregation.median import median
from cepam_jax.federated.aggregation.precise import precision
from cepam_jax.federated.aggregation.robust import RULES, Options, robust
from cepam_jax.federated.aggregation.weighted import examples, inverse_error, mean

__all__ = [
    "AGGREGATORS",
    "RULES",
    "Aggregator",
    "Facts",
    "Options",
    "Public",
    "Published",
    "check",
    "check_weights",
    "examples",
    "guarded",
    "inverse_error",
    "mean",
    "median",
    "of_config",
    "precision",
    "robust",
]
