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
# So many radii, or scales, at once: with more, numbers no longer fit the processor's caches.
_TOGETHER, _IN_CACHE = 24, 1 << 15


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
        ends = self.at(np.array([[-1.0], [1.0]]))
        return np.stack([ends.min(0), ends.max(0)])

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

    return _means(norm, law, radii, 0, np.array([0.0, 1.0]), np.array([1.0, 0.0]), inside)


def error_density(norm: cells.NormLaw, law: Parabolas, radii: np.ndarray) -> np.ndarray:
    """Density f64[k] in R^n of the error S * R * U at points with norms f64[k]."""
    kernel, below = _kernel(norm)

    def inside(piece: int, v: np.ndarray) -> np.ndarray:
        return kernel(piece, v)[None]

    return _means(norm, law, radii, -norm.dimension, np.array([below]), np.array([0.0]), inside)[0]


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
        meets = np.searchsorted(scales, r / np.sqrt(norm.edges[::-1]))  # pieces of T, the last first
        total = below * rest[meets[-1]]
        for back, (first, last) in enumerate(itertools.pairwise(meets)):
            piece = len(norm.edges) - 2 - back
            least, gap = norm.edges[piece], norm.edges[piece + 1] - norm.edges[piece]
            for start in range(first, last, _IN_CACHE):
                some = slice(start, min(start + _IN_CACHE, last))
                v = np.sqrt(np.clip(((r / scales[some]) ** 2 - least) / gap, 0.0, 1.0))
                total += kernel(piece, v) @ masses[some]
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


def _parts(law: Parabolas, scales: np.ndarray, upper: bool) -> tuple[np.ndarray, np.ndarray]:
    """Ends in u, f64[k, cells] each, of the part of each cell where S is above scales f64[k] (or below)."""
    (low, high), scales, rises = law.ends(), scales[:, None], np.sign(law.slope)
    inner = np.clip(_place(law, scales, np.arange(len(low))), -1.0, 1.0)
    border = np.where(scales <= low, -rises, np.where(scales >= high, rises, inner))
    own = rises if upper else -rises
    return np.minimum(border, own), np.maximum(border, own)


class _Meeting(NamedTuple):
    """Nodes at which cells of S meet a piece of T where S * T is one of the radii: f64[m, nodes].

    Attributes:
      piece: of T.
      radius: i64[m], which of the radii; ascending.
      v: the nodes.
      scale: S there.
      weight: P_c du / 2.
    """

    piece: int
    radius: np.ndarray
    v: np.ndarray
    scale: np.ndarray
    weight: np.ndarray


def _meetings(norm: cells.NormLaw, law: Parabolas, radii: np.ndarray) -> Iterator[_Meeting]:
    """Of every piece of T, those of all radii f64[k]."""
    low, high = law.ends()
    for piece, (left, right) in enumerate(itertools.pairwise(np.sqrt(norm.edges))):
        which, c = np.nonzero((radii[:, None] / low > left) & (radii[:, None] / high < right))
        r, gap = radii[which], norm.edges[piece + 1] - norm.edges[piece]
        squared = [np.clip(r / s[c], left, right) ** 2 - norm.edges[piece] for s in (high, low)]
        start, end = (np.sqrt(np.clip(s / gap, 0.0, 1.0))[:, None] for s in squared)
        v = start + (end - start) * (_POINTS + 1) / 2
        squared_t = norm.edges[piece] + gap * v * v
        scale, c = r[:, None] / np.sqrt(squared_t), c[:, None]
        rate = np.abs(law.slope[c] + 3 * law.bend[c] * _place(law, scale, c))  # dS/du
        change = scale * gap * v / squared_t  # -dS/dv
        weight = law.probability[c] * change / rate * (end - start) * _WEIGHTS / 4
        yield _Meeting(piece, which, v, scale, weight)


def _means(
    norm: cells.NormLaw,
    law: Parabolas,
    radii: np.ndarray,
    power: int,
    below: np.ndarray,
    above: np.ndarray,
    inside: Callable,
) -> np.ndarray:
    """E S^power K(r / S), f64[j, k] at radii f64[k].

    Args:
      norm: law of T.
      law: of S.
      radii: r.
      power: of S.
      below: f64[j], K below T's range.
      above: f64[j], K above it.
      inside: K within, a function of a piece and of v f64[m, nodes] that returns f64[j, m, nodes].
    """
    parts = [radii[start : start + _TOGETHER] for start in range(0, max(len(radii), 1), _TOGETHER)]
    return np.concatenate([_some_means(norm, law, part, power, below, above, inside) for part in parts], 1)


def _some_means(norm, law, radii, power, below, above, inside) -> np.ndarray:
    total = np.zeros((len(below), len(radii)))
    for value, edge in ((below, norm.edges[0]), (above, norm.edges[-1])):
        if value.any():
            start, end = _parts(law, radii / math.sqrt(edge), upper=edge == norm.edges[0])
            u = start + (end - start) * (_POINTS[:, None, None] + 1) / 2
            powers = np.tensordot(_WEIGHTS, law.at(u) ** power, 1)
            total += value[:, None] * (powers * (law.probability * (end - start) / 4)).sum(1)
    for at in _meetings(norm, law, radii):
        found = np.sum(inside(at.piece, at.v) * (at.scale**power * at.weight), -1)
        total += np.stack([np.bincount(at.radius, row, len(radii)) for row in found])
    return total
