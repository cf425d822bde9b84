"""Random rotations of blocks of 2, 4 or 8 coordinates: multiplication by complex numbers and their like.

Complex numbers, quaternions and octonions are the algebras in which |q u| = |q| |u| (Hurwitz). So u -> q u /
|q| is a rotation; for a fixed u it takes u to a point that is uniform on the sphere if q / |q| is, and for a
fixed q it is undone by conj(q): conj(q) (q u) = |q|^2 u, also for octonions, which are not associative but
alternative (Conway and Smith: On Quaternions and Octonions, 2003). A rotation takes n random components and 2
n^2 operations, where a uniform element of SO(n) takes n (n - 1) / 2 and a factorization.

The units multiply by e_a e_b = sign[a][b] e_(a xor b), with the signs of Cayley and Dickson's doubling
(a, b) (c, d) = (a c - conj(d) b, d a + b conj(c)).

Every platform gets the same floats. The components of q are odd integers below 2^12 in magnitude, so none is
zero; a factor with 24 significant bits is cut into two of 12, so all products are exact in float32, and every
sum is rounded once, with or without a fused multiply-add. 1 / |q| comes from a table, as in `latents`.

q / |q| is not quite uniform, because the components are 2^16 integers. What remains of that in the law of R
U, U uniform on a lattice's cell, are the harmonics that the laws of both q / |q| and U / |U| have, of degrees
12, 24, ... (A2), 6, 8, 12, ... (D4) or 8, 12, 14, ... (E8): for every fixed q, u -> q u / |q| maps harmonics
of a degree to harmonics of that degree, and for every fixed point v so does q -> conj(q) v / |q|. `python -m
experiments.rotation_components` makes the table and prints the root mean square of each harmonic of q / |q|:
at most 1.8e-5 (A2), 4.0e-7 (D4) and 2.0e-6 (E8) in those degrees, which is multiplied by that of U / |U|,
less than one.
"""

import functools
from collections.abc import Sequence
from importlib import resources

import jax.numpy as jnp
import numpy as np

from cepam_jax.mechanisms import latents
from cepam_jax.mechanisms.arrays import ArrayT

DEVIATION = 832  # of a component
MAGNITUDES = 1 << 15  # of components, all equally likely
_UPPER = np.uint32(0xFFFFF000)  # sign, exponent and the upper 12 significant bits of a float32
_CELL_BITS = 9  # of the table of inverse roots: 2^9 cells an octave
_POSITION_BITS = 12


@functools.cache
def signs(n: int) -> np.ndarray:
    """int[n, n], the sign of e_a e_b, for n = 1, 2, 4 or 8."""
    if n == 1:
        return np.ones((1, 1), int)
    half = signs(n // 2)
    conjugate = np.where(np.arange(n // 2) == 0, 1, -1)
    return np.block([[half, half.T], [half * conjugate, -half.T * conjugate]])


def times(q: Sequence[ArrayT], u: Sequence[ArrayT], inverse: bool = False) -> list[ArrayT]:
    """q u, or conj(q) u.

    Args:
      q: n arrays [k], the components of the multipliers.
      u: n arrays [k].
      inverse: whether to multiply by the conjugates.

    Returns:
      n arrays [k]; the sums are made in a fixed order.
    """
    n = len(q)
    found = []
    for axis in range(n):
        total = q[0] * u[axis]
        for a in range(1, n):
            product = q[a] * u[a ^ axis]
            positive = (signs(n)[a, a ^ axis] > 0) != inverse
            total = total + product if positive else total - product
        found.append(total)
    return found


def times_exactly(q: Sequence[ArrayT], u: Sequence[ArrayT]) -> list[ArrayT]:
    """q u with the same float32 on every platform.

    Args:
      q: n arrays f32[k] of integers below 2^12 in magnitude.
      u: n arrays f32[k].

    Returns:
      n arrays f32[k].
    """
    upper = [(a.view(np.uint32) & _UPPER).view(np.float32) for a in u]
    lower = [a - b for a, b in zip(u, upper, strict=True)]
    return [a + b for a, b in zip(times(q, upper), times(q, lower), strict=True)]


@functools.cache
def component_table() -> np.ndarray:
    """int16[65536], the components: odd integers, as many negative as positive, normal with `DEVIATION`."""
    with resources.files("cepam_jax.mechanisms").joinpath("rotation_components.npz").open("rb") as file:
        magnitude = np.load(file)["magnitude"]
    return np.concatenate([magnitude, -magnitude])


def components(words: Sequence[ArrayT]) -> list[ArrayT]:
    """Components of multipliers from random words, two from each.

    Args:
      words: arrays uint32[k].

    Returns:
      Twice as many arrays f32[k] of odd integers below 2^12 in magnitude.
    """
    low = np.uint32(2 * MAGNITUDES - 1)
    halves = [half for word in words for half in (word >> np.uint32(16), word & low)]
    return [_look_up(component_table(), half).astype(np.float32) for half in halves]


def _look_up(table: np.ndarray, index: ArrayT) -> ArrayT:
    """Entries of a table at uint32[k]."""
    if isinstance(index, np.ndarray):
        return table[index]
    return jnp.asarray(table).at[index].get(mode="promise_in_bounds")


def square(q: Sequence[ArrayT]) -> ArrayT:
    """|q|^2 of n arrays f32[k] of integers below 2^12: f32[k], rounded in a fixed order."""
    total = q[0] * q[0]
    for a in q[1:]:
        total = total + a * a
    return total


@functools.lru_cache
def _root_table() -> tuple[np.ndarray, np.ndarray]:
    """Middle and slope f32[27 * 2^9] of 1 / sqrt in cells of [1, 2^27)."""
    edges = (1 + np.arange(1 << _CELL_BITS) / (1 << _CELL_BITS)) * 2.0 ** np.arange(27)[:, None]
    width = 2.0 ** (np.arange(27)[:, None] - _CELL_BITS)
    left, right, middle = edges**-0.5, (edges + width) ** -0.5, (edges + width / 2) ** -0.5
    slope = latents.round_to_bits((right - left) / (1 << _POSITION_BITS), 12)
    return (((left + right) / 4 + middle / 2).astype(np.float32).ravel(), slope.astype(np.float32).ravel())


def inverse_root(squares: ArrayT) -> ArrayT:
    """1 / sqrt of f32[k] between 1 and 2^27, to 3e-7, the same float32 on every platform.

    Inside a cell the root is a straight line. The position has 11 bits and a sign, the slope 12 bits, so
    their product is exact and the sum is rounded once.
    """
    middle, slope = _root_table()
    bits = squares.view(np.uint32)
    shift = 23 - _CELL_BITS
    cell = (bits >> np.uint32(shift)) - np.uint32(127 << _CELL_BITS)
    position = (bits >> np.uint32(shift - _POSITION_BITS)) & np.uint32((1 << _POSITION_BITS) - 1)
    centered = position.astype(np.int32) - np.int32(1 << (_POSITION_BITS - 1))
    return _look_up(middle, cell) + _look_up(slope, cell) * centered.astype(np.float32)
