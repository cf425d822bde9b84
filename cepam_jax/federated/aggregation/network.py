"""Values of many coordinates in order, over few updates: a sorting network in place of a sort.

XLA sorts along an axis one column at a time by comparisons that branch. A network compares whole rows with
each other, always the same ones, so that each of its (log2 m)(1 + log2 m) / 2 steps is one vectorised minimum
and maximum, m being the next power of two of n rows. Batcher: Sorting Networks and Their Applications, AFIPS
1968 (the bitonic sorter).
"""

import jax
import jax.numpy as jnp
import numpy as np

_LAST = np.iinfo(np.int32).max  # in the order of `_keys` after everything, also after NaN


def in_order(values, companion=None, taken=None):
    """Rows of values f32[n, c], each column in order; NaN comes last.

    Args:
      values: f32[n, c].
      companion: f32[n, c] that is moved along, or None. Among equal values its order is not said.
      taken: bool[n]; rows that are not come after all that are, also after NaN, and are NaN then. None: all.

    Returns:
      f32[n, c], or (f32[n, c], f32[n, c]) with a companion.
    """
    n, keys = len(values), _keys(values)
    size = 1 << (n - 1).bit_length()
    fill = ((0, size - n), (0, 0))
    keys = keys if taken is None else jnp.where(taken[:, None], keys, _LAST)
    keys = jnp.pad(keys, fill, constant_values=_LAST)
    moved = [] if companion is None else [jnp.pad(companion, fill)]
    length = 2
    while length <= size:
        keys, moved = _merged(keys, moved, length, mirrored=True)
        half = length // 2
        while half >= 2:
            keys, moved = _merged(keys, moved, half, mirrored=False)
            half //= 2
        length *= 2
    ordered = _values(keys[:n])
    return ordered if companion is None else (ordered, moved[0][:n])


def _merged(keys, moved, length: int, mirrored: bool):
    """Compares the halves of each `length` rows; mirrored: the first row with the last."""

    def halves(rows):
        blocks = rows.reshape(len(rows) // length, 2, length // 2, rows.shape[1])
        return blocks[:, 0], blocks[:, 1, ::-1] if mirrored else blocks[:, 1]

    def whole(first, second, like):
        return jnp.stack([first, second[:, ::-1] if mirrored else second], 1).reshape(like.shape)

    low, high = halves(keys)
    new = whole(jnp.minimum(low, high), jnp.maximum(low, high), keys)
    swap = low > high
    out = []
    for rows in moved:
        a, b = halves(rows)
        out.append(whole(jnp.where(swap, b, a), jnp.where(swap, a, b), rows))
    return new, out


def _keys(values):
    """int32, whose order is that of f32 values: negative numbers have their bits turned; NaN is largest."""
    values = jnp.where(jnp.isnan(values), jnp.float32(jnp.nan), values)
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.int32)
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)


def _values(keys):
    """f32 of `_keys`."""
    return jax.lax.bitcast_convert_type(jnp.where(keys < 0, keys ^ jnp.int32(0x7FFFFFFF), keys), jnp.float32)
