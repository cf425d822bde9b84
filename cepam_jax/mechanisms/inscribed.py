"""The few blocks whose error must lie in the ball inscribed in the lattice's cell.

Such a block tries one dither after the other, as in RSUQ. There are so few of them, mostly none, that they
are gathered into a small array: their proposals cost nothing beside one operation on all blocks.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.mechanisms import counter, rsuq
from cepam_jax.mechanisms.lattices import Lattice

_ROW = 256  # blocks that are looked through together


class Search(NamedTuple):
    """What the blocks try.

    Attributes:
      lat: lattice of n dimensions.
      stream: stream of the dithers, from `counter.stream`.
      points: int32[room], numbers of blocks -> n arrays f32[room], the blocks in units of the lattice's
        scale; anything for numbers that no block has.
      room: how many blocks are gathered at a time; the result does not depend on it.
    """

    lat: Lattice
    stream: counter.Words
    points: Callable[[jax.Array], list[jax.Array]]
    room: int


def room_for(size: int, probability: float) -> int:
    """Room for those of `size` blocks that are chosen with this probability; seldom too little."""
    expected = size * probability
    return min(size, math.ceil(expected + 4 * math.sqrt(expected) + 4))


def first_inside(search: Search, chosen: jax.Array) -> jax.Array:
    """For every chosen block, bool[k], the first proposal whose error lies in the ball.

    Returns:
      uint32[k], 0 for the other blocks.
    """
    return jax.lax.while_loop(
        lambda state: state[0].any(),
        lambda state: _group(search, *state),
        (chosen, jnp.zeros(chosen.shape, jnp.uint32)),
    )[1]


def _group(search: Search, left: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Takes as many as there is room for from the blocks that are left, bool[k]; their indices uint32[k]."""
    ids = _first(left, search.room)
    points, number = search.points(ids), ids.astype(jnp.uint32)

    def step(carry: tuple) -> tuple:
        proposal, found, waiting = carry
        inside = _inside(search, proposal, number, points)
        return proposal + np.uint32(1), jnp.where(waiting & inside, proposal, found), waiting & ~inside

    start = (jnp.uint32(0), jnp.zeros(ids.shape, jnp.uint32), ids < left.shape[0])
    _, found, _ = jax.lax.while_loop(lambda carry: carry[2].any(), step, start)
    return left.at[ids].set(False, mode="drop"), index.at[ids].set(found, mode="drop")


def _first(left: jax.Array, room: int) -> jax.Array:
    """int32[room], numbers of the first true entries of bool[k]; k and more where there are no more.

    Rows with a true entry are found first: the running sum of `jnp.nonzero` is slow on long arrays.
    """
    size = left.shape[0]
    rows = jnp.pad(left, (0, -size % _ROW)).reshape(-1, _ROW)
    (row,) = jnp.nonzero(rows.any(1), size=min(room, len(rows)), fill_value=len(rows))
    (at,) = jnp.nonzero(rows.at[row].get(mode="fill", fill_value=False).reshape(-1), size=room, fill_value=-1)
    return jnp.where(at < 0, size, row.at[at // _ROW].get(mode="clip") * _ROW + at % _ROW)


def _inside(search: Search, proposal: jax.Array, ids: jax.Array, points: list[jax.Array]) -> jax.Array:
    """Whether a proposal leaves an error inside the ball.

    Args:
      search: what is tried.
      proposal: uint32[], its number.
      ids: uint32[k], numbers of the blocks.
      points: n arrays f32[k], the blocks in units of the lattice's scale.

    Returns:
      bool[k].
    """
    return rsuq.propose(search.lat, "gaussian", search.stream, proposal, ids, points)[0]
