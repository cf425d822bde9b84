"""How exact the noise is in 32-bit arithmetic: where it ends, and how far LRSUQ's radii are from their law.

**Where noise ends.** Every sampler of 32-bit words has a bounded range. An update as long as its clip, all on
one coordinate, may come out where the update zero never does; `beyond` is the probability. At strong privacy
it is negligible; from a gamma (clip over standard deviation of the noise) of some 3 on (1 for additive
Gaussian noise) it exceeds a delta of 1e-5, and then an epsilon at that delta is one of unbounded noise, not
of this one.

**Radii.** The radius of a layer takes one of some 25 million values (`mechanisms.latents`) instead of a
continuum, and ends at its 2^-33 quantiles. So the error of a block, uniform on a ball (or cross-polytope) of
that radius, has a density f' that is a staircase around the target f. Two numbers per law describe the
difference, with r a norm near the end of the bulk:

  bulk   chi-squared divergence of f' from f where |e| <= r (and of the mass beyond r)
  tail   integral of |f' - f| where |e| > r

For N independent blocks the total variation between all errors and their targets is at most

  N tail + 1/2 sqrt((1 + bulk)^N - 1)

Proof: let f'' be f' inside and c f beyond r, with c such that it is a law. Then TV(f', f'') <= tail: both
|f' - f| and |c - 1| f have at most that integral beyond r, and a total variation is half an integral. Total
variations of products add up; the factors 1 + chi^2 of products multiply, and TV <= 1/2 sqrt(chi^2)
(Tsybakov: Introduction to nonparametric estimation, section 2.4). Rounds that depend on earlier ones are
products conditionally on the past, so the same holds for a run.

A guarantee (epsilon, delta) of the target law becomes (epsilon, delta + (1 + e^epsilon) times that distance):
what anybody could gain at most, a bound that is far from what the attack above gains. It leaves out that
dithers and results are 32-bit numbers as well.

The error of rotated cells (docs/rotated.md) is spherical as well, and the same two numbers describe it.

`python -m experiments.radius_law` computes the constants, those of rotated cells
`python -m experiments.rotation_tables`.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from cepam_jax.mechanisms import latents

_BITS = 20  # of a folded word's mantissa that name a radius: 8 for the cell, 12 for the position in it
_OCTAVES = 32
_POINTS = 4  # per interval between neighbouring radii


class Defect(NamedTuple):
    """How far the errors of one block are from their target; the module's text defines all three.

    Attributes:
      bulk: chi-squared divergence inside.
      tail: integral of the difference outside.
      end: r, the norm that separates the two, in units of sigma or b.
    """

    bulk: float
    tail: float
    end: float

    def total_variation(self, blocks: int) -> float:
        """Bound on the total variation between the errors of so many blocks and their targets; at most 1."""
        product = math.expm1(min(blocks * math.log1p(self.bulk), 700.0))
        return min(1.0, blocks * self.tail + 0.5 * math.sqrt(product))


# By target and coordinates per block; "rotated" is the Gaussian error of rotated cells on A2, D4 and E8.
DEFECTS = {
    ("gaussian", 1): Defect(3.72e-14, 2.77e-11, 5.5),
    ("gaussian", 2): Defect(7.37e-14, 4.87e-11, 5.75),
    ("gaussian", 3): Defect(1.26e-13, 6.54e-11, 6.0),
    ("gaussian", 4): Defect(2.09e-13, 7.85e-11, 6.25),
    ("gaussian", 8): Defect(7.84e-13, 1.37e-10, 6.75),
    ("laplace", 1): Defect(8.76e-14, 4.64e-11, 17.0),
    ("laplace", 2): Defect(1.86e-13, 8.24e-11, 19.0),
    ("laplace", 3): Defect(5.51e-13, 1.02e-10, 22.0),
    ("laplace", 4): Defect(1.13e-12, 1.46e-10, 22.0),
    ("laplace", 8): Defect(4.65e-12, 4.51e-10, 22.0),
    ("rotated", 2): Defect(3.28e-17, 4.96e-16, 6.94),
    ("rotated", 4): Defect(4.58e-19, 5.34e-16, 7.29),
    ("rotated", 8): Defect(2.21e-18, 9.42e-16, 7.96),
}


def total_variation(target: str, block: int, blocks: int) -> float:
    """Bound on the total variation between the errors of `blocks` blocks and their targets; at most 1.

    Args:
      target: "gaussian", "laplace" or "rotated".
      block: coordinates per block.
      blocks: number of blocks of all clients and rounds together.

    Returns:
      A number from 0 to 1.
    """
    return DEFECTS[target, block].total_variation(blocks)


# Where noise ends, in standard deviations (Gaussian) or in units of b (Laplace): of `jax.random.normal` and
# `laplace` on the nearer side, and the largest radii of LRSUQ's layers by coordinates per block.
ADDITIVE_ENDS = {"gaussian": 5.22, "laplace": 15.53}
# Of rotated cells, by coordinates per block.
ROTATED_ENDS = {2: 8.70, 4: 9.15, 8: 9.71}


@functools.cache
def layers_end(target: str, block: int) -> float:
    """Largest norm of the error in a block of so many coordinates, in units of sigma or b.

    Args:
      target: "gaussian" or "laplace" for LRSUQ, or "rotated".
      block: coordinates per block.
    """
    if target == "rotated":
        return ROTATED_ENDS[block]
    return float(latents.radius_table(target, block).middle.max())


def beyond(target: str, block: int, end: float, shift: ArrayLike) -> np.ndarray:
    """Probability that noise moved along one coordinate leaves the range of noise that is not moved.

    Args:
      target: "gaussian" or "laplace".
      block: number of coordinates whose norm is bounded.
      end: bound of that norm, in units of sigma or b.
      shift: f64[...], how far the noise is moved, in the same units.

    Returns:
      f64[...], the probability in one round; for Laplace noise in blocks an upper bound.
    """
    shift = np.asarray(shift, np.float64)
    if target == "laplace":
        far = shift >= end
        scalar = 0.5 * np.exp(np.minimum(shift - end, 0.0))
        in_blocks = stats.gamma(block).sf(np.maximum(end - shift, 0.0))
        return np.where(far, 1.0, scalar if block == 1 else in_blocks)
    return stats.ncx2.sf(end**2, block, shift**2)


def _radii(target: str, dimension: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All radii with their probabilities, from the largest down, an octave of folded words at a time.

    Yields:
      f64[k] radii in units of sigma or b, falling, and f64[k], their probabilities.
    """
    table = latents.radius_table(target, dimension)
    cells = 1 << 8
    positions = np.arange(-(1 << 11), 1 << 11, dtype=np.float32)

    def octave(side: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The radii of one octave of the table's lower (0) or upper (1) side."""
        first = (side * 33 + number) * cells
        middle, slope = (a[first : first + cells, None] for a in table)
        radius = (middle + slope * positions).astype(np.float64).ravel()
        words = 2.0 ** (number - 1)  # in this octave
        if number == 0:
            count = np.eye(1, radius.size)[0]  # the word 0, folded to 1/2
        elif number <= _BITS:
            count = np.zeros(radius.size)
            count[(np.arange(int(words)) / words * 2**_BITS).astype(np.int64)] = 1.0
        else:
            count = np.full(radius.size, words / 2**_BITS)
        order = np.argsort(-radius[count > 0], kind="stable")
        return radius[count > 0][order], count[count > 0][order] / 2.0**32

    yield from (octave(1, number) for number in range(_OCTAVES))
    yield from (octave(0, number) for number in reversed(range(_OCTAVES)))


def _target(target: str, n: int) -> tuple[Callable, Callable]:
    """Two functions of the norm: the target's density times the volume of the unit ball, and the tail."""
    if target == "gaussian":
        scale = 2.0 ** (-n / 2) / math.gamma(n / 2 + 1)
        return lambda r: scale * np.exp(-r * r / 2), lambda r: special.gammaincc(n / 2, r * r / 2)
    return lambda r: np.exp(-r) / math.factorial(n), lambda r: special.gammaincc(n, r)


def measure(target: str, dimension: int, end: float) -> Defect:
    """Computes a Defect by integration over all intervals between radii; takes seconds.

    Args:
      target: "gaussian" or "laplace".
      dimension: coordinates per block.
      end: r, the norm where the bulk ends, in units of sigma or b.

    Returns:
      The defect of one block.
    """
    n = dimension
    density, above = _target(target, n)
    height, bulk, tail, mass, top = 0.0, 0.0, 0.0, 0.0, None
    for (radius, chance), (following, _) in itertools.pairwise([*_radii(target, n), (np.zeros(1), 0)]):
        if top is None:
            top = radius[0]
            tail = float(above(top))  # beyond the largest radius there is nothing
        heights = height + np.cumsum(chance / radius**n)
        width = np.maximum(radius - np.append(radius[1:], following[0]), 0.0)
        lower = radius - width
        for point in range(_POINTS):
            r = lower + width * (point + 0.5) / _POINTS
            f = density(r)
            volume = n * r ** (n - 1) * width / _POINTS
            inside = r <= end
            bulk += float(np.sum(((heights - f) ** 2 / f * volume)[inside]))
            tail += float(np.sum((np.abs(heights - f) * volume)[~inside]))
            mass += float(np.sum((heights * volume)[~inside]))
        height = float(heights[-1])
    # The mass beyond the end, as f'' has it: c times that of the target.
    beyond = float(above(end))
    bulk += (mass - beyond) ** 2 / beyond
    return Defect(bulk, tail, end)
