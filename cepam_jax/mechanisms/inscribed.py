"""Nearest lattice points of blocks, some of which must have an error inside the ball inscribed in the cell.

Nearly all blocks take the nearest point at once. The few ball blocks try one dither after the other, as in
RSUQ, gathered into small arrays, so that they cost little beside the others.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.mechanisms import blocks, counter
from cepam_jax.mechanisms.lattices import Lattice

# Points whose integers have an absolute sum of this or more are accepted without a test.
_FAR = 2.0**21


def try_one(
    lat: Lattice,
    stream: counter.Words,
    proposal: jax.Array | np.uint32,
    ids: jax.Array,
    points: Sequence[jax.Array],
) -> tuple[list[jax.Array], jax.Array]:
    """Quantizes blocks with the dithers of one proposal.

    Args:
      lat: lattice of n dimensions.
      stream: stream of the dithers.
      proposal: uint32[] or uint32[k], number of the proposal.
      ids: uint32[k], numbers of the blocks.
      points: n arrays f32[k], in units of the lattice's scale.

    Returns:
      n arrays f32[k] of integers, and bool[k], whether the errors lie in the inscribed ball.
    """
    zero = [jnp.float32(0)] * lat.dimension
    dither = lat.point(zero, blocks.boxes(lat, stream, proposal, ids))
    moved = [y - v for y, v in zip(points, dither, strict=True)]
    integers = lat.nearest(moved)
    errors = [q - y for q, y in zip(lat.point(integers, zero), moved, strict=True)]
    size = sum((e * e for e in errors[1:]), errors[0] * errors[0])
    far = sum((abs(q) for q in integers[1:]), abs(integers[0]))
    # See `rsuq`: NaN would be rejected forever, and so would what f32 has no room for.
    return integers, (size <= np.float32(lat.inradius**2)) | ~(far < _FAR)


class _State(NamedTuple):
    """Of k blocks: symbols int32[n, k], rejected proposals uint32[k], and which blocks are left, bool[k]."""

    symbols: jax.Array
    index: jax.Array
    left: jax.Array


def accepted(
    lat: Lattice, stream: counter.Words, points: Sequence[jax.Array], ball: jax.Array, rest: float
) -> tuple[list[jax.Array], jax.Array]:
    """Symbols of all blocks.

    Args:
      lat: lattice of n dimensions.
      stream: stream of the dithers.
      points: n arrays f32[k], in units of the lattice's scale.
      ball: bool[k], which blocks must have an error inside the ball.
      rest: probability of that, for the room that is made for them; the result does not depend on it.

    Returns:
      n arrays int32[k] and uint32[k], the accepted proposals.
    """
    size = ball.shape[0]
    ids = jnp.arange(size, dtype=jnp.uint32)
    points = blocks.settled(points)
    integers, inside = try_one(lat, stream, np.uint32(0), ids, points)
    symbols = jnp.stack([blocks.integers(q) for q in integers])
    expected = size * rest
    room = min(size, math.ceil(expected + 8 * math.sqrt(expected) + 16))
    state = _State(symbols, jnp.zeros(size, jnp.uint32), ball & ~inside)

    def group(state: _State) -> _State:
        (chosen,) = jnp.nonzero(state.left, size=room, fill_value=size)
        some, number = jnp.stack(points).at[:, chosen].get(mode="fill", fill_value=0), chosen.astype(jnp.uint32)

        def step(carry: tuple) -> tuple:
            proposal, found, index, left = carry
            integers, inside = try_one(lat, stream, proposal, number, list(some))
            new = jnp.stack([blocks.integers(q) for q in integers])
            now = left & inside
            return (
                proposal + np.uint32(1),
                jnp.where(now, new, found),
                jnp.where(now, proposal, index),
                left & ~now,
            )

        start = (jnp.uint32(1), jnp.zeros(some.shape, jnp.int32), jnp.zeros(room, jnp.uint32), chosen < size)
        _, found, index, _ = jax.lax.while_loop(lambda carry: carry[3].any(), step, start)
        return _State(
            state.symbols.at[:, chosen].set(found, mode="drop"),
            state.index.at[chosen].set(index, mode="drop"),
            state.left.at[chosen].set(False, mode="drop"),
        )

    # The first group holds all that are left, except once in 1e14 updates.
    state = jax.lax.while_loop(lambda state: state.left.any(), group, state)
    return list(state.symbols), state.index
