"""Laws of S * T and of the error S * R * U, for a scale S that is drawn from a table of parabolas.

S is a mixture over a table's cells: in cell c, of probability P_c, it is a + b u + c (3 u^2 - 1) / 2 with u
uniform on [-1, 1]. T is a `cells.NormLaw`, whose functions are analytic in a variable v on each piece. So every
integral here is split where a cell of S meets a piece of T, and taken over v by Gauss's rule: it is exact to
about the rounding of f64, although the density of T has roots at its ends.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.polynomial import chebyshev

from cepam_jax.theory import cells

_NODES = 8  # of Gauss's rule where a cell meets a piece


class Parabolas(NamedTuple):
    """The law of S: f64[cells] each.

    Attributes:
      probability: of the cell.
      mean: mean of S in the cell, a.
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


class _Meeting(NamedTuple):
    """Nodes at which cells of S meet a piece of T where S * T = r: f64[k, nodes], piece int."""

    piece: int
    v: np.ndarray
    t: np.ndarray
    scale: np.ndarray
    density: np.ndarray  # P_c du / dS / 2 at the node
    weight: np.ndarray  # dv


def ball_volume(n: int) -> float:
    """Volume of the unit ball in n dimensions."""
    return math.pi ** (n / 2) / math.gamma(n / 2 + 1)


def _place(law: Parabolas, scale: np.ndarray, c: np.ndarray) -> np.ndarray:
    """u at which cell c has the scale; the root of a parabola in its stable form."""
    flat = law.mean[c] - 0.5 * law.bend[c] - scale
    root = np.sqrt(np.maximum(law.slope[c] ** 2 - 6 * law.bend[c] * flat, 0.0))
    return -2 * flat / (law.slope[c] + np.copysign(root, law.slope[c]))


def _meetings(norm: cells.NormLaw, law: Parabolas, r: float):
    """Yields a `_Meeting` for each piece of T."""
    ends = law.at(np.array([[-1.0], [1.0]]))
    low, high = r / ends.max(0), r / ends.min(0)  # of T
    points, weights = np.polynomial.legendre.leggauss(_NODES)
    radii = np.sqrt(norm.edges)
    for piece, (left, right) in enumerate(zip(radii[:-1], radii[1:], strict=True)):
        c = np.flatnonzero((high > left) & (low < right))
        gap = norm.edges[piece + 1] - norm.edges[piece]
        squared = [np.clip(t[c], left, right) ** 2 - norm.edges[piece] for t in (low, high)]
        start, end = (np.sqrt(np.clip(s / gap, 0.0, 1.0))[:, None] for s in squared)
        v = start + (end - start) * (points + 1) / 2
        t = np.sqrt(norm.edges[piece] + gap * v * v)
        scale, c = r / t, c[:, None]
        rate = np.abs(law.slope[c] + 3 * law.bend[c] * _place(law, scale, c))
        yield _Meeting(piece, v, t, scale, law.probability[c] / (2 * rate), (end - start) * weights / 2)


def density(norm: cells.NormLaw, law: Parabolas, radii: np.ndarray) -> np.ndarray:
    """Density f64[k] of S * T at radii f64[k]."""
    slopes = 2 * chebyshev.chebder(norm.cdf)
    return np.array(
        [
            sum(
                float(np.sum(m.weight * m.density / m.t * chebyshev.chebval(2 * m.v - 1, slopes[:, m.piece])))
                for m in _meetings(norm, law, r)
            )
            for r in radii
        ]
    )


def _outside(norm: cells.NormLaw, law: Parabolas, r: float, below: bool) -> np.ndarray:
    """Ends in u of the part of each cell where T is below its least value (or above its largest): f64[2, cells]."""
    edge = r / math.sqrt(norm.edges[0] if below else norm.edges[-1])  # S above it: T below
    ends = law.at(np.array([[-1.0], [1.0]]))
    u = np.clip(_place(law, np.full(law.mean.shape, edge), np.arange(len(law.mean))), -1.0, 1.0)
    u = np.where(
        edge <= ends.min(0), -np.sign(law.slope), np.where(edge >= ends.max(0), np.sign(law.slope), u)
    )
    far = np.sign(law.slope) if below else -np.sign(law.slope)
    return np.stack([np.minimum(u, far), np.maximum(u, far)])


def _mean(
    norm: cells.NormLaw, law: Parabolas, r: float, power: int, below: float, above: float, inside: Callable
) -> float:
    """E S^power K(r / S) with K `below` and `above` T's range, and inside(piece, v) within."""
    points, weights = np.polynomial.legendre.leggauss(_NODES)
    total = 0.0
    for value, is_below in ((below, True), (above, False)):
        if value:
            start, end = _outside(norm, law, r, is_below)
            u = start + (end - start) * (points[:, None] + 1) / 2
            total += value * float(weights @ (law.at(u) ** power) @ (law.probability * (end - start) / 4))
    for m in _meetings(norm, law, r):
        gap = norm.edges[m.piece + 1] - norm.edges[m.piece]
        change = gap * m.v / m.t  # dT/dv
        value = inside(m.piece, m.v) * m.scale ** (power + 1) / m.t * change * m.density * m.weight
        total += float(np.sum(value))
    return total


def cdf(norm: cells.NormLaw, law: Parabolas, radii: np.ndarray, upper: bool = False) -> np.ndarray:
    """P(S T <= r), or P(S T > r) if `upper`, f64[k] at radii f64[k]."""

    def inside(piece: int, v: np.ndarray) -> np.ndarray:
        value = chebyshev.chebval(2 * v - 1, norm.cdf[:, piece])
        return 1 - value if upper else value

    return np.array([_mean(norm, law, r, 0, float(upper), float(not upper), inside) for r in radii])


def error_density(norm: cells.NormLaw, law: Parabolas, radii: np.ndarray) -> np.ndarray:
    """Density f64[k] in R^n of the error S * R * U at points with norms f64[k]."""
    n, rest = norm.dimension, 0.0
    slopes, tails = 2 * chebyshev.chebder(norm.cdf), []
    points = np.cos(np.pi * (np.arange(48) + 0.5) / 48)
    for piece in reversed(range(len(norm.edges) - 1)):
        v = (points + 1) / 2
        squared = norm.edges[piece] + (norm.edges[piece + 1] - norm.edges[piece]) * v * v
        per_ball = chebyshev.chebval(points, slopes[:, piece]) / squared ** (n / 2) / ball_volume(n)
        grown = chebyshev.chebint(chebyshev.chebfit(points, per_ball, 44), scl=0.5)
        tails.insert(0, (grown, rest + chebyshev.chebval(1.0, grown)))
        rest = tails[0][1] - chebyshev.chebval(-1.0, grown)

    def inside(piece: int, v: np.ndarray) -> np.ndarray:
        grown, top = tails[piece]
        return top - chebyshev.chebval(2 * v - 1, grown)

    return np.array([_mean(norm, law, r, -n, rest, 0.0, inside) for r in radii])
