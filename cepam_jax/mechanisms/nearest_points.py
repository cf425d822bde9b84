"""Nearest points of the lattices, by elementwise operations over blocks.

Each lattice has three functions. One returns the nearest point of y, n arrays [k], as n arrays of integers.
Where many axes of many blocks are to be rounded, it may be taken in two steps: a choice for each block,
int32[k], and the point of that choice, which takes each axis few operations. So the choice is calculated
once.

Source: Conway and Sloane: Sphere Packings, Lattices and Groups, chapter 20.
"""

import functools
import math
from typing import Any

import numpy as np

from cepam_jax.mechanisms.arrays import namespace

HEIGHT = np.float32(math.sqrt(3) / 2)  # of the rows of A2


def integers(y: list[Any], choice: Any = None) -> list[Any]:
    """The point of Z^n nearest to y, n arrays [k]; there is nothing to choose."""
    return [namespace(y[0]).round(a) for a in y]


def no_choice(y: list[Any]) -> Any:
    """int32[k], zeros."""
    return namespace(y[0]).zeros(y[0].shape, np.int32)


def checkerboard_choice(y: list[Any]) -> Any:
    """Which axis of y, n arrays [k], is not rounded to its nearest integer: int32[k], n if all are.

    The nearest point of D_n, the integer points with even sum, rounds all axes; if the sum is odd, the axis
    with the largest error is rounded the other way, of equals the first.
    """
    xp = namespace(y[0])
    points = integers(y)
    errors = [xp.abs(a - p) for a, p in zip(y, points, strict=True)]
    largest = functools.reduce(xp.maximum, errors)
    axis = xp.full(y[0].shape, len(y), xp.int32)
    for i in reversed(range(len(y))):
        axis = xp.where(errors[i] == largest, np.int32(i), axis)
    return xp.where(xp.mod(sum(points), 2) != 0, axis, np.int32(len(y)))


def checkerboard_point(y: list[Any], choice: Any) -> list[Any]:
    """The integers nearest to y, n arrays [k], but for the axis that is chosen, int32[k].

    The box [-1, 1] x [-1/2, 1/2]^(n-1) tiles space under D_n.
    """
    xp = namespace(y[0])
    moved = []
    for i, (a, point) in enumerate(zip(y, integers(y), strict=True)):
        moved.append(point + xp.where(choice == i, xp.where(a - point >= 0, 1.0, -1.0), 0.0))
    return moved


def checkerboard(y: list[Any]) -> list[Any]:
    """The point of D_n nearest to y, n arrays [k]."""
    return checkerboard_point(y, checkerboard_choice(y))


def _nearer(y: list[Any], first: list[Any], second: list[Any]) -> Any:
    """bool[k], whether the first of two points, n arrays [k] each, is at least as near to y as the second."""
    distances = [sum((a - p) * (a - p) for a, p in zip(y, point, strict=True)) for point in (first, second)]
    return distances[0] <= distances[1]


def _e8_candidates(y: list[Any]) -> tuple[list[Any], list[list[Any]], Any]:
    """The nearest points in D8 and in D8 shifted by (1/2, ..., 1/2), which E8 consists of.

    Returns:
      Their choices, their coordinates, and bool[k], whether the first is the nearer one.
    """
    shifted = [a - 0.5 for a in y]
    choices = [checkerboard_choice(y), checkerboard_choice(shifted)]
    half = [p + 0.5 for p in checkerboard_point(shifted, choices[1])]
    points = [checkerboard_point(y, choices[0]), half]
    return choices, points, _nearer(y, *points)


def e8(y: list[Any]) -> list[Any]:
    """The nearest point of E8, for y of 8 arrays [k], in units of one half.

    The box of D8 covers space exactly twice under E8, so a uniform point of it is uniform modulo E8 as well.
    """
    _, points, nearer = _e8_candidates(y)
    return [2 * namespace(y[0]).where(nearer, w, h) for w, h in zip(*points, strict=True)]


def e8_choice(y: list[Any]) -> Any:
    """int32[k], `checkerboard_choice` in the half of E8 that is the nearer one, plus 16 in the second."""
    (first, second), _, nearer = _e8_candidates(y)
    return namespace(y[0]).where(nearer, first, second + np.int32(16))


def e8_point(y: list[Any], choice: Any) -> list[Any]:
    """The point of E8 of a choice int32[k], for y of 8 arrays [k], in units of one half."""
    shift = namespace(y[0]).where(choice >= 16, 0.5, 0.0).astype(y[0].dtype)
    return [2 * (p + shift) for p in checkerboard_point([a - shift for a in y], choice & np.int32(15))]


def _in_rows(y: list[Any], shift: Any) -> list[Any]:
    """The column [k] and row [k] of the point nearest to y in even rows (shift 0) or odd rows (shift 1/2).

    A2 with minimal distance 1 consists of two rectangular lattices, one in the gaps of the other.
    """
    xp = namespace(y[0])
    return [xp.round(y[0] - shift) + shift, 2 * (xp.round(y[1] / (2 * HEIGHT) - shift) + shift)]


def hexagonal(y: list[Any]) -> list[Any]:
    """The nearest point of A2, for y of 2 arrays [k]; the nearer of two candidates."""
    xp = namespace(y[0])
    even, odd = (_in_rows(y, shift) for shift in (0.0, 0.5))
    nearer = _nearer(y, *([column, HEIGHT * row] for column, row in (even, odd)))
    column, row = (xp.where(nearer, a, b) for a, b in zip(even, odd, strict=True))
    return [xp.round(column - 0.5 * row), row]


def hexagonal_choice(y: list[Any]) -> Any:
    """1 where the nearest point of A2 lies in an odd row, else 0: int32[k] for y of 2 arrays [k]."""
    row = hexagonal(y)[1]
    return namespace(row).mod(row, 2).astype(np.int32)


def hexagonal_point(y: list[Any], choice: Any) -> list[Any]:
    """The point of A2 nearest to y, 2 arrays [k], in the rows of a choice int32[k]."""
    xp = namespace(y[0])
    column, row = _in_rows(y, xp.where(choice == 1, 0.5, 0.0).astype(y[0].dtype))
    return [xp.round(column - 0.5 * row), row]
