"""What lattice quantizers share: blocks of coordinates, their dithers, and the way back.

A lattice of n dimensions quantizes n coordinates together, which are called a block. Block j holds
coordinates n j to n j + n - 1 of the update; the last block is filled up with zeros. Arrays with one entry
for each block have the shape [blocks], and a vector in each block is a list of n such arrays, one for each
axis.

Rejection sampling tries proposals 0, 1, 2, ... for every block. Proposal h of block j is dithered by the
shared words at counter (h, j), so a decoder looks it up at once.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.mechanisms import counter, nearest_points
from cepam_jax.mechanisms.arrays import Array
from cepam_jax.mechanisms.base import RANGE
from cepam_jax.mechanisms.lattices import Lattice

# The symbol of a coordinate that cannot be coded: NaN, infinite, beyond `base.RANGE`, or in a block of such.
INVALID = np.int32(-(2**31))


def count(n: int, d: int) -> int:
    """Number of blocks of n coordinates that d coordinates fill."""
    return -(-d // n)


def rows(x: jax.Array, n: int) -> jax.Array:
    """Cuts a vector f32[d] into blocks: f32[blocks, n]."""
    return jnp.pad(x, (0, -x.shape[0] % n)).reshape(-1, n)


def split(x: jax.Array, n: int) -> list[jax.Array]:
    """Cuts a vector f32[d] into blocks: n arrays f32[blocks], one for each axis."""
    padded = rows(x, n)
    return [padded[:, i] for i in range(n)]


def codable(axes: Sequence[jax.Array], unit: jax.Array) -> jax.Array:
    """Whether all coordinates of a block are numbers of at most `RANGE` units.

    Args:
      axes: n arrays f32[blocks].
      unit: f32[], standard deviation of the noise, or scale of the lattice.

    Returns:
      bool[blocks].
    """
    inside = [jnp.abs(axis) <= RANGE * unit for axis in axes]  # false for NaN
    return functools.reduce(jnp.logical_and, inside)


def join(axes: Sequence[jax.Array], length: int) -> jax.Array:
    """The inverse of `split`: n arrays [blocks] as one vector, cut to its first `length` entries."""
    return jnp.stack(axes, axis=1).reshape(-1)[:length]


def settled(axes: Sequence[jax.Array]) -> jax.Array:
    """n arrays [k] of one type as rows of one array [n, k] that is calculated once.

    XLA fuses what is elementwise into all that reads it, so that each of n axes that are made of n others
    would calculate these again. It does not fuse a stack into its readers, nor take it apart behind a
    barrier.
    """
    if len(axes) > 1:
        return jax.lax.optimization_barrier(jnp.stack(axes))
    # A stack of one would be none.
    (only,) = axes
    longer = jnp.concatenate([only, jnp.zeros(1, only.dtype)])
    return jax.lax.optimization_barrier(longer)[:-1].reshape(1, -1)


def in_memory(values: jax.Array) -> jax.Array:
    """One array [k], `settled`: a gather or concatenation in a loop keeps XLA from wide instructions."""
    return settled([values])[0]


def nearest(lat: Lattice, y: Sequence[jax.Array]) -> list[jax.Array]:
    """The integers of the nearest lattice point, for readers of single axes: n arrays f32[k] for those of y.

    What is chosen for a block is calculated once, and not again for each axis of the point.
    """
    if lat.choose is nearest_points.no_choice:
        return lat.nearest(list(y))
    return lat.round(list(y), in_memory(lat.choose(list(y))))


def symbols_sent(lat: Lattice, d: int, mixed: bool = False) -> int:
    """Number of symbols for d coordinates: whole blocks where an axis depends on several symbols, else d.

    It does on a skew lattice, and where coordinates are `mixed` before they are quantized.
    """
    return count(lat.dimension, d) * lat.dimension if lat.skew or mixed else d


def per_coordinate(values: Array | np.uint32, n: int, d: int) -> jax.Array:
    """Values of blocks [blocks], repeated for each of d coordinates: [d]. A scalar is returned as it is."""
    values = jnp.asarray(values)
    if values.ndim == 0 or n == 1:
        return values
    return values.at[jnp.arange(d, dtype=jnp.uint32) // np.uint32(n)].get(mode="promise_in_bounds")


def dither_samples(
    lat: Lattice,
    stream: counter.Words,
    proposal: Array | np.uint32,
    blocks: jax.Array,
    unrolled: bool = False,
) -> list[jax.Array]:
    """The dithers of a proposal, as points of the box that `Lattice.point` explains.

    Args:
      lat: lattice of n dimensions.
      stream: stream of the dithers, from `counter.stream`.
      proposal: uint32[] or uint32[k], number of the proposal (of each block).
      blocks: uint32[k], numbers of the blocks.
      unrolled: for one reader of all axes together; faster there, longer to compile, and works for numpy too.

    Returns:
      n arrays f32[k] in [-1/2, 1/2].
    """
    n = lat.dimension
    pairs = (n + 1) // 2  # calls for two words that one proposal of one block takes

    def call(number):
        return counter.words(stream, proposal * np.uint32(pairs) + number, blocks)

    if unrolled or pairs == 1:
        drawn = [call(np.uint32(number)) for number in range(pairs)]
    else:
        # A loop, which is compiled once and fused into nothing. Unrolled, every axis that is read would get
        # a generator of its own: seconds of compilation, and both words of a call drawn twice.
        drawn = list(zip(*jax.lax.map(call, jnp.arange(pairs, dtype=jnp.uint32)), strict=True))
    words = [word for pair in drawn for word in pair]
    return [counter.centered(word) for word in words[:n]]


def _box_of_coordinate(
    n: int, stream: counter.Words, proposal: Array, block: jax.Array, axis: jax.Array
) -> jax.Array:
    """The same dithers one by one: elementwise over coordinates, which XLA vectorizes.

    Args:
      n: dimension of the lattice.
      stream: stream of the dithers.
      proposal: uint32[d] or uint32[], number of the proposal for the coordinate's block.
      block: uint32[d], block of each coordinate.
      axis: uint32[d], axis of each coordinate in its block.

    Returns:
      f32[d] in [-1/2, 1/2].
    """
    pairs = np.uint32((n + 1) // 2)
    pair, second = axis >> np.uint32(1), axis & np.uint32(1)
    first, other = counter.words(stream, proposal * pairs + pair, block)
    return counter.centered(jnp.where(second == 1, other, first))


def numbers(symbols: Array) -> jax.Array:
    """Symbols int32[...] as f32[...]; NaN where a symbol is `INVALID`."""
    return jnp.where(symbols == INVALID, jnp.nan, symbols.astype(jnp.float32))


def reconstruct(
    lat: Lattice, stream: counter.Words, symbols: Array, proposal: Array | np.uint32, d: int
) -> jax.Array:
    """Lattice point plus dither of every coordinate, in units of the lattice's scale.

    Args:
      lat: lattice.
      stream: stream of the dithers, from `counter.stream`.
      symbols: int32, as sent; see `symbols_sent` for their number.
      proposal: uint32[blocks], accepted proposals, or a scalar.
      d: number of coordinates.

    Returns:
      f32[d]; NaN where a coordinate could not be coded.
    """
    n = lat.dimension
    values = numbers(symbols)
    if lat.skew:
        blocks = jnp.arange(count(n, d), dtype=jnp.uint32)
        return join(lat.point(split(values, n), dither_samples(lat, stream, proposal, blocks)), d)
    coordinate = jnp.arange(d, dtype=jnp.uint32)
    block, axis = coordinate // np.uint32(n), coordinate % np.uint32(n)
    box = _box_of_coordinate(n, stream, per_coordinate(proposal, n, d), block, axis)
    box = jnp.where(axis == 0, np.float32(lat.stretch) * box, box)
    return values * np.float32(lat.unit) + box


def integers(rounded: jax.Array, valid: jax.Array | bool = True) -> jax.Array:
    """Symbols of floats that are rounded already.

    Args:
      rounded: f32[...], whole numbers or NaN.
      valid: bool[...], false where a number must not be coded.

    Returns:
      int32[...]; `INVALID` where a number does not fit, is NaN, or is not `valid`.
    """
    fits = valid & (jnp.abs(rounded) < 2.0**31)
    return jnp.where(fits, jnp.where(fits, rounded, 0).astype(jnp.int32), INVALID)
