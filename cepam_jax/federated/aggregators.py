"""How the server weighs decoded updates.

An aggregator is a weight per client; the round adds up weight * update chunk by chunk and
divides by the sum of the weights, so no more than a chunk of updates exists at a time.
"""

import jax.numpy as jnp


def mean(counts):
    """Every participant counts the same: weights f32[clients]."""
    return jnp.ones(counts.shape, jnp.float32)


def by_examples(counts):
    """A participant counts by its number of examples (FedAvg, 1602.05629).

    The weights reveal data-set sizes, which no guarantee of a mechanism covers.
    """
    return counts.astype(jnp.float32)


AGGREGATORS = {"mean": mean, "examples": by_examples}
