"""Ideal code length of the symbols of `rotated`, block by block, as `cell_law` predicts them.

`wire.cells` writes messages of this length. It computes the same probabilities on the host, decision by
decision; here a block's probability is one formula, because the axes of a discrete Gaussian need not be
taken one by one to know what they cost together.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.mechanisms import acceptance, blocks, cell_law, counter
from cepam_jax.mechanisms.base import Message
from cepam_jax.mechanisms.block_bits import LISTED_BITS, zero_at
from cepam_jax.mechanisms.lattices import Lattice, most_tries


def block_bits(
    lat: Lattice,
    family: str,
    stream: counter.Words,
    message: Message,
    scale: jax.Array,
    ball: jax.Array,
) -> jax.Array:
    """Ideal bits of every block.

    Args:
      lat: lattice of n dimensions.
      family: law of the blocks, one of `cell_law.COMPONENTS`.
      stream: stream of the dithers, from `counter.stream`.
      message: Message with symbols of whole blocks and an index.
      scale: f32[blocks], scale of each block in units of the lattice's scale.
      ball: bool[blocks], which are ball blocks.

    Returns:
      f32[blocks].
    """
    error, vector, listed = displacements(lat, stream, message)
    bits = -log_probability(lat.name, family, error, vector, scale) / np.float32(math.log(2))
    bits += jnp.where(ball, np.float32(math.log2(most_tries(lat, "rotated"))), 0.0)
    return bits + jnp.where(listed, np.float32(LISTED_BITS * lat.dimension), 0.0)


def displacements(
    lat: Lattice, stream: counter.Words, message: Message
) -> tuple[list[jax.Array], list[jax.Array], jax.Array]:
    """What the symbols say beyond the dithers.

    Args:
      lat: lattice of n dimensions.
      stream: stream of the dithers, from `counter.stream`.
      message: Message with symbols of whole blocks and an index.

    Returns:
      n arrays f32[blocks], the error that zero would suffer; n arrays f32[blocks], the lattice vector from
      the point that zero would get to the one that was sent, both in units of the lattice's scale; and
      bool[blocks], which blocks cannot be coded, for which that vector is 0.
    """
    assert message.index is not None
    index = jnp.asarray(message.index)
    ids = jnp.arange(index.shape[0], dtype=jnp.uint32)
    symbols = jnp.asarray(message.symbols).reshape(-1, lat.dimension).T
    listed = (symbols == blocks.INVALID).any(0)
    zero, error = zero_at(lat, stream, index, ids)
    # Differences in int32 keep the parity of large numbers.
    moved = [jnp.where(listed, 0, m - z.astype(jnp.int32)) for m, z in zip(symbols, zero, strict=True)]
    origin = [jnp.zeros(ids.shape, jnp.float32)] * lat.dimension
    return error, lat.point([m.astype(jnp.float32) for m in moved], origin), listed


def log_probability(
    name: str, family: str, error: list[jax.Array], vector: list[jax.Array], scale: jax.Array
) -> jax.Array:
    """ln P(a | e) under a law of blocks.

    Args:
      name: name of the lattice.
      family: law of the blocks, one of `cell_law.COMPONENTS`.
      error: n arrays f32[k], the error e that zero would suffer, in units of the lattice's scale.
      vector: n arrays f32[k], the lattice vector a.
      scale: f32[k], scale of the blocks in the same units.

    Returns:
      f32[k].
    """
    grid = cell_law.grid(name)
    weights, deviations = zip(*cell_law.COMPONENTS[family], strict=True)
    tau = jnp.float32(deviations)[:, None] * scale
    v = cell_law.variance(grid, tau)
    log_others = cell_law.log_of_others(grid, error, v)
    stays, leaves = cell_law.stay(grid, log_others, v, tau)
    farther = sum(a * (0.5 * a + e) for a, e in zip(vector, error, strict=True))
    at_zero = sum(abs(a) for a in vector) == 0
    elsewhere = jnp.log(jnp.maximum(leaves, acceptance.LEAST)) - log_others - farther / v
    of_component = jnp.where(at_zero, jnp.log(jnp.maximum(stays, acceptance.LEAST)), elsewhere)
    return jax.nn.logsumexp(of_component + jnp.log(jnp.float32(weights))[:, None], axis=0)
