"""Dropout that costs a third: the draws of `flax.linen.Dropout`, made in the loop that uses them.

`jax.random` draws the words of a mask in five loops over memory on CPUs, and the gradient needs the mask
once more. Here the same words are a formula inside the loop (`mechanisms.counter`), and behind a ReLU the
gradient reads from the result what was kept: where it is positive.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.mechanisms import counter

_BLOCK = 2**14  # elements for which words are drawn at a time
_BITS = 23  # of a uniform number's fraction, as `jax.random.uniform` draws it


def _kept(words, numbers, share: float):
    """bool[...], each true with probability `share`: elements `numbers` of a mask from a key's two words."""
    first, second = counter.threefry2x32((words[0], words[1]), (jnp.uint32(0), numbers))
    # fraction / 2**23 < share, in integers
    below = np.uint32(math.ceil(float(np.float32(share)) * 2**_BITS))
    return (first ^ second) >> np.uint32(32 - _BITS) < below


def dropped(x, key, share: float, activation: Callable | None = None):
    """where(m, activation(x) / share, 0) with the mask m = jax.random.bernoulli(key, share, x.shape).

    The words are those that JAX draws where `jax_threefry_partitionable` is on, whatever that is.

    Args:
      x: f32[...].
      key: one PRNG key; one of another kind than Threefry, or 2**32 elements and more, are left to JAX.
      share: of the values that stay, above 0 and below 1.
      activation: element by element; None: nothing.
    """
    activation = activation or (lambda x: x)
    words = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    if words.shape != (2,) or x.size >= 2**32:
        return jnp.where(jax.random.bernoulli(key, share, x.shape), activation(x) / share, 0.0)
    # A loop of its own, over some rows at a time: merged with the loops before and behind, the words would be
    # made in each of them, and one by one where there are branches. Rows stay whole: cut elsewhere, the loop
    # before, which adds a bias to each row, would go through single elements.
    width = x.shape[-1]
    rows = x.size // width
    block = min(max(_BLOCK // width, 1), -(-rows // 2))
    blocks = -(-rows // block)
    within = jnp.arange(block * width, dtype=jnp.uint32).reshape(block, width)

    def part(inputs):
        start, values = inputs
        return jnp.where(_kept(words, start + within, share), activation(values) / share, 0.0)

    starts = jnp.arange(blocks, dtype=jnp.uint32) * np.uint32(block * width)
    parts = jnp.pad(x.reshape(rows, width), ((0, blocks * block - rows), (0, 0)))
    found = jax.lax.map(part, (starts, parts.reshape(blocks, block, width)))
    return found.reshape(-1, width)[:rows].reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rectified(x, key, share):
    return dropped(x, key, share, nn.relu)


def _rectified_forward(x, key, share):
    y = _rectified(x, key, share)
    return y, y


def _rectified_backward(share, y, change):
    return jnp.where(y > 0, change / share, 0.0), None


_rectified.defvjp(_rectified_forward, _rectified_backward)


class Dropout(nn.Module):
    """An activation, then `flax.linen.Dropout` with its draws and, up to rounding, its results.

    Attributes:
      rate: with which values become zero; at least 0, below 1.
      deterministic: whether none does.
      activation: before; None: nothing.
    """

    rate: float
    deterministic: bool
    activation: Callable | None = None

    @nn.compact
    def __call__(self, x):
        if self.deterministic or not self.rate:
            return x if self.activation is None else self.activation(x)
        key, share = self.make_rng("dropout"), 1.0 - self.rate
        if self.activation is nn.relu:
            return _rectified(x, key, share)
        return dropped(x, key, share, self.activation)
