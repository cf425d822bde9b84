"""The norm law of a root lattice's Voronoi cell, exactly.

Let U be uniform on the Voronoi cell P of a root lattice and R a uniformly random rotation. R U is a mixture
of uniform laws on balls of a random radius T, and this module gives the law of T without simulation.

The Voronoi cell is the union of the images, under the lattice's Weyl group, of one simplex: the fundamental
alcove, with vertices 0 and those scaled fundamental weights that lie on the mirror of the highest root
(Conway and Sloane: Sphere Packings, Lattices and Groups, chapter 21, theorem 5). The group acts by
isometries, so |U| is the norm of a uniform point of the alcove. Such a point is rho * W, with W uniform on
the facet opposite 0 and rho of density n rho^(n-1) on [0, 1], independent of it. The norm of a uniform point
of the ball of radius T is rho * T, hence

  T = |W|,  W uniform on the simplex with the vertices `alcove(lattice)`.

The volume V_F(x) of a face F of k dimensions inside the ball {|w|^2 <= x} obeys, by the divergence theorem
for the field w - foot,

  2 (x - D_F) dV_F/dx = k V_F - sum over the facets G of F of d_G V_G

with D_F the squared norm of the foot of the perpendicular from 0 to F's hull and d_G the signed distance of
that foot from G's hull within F's. Between neighbouring values of D every V is an analytic function of
sqrt(x - D); Chebyshev polynomials in that root represent it to the precision of f64.
"""

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np
from numpy.polynomial import chebyshev

from cepam_jax.errors import require_choice

CELLS = ("A2", "D4", "E8")
_DEGREE = 32  # of the Chebyshev polynomials; the last coefficients are below 2e-15
_SAME = 1e-9  # squared distances of faces that differ by less are equal


class NormLaw(NamedTuple):
    """The law of T, on pieces between critical squared radii.

    Attributes:
      dimension: n, of the lattice.
      edges: f64[pieces + 1], ascending critical values of T^2.
      cdf: f64[degree + 1, pieces], Chebyshev coefficients of P(T^2 <= edge + gap * v^2) in 2 v - 1, where gap
        is the piece's length and v runs from 0 to 1.
    """

    dimension: int
    edges: np.ndarray
    cdf: np.ndarray


class _Face(NamedTuple):
    """Squared norm of the foot, volume, and signed distances of the foot from the facets."""

    squared: float
    volume: float
    distances: tuple[float, ...]


def _unit(n: int, plus: int, minus: int | None = None, sign: float = -1.0) -> np.ndarray:
    """e_plus + sign * e_minus in n dimensions."""
    vector = np.zeros(n)
    vector[plus] = 1.0
    if minus is not None:
        vector[minus] = sign
    return vector


def roots(lattice: str) -> tuple[np.ndarray, np.ndarray]:
    """Simple roots f64[n, n] and highest root f64[n], in the coordinates and scale of `lattices.LATTICES`.

    Args:
      lattice: "A2", "D4" or "E8".

    Raises:
      ConfigError: another lattice.
    """
    require_choice("lattice", lattice, CELLS)
    if lattice == "A2":
        height = math.sqrt(0.75)
        return np.array([[1.0, 0.0], [-0.5, height]]), np.array([0.5, height])
    if lattice == "D4":
        simple = [_unit(4, i, i + 1) for i in range(3)] + [_unit(4, 2, 3, 1.0)]
        return np.array(simple), _unit(4, 0, 1, 1.0)
    halves = 0.5 * np.array([1.0, -1, -1, -1, -1, -1, -1, 1])
    simple = [halves, _unit(8, 0, 1, 1.0)] + [_unit(8, i, i - 1) for i in range(1, 7)]
    return np.array(simple), _unit(8, 6, 7, 1.0)


def alcove(lattice: str) -> np.ndarray:
    """f64[n, n], the vertices of the fundamental alcove other than 0, one a row.

    The i-th is orthogonal to every simple root but the i-th, and as near to the highest root as to 0.
    """
    simple, highest = roots(lattice)
    weights = np.linalg.inv(simple).T
    return weights * (highest @ highest / 2 / (weights @ highest))[:, None]


def _volume(points: np.ndarray) -> float:
    """Volume of the simplex with the vertices f64[k + 1, n], in its k dimensions."""
    sides = points[1:] - points[0]
    return math.sqrt(np.linalg.det(sides @ sides.T)) / math.factorial(len(sides)) if len(sides) else 1.0


def _face(points: np.ndarray) -> _Face:
    """The face with the vertices f64[k + 1, n]."""
    dimension, volume = len(points) - 1, _volume(points)
    if dimension == 0:
        return _Face(float(points[0] @ points[0]), 1.0, ())
    sides = points[1:] - points[0]
    inner = np.linalg.solve(sides @ sides.T, -sides @ points[0])
    barycentric = np.concatenate([[1 - inner.sum()], inner])
    foot = barycentric @ points
    facets = [_volume(np.delete(points, i, 0)) for i in range(dimension + 1)]
    distances = (float(b * dimension * volume / facet) for b, facet in zip(barycentric, facets, strict=True))
    return _Face(float(foot @ foot), volume, tuple(distances))


def _differentiation(degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Chebyshev points v f64[degree + 1] of [0, 1], from 1 down to 0, and the matrix of d/dv on them."""
    points = np.cos(np.pi * np.arange(degree + 1) / degree)
    weight = np.where(np.arange(degree + 1) % degree == 0, 2.0, 1.0) * (-1.0) ** np.arange(degree + 1)
    matrix = weight[:, None] / weight / (points[:, None] - points + np.eye(degree + 1))
    matrix -= np.diag(matrix.sum(1))
    return (points + 1) / 2, 2 * matrix


def _solve(
    face: _Face, dimension: int, facets: np.ndarray, piece: tuple[float, float], right: float
) -> np.ndarray:
    """V_F on the Chebyshev points of one piece, from its value at the right end and the facets' sum."""
    v, derivative = _differentiation(_DEGREE)
    left, gap = piece[0], piece[1] - piece[0]
    if abs(face.squared - left) < _SAME:  # the equation divided by gap * v, which vanishes at the foot
        matrix, value = v[:, None] * derivative - dimension * np.eye(len(v)), -facets
    else:
        away = left - face.squared + gap * v * v
        matrix = away[:, None] * derivative - np.diag(gap * dimension * v)
        value = -gap * v * facets
    matrix[0], value[0] = np.eye(len(v))[0], right
    return np.linalg.solve(matrix, value)


@functools.lru_cache
def norm_law(lattice: str) -> NormLaw:
    """The law of T for the lattice's Voronoi cell.

    Args:
      lattice: "A2", "D4" or "E8", at the scale of `lattices.LATTICES`.

    Raises:
      ConfigError: another lattice.
    """
    vertices = alcove(lattice)
    names = [f for k in range(1, len(vertices) + 1) for f in itertools.combinations(range(len(vertices)), k)]
    faces = {name: _face(vertices[list(name)]) for name in names}
    whole = names[-1]
    edges = [faces[whole].squared]
    for squared in sorted(face.squared for face in faces.values()):
        if squared > edges[-1] + _SAME:
            edges.append(squared)
    v, _ = _differentiation(_DEGREE)
    right = {name: face.volume for name, face in faces.items()}
    pieces = []
    for left, end in reversed(list(itertools.pairwise(edges))):
        volumes: dict[tuple[int, ...], np.ndarray] = {}
        for name, face in faces.items():  # facets come before their faces
            if len(name) == 1 or face.squared > end - _SAME:
                volumes[name] = np.full(len(v), float(len(name) == 1 and left > face.squared - _SAME))
                continue
            facets = np.zeros(len(v))
            for i, distance in enumerate(face.distances):
                facets += distance * volumes[name[:i] + name[i + 1 :]]
            volumes[name] = _solve(face, len(name) - 1, facets, (left, end), right[name])
        right = {name: float(volume[-1]) for name, volume in volumes.items()}
        pieces.append(chebyshev.chebfit(2 * v - 1, volumes[whole] / faces[whole].volume, _DEGREE))
    return NormLaw(len(vertices), np.array(edges), np.stack(pieces[::-1], 1))


def cdf(law: NormLaw, radius: np.ndarray) -> np.ndarray:
    """P(T <= radius), f64[...]."""
    squared = np.square(radius)
    piece = np.clip(np.searchsorted(law.edges, squared, side="right") - 1, 0, len(law.edges) - 2)
    v = np.sqrt(np.clip((squared - law.edges[piece]) / np.diff(law.edges)[piece], 0.0, 1.0))
    inside = chebyshev.chebval(2 * v - 1, law.cdf[:, piece], tensor=False)
    return np.where(squared <= law.edges[0], 0.0, np.where(squared >= law.edges[-1], 1.0, inside))


def quadrature(law: NormLaw, nodes: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Radii and weights f64[pieces * nodes] with which sum(weight * f(radius)) is E f(T), f analytic."""
    points, weights = np.polynomial.legendre.leggauss(nodes)
    v = (points[:, None] + 1) / 2
    density = 2 * chebyshev.chebval(points, chebyshev.chebder(law.cdf)).T  # of v
    radii = np.sqrt(law.edges[:-1] + np.diff(law.edges) * v * v)
    return radii.T.ravel(), (density * weights[:, None] / 2).T.ravel()


def mellin(law: NormLaw, s: np.ndarray) -> np.ndarray:
    """E T^s for complex s, c128[...]; an entire function of s."""
    radii, weights = quadrature(law)
    return np.exp(np.multiply.outer(s, np.log(radii))) @ weights
