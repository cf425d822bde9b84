"""Rules that look at one coordinate of all updates at a time.

Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates,
arXiv 1803.01498.
"""

import jax
import jax.numpy as jnp

from cepam_jax.federated.aggregation.network import in_order

_TINY = 1e-30  # what a divisor is at least
_EVEN = 1e-6  # of a sum of weights: what still counts as exactly a half


def trimmed_mean(updates, tolerated: int, preference=None, taken=None) -> jax.Array:
    """f32[d], the mean of each coordinate without its f largest and its f smallest values.

    Args:
      updates: f32[n, d].
      tolerated: f.
      preference: f32[n], weights of that mean; None: equal ones.
      taken: bool[n]; the others are left out. None: all are taken.
    """
    n = len(updates)
    if preference is None and taken is None:
        return in_order(updates)[tolerated : n - tolerated].mean(0)
    values, weights, count = _ordered(updates, preference, taken)
    trimmed = jnp.minimum(tolerated, jnp.maximum(count - 1, 0) // 2)
    place = jnp.arange(n)[:, None]
    kept = (place >= trimmed) & (place < count - trimmed)
    total = jnp.where(kept, values * weights, 0.0).sum(0)
    return total / jnp.maximum(jnp.where(kept, weights, 0.0).sum(0), _TINY)


def coordinate_median(updates, preference=None, taken=None) -> jax.Array:
    """f32[d], each coordinate's median; of an even number the mean of the middle two. NaN counts as largest.

    Args:
      updates: f32[n, d].
      preference: f32[n], weights: then the value below and above which at most half of the weight lies; the
        mean of two where a half lies exactly between them.
      taken: bool[n]; the others are left out. None: all are taken.
    """
    n = len(updates)
    if preference is None and taken is None:
        values = in_order(updates)
        return (values[(n - 1) // 2] + values[n // 2]) / 2
    values, weights, _ = _ordered(updates, preference, taken)
    below = jnp.cumsum(weights, axis=0)
    below = below / jnp.maximum(below[-1], _TINY)
    low, high = jnp.argmax(below >= 0.5 - _EVEN, axis=0), jnp.argmax(below > 0.5 + _EVEN, axis=0)
    first, second = (jnp.take_along_axis(values, at[None], axis=0)[0] for at in (low, high))
    return jnp.where(weights.sum(0) > 0, (first + second) / 2, 0.0)


def _ordered(updates, preference, taken):
    """(values f32[n, d] in order, their weights, how many are taken); what is not comes last, of weight 0."""
    n = len(updates)
    taken = jnp.ones(n, bool) if taken is None else taken
    if preference is None:  # all that are taken weigh the same, and they come first
        weights = (jnp.arange(n) < taken.sum()).astype(jnp.float32)
        weights = jnp.broadcast_to(weights[:, None], updates.shape)
        return in_order(updates, taken=taken), weights, taken.sum()
    weights = jnp.broadcast_to((taken * preference)[:, None], updates.shape)
    values, weights = in_order(updates, weights.astype(jnp.float32), taken)
    return values, weights, taken.sum()
