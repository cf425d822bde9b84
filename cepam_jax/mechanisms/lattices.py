"""Lattices: nearest points, fundamental domains, and the numbers of their cells.

Vectors are lists of n arrays, one for each axis: every operation is elementwise over blocks, which is
what XLA turns into fast code on every device.

A dither must be uniform modulo the lattice; it need not lie in the Voronoi cell. So it is drawn from
a box (or parallelogram) that tiles space under the lattice: no nearest-point search, and therefore
no tie that an encoder and a decoder could break differently.

Conway and Sloane, "Sphere Packings, Lattices and Groups", chapters 4, 20 and 21.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from cepam_jax.errors import require_choice

_HEIGHT = np.float32(math.sqrt(3) / 2)  # of the hexagonal lattice's rows


class Lattice(NamedTuple):
    """A lattice in n dimensions.

    Attributes:
      name: Z1, Z2, Z3, A2, D4 or E8.
      dimension: n, coordinates per block.
      volume: of the cell.
      inradius: radius of the largest Euclidean ball in the Voronoi cell.
      cross: radius of the largest cross-polytope {|x|_1 <= r} in the Voronoi cell, None where unused.
      second_moment: mean square per coordinate of a uniform point of the Voronoi cell.
      nearest: n float arrays -> n float arrays of integers that name the nearest lattice point.
      unit: value of one integer step along an axis.
      stretch: length of the fundamental box's first axis; the others have length 1.
      skew: whether axes are not orthogonal (A2), so that a coordinate depends on all integers.
    """

    name: str
    dimension: int
    volume: float
    inradius: float
    cross: float | None
    second_moment: float
    nearest: Callable[[list[Any]], list[Any]]
    unit: float = 1.0
    stretch: float = 1.0
    skew: bool = False

    def point(self, integers: list[Any], box: list[Any]) -> list[Any]:
        """The lattice point named by n integers, plus a point of the fundamental domain.

        Args:
          integers: n float arrays of integers.
          box: n arrays in [-1/2, 1/2] that name a point of the fundamental domain.
        """
        box = [self.stretch * box[0], *box[1:]]
        axes = [self.unit * m + u for m, u in zip(integers, box, strict=True)]
        return [axes[0] + 0.5 * axes[1], _HEIGHT * axes[1]] if self.skew else axes


def _round(y):
    return [jnp.round(a) for a in y]


def _nearest_checkerboard(y):
    """D_n: integer points with even sum. Round; if the sum is odd, move the worst axis the other way.

    The box [-1, 1] x [-1/2, 1/2]^(n-1) tiles space under D_n.
    """
    points = _round(y)
    errors = [a - p for a, p in zip(y, points, strict=True)]
    odd = jnp.mod(sum(points), 2) != 0
    largest = jnp.abs(errors[0])
    for error in errors[1:]:
        largest = jnp.maximum(largest, jnp.abs(error))
    moved, open_ = [], odd
    for point, error in zip(points, errors, strict=True):
        here = open_ & (jnp.abs(error) == largest)
        open_ = open_ & ~here
        moved.append(point + jnp.where(here, jnp.where(error >= 0, 1.0, -1.0), 0.0))
    return moved


def _squared_distance(y, points):
    return sum(jnp.square(a - p) for a, p in zip(y, points, strict=True))


def _nearest_e8(y):
    """E8 is D8 and D8 shifted by (1/2, ..., 1/2); integers count halves.

    The box of D8 covers space exactly twice under E8, so it is uniform modulo E8 as well.
    """
    whole = _nearest_checkerboard(y)
    half = [p + 0.5 for p in _nearest_checkerboard([a - 0.5 for a in y])]
    nearer = _squared_distance(y, whole) <= _squared_distance(y, half)
    return [2 * jnp.where(nearer, w, h) for w, h in zip(whole, half, strict=True)]


def _nearest_hexagonal(y):
    """A2 with minimal distance 1: two rectangular lattices, one in the gaps of the other."""
    candidates = []
    for shift in (0.0, 0.5):
        row = 2 * (jnp.round(y[1] / (2 * _HEIGHT) - shift) + shift)  # even rows, then odd rows
        column = jnp.round(y[0] - shift) + shift
        candidates.append([column, row])
    even, odd = candidates
    nearer = _squared_distance(y, [even[0], _HEIGHT * even[1]]) <= _squared_distance(
        y, [odd[0], _HEIGHT * odd[1]]
    )
    column, row = (jnp.where(nearer, a, b) for a, b in zip(even, odd, strict=True))
    return [jnp.round(column - 0.5 * row), row]


def _cubic(n):
    return Lattice(f"Z{n}", n, 1.0, 0.5, 0.5, 1 / 12, _round)


LATTICES = {
    **{f"Z{n}": _cubic(n) for n in (1, 2, 3)},
    "A2": Lattice(
        "A2",
        2,
        math.sqrt(3) / 2,
        0.5,
        0.5,
        (5 / (36 * math.sqrt(3))) * math.sqrt(3) / 2,
        _nearest_hexagonal,
        skew=True,
    ),
    "D4": Lattice(
        "D4", 4, 2.0, math.sqrt(0.5), 1.0, 0.0766032346 * math.sqrt(2), _nearest_checkerboard, stretch=2.0
    ),
    "E8": Lattice("E8", 8, 1.0, math.sqrt(0.5), 1.0, 929 / 12960, _nearest_e8, 0.5, 2.0),
}


def lattice(name: str) -> Lattice:
    """The lattice called `name`; ConfigError names the choices."""
    require_choice("lattice", name, LATTICES)
    return LATTICES[name]


def acceptance(lat: Lattice, target: str) -> float:
    """Volume of the layer inscribed in the cell over the volume of the cell (2402.03030).

    The layer is a ball for a Gaussian target and a cross-polytope for a Laplace target.
    """
    n = lat.dimension
    if target == "gaussian":
        return math.pi ** (n / 2) / math.gamma(n / 2 + 1) * lat.inradius**n / lat.volume
    return (2 * lat.cross) ** n / math.factorial(n) / lat.volume
