"""How much the cell around a coordinate costs under scalar LRSUQ: its cumulants, by numerical integration.

For `length_limits`, which says what they are for; all in float64.
"""

import functools
import math

import numpy as np
from scipy.interpolate import PchipInterpolator

from cepam_jax.mechanisms import code_length, exact, latents

THETAS = np.array([0.005, 0.01, 0.02, 0.035, 0.06, 0.1, 0.17, 0.3, 0.5, 0.8, 1.2])
ROUNDING = 2 ** (0.5 / code_length.SCALES_PER_OCTAVE)  # a scale and what was measured differ by this much
_WIDTHS = 48
_PER_OCTAVE = 24  # of |x|, points at which f is computed
_MOST_NATS = 500.0  # whose exponential float64 holds with room
_FINE = np.concatenate([np.arange(0, 4, 0.01), np.arange(4, 12, 0.05), np.geomspace(12, 100, 120)])


def nats(past: np.ndarray, width: float, scale: float, family: str) -> np.ndarray:
    """-ln P of a cell, in float64.

    Args:
      past: f64[...], how far the cell's nearer edge lies beyond zero; negative: the cell holds zero.
      width: of the cell.
      scale: of the law.
      family: one of `FAMILIES`.

    Returns:
      f64[...].
    """
    components = exact.COMPONENTS[family]
    assert components is not None
    inside, out = np.minimum(past, 0.0), np.maximum(past, 0.0)
    widest = max(scale * part for _, part in components)
    mass = np.zeros_like(past)
    for weight, part in components:
        unit = scale * part
        within = -0.5 * (np.expm1(-(inside + width) / unit) + np.expm1(inside / unit))
        mass += weight * within * np.exp(out / widest - out / unit)
    return out / widest - np.log(mass)


@functools.cache
def _layers(target: str) -> tuple[np.ndarray, np.ndarray]:
    """Widths f64[n] of layers on Z1 in units of sigma, and their probabilities f64[n], for integration."""
    y, weight = np.polynomial.legendre.leggauss(_WIDTHS)
    y, weight = (y + 1) / 2, weight / 2
    low, probability = y**3 * (10 - 15 * y + 6 * y**2), weight * 30 * (y * (1 - y)) ** 2
    # The nodes are symmetric: `low` mirrored is 1 - low, without cancellation.
    radius = latents.quantile(target, 1, low, low[::-1])
    unit = 2.0 if target == "gaussian" else math.sqrt(2)
    return radius * unit, probability / probability.sum()


def grid(sigma: float) -> np.ndarray:
    """|x| over the scale, f64[n], from 0 to where f is a line; sigma in units of the scale."""
    farthest = max(100.0, 8 * sigma)
    # Far out f turns from an exponential to a line within a tenth of an octave.
    above = np.geomspace(1.0, farthest, math.ceil(_PER_OCTAVE * math.log2(farthest)) + 1)
    return np.unique(np.concatenate([[0.0, 1 / ROUNDING, ROUNDING], np.geomspace(0.03, 1.0, 12), above]))


def cumulants(x: np.ndarray, sigma: float, family: str, target: str) -> np.ndarray:
    """f of the theorem, ln E exp(theta nats), in units where the tensor's scale is 1.

    Args:
      x: f64[n], coordinates, increasing and not negative.
      sigma: of the noise.
      family, target: as of `Sent`.

    Returns:
      f64[len(THETAS), n].
    """
    total = np.zeros((len(THETAS), len(x)))
    for width, probability in zip(*_layers(target), strict=True):
        total += probability * _over_dithers(x, width * sigma, family)
    found = np.log1p(total)
    slopes = slopes_of(family)
    for row, slope in zip(found, slopes, strict=True):
        # Where exponentials are beyond float64, f is its line of the steepest slope there is: a limit.
        last = int(np.searchsorted(x, 0.8 * _MOST_NATS / slope, side="right")) - 1
        row[last + 1 :] = row[last] + slope * (x[last + 1 :] - x[last])
    return found


def slopes_of(family: str) -> np.ndarray:
    """Slopes of f far out, f64[len(THETAS)], per unit of the scale."""
    components = exact.COMPONENTS[family]
    assert components is not None
    return THETAS / max(part for _, part in components)


def _over_dithers(x: np.ndarray, width: float, family: str) -> np.ndarray:
    """E exp(theta nats) - 1 over dithers, f64[len(THETAS), n].

    The cell around q = x + width U always holds x. In t = |q| - width / 2, how far its nearer edge lies
    beyond zero, q > 0 runs over max(-width / 2, x - width) to x, and q < 0 over -width / 2 to -x if
    x < width / 2.
    """
    t = _distances(width, x)
    excess = np.expm1(np.minimum(THETAS[:, None] * nats(t, width, 1.0, family), _MOST_NATS))
    steps = np.diff(t) * (excess[:, 1:] + excess[:, :-1]) / 2
    integral = PchipInterpolator(t, np.pad(np.cumsum(steps, axis=1), ((0, 0), (1, 0))), axis=1)
    near, mirrored, far = integral(np.maximum(np.stack([x, -x, x - width]), t[0])).swapaxes(0, 1)
    whole = np.where(x < width / 2, near + mirrored, near - far)
    return np.maximum(whole, 0.0) / width


def _distances(width: float, x: np.ndarray) -> np.ndarray:
    """Points of integration f64[n], from where a cell holds all of the law to the last x."""
    below, above = _FINE[_FINE < width / 2], _FINE[_FINE < x[-1]]
    first = [-width / 2] if width / 2 < _FINE[-1] else []
    narrow: np.ndarray | list = np.linspace(-width / 2, width, 40) if width < 0.1 else []  # both edges count
    return np.unique(np.concatenate([first, -below[:0:-1], above, x, narrow]))
