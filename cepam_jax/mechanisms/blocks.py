"""What lattice quantizers share: blocks of coordinates, their dithers, and the way back.

Block j holds coordinates n j to n j + n - 1; the last block is filled up with zeros. Proposal h of
block j is dithered by the shared words at counter (h, j), so a decoder looks it up at once.
"""

import functools

import jax.numpy as jnp
import numpy as np

from cepam_jax.mechanisms import acceptance, code_length, counter, rejection
from cepam_jax.mechanisms.base import RANGE
from cepam_jax.mechanisms.lattices import Lattice
from cepam_jax.mechanisms.lattices import acceptance as acceptance_probability

# Stands for a coordinate that cannot be coded: NaN, infinite, beyond `base.RANGE`, or in a block of such.
INVALID = np.int32(-(2**31))
LISTED_BITS = 64  # such a symbol is listed in a message: four bytes say where, four what


def count(n: int, d: int) -> int:
    """Blocks of n that d coordinates fill."""
    return -(-d // n)


def split(x, n: int) -> list:
    """f32[d] -> n arrays f32[blocks], one for each axis."""
    blocks = count(n, x.shape[0])
    padded = jnp.pad(x, (0, blocks * n - x.shape[0])).reshape(blocks, n)
    return [padded[:, i] for i in range(n)]


def codable(axes: list, unit):
    """bool[blocks]: whether all coordinates of a block are numbers of at most `RANGE` units.

    Args:
      axes: n arrays f32[blocks].
      unit: f32[], standard deviation of the noise, or scale of the lattice.
    """
    inside = [jnp.abs(axis) <= RANGE * unit for axis in axes]  # false for NaN
    return functools.reduce(jnp.logical_and, inside)


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


_LOG_2 = np.float32(np.log(2))


def code_bits(center, width, scale, family: str, weight):
    """Ideal bits of symbols whose axes are independent: Z^n without rejection.

    Args:
      center: f32[d], lattice point plus dither in units of the lattice's scale; NaN if not coded but listed.
      width: scale of the lattice, per coordinate or one.
      scale: f32[d], scale of the coordinates.
      family: law of the coordinates.
      weight: f32[d] or None.
    """
    nats = code_length.cell_nats(width * center, width, scale, family)
    if weight is not None:
        nats = jnp.where(weight > 0, nats, 0)
    return jnp.sum(jnp.where(jnp.isnan(center), LISTED_BITS * _LOG_2, nats)) / _LOG_2


def block_bits(lat: Lattice, layer: str, stream, message, width, scale, family: str, weight):
    """Ideal bits of symbols and index together, as `acceptance` predicts them.

    For every proposal up to the accepted one: was it accepted? Then: at the point that zero would have taken?
    If not, the deviation from that point is coded axis by axis.

    Args:
      lat: lattice.
      layer: of `acceptance.LAYERS`.
      stream: of the dithers.
      message: Message with symbols, and with an index unless the layer is the cell.
      width: scale of the lattice, f32[blocks] or one.
      scale: f32[d], scale of the coordinates.
      family: law of the coordinates.
      weight: f32[d] or None.
    """
    d, n = message.length, lat.dimension
    if d == 0:
        return jnp.float32(0)
    ids = jnp.arange(count(n, d), dtype=jnp.uint32)
    width = jnp.broadcast_to(width, ids.shape)
    scales = jnp.pad(scale, (0, -d % n), mode="edge").reshape(-1, n).T / width
    deviation = scales[0] * np.float32(code_length.DEVIATION[family])
    predict = functools.partial(acceptance.predict, lat, layer, acceptance.table_of(family))

    def zero_at(proposal, ids):
        """What zero would do: integers of its point, its error, the two probabilities."""
        box = lat.point([jnp.zeros(ids.shape, jnp.float32)] * n, boxes(lat, stream, proposal, ids))
        integers = lat.nearest([-v for v in box])
        error = lat.point(integers, [jnp.float32(0)] * n)
        return integers, [p + v for p, v in zip(error, box, strict=True)]

    def rejected_cost(proposal, ids, deviation):
        _, error = zero_at(proposal, ids)
        same, other = predict(acceptance.norm(error, layer), deviation)
        return -jnp.log2(jnp.maximum(1 - same - other, acceptance.LEAST))

    if message.index is None:
        index, bits = np.uint32(0), jnp.zeros(ids.shape, jnp.float32)
    else:
        index = jnp.asarray(message.index)
        p = acceptance_probability(lat, layer)
        bits = rejection.sum_over_rejected(rejected_cost, ids, deviation, index, p)
    integers, error = zero_at(index, ids)
    same, other = predict(acceptance.norm(error, layer), deviation)
    padded = (
        jnp.pad(jnp.asarray(message.symbols), (0, len(ids) * n - message.symbols.shape[0])).reshape(-1, n).T
    )
    sent = jnp.pad(jnp.ones(message.symbols.shape, bool), (0, len(ids) * n - message.symbols.shape[0]))
    sent = sent.reshape(-1, n).T
    listed = (sent & (padded == INVALID)).any(0)
    nats, stays, before, at_zero = 0.0, 1.0, {}, True
    for axis in lat.order:
        # Deviations in int32: f32 would lose the parity of large ones; the sums of few small ones are exact.
        k = jnp.where(sent[axis], padded[axis] - integers[axis].astype(jnp.int32), 0).astype(jnp.float32)
        spacing = np.float32(lat.spacing[axis])
        first, start = lat.residue(axis, error[axis], before)
        center = start + spacing * jnp.round((k - first) / lat.modulus[axis])
        cost = code_length.cell_nats(center, spacing, scales[axis], family)
        nats += jnp.where(sent[axis], cost, 0.0)
        nearest = code_length.cell_nats(error[axis], spacing, scales[axis], family)
        stays *= jnp.where(sent[axis], jnp.exp(-nearest), 1.0)
        at_zero &= k == 0
        before[axis] = k
    elsewhere = -jnp.log2(jnp.maximum(other, acceptance.LEAST)) + nats / _LOG_2
    elsewhere += jnp.log2(jnp.maximum(1 - stays, acceptance.LEAST))
    # A block that is listed is written as if zero had been sent.
    at_zero |= listed
    bits += jnp.where(at_zero, -jnp.log2(jnp.maximum(same, acceptance.LEAST)), jnp.maximum(elsewhere, 0.0))
    if weight is not None:
        bits *= jnp.pad(weight > 0, (0, -d % n)).reshape(-1, n).any(1)
    return jnp.sum(bits + jnp.where(listed, LISTED_BITS * sent.sum(0, dtype=jnp.float32), 0.0))


def integers(rounded, valid=True):
    """int32 of already rounded floats; INVALID where they do not fit, are NaN, or are not `valid`."""
    fits = valid & (jnp.abs(rounded) < 2.0**31)
    return jnp.where(fits, jnp.where(fits, rounded, 0).astype(jnp.int32), INVALID)
