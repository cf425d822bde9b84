"""A rotation of the whole update that all participants of a round share, without padding.

Random signs and a Walsh-Hadamard transform of the first 2^k coordinates, then the same with other signs of
the last 2^k, where 2^k is the largest power of two that is at most d: every coordinate is in one of the two.
Both are orthogonal, so norms and sums are kept. Each coordinate of the result is a sum of signs times numbers
whose squares add up to at most |x|^2 / 2^k, so it is sub-Gaussian:

  P(|y_i| > t) <= 2 exp(-t^2 2^k / (2 |x|^2))      2^k > d / 2

The last transform decides for the coordinates that both contain, given the first; the others are those of the
first. Padding to a power of two, as `transforms.rotate` does it, would send up to twice as many integers.
Source of the rotation: Suresh, Yu, Kumar, McMahan: Distributed Mean Estimation with Limited Communication,
arXiv 1611.00429.
"""

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.mechanisms import counter
from cepam_jax.mechanisms.transforms import walsh_hadamard

_TAGS = (9, 10)  # of the streams of signs; part of the message format


def width(d: int) -> int:
    """2^k, the largest power of two that is at most d; 1 for an empty update."""
    return 1 << max(d.bit_length() - 1, 0)


def _signs(key: jax.Array, tag: int, length: int) -> jax.Array:
    """f32[length] of random signs, from a key of the round."""
    word, _ = counter.words(counter.stream(key, tag), 0, jnp.arange(length, dtype=jnp.uint32))
    return jnp.where(word >> np.uint32(31) == 1, np.float32(-1), np.float32(1))


def rotate(key: jax.Array, x: jax.Array) -> jax.Array:
    """x f32[d], rotated: f32[d]."""
    x, d, n = jnp.asarray(x), x.shape[0], width(x.shape[0])
    if d < 2:
        return x
    y = x.at[:n].set(walsh_hadamard(x[:n] * _signs(key, _TAGS[0], n)))
    if d == n:
        return y
    return y.at[d - n :].set(walsh_hadamard(y[d - n :] * _signs(key, _TAGS[1], n)))


def rotate_back(key: jax.Array, y: jax.Array) -> jax.Array:
    """The update f32[d] whose rotation is y f32[d]."""
    y, d, n = jnp.asarray(y), y.shape[0], width(y.shape[0])
    if d < 2:
        return y
    if d > n:
        y = y.at[d - n :].set(walsh_hadamard(y[d - n :]) * _signs(key, _TAGS[1], n))
    return y.at[:n].set(walsh_hadamard(y[:n]) * _signs(key, _TAGS[0], n))
