"""A Gaussian density as a mixture of scaled and moved Irwin-Hall densities, in numbers on the host.

S is a sum of n uniform numbers on [-1/2, 1/2], h its density. The Gaussian of the same variance n / 12 is

  phi = lambda h(./a) / a + a density r,     r >= 0,

with a and lambda as large as they can be. r, taken as linear between the points of a grid, is a mixture of
uniform laws: rectangles under the steps below it, and on each cell a triangle, which is a mixture of uniform
laws on intervals that share an end. `aggregate_gaussian` splits a uniform law into Irwin-Hall laws.

Source: Hegazy, Leluc, Li, Dieuleveut: Compression with Exact Error Distribution for Federated Learning, arXiv
2310.20682 (there by bisection; the grid, and splitting by B-splines, are this project's).
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from scipy import special

CELLS = 1 << 12
_END = 7.5  # deviations, where the grid ends: beyond lies a mass of 6e-14
_BY_SUM = 12  # up to so many uniform numbers the density is a sum of powers; beyond, an integral


class Parts(NamedTuple):
    """The mixture for one n.

    Attributes:
      scale: a, of the plain part.
      share: lambda, its probability.
      upper: uint32[m], 2^32 times the probability of all parts up to each one, less one; the plain part is
        the first. A random word belongs to the first part whose number is not below it.
      left, width: f32[m], the interval of a part.
      slope: int8[m], 0: uniform; -1: a triangle that falls, from the left end; 1: one that rises to the right
        end.
      error: bound on the total variation between the mixture and the Gaussian.
    """

    scale: float
    share: float
    upper: np.ndarray
    left: np.ndarray
    width: np.ndarray
    slope: np.ndarray
    error: float


def density(n: int, x: np.ndarray) -> np.ndarray:
    """Density at f64[...] x of a sum of n uniform numbers on [-1/2, 1/2]; to about 1e-12."""
    if n <= _BY_SUM:
        from_end = n / 2 - np.abs(x)  # on the side where few terms cancel
        total = np.zeros(np.shape(x))
        for j in range(n // 2 + 1):
            # At n = 1 a power of zero would count the outside.
            inside = (from_end - j > 0) * np.maximum(from_end - j, 0.0) ** (n - 1)
            total += (-1) ** j * math.comb(n, j) * inside
        return np.maximum(total, 0.0) / math.factorial(n - 1)
    # The Fourier transform, which is below 1e-14 beyond 40 deviations; at this step it repeats after 94.
    w = np.linspace(0, 40 / math.sqrt(n / 12), 601)
    weights = np.sinc(w / (2 * np.pi)) ** n * w[1]
    weights[0] /= 2
    found = np.concatenate([np.cos(part[:, None] * w) @ weights for part in np.array_split(x, 32)])
    return np.where(np.abs(x) < n / 2, np.maximum(found / np.pi, 0.0), 0.0)


def gaussian(n: int, x: np.ndarray) -> np.ndarray:
    """Density at f64[...] x of N(0, n / 12)."""
    return np.exp(-6 * x**2 / n) / math.sqrt(math.pi * n / 6)


@functools.lru_cache(maxsize=32)
def parts(n: int) -> Parts:
    """The mixture for sums of n >= 2 uniform numbers."""
    end = _END * math.sqrt(n / 12)
    edges = np.linspace(-end, end, CELLS + 1)
    phi, best, scale = gaussian(n, edges), 0.0, 1.0
    table = density(n, edges / 0.5)  # at all scales by interpolation, to choose one
    for a in np.linspace(0.9, 1.2, 61):
        h = np.interp(edges / a, edges / 0.5, table, left=0, right=0) / a
        share = np.min(phi[h > 1e-9] / h[h > 1e-9])
        if share > best:
            best, scale = share, float(a)
    h = density(n, edges / scale) / scale
    share = float(np.min(phi[h > 1e-9] / h[h > 1e-9])) * (1 - 1e-9)
    rest = np.maximum(phi - share * h, 0.0)
    cell = edges[1] - edges[0]
    low = np.minimum(rest[1:], rest[:-1])
    boxes = _rectangles(low)
    rise = np.diff(rest)
    kept = np.flatnonzero(rise != 0)
    left = np.concatenate([[0.0], edges[boxes[:, 0].astype(int)], edges[kept]])
    width = np.concatenate([[0.0], (boxes[:, 1] - boxes[:, 0]) * cell, np.full(len(kept), cell)])
    slope = np.concatenate([[0], np.zeros(len(boxes)), np.sign(rise[kept])]).astype(np.int8)
    mass = np.concatenate([[share], boxes[:, 2] * width[1 : len(boxes) + 1], np.abs(rise[kept]) * cell / 2])
    whole = np.cumsum(mass) / mass.sum()
    upper = np.minimum(np.round(whole * 2.0**32), 2.0**32) - 1
    middle = (edges[1:] + edges[:-1]) / 2
    straight = (rest[1:] + rest[:-1]) / 2
    exact = gaussian(n, middle) - share * density(n, middle / scale) / scale
    # Of a straight line the error is largest in the middle; of the words, half a unit at each border.
    error = np.abs(straight - exact).sum() * cell + abs(mass.sum() - 1) + len(mass) * 2.0**-33
    error += special.erfc(_END / math.sqrt(2))
    return Parts(
        scale,
        share,
        np.maximum(upper, 0).astype(np.uint32),
        left.astype(np.float32),
        width.astype(np.float32),
        slope,
        float(error),
    )


def _rectangles(heights: np.ndarray) -> np.ndarray:
    """The area under steps as rectangles as wide as they can be: f64[m, 3] of first, last + 1, height."""
    found: list[tuple[int, int, float]] = []
    open_boxes: list[tuple[int, float]] = []  # the first step and the height of each
    for at, height in enumerate([*heights.tolist(), 0.0]):
        first, base = at, 0.0
        while open_boxes and open_boxes[-1][1] > height:
            first, top = open_boxes.pop()
            base = max(open_boxes[-1][1] if open_boxes else 0.0, height)
            found.append((first, at, top - base))
        if height > (open_boxes[-1][1] if open_boxes else 0.0):
            open_boxes.append((first, height))
    return np.array(found, np.float64).reshape(-1, 3)
