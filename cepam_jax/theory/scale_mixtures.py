"""Laws of S * T and of the error S * R * U, for a scale S that is drawn from a table of parabolas.

S is a mixture over a table's cells: in cell c, of probability P_c, it is a + b u + c (3 u^2 - 1) / 2 with u
uniform on [-1, 1]. T is a `cells.NormLaw`, whose functions are analytic in a variable v on each piece. So
every integral here is split where a cell of S meets a piece of T, and taken over v by Gauss's rule: it is
exact to about the rounding of f64, although the density of T has roots at its ends.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.polynomial import chebyshev

from cepam_jax.theory import cells

_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(8)  # where a cell meets a piece
_DEGREE = 44  # of the kernel's polynomials


class Parabolas(NamedTuple):
    """The law of S: f64[cells] each.

    Attributes:
      probability: P_c.
      mean: a, the mean of S in the cell.
      slope: b, not zero.
      bend: c; so small beside b that S is monotone in u.
    """

    probability: np.ndarray
    mean: np.ndarray
    slope: np.ndarray
    bend: np.ndarray

    def at(self, u: np.ndarray) -> np.ndarray:
        """S at u, f64[..., cells]."""
        return self.mean + self.slope * u + self.bend * (1.5 * u * u - 0.5)

    def ends(self) -> np.ndarray:
        """Least and largest S of each cell, f64[2, cells]."""
        return np.sort(self.at(np.array([[-1.0], [1.0]])), 0)

    def moment(self, power: int) -> float:
        """E S^power."""
        return float(_WEIGHTS @ self.at(_POINTS[:, None]) ** power @ self.probability / 2)


def ball_volume(n: int) -> float:
    """Volume of the unit ball in n dimensions."""
    return math.pi ** (n / 2) / math.gamma(n / 2 + 1)


def cdf(norm: cells.NormLaw, law: Parabolas, radii: np.ndarray) -> np.ndarray:
    """P(S T <= r) and P(S T > r), f64[2, k] at radii f64[k]; a small one is precise relatively."""

    def inside(piece: int, v: np.ndarray) -> np.ndarray:
        value = chebyshev.chebval(2 * v - 1, norm.cdf[:, piece])
        return np.stack([value, 1 - value])

    beyond = np.array([0.0, 1.0]), np.array([1.0, 0.0])
    return np.stack([_mean(norm, law, r, 0, *beyond, inside) for r in radii], 1)


def error_density(norm: cells.NormLaw, law: Parabolas, radii: np.ndarray) -> np.ndarray:
    """Density f64[k] in R^n of the error S * R * U at points with norms f64[k]."""
    kernel, below = _kernel(norm)
    beyond = np.array(below), np.array(0.0)
    return np.array([_mean(norm, law, r, -norm.dimension, *beyond, kernel) for r in radii])


def error_density_of_points(
    norm: cells.NormLaw, scales: np.ndarray, masses: np.ndarray, radii: np.ndarray
) -> np.ndarray:
    """As `error_density`, for scales f64[m] with the probabilities f64[m]: what words really draw."""
    kernel, below = _kernel(norm)
    order = np.argsort(scales)
    scales, masses = scales[order], (masses * scales**-norm.dimension)[order]
    # Scales above r / least T all count the same.
    rest = np.append(np.cumsum(masses[::-1])[::-1], 0.0)
    found = []
    for r in radii:
        first, last = np.searchsorted(scales, r / np.sqrt(norm.edges[[-1, 0]]))
        squared = np.clip((r / scales[first:last]) ** 2, norm.edges[0], norm.edges[-1])
        which = np.clip(np.searchsorted(norm.edges, squared, side="right") - 1, 0, len(norm.edges) - 2)
        v = np.sqrt(np.maximum(squared - norm.edges[which], 0) / np.diff(norm.edges)[which])
        total = below * rest[last]
        for piece in range(len(norm.edges) - 1):
            here = which == piece
            total += kernel(piece, v[here]) @ masses[first:last][here]
        found.append(total)
    return np.array(found)


def balls_density(n: int, balls: np.ndarray, masses: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Density f64[k] in R^n, at points with norms f64[k], of uniform laws on balls of radii f64[m].

    Args:
      n: the dimension.
      balls: radii of the balls.
      masses: f64[m], their probabilities.
      radii: of the points.
    """
    order = np.argsort(balls)
    above = np.append(np.cumsum((masses / balls**n)[order][::-1])[::-1], 0.0) / ball_volume(n)
    return above[np.searchsorted(balls[order], radii)]


def _kernel(norm: cells.NormLaw) -> tuple[Callable, float]:
    """Density of R U at a point of norm t: a function of piece and v, and its value below T's range."""
    n, rest = norm.dimension, 0.0
    pieces: list[np.ndarray] = []
    slopes = 2 * chebyshev.chebder(norm.cdf)
    points = np.cos(np.pi * (np.arange(_DEGREE + 4) + 0.5) / (_DEGREE + 4))
    v = (points + 1) / 2
    for piece in reversed(range(len(norm.edges) - 1)):
        squared = norm.edges[piece] + (norm.edges[piece + 1] - norm.edges[piece]) * v * v
        per_ball = chebyshev.chebval(points, slopes[:, piece]) / squared ** (n / 2) / ball_volume(n)
        falls = -chebyshev.chebint(chebyshev.chebfit(points, per_ball, _DEGREE), scl=0.5)
        falls[0] += rest - chebyshev.chebval(1.0, falls)
        rest = float(chebyshev.chebval(-1.0, falls))
        pieces.insert(0, falls)
    return lambda piece, v: chebyshev.chebval(2 * v - 1, pieces[piece]), rest


def _place(law: Parabolas, scale: np.ndarray, c: np.ndarray) -> np.ndarray:
    """u at which cell c has the scale; the root of a parabola in its stable form."""
    flat = law.mean[c] - 0.5 * law.bend[c] - scale
    root = np.sqrt(np.maximum(law.slope[c] ** 2 - 6 * law.bend[c] * flat, 0.0))
    return -2 * flat / (law.slope[c] + np.copysign(root, law.slope[c]))


def _part(law: Parabolas, scale: float, upper: bool) -> np.ndarray:
    """Ends in u, f64[2, cells], of the part of each cell where S is above the scale (or below it)."""
    low, high = law.ends()
    rises = np.sign(law.slope)
    u = np.clip(_place(law, np.full(low.shape, scale), np.arange(len(low))), -1.0, 1.0)
    u = np.where(scale <= low, -rises, np.where(scale >= high, rises, u))
    return np.sort(np.stack([u, rises if upper else -rises]), 0)


class _Meeting(NamedTuple):
    """Nodes at which cells of S meet a piece of T where S * T = r: f64[k, nodes]."""

    v: np.ndarray
    scale: np.ndarray
    weight: np.ndarray  # P_c du / 2


def _meetings(norm: cells.NormLaw, law: Parabolas, r: float) -> Iterator[tuple[int, _Meeting]]:
    """The pieces of T, and where the cells meet them."""
    low, high = law.ends()
    radii = np.sqrt(norm.edges)
    for piece, (left, right) in enumerate(itertools.pairwise(radii)):
        c = np.flatnonzero((r / low > left) & (r / high < right))
        gap = norm.edges[piece + 1] - norm.edges[piece]
        squared = [np.clip(r / s[c], left, right) ** 2 - norm.edges[piece] for s in (high, low)]
        start, end = (np.sqrt(np.clip(s / gap, 0.0, 1.0))[:, None] for s in squared)
        v = start + (end - start) * (_POINTS + 1) / 2
        squared_t = norm.edges[piece] + gap * v * v
        scale, c = r / np.sqrt(squared_t), c[:, None]
        rate = np.abs(law.slope[c] + 3 * law.bend[c] * _place(law, scale, c))  # dS/du
        change = scale * gap * v / squared_t  # -dS/dv
        yield (
            piece,
            _Meeting(v, scale, law.probability[c] * change / rate * (end - start) * _WEIGHTS / 4),
        )


def _mean(
    norm: cells.NormLaw,
    law: Parabolas,
    r: float,
    power: int,
    below: np.ndarray,
    above: np.ndarray,
    inside: Callable,
) -> np.ndarray:
    """E S^power K(r / S), f64[...], where K is `below` and `above` T's range and inside(piece, v) within."""
    total = np.zeros(below.shape)
    for value, edge in ((below, norm.edges[0]), (above, norm.edges[-1])):
        if value.any():
            start, end = _part(law, r / math.sqrt(edge), upper=edge == norm.edges[0])
            u = start + (end - start) * (_POINTS[:, None] + 1) / 2
            total += value * float(_WEIGHTS @ law.at(u) ** power @ (law.probability * (end - start) / 4))
    for piece, at in _meetings(norm, law, r):
        total += np.sum(inside(piece, at.v) * (at.scale**power * at.weight), (-2, -1))
    return total
