"""Lattices: fundamental domains and the numbers of their cells; their nearest points are `nearest_points`.

Vectors are lists of n arrays, one for each axis: every operation is elementwise over blocks, which is
what XLA turns into fast code on every device.

A dither must be uniform modulo the lattice; it need not lie in the Voronoi cell. So it is drawn from
a box (or parallelogram) that tiles space under the lattice. That takes no nearest-point search, and
therefore meets no tie that an encoder and a decoder could break differently.

Source: Conway and Sloane: Sphere Packings, Lattices and Groups, chapters 4, 20 and 21.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from cepam_jax.errors import require_choice
from cepam_jax.mechanisms import nearest_points
from cepam_jax.mechanisms.arrays import Array, namespace


class Lattice(NamedTuple):
    """A lattice in n dimensions.

    Attributes:
      name: "Z1", "Z2", "Z3", "A2", "D4" or "E8".
      dimension: n, coordinates per block.
      volume: volume of the Voronoi cell.
      inradius: radius of the largest Euclidean ball in the Voronoi cell.
      cross: radius of the largest cross-polytope {|x|_1 <= r} in the Voronoi cell.
      second_moment: mean square per coordinate of a uniform point of the Voronoi cell.
      nearest: n float arrays -> n float arrays of integers that name the nearest lattice point.
      choose: n float arrays [k] -> int32[k], what that point depends on besides each axis by itself.
      round: (n float arrays [k], choice int32[k]) -> the same integers. An axis by itself takes few
        operations, so where the choice is calculated once for all axes this is faster than `nearest`.
      unit: length of one integer step along an axis.
      stretch: length of the fundamental box's first axis; the others have length 1.
      skew: whether axes are not orthogonal (A2), so that a coordinate depends on all integers.
      spacing: distance of neighbouring lattice points along each axis, once the axes coded before it are
        known; their product is the volume.
      modulus: number of integer steps per such distance.
      order: the axes in the order in which they are coded.
    """

    name: str
    dimension: int
    volume: float
    inradius: float
    cross: float
    second_moment: float
    nearest: Callable[[list[Any]], list[Any]]
    choose: Callable[[list[Any]], Any]
    round: Callable[[list[Any], Any], list[Any]]
    unit: float = 1.0
    stretch: float = 1.0
    skew: bool = False
    spacing: tuple[float, ...] = ()
    modulus: tuple[int, ...] = ()
    order: tuple[int, ...] = ()

    def residue(self, axis: int, error: Array, before: dict[int, Any]) -> tuple[Any, Any]:
        """Which integers are possible on an axis, given those of the axes before it.

        A coder sends lattice points as deviations k from the point m* that is nearest to the dithered
        origin. Deviations form the lattice too, so those coded first restrict the rest: in D4 the
        sum is even, in E8 the first parity decides for all axes.

        Args:
          axis: number of the axis.
          error: float[k], coordinate of m* + dither on this axis.
          before: deviations float[k] of the axes coded before, by axis.

        Returns:
          float[k] each: k0, and the coordinate of m* + k0 + dither. Possible are k0 + modulus * j for every
          integer j; k0 is 0 where no deviation came before.
        """
        xp = namespace(error)
        zero = xp.zeros(error.shape, error.dtype)
        if self.skew and axis == 0:
            return zero, error + 0.5 * before[1]
        if self.modulus[axis] == 1 or not before:
            return zero, error
        if self.name == "E8" and axis < 7:
            rest = xp.mod(before[0], 2)
        else:
            rest = xp.mod(-sum(before.values()), self.modulus[axis])
        other = rest - self.modulus[axis]
        low, high = error + self.unit * other, error + self.unit * rest
        nearer = (rest != 0) & (abs(low) < abs(high))
        return xp.where(nearer, other, rest), xp.where(nearer, low, high)

    def point(self, integers: list[Any], box: list[Any]) -> list[Any]:
        """The lattice point named by n integers, plus a point of the fundamental domain.

        Args:
          integers: n arrays float[...] of integers.
          box: n arrays float[...] in [-1/2, 1/2] that name a point of the fundamental domain.

        Returns:
          n arrays float[...], the sum's coordinates at lattice scale 1.
        """
        box = [self.stretch * box[0], *box[1:]]
        axes = [self.unit * m + u for m, u in zip(integers, box, strict=True)]
        return [axes[0] + 0.5 * axes[1], nearest_points.HEIGHT * axes[1]] if self.skew else axes


def _cubic(n: int) -> Lattice:
    """Z^n, the integer points."""
    return Lattice(
        f"Z{n}",
        n,
        1.0,
        0.5,
        0.5,
        1 / 12,
        nearest_points.integers,
        nearest_points.no_choice,
        nearest_points.integers,
        spacing=(1.0,) * n,
        modulus=(1,) * n,
        order=tuple(range(n)),
    )


LATTICES = {
    **{f"Z{n}": _cubic(n) for n in (1, 2, 3)},
    "A2": Lattice(
        "A2",
        2,
        math.sqrt(3) / 2,
        0.5,
        0.5,
        (5 / (36 * math.sqrt(3))) * math.sqrt(3) / 2,
        nearest_points.hexagonal,
        nearest_points.hexagonal_choice,
        nearest_points.hexagonal_point,
        skew=True,
        spacing=(1.0, math.sqrt(3) / 2),
        modulus=(1, 1),
        order=(1, 0),
    ),
    "D4": Lattice(
        "D4",
        4,
        2.0,
        math.sqrt(0.5),
        1.0,
        0.0766032346 * math.sqrt(2),
        nearest_points.checkerboard,
        nearest_points.checkerboard_choice,
        nearest_points.checkerboard_point,
        stretch=2.0,
        spacing=(1.0, 1.0, 1.0, 2.0),
        modulus=(1, 1, 1, 2),
        order=(0, 1, 2, 3),
    ),
    "E8": Lattice(
        "E8",
        8,
        1.0,
        math.sqrt(0.5),
        1.0,
        929 / 12960,
        nearest_points.e8,
        nearest_points.e8_choice,
        nearest_points.e8_point,
        unit=0.5,
        stretch=2.0,
        spacing=(0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0),
        modulus=(1, 2, 2, 2, 2, 2, 2, 4),
        order=tuple(range(8)),
    ),
}


def lattice(name: str) -> Lattice:
    """The lattice called `name`; an unknown name raises a ConfigError that lists the choices."""
    require_choice("lattice", name, LATTICES)
    return LATTICES[name]


def acceptance(lat: Lattice, target: str) -> float:
    """Probability that a proposal is accepted: volume of the inscribed layer over that of the cell.

    The layer is a ball for a Gaussian target and for the ball blocks of `rotated`, and a cross-polytope for a
    Laplace target (Ling and Li: Rejection-Sampled Universal Quantization for Smaller Quantization Errors,
    arXiv 2402.03030).
    """
    n = lat.dimension
    if target != "laplace":
        return math.pi ** (n / 2) / math.gamma(n / 2 + 1) * lat.inradius**n / lat.volume
    return (2 * lat.cross) ** n / math.factorial(n) / lat.volume


def most_tries(lat: Lattice, target: str) -> int:
    """Number of proposals after which a block counts as an exception, which has the probability e^-40."""
    return math.ceil(40 / acceptance(lat, target)) + 1
