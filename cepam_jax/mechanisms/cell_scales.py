"""The scale of a rotated lattice cell: from two random words to a number.

A block of n coordinates suffers the error sigma * S * R * U: U is uniform on the lattice's Voronoi cell, R is
a uniformly random rotation, and S > 0 is shared by client and server. R U is a mixture of uniform laws on
balls whose radius T has a known law (`cepam_jax.theory.cells`), and N(0, sigma^2 I_n) is the mixture of balls
of radius sigma * chi_{n+2}. So S must be such that S * T, with S and T independent, is distributed as
chi_{n+2}. No law of S does that exactly; this table's leaves about 1e-5 of the mass over, and so many blocks
are balls, with a radius from the law that remains. docs/rotated.md has the theorem and its proof.

Two shared words decide. `spare` below the table's threshold: the block is a ball. `word` is then the place in
the inverse distribution function of the scale, which the table holds in cells of the folded word, as
`latents` does. Inside a cell the scale is a parabola in the position: the products of slope and position and
of bend and squared position are exact in f32, so that two sums are rounded, with or without fused
multiply-add.

What counts is the law of S * T as the table's own numbers make it, not how near S is to an ideal: the radii
of the balls make up for the difference. `python -m experiments.rotation_tables` makes the tables and prints
how far the error is from Gaussian in the end.
"""

import functools
from importlib import resources
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from cepam_jax.errors import ConfigError, require_choice
from cepam_jax.mechanisms import latents
from cepam_jax.mechanisms.arrays import ArrayT

LATTICES = ("A2", "D4", "E8")
STEP_BITS = 6  # cells per octave of the folded word: 2^6
SQUARE_SHIFT = 11  # the square of a position, at most 2^22, keeps 12 bits


class ScaleTable(NamedTuple):
    """Inverse distribution functions of the scale, parabolas by cell of the folded word.

    The first half of each array serves the lattice's cells, the second half the balls.

    Attributes:
      middle: f32[cells], scale at position 0, in units of sigma.
      slope: f32[cells], its change per position, with 13 bits.
      bend: f32[cells], its change per 2^11 of the squared position, with 12 bits.
      threshold: blocks whose spare word lies below it are balls: 2^32 times the probability of a ball.
    """

    middle: np.ndarray
    slope: np.ndarray
    bend: np.ndarray
    threshold: int


@functools.lru_cache
def scale_table(lattice: str) -> ScaleTable:
    """The package's table for one lattice.

    Args:
      lattice: "A2", "D4" or "E8".

    Raises:
      ConfigError: another lattice, or the table of another release.
    """
    require_choice("lattice", lattice, LATTICES)
    with resources.files("cepam_jax.mechanisms").joinpath("cell_scales.npz").open("rb") as file:
        stored = np.load(file)
        middle, slope, bend = stored[lattice]
        threshold = int(stored[f"{lattice}_threshold"])
    if middle.shape != (4 * latents.OCTAVES << STEP_BITS,):
        # With the table of another release errors would follow another law, without a sign of it.
        raise ConfigError("cell_scales.npz belongs to another release of cepam_jax: install the package anew")
    return ScaleTable(middle, slope, bend, threshold)


def scales(word: ArrayT, spare: ArrayT, table: ScaleTable) -> tuple[ArrayT, ArrayT]:
    """Scale of the lattice for each block, in units of sigma, and whether the block is a ball.

    Args:
      word: uint32[...], shared random words, one per block; numpy or JAX.
      spare: uint32[...], a second one.
      table: from `scale_table`.

    Returns:
      (f32[...], bool[...]): for a ball, the scale at which the lattice's inscribed ball is the block's.
    """
    ball = spare < np.uint32(table.threshold)
    index, position = latents.cell(word, STEP_BITS)
    index = index + ball * np.uint32(len(table.middle) // 2)
    square = (position * position) >> np.int32(SQUARE_SHIFT)
    if isinstance(word, np.ndarray):
        straight = table.middle[index] + table.slope[index] * position.astype(np.float32)
        return straight + table.bend[index] * square.astype(np.float32), ball
    middle, slope, bend = (
        jnp.asarray(part).at[index].get(mode="promise_in_bounds")
        for part in (table.middle, table.slope, table.bend)
    )
    straight = middle + slope * position.astype(jnp.float32)
    return straight + bend * square.astype(jnp.float32), ball
