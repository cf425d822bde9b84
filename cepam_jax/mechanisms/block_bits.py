"""Ideal code length of the symbols of a lattice quantizer, block by block.

On Z^n without rejection every coordinate can be coded alone: `code_bits`. Otherwise the symbols of a block
and the index of its accepted proposal depend on each other, and `block_bits` counts them as `wire.symbols`
writes them. For every proposal up to the accepted one: was it accepted? Then: is the symbol the lattice point
that an update of zero would have got? If not, the deviation from that point is coded axis by axis.

`wire.symbols` computes the same probabilities once more, in float64 on the host: an entropy coder needs the
same numbers on every machine, which compiled float32 arithmetic does not give. Both use the
functions that take arrays of either library, in `acceptance`, `lattices`, `latents` and `counter`.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.mechanisms import acceptance, blocks, code_length, counter, laws, rejection
from cepam_jax.mechanisms.arrays import Array
from cepam_jax.mechanisms.base import Message
from cepam_jax.mechanisms.lattices import Lattice
from cepam_jax.mechanisms.lattices import acceptance as acceptance_probability

# A symbol that cannot be coded is listed in a message: four bytes say where it is, four what it is.
LISTED_BITS = 64
# Of `tensor_bits`: how many tensors are counted alone, and how long they are at least.
_APART, _LARGE = 8, 2048
# With more axes than these, on D4 and E8, what all axes share is calculated before them, and their law is
# compiled once: fused into each axis both would be there eight times on E8, in the program and in its time.
_MANY_AXES = 3
_LOG_2 = np.float32(np.log(2))


def code_bits(
    center: jax.Array,
    width: jax.Array,
    scale: jax.Array,
    family: str | tuple[jax.Array, jax.Array, jax.Array],
    weight: jax.Array | None,
) -> jax.Array:
    """Ideal bits of symbols whose axes are independent: Z^n without rejection.

    Args:
      center: f32[d], lattice point plus dither in units of the lattice's scale; NaN if not coded but listed.
      width: scale of the lattice, f32[d] or f32[].
      scale: f32[d], scale of the coordinates.
      family: law of the coordinates, one of `code_length.FAMILIES`, or those of `laws.parameters`.
      weight: f32[d], 0 where a coordinate is not sent; None: all are.

    Returns:
      f32[], bits of all coordinates together.
    """
    if isinstance(family, str):
        nats = code_length.cell_nats(width * center, width, scale, family)
    else:
        nats = laws.cell_nats(width * center, width, scale, family)
    if weight is not None:
        nats = jnp.where(weight > 0, nats, 0)
    return jnp.sum(jnp.where(jnp.isnan(center), LISTED_BITS * _LOG_2, nats)) / _LOG_2


def tensor_bits(
    center: jax.Array,
    width: jax.Array,
    lengths: Sequence[int],
    scale: jax.Array,
    family: str | jax.Array,
    weight: jax.Array | None,
) -> jax.Array:
    """`code_bits` with what tensors have in common said once for each of them.

    A loop over coordinates is compiled into wide instructions where their scale is one number, and not where
    it is chosen by the coordinate's place. So the largest tensors are counted one by one. The others lie one
    after another with their scales written out in memory; there may be hundreds of them.

    Args:
      center: f32[d], as for `code_bits`.
      width: scale of the lattice, f32[d] or f32[].
      lengths: of the tensors, summing to d.
      scale: int32[tensors], in eighths of an octave.
      family: law of all coordinates, one of `code_length.FAMILIES`, or int32[tensors], places in `laws.LAWS`.
      weight: f32[d], 0 where a coordinate is not sent; None: all are.

    Returns:
      f32[], bits of all coordinates together.
    """
    starts = np.cumsum([0, *lengths])
    large = sorted(range(len(lengths)), key=lambda i: -lengths[i])[:_APART]
    alone = [i for i in large if lengths[i] >= _LARGE]
    others = [i for i in range(len(lengths)) if i not in alone]

    def of(values, tensors):
        if values is None or not jnp.ndim(values):
            return values
        return jnp.concatenate([values[:0], *(values[starts[i] : starts[i + 1]] for i in tensors)])

    def counted(tensors, scale, family):
        return code_bits(of(center, tensors), of(width, tensors), scale, family, of(weight, tensors))

    each = code_length.scale_of(scale)
    total = jnp.float32(0)
    for i in alone:
        of_one = family if isinstance(family, str) else tuple(jnp.asarray(laws.PARTS)[family[i]])
        total += counted([i], each[i], of_one)
    if others:
        places, some = np.array(others), tuple(lengths[i] for i in others)
        parts: Any = family
        if not isinstance(family, str):
            parts = tuple(map(blocks.in_memory, laws.parameters(family[places], some)))
        spread = blocks.in_memory(code_length.scale_per_coordinate(scale[places], some))
        total += counted(others, spread, parts)
    return total


class _Setting(NamedTuple):
    """What the code lengths of all blocks have in common.

    Attributes:
      lat: the lattice.
      layer: one of `acceptance.LAYERS`.
      stream: stream of the dithers, from `counter.stream`.
      family: law of the coordinates, one of `code_length.FAMILIES`.
    """

    lat: Lattice
    layer: str
    stream: counter.Words
    family: str


def block_bits(
    lat: Lattice,
    layer: str,
    stream: counter.Words,
    message: Message,
    width: jax.Array,
    scale: jax.Array,
    family: str,
    weight: jax.Array | None,
) -> jax.Array:
    """Ideal bits of symbols and index together, as `acceptance` predicts them.

    Args:
      lat: lattice of n dimensions.
      layer: one of `acceptance.LAYERS`.
      stream: stream of the dithers, from `counter.stream`.
      message: Message with symbols, and with an index unless the layer is the cell.
      width: scale of the lattice, f32[blocks] or f32[].
      scale: f32[d], scale of the coordinates.
      family: law of the coordinates, one of `code_length.FAMILIES`.
      weight: f32[d], 0 where a coordinate is not sent; None: all are.

    Returns:
      f32[], bits of all blocks together.
    """
    d, n = message.length, lat.dimension
    if d == 0:
        return jnp.float32(0)
    setting = _Setting(lat, layer, stream, family)
    ids = jnp.arange(blocks.count(n, d), dtype=jnp.uint32)
    width = jnp.broadcast_to(width, ids.shape)
    scales = jnp.pad(scale, (0, -d % n), mode="edge").reshape(-1, n).T / width
    deviation = scales[0] * np.float32(code_length.DEVIATION[family])
    index: Array | np.uint32
    if message.index is None:
        index, bits = np.uint32(0), jnp.zeros(ids.shape, jnp.float32)
    else:
        index = jnp.asarray(message.index)
        bits = rejection.sum_over_rejected(
            functools.partial(_rejected_cost, setting),
            ids,
            deviation,
            index,
            acceptance_probability(lat, layer),
        )
    integers, error = zero_at(lat, stream, index, ids, apart=True)
    same, other = _predict(setting, error, deviation)
    symbols, sent = _rows(jnp.asarray(message.symbols), len(ids), n)
    listed = (sent & (symbols == blocks.INVALID)).any(0)
    nats, stays, at_zero = _deviation_nats(setting, symbols, sent, integers, error, scales)
    elsewhere = -jnp.log2(jnp.maximum(other, acceptance.LEAST)) + nats / _LOG_2
    elsewhere += jnp.log2(jnp.maximum(1 - stays, acceptance.LEAST))
    # A block that is listed is written as if zero had been sent.
    at_zero |= listed
    bits += jnp.where(at_zero, -jnp.log2(jnp.maximum(same, acceptance.LEAST)), jnp.maximum(elsewhere, 0.0))
    if weight is not None:
        bits *= blocks.rows(weight > 0, n).any(1)
    return jnp.sum(bits + jnp.where(listed, LISTED_BITS * sent.sum(0, dtype=jnp.float32), 0.0))


def zero_at(
    lat: Lattice, stream: counter.Words, proposal: Array | np.uint32, ids: jax.Array, apart: bool = False
) -> tuple[list[jax.Array], list[jax.Array]]:
    """What a proposal would do to blocks of zeros.

    Args:
      lat: lattice of n dimensions.
      stream: stream of the dithers, from `counter.stream`.
      proposal: uint32[] or uint32[k], number of the proposal.
      ids: uint32[k], numbers of the blocks.
      apart: whether each axis goes into arrays of its own; then what they share is calculated before them.
        Where all go into one sum, as in `cell_bits`, that only takes time.

    Returns:
      The integers that name the nearest lattice point, and the error of zero in units of the lattice's scale:
      n arrays f32[k] each.
    """
    origin = [jnp.zeros(ids.shape, jnp.float32)] * lat.dimension
    dither = lat.point(origin, blocks.dither_samples(lat, stream, proposal, ids))
    if lat.dimension > _MANY_AXES and apart:
        dither = list(blocks.settled(dither))
        integers = list(blocks.settled(blocks.nearest(lat, [-v for v in dither])))
    else:
        integers = lat.nearest([-v for v in dither])
    point = lat.point(integers, [jnp.float32(0)] * lat.dimension)
    return integers, [p + v for p, v in zip(point, dither, strict=True)]


def _predict(setting: _Setting, error: list[jax.Array], deviation: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`acceptance.predict` for the error that zero would suffer, n arrays f32[k]: two arrays f32[k]."""
    lat, layer = setting.lat, setting.layer
    table = acceptance.table_of(setting.family)
    return acceptance.predict(lat, layer, table, acceptance.norm(error, layer), deviation)


def _rejected_cost(setting: _Setting, proposal: jax.Array, ids: jax.Array, deviation: jax.Array) -> jax.Array:
    """f32[k], bits that say that a proposal was rejected, for the blocks `ids` uint32[k]."""
    _, error = zero_at(setting.lat, setting.stream, proposal, ids)
    same, other = _predict(setting, error, deviation)
    return -jnp.log2(jnp.maximum(1 - same - other, acceptance.LEAST))


def _rows(symbols: jax.Array, count: int, n: int) -> tuple[jax.Array, jax.Array]:
    """Symbols int32[length] by axis: int32[n, count], and bool[n, count], which of them exist."""
    missing = count * n - symbols.shape[0]
    rows = jnp.pad(symbols, (0, missing)).reshape(-1, n).T
    exists = jnp.pad(jnp.ones(symbols.shape, bool), (0, missing))
    return rows, exists.reshape(-1, n).T


def _deviation_nats(
    setting: _Setting,
    symbols: jax.Array,
    sent: jax.Array,
    integers: list[jax.Array],
    error: list[jax.Array],
    scales: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cost of the deviations from the points that zero would have got, axis by axis.

    Args:
      setting: lattice and family.
      symbols: int32[n, blocks].
      sent: bool[n, blocks], which symbols exist.
      integers: n arrays f32[blocks], the points that zero would have got.
      error: n arrays f32[blocks], errors that zero would suffer, in units of the lattice's scale.
      scales: f32[n, blocks], scales of the coordinates in the same units.

    Returns:
      f32[blocks] cost in nats, f32[blocks] probability that no axis deviates, bool[blocks] whether none does.
    """
    lat = setting.lat
    centers: dict[int, jax.Array] = {}
    deviations: dict[int, jax.Array] = {}
    for axis in lat.order:
        # Deviations in int32: f32 would lose the parity of large ones; the sums of few small ones are exact.
        k = jnp.where(sent[axis], symbols[axis] - integers[axis].astype(jnp.int32), 0).astype(jnp.float32)
        first, start = lat.residue(axis, error[axis], deviations)
        moved = jnp.round((k - first) / lat.modulus[axis])
        centers[axis] = start + np.float32(lat.spacing[axis]) * moved
        deviations[axis] = k
    totals = (jnp.zeros(scales.shape[1:], jnp.float32), jnp.ones(scales.shape[1:], jnp.float32))
    add = functools.partial(_add_axis, setting.family)
    ordered = [centers[axis] for axis in range(lat.dimension)]
    spacing = np.array(lat.spacing, np.float32)
    if lat.dimension > _MANY_AXES:
        places = blocks.settled([*ordered, *error]).reshape(2, *scales.shape)
        totals, _ = jax.lax.scan(add, totals, (*places, spacing, scales, sent))
    else:
        for axis, center in enumerate(ordered):
            totals, _ = add(totals, (center, error[axis], spacing[axis], scales[axis], sent[axis]))
    return *totals, functools.reduce(jnp.logical_and, [k == 0 for k in deviations.values()])


def _add_axis(family: str, totals: tuple, one: tuple) -> tuple[tuple, None]:
    """What an axis adds to the cost f32[blocks] and to the probability f32[blocks] of `_deviation_nats`."""
    (nats, stays), (center, error, spacing, scale, sent) = totals, one
    cost = code_length.cell_nats(center, spacing, scale, family)
    nearest = code_length.cell_mass(error, spacing, scale, family)
    return (nats + jnp.where(sent, cost, 0.0), stays * jnp.where(sent, nearest, 1.0)), None
