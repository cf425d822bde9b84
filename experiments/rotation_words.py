"""Which words fall into a cell of a table of parabolas; how a law is written into one; what it then is."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import special

from cepam_jax.mechanisms import cell_scales
from cepam_jax.theory.scale_mixtures import Parabolas

_POSITIONS = 4096  # in a cell, counted from -2048
_FIT_NODES = 8


class Words(NamedTuple):
    """The folded words of each cell: f64[cells] each, the same below and above 2^31.

    Attributes:
      start: first word; a half where the words just below the edge are rounded up into the cell.
      stop: where the next cell's begin; equal to `start` if the cell has none.
      left: the cell's left edge.
      step: positions from one word to the next, at least 1.
      half: half the unit to which words are rounded inside the cell, 0 if they are not.
    """

    start: np.ndarray
    stop: np.ndarray
    left: np.ndarray
    step: np.ndarray
    half: np.ndarray


def words_of_cells() -> Words:
    """The words of the cells of `latents.cell`."""
    count = 1 << cell_scales.STEP_BITS
    lowest = 2.0 ** (np.arange(33)[:, None] - 1)  # with which an octave begins
    left = lowest * (1 + np.arange(count) / count)
    unit = np.broadcast_to(lowest / 2**23, left.shape)  # words above 2^24 are rounded to 24 bits
    before = np.where(left == lowest, unit / 2, unit)  # the unit below the edge
    start = np.where(before >= 2, left - before / 2, np.ceil(left))
    start[0] = np.arange(count) > 0  # the word 0 counts as 1/2
    start = np.minimum(start.ravel(), 2.0**31)
    step = np.maximum(1.0, _POSITIONS * count / np.broadcast_to(lowest, left.shape))
    half = np.where(unit >= 2, unit / 2, 0.0)
    return Words(start, np.append(start[1:], 2.0**31), left.ravel(), step.ravel(), half.ravel())


def fit(quantile: Callable) -> np.ndarray:
    """Half a table, f32[3, 2 * cells]: middle, slope and bend.

    Args:
      quantile: (probability f64[...], whether it is counted from above) -> f64[...].
    """
    words = words_of_cells()
    points, weights = np.polynomial.legendre.leggauss(_FIT_NODES)
    probability = ((words.stop + words.start) + (words.stop - words.start) * points[:, None]) / 2**33
    sides = []
    for from_above in (False, True):
        values = quantile(probability, from_above)
        # Least squares by Legendre's polynomials, which keep the mean and nearly the variance of S in a cell.
        sides.append([(k + 0.5) * (weights * special.eval_legendre(k, points)) @ values for k in range(3)])
    mean, slope, bend = np.concatenate(sides, 1)
    step, mean_position, mean_square, several = _positions(words)
    curve = np.where(several, 1.5 * bend / 2048, 0.0)  # per 2^11 of the squared position
    slope = _bits(np.where(several, slope / 2048 + curve * step / 2048, 0.0), 13)
    curve = _bits(curve, 12)
    middle = mean - slope * mean_position - curve * mean_square
    return np.stack([middle, slope, curve]).astype(np.float32)


def law(half: np.ndarray) -> Parabolas:
    """What words draw from half a table f32[3, 2 * cells], if the scale were uniform between two words."""
    words = words_of_cells()
    slope, bend = half[1:].astype(np.float64)
    step, _, _, several = _positions(words)
    mean = np.empty(len(step))
    for s in np.unique(step):  # of the very numbers, because their rounding moves it
        position = _grid(s)
        of = step == s
        straight = half[0][of] + half[1][of] * position.astype(np.float32)[:, None]
        square = (position * position >> cell_scales.SQUARE_SHIFT).astype(np.float32)[:, None]
        mean[of] = (straight + half[2][of] * square).mean(0, np.float64)
    across = np.where(several, slope * 2048 - bend * step, 1e-7 * mean)  # one word: an atom, nearly
    probability = np.tile(words.stop - words.start, 2) / 2**32
    used = probability > 0
    return Parabolas(*(part[used] for part in (probability, mean, across, bend * 2048 / 1.5)))


def drawn(table: cell_scales.ScaleTable, balls: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Every scale that `cell_scales.scales` draws for cells or balls, and its probability: f64[k] each."""
    words, scales, masses = words_of_cells(), [], []
    spare = np.uint32(0 if balls else 0xFFFFFFFF)
    for first in range(0, len(words.start), 1 << cell_scales.STEP_BITS):  # octave by octave: less memory
        start, stop, left, step, half = (part[first : first + (1 << cell_scales.STEP_BITS)] for part in words)
        width, count = left[1] - left[0], int(max(1, _POSITIONS / step[0]))
        edges = left[:, None] + width * np.arange(count + 1) / count - half[:, None]
        edges[:, 0], edges[:, -1] = start, stop
        edges = np.clip(edges, start[:, None], stop[:, None])
        mass = np.diff(edges).ravel()
        word = np.ceil(edges[:, :-1].ravel()[mass > 0]).astype(np.uint32)
        for one in (word, ~word):
            scale, _ = cell_scales.scales(one, np.full(one.shape, spare), table)
            scales.append(scale.astype(np.float64))
            masses.append(mass[mass > 0] / 2**32)
    return np.concatenate(scales), np.concatenate(masses)


def _positions(words: Words) -> tuple[np.ndarray, ...]:
    """Step, mean position, mean of what is left of its square, and whether there are several: [2 * cells]."""
    step = np.tile(words.step, 2)
    squares = {s: (_grid(s) ** 2 >> cell_scales.SQUARE_SHIFT).mean() for s in np.unique(words.step)}
    return step, -step / 2, np.array([squares[s] for s in step]), np.tile(words.stop - words.start > 1, 2)


def _grid(step: float) -> np.ndarray:
    """The positions of words so far apart, int64[...]."""
    return np.arange(-_POSITIONS // 2, _POSITIONS // 2, int(step))


def _bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Rounds f64[...] to floating-point numbers with so many bits of mantissa."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(mantissa * 2**bits), exponent - bits)
