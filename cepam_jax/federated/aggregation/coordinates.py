"""Rules that look at one coordinate of all updates at a time.

Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates,
arXiv 1803.01498.
"""

import jax
import jax.numpy as jnp


def trimmed_mean(updates, tolerated: int, preference=None) -> jax.Array:
    """f32[d], the mean of each coordinate without its f largest and its f smallest values.

    Args:
      updates: f32[n, d].
      tolerated: f.
      preference: f32[n], weights of that mean; None: equal ones.
    """
    n = len(updates)
    if preference is None:
        return jnp.sort(updates, axis=0)[tolerated : n - tolerated].mean(0)
    values, weights = _ordered(updates, preference)
    values, weights = values[tolerated : n - tolerated], weights[tolerated : n - tolerated]
    return (values * weights).sum(0) / weights.sum(0)


def coordinate_median(updates, preference=None) -> jax.Array:
    """f32[d], each coordinate's median; of an even number the mean of the middle two. NaN counts as largest.

    Args:
      updates: f32[n, d].
      preference: f32[n], weights: then the value below and above which at most half of the weight lies; the
        mean of two where a half lies exactly between them.
    """
    if preference is None:
        n = len(updates)
        values = jnp.sort(updates, axis=0)
        return (values[(n - 1) // 2] + values[n // 2]) / 2
    values, weights = _ordered(updates, preference)
    below = jnp.cumsum(weights, axis=0) / weights.sum(0)
    half = jnp.float32(0.5)
    low = jnp.argmax(below >= half - 1e-6, axis=0)
    high = jnp.argmax(below > half + 1e-6, axis=0)
    first, second = (jnp.take_along_axis(values, at[None], axis=0)[0] for at in (low, high))
    return (first + second) / 2


def _ordered(updates, preference):
    """(values, weights) f32[n, d] in the order of the values, coordinate by coordinate."""
    spread = jnp.broadcast_to(preference[:, None], updates.shape)
    return jax.lax.sort((updates, spread), dimension=0, num_keys=1)
