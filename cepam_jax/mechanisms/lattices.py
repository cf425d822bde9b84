"""Lattices: nearest points, fundamental domains, and the numbers of their cells.

Vectors are lists of n arrays, one for each axis: every operation is elementwise over blocks, which is
what XLA turns into fast code on every device.

A dither must be uniform modulo the lattice; it need not lie in the Voronoi cell. So it is drawn from
a box (or parallelogram) that tiles space under the lattice. That takes no nearest-point search, and
therefore meets no tie that an encoder and a decoder could break differently.

Source: Conway and Sloane: Sphere Packings, Lattices and Groups, chapters 4, 20 and 21.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cepam_jax.errors import require_choice
from cepam_jax.mechanisms.arrays import Array, namespace

_HEIGHT = np.float32(math.sqrt(3) / 2)  # of the hexagonal lattice's rows


class Lattice(NamedTuple):
    """A lattice in n dimensions.

    Attributes:
      name: "Z1", "Z2", "Z3", "A2", "D4" or "E8".
      dimension: n, coordinates per block.
      volume: volume of the Voronoi cell.
      inradius: radius of the largest Euclidean ball in the Voronoi cell.
      cross: radius of the largest cross-polytope {|x|_1 <= r} in the Voronoi cell.
      second_moment: mean square per coordinate of a uniform point of the Voronoi cell.
      choose: n float arrays [k] -> int32[k], what the nearest lattice point of a block depends on besides
        each axis by itself.
      round: (n float arrays [k], choice int32[k]) -> n float arrays of integers that name the lattice point
        of that choice. Axis by axis it takes few operations, so the choice may be calculated once for all.
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
    choose: Callable[[list[Any]], Any]
    round: Callable[[list[Any], Any], list[Any]]
    unit: float = 1.0
    stretch: float = 1.0
    skew: bool = False
    spacing: tuple[float, ...] = ()
    modulus: tuple[int, ...] = ()
    order: tuple[int, ...] = ()

    def nearest(self, y: list[Any]) -> list[Any]:
        """The integers, n float arrays [k], that name the lattice points nearest to y, n float arrays [k]."""
        return self.round(y, self.choose(y))

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
        return [axes[0] + 0.5 * axes[1], _HEIGHT * axes[1]] if self.skew else axes


def _round(y: list[Any], choice: Any = None) -> list[Any]:
    """The point of Z^n nearest to y, n arrays [k]; there is nothing to choose."""
    return [namespace(y[0]).round(a) for a in y]


def _no_choice(y: list[Any]) -> Any:
    """int32[k], zeros."""
    return namespace(y[0]).zeros(y[0].shape, np.int32)


def _checkerboard_choice(y: list[Any]) -> Any:
    """Which axis of y, n arrays [k], is not rounded to its nearest integer: int32[k], n if all are.

    The nearest point of D_n, the integer points with even sum, rounds all axes; if the sum is odd, the axis
    with the largest error is rounded the other way, of equals the first.
    """
    xp = namespace(y[0])
    points = _round(y)
    errors = [xp.abs(a - p) for a, p in zip(y, points, strict=True)]
    largest = functools.reduce(xp.maximum, errors)
    axis = xp.full(y[0].shape, len(y), xp.int32)
    for i in reversed(range(len(y))):
        axis = xp.where(errors[i] == largest, np.int32(i), axis)
    return xp.where(xp.mod(sum(points), 2) != 0, axis, np.int32(len(y)))


def _checkerboard_point(y: list[Any], choice: Any) -> list[Any]:
    """The integers nearest to y, n arrays [k], but for the axis that is chosen, int32[k].

    The box [-1, 1] x [-1/2, 1/2]^(n-1) tiles space under D_n.
    """
    xp = namespace(y[0])
    moved = []
    for i, (a, point) in enumerate(zip(y, _round(y), strict=True)):
        moved.append(point + xp.where(choice == i, xp.where(a - point >= 0, 1.0, -1.0), 0.0))
    return moved


def _squared_distance(y: list[Any], points: list[Any]) -> Any:
    """Squared Euclidean distances [k] of n arrays [k] from n arrays [k]."""
    return sum((a - p) * (a - p) for a, p in zip(y, points, strict=True))


def _e8_choice(y: list[Any]) -> Any:
    """The choice int32[k] that leads to the nearest point of E8, for y of 8 arrays [k].

    E8 is D8 and D8 shifted by (1/2, ..., 1/2). The choice is that of `_checkerboard_choice` in the nearer of
    the two, plus 16 in the second.
    """
    xp = namespace(y[0])
    shifted = [a - 0.5 for a in y]
    first, second = _checkerboard_choice(y), _checkerboard_choice(shifted)
    whole = _checkerboard_point(y, first)
    half = [p + 0.5 for p in _checkerboard_point(shifted, second)]
    nearer = _squared_distance(y, whole) <= _squared_distance(y, half)
    return xp.where(nearer, first, second + np.int32(16))


def _e8_point(y: list[Any], choice: Any) -> list[Any]:
    """The point of E8 of a choice int32[k], for y of 8 arrays [k], in units of one half.

    The box of D8 covers space exactly twice under E8, so a uniform point of it is uniform modulo E8 as well.
    """
    xp = namespace(y[0])
    shift = xp.where(choice >= 16, 0.5, 0.0).astype(y[0].dtype)
    return [2 * (p + shift) for p in _checkerboard_point([a - shift for a in y], choice & np.int32(15))]


def _hexagonal_choice(y: list[Any]) -> Any:
    """1 where the nearest point of A2 lies in an odd row, else 0: int32[k] for y of 2 arrays [k].

    A2 with minimal distance 1 consists of two rectangular lattices, one in the gaps of the other.
    """
    xp = namespace(y[0])
    even, odd = (_in_rows(y, shift) for shift in (0.0, 0.5))
    nearer = _squared_distance(y, [even[0], _HEIGHT * even[1]]) <= _squared_distance(
        y, [odd[0], _HEIGHT * odd[1]]
    )
    return xp.where(nearer, np.int32(0), np.int32(1))


def _in_rows(y: list[Any], shift: Any) -> list[Any]:
    """The column [k] and row [k] of the point nearest to y in even rows (shift 0) or odd rows (shift 1/2)."""
    xp = namespace(y[0])
    return [xp.round(y[0] - shift) + shift, 2 * (xp.round(y[1] / (2 * _HEIGHT) - shift) + shift)]


def _hexagonal_point(y: list[Any], choice: Any) -> list[Any]:
    """The point of A2 nearest to y, 2 arrays [k], in the rows of a choice int32[k]."""
    xp = namespace(y[0])
    column, row = _in_rows(y, xp.where(choice == 1, 0.5, 0.0).astype(y[0].dtype))
    return [xp.round(column - 0.5 * row), row]


def _cubic(n: int) -> Lattice:
    """Z^n, the integer points."""
    return Lattice(
        f"Z{n}",
        n,
        1.0,
        0.5,
        0.5,
        1 / 12,
        _no_choice,
        _round,
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
        _hexagonal_choice,
        _hexagonal_point,
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
        _checkerboard_choice,
        _checkerboard_point,
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
        _e8_choice,
        _e8_point,
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
