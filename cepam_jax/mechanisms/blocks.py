"""What lattice quantizers share: blocks of coordinates, their dithers, and the way back.

Block j holds coordinates n j to n j + n - 1; the last block is filled up with zeros. Proposal h of
block j is dithered by the shared words at counter (h, j), so a decoder looks it up at once.
"""

import jax.numpy as jnp
import numpy as np

from cepam_jax.errors import require
from cepam_jax.mechanisms import code_length, counter
from cepam_jax.mechanisms.lattices import Lattice

# Stands for a coordinate that cannot be coded: NaN, infinite, or 2^31 cells away from zero.
INVALID = np.int32(-(2**31))


def count(n: int, d: int) -> int:
    """Blocks of n that d coordinates fill."""
    return -(-d // n)


def split(x, n: int) -> list:
    """f32[d] -> n arrays f32[blocks], one for each axis."""
    blocks = count(n, x.shape[0])
    padded = jnp.pad(x, (0, blocks * n - x.shape[0])).reshape(blocks, n)
    return [padded[:, i] for i in range(n)]


def join(axes: list, length: int):
    """The inverse of `split`, cut to `length`."""
    return jnp.stack(axes, axis=1).reshape(-1)[:length]


def symbols_sent(lat: Lattice, d: int) -> int:
    """Symbols for d coordinates: whole blocks where an axis depends on several symbols."""
    return count(lat.dimension, d) * lat.dimension if lat.skew else d


def per_coordinate(values, n: int, d: int):
    """Values of blocks (or a scalar), repeated for each of d coordinates."""
    values = jnp.asarray(values)
    if values.ndim == 0 or n == 1:
        return values
    return values.at[jnp.arange(d, dtype=jnp.uint32) // np.uint32(n)].get(mode="promise_in_bounds")


def boxes(lat: Lattice, stream, proposal, blocks) -> list:
    """The dithers of a proposal, n arrays like `blocks` in [-1/2, 1/2] (see `Lattice.point`)."""
    n = lat.dimension
    pairs = (n + 1) // 2  # calls for two words that one proposal of one block takes
    found = []
    for pair in range(pairs):
        found += counter.words(stream, proposal * np.uint32(pairs) + np.uint32(pair), blocks)
    return [counter.centered(word) for word in found[:n]]


def _box_of_coordinate(n, stream, proposal, block, axis):
    """The same dithers one by one: elementwise over coordinates, which XLA vectorizes."""
    pairs = np.uint32((n + 1) // 2)
    pair, second = axis >> np.uint32(1), axis & np.uint32(1)
    first, other = counter.words(stream, proposal * pairs + pair, block)
    return counter.centered(jnp.where(second == 1, other, first))


def place(lat: Lattice, stream, symbols, proposal, d: int):
    """Lattice point plus dither of every coordinate, in units of the scale.

    Args:
      lat: lattice.
      stream: of the dithers.
      symbols: int32, as sent.
      proposal: uint32[blocks], accepted proposals, or a scalar.
      d: coordinates.

    Returns:
      f32[d]; NaN where a coordinate could not be coded.
    """
    n = lat.dimension
    values = jnp.where(symbols == INVALID, jnp.nan, symbols.astype(jnp.float32))
    if lat.skew:
        blocks = jnp.arange(count(n, d), dtype=jnp.uint32)
        return join(lat.point(split(values, n), boxes(lat, stream, proposal, blocks)), d)
    coordinate = jnp.arange(d, dtype=jnp.uint32)
    block, axis = coordinate // np.uint32(n), coordinate % np.uint32(n)
    box = _box_of_coordinate(n, stream, per_coordinate(proposal, n, d), block, axis)
    box = jnp.where(axis == 0, np.float32(lat.stretch) * box, box)
    return values * np.float32(lat.unit) + box


def code_bits(lat: Lattice, center, width, side, lengths, family, weight):
    """Ideal bits of all symbols and of the segments' scales.

    Each axis is coded by itself, as a cell of the lattice's volume (`code_length`).

    Args:
      center: f32[d], lattice point plus dither in units of the scale.
      width: scale of the lattice, per coordinate or one.
      side: int32[segments], the segments' scales.
      lengths: of the segments.
      family: law of the coordinates.
      weight: f32[d] or None.
    """
    scale = code_length.scale_per_coordinate(side, lengths)
    across = width * np.float32(lat.volume ** (1 / lat.dimension))
    nats = code_length.cell_nats(width * center, across, scale, family)
    total = jnp.sum(nats if weight is None else jnp.where(weight > 0, weight * nats, 0))
    return total / np.float32(np.log(2)) + np.float32(code_length.SCALE_BITS * len(lengths))


def segments_of(segments: tuple[int, ...] | None, d: int) -> tuple[int, ...]:
    """The non-empty segments of an update of d coordinates; ConfigError unless they fill it."""
    segments = (d,) if segments is None else segments
    require(sum(segments) == d, "segments", segments, f"lengths with sum {d}, the length of x")
    return tuple(n for n in segments if n)


def integers(rounded):
    """int32 of already rounded floats; INVALID where they do not fit or are NaN."""
    fits = jnp.abs(rounded) < 2.0**31
    return jnp.where(fits, jnp.where(fits, rounded, 0).astype(jnp.int32), INVALID)
