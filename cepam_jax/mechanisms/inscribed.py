"""The few blocks whose error must lie in the ball inscribed in the lattice's cell.

Such a block tries one dither after the other, as in RSUQ. There are so few of them that they are gathered into a
small array first: their proposals cost nothing beside one operation on all blocks.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.mechanisms import blocks, counter
from cepam_jax.mechanisms.lattices import Lattice

# Points whose integers have an absolute sum of this or more are accepted without a test: see `rsuq`.
_FAR = 2.0**21
_ROW = 256  # blocks that are looked through together
_SMALL = 8192  # so few blocks are looked through one by one


class Search(NamedTuple):
    """How the blocks are found and what they try.

    Attributes:
      lat: lattice of n dimensions.
      stream: stream of the dithers, from `counter.stream`.
      points: data of blocks -> n arrays f32[k], the blocks in units of the lattice's scale.
      room: how many blocks are gathered at a time; the result does not depend on it.
    """

    lat: Lattice
    stream: counter.Words
    points: Callable[[Any], list[jax.Array]]
    room: int


def room_for(size: int, probability: float) -> int:
    """Room for those of `size` blocks that are chosen with a probability: too little once in 1e14 updates."""
    expected = size * probability
    return min(size, math.ceil(expected + 8 * math.sqrt(expected) + 16))


def first_inside(search: Search, chosen: jax.Array, data: Any) -> jax.Array:
    """For every chosen block the first proposal whose error lies in the ball.

    Args:
      search: what is tried.
      chosen: bool[k], which blocks must have such an error.
      data: pytree of arrays with leading axis k.

    Returns:
      uint32[k], 0 for the other blocks.
    """
    state = _group(search, data, (chosen, jnp.zeros(chosen.shape, jnp.uint32)))
    # Ends at once, unless there were more than there was room for.
    return jax.lax.while_loop(lambda state: state[0].any(), lambda state: _group(search, data, state), state)[
        1
    ]


def _group(search: Search, data: Any, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The first blocks of those that are left, bool[k], as many as there is room for; indices uint32[k]."""
    left, index = state
    ids = _first(left, search.room)
    gather = lambda a: a.at[ids].get(mode="fill", fill_value=0)  # noqa: E731
    points = search.points(jax.tree.map(gather, data))
    number = ids.astype(jnp.uint32)

    def step(carry: tuple) -> tuple:
        proposal, found, waiting = carry
        inside = _inside(search, proposal, number, points)
        return proposal + np.uint32(1), jnp.where(waiting & inside, proposal, found), waiting & ~inside

    start = (jnp.uint32(0), jnp.zeros(ids.shape, jnp.uint32), ids < left.shape[0])
    _, found, _ = jax.lax.while_loop(lambda carry: carry[2].any(), step, start)
    return left.at[ids].set(False, mode="drop"), index.at[ids].set(found, mode="drop")


def _first(left: jax.Array, room: int) -> jax.Array:
    """int32[room], numbers of the first true entries of bool[k]; k where there are no more.

    Rows with a true entry are found first: the running sum of `jnp.nonzero` is slow on long arrays.
    """
    size = left.shape[0]
    if size <= _SMALL:
        return jnp.nonzero(left, size=room, fill_value=size)[0]
    rows = jnp.pad(left, (0, -size % _ROW)).reshape(-1, _ROW)
    (row,) = jnp.nonzero(rows.any(1), size=min(room, len(rows)), fill_value=len(rows))
    part = rows.at[row].get(mode="fill", fill_value=False).reshape(-1)
    (at,) = jnp.nonzero(part, size=room, fill_value=len(part))
    return jnp.where(at < len(part), row.at[at // _ROW].get(mode="clip") * _ROW + at % _ROW, size)


def _inside(search: Search, proposal: jax.Array, ids: jax.Array, points: list[jax.Array]) -> jax.Array:
    """bool[k], whether a proposal leaves an error inside the ball, for blocks uint32[k] at n arrays f32[k]."""
    lat = search.lat
    zero = [jnp.float32(0)] * lat.dimension
    dither = lat.point(zero, blocks.boxes(lat, search.stream, proposal, ids))
    moved = [y - v for y, v in zip(points, dither, strict=True)]
    integers = lat.nearest(moved)
    errors = [q - y for q, y in zip(lat.point(integers, zero), moved, strict=True)]
    size = sum((e * e for e in errors[1:]), errors[0] * errors[0])
    far = sum((abs(q) for q in integers[1:]), abs(integers[0]))
    # NaN would be rejected forever, and so would what f32 has no room for.
    return (size <= np.float32(lat.inradius**2)) | ~(far < _FAR)
