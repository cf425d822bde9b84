"""The law of a factor: S such that S * T has the radius of a Gaussian's balls.

N(0, I_n) is the mixture of uniform laws on balls of radius chi_{n+2}, the root of a chi-squared variable with
n + 2 degrees of freedom (Ling and Li: Rejection-Sampled Universal Quantization for Smaller Quantization
Errors, arXiv 2402.03030). With T the radius law of a rotated Voronoi cell (`cells`), the law of log S is the
one whose characteristic function is

  E chi_{n+2}^{it} / E T^{it}.

The numerator falls as exp(-pi |t| / 4), so the quotient is the transform of an analytic function, which this
module computes. It is no density: far out it oscillates around zero, because E T^s has zeros off the real
axis (docs/rotated.md has the proof).
"""

import numpy as np
from scipy import special

from cepam_jax.theory import cells

_STEP = 0.05  # in t: the sum repeats the density with period 2 pi / _STEP, far beyond its support
_LARGEST = 65.0  # beyond, the numerator is below 1e-20


def gaussian_mellin(dimension: int, s: np.ndarray) -> np.ndarray:
    """E chi_{n+2}^s for complex s with real part above -(n + 2), c128[...]; n the dimension."""
    half = (dimension + 2) / 2
    return np.exp(s / 2 * np.log(2) + special.loggamma(half + s / 2) - special.loggamma(half))


def signed_density(law: cells.NormLaw, log_scale: np.ndarray) -> np.ndarray:
    """The function of log S that solves the equation, f64[...]; its error is below 1e-14.

    Args:
      law: of T.
      log_scale: f64[...], between -20 and 20.
    """
    t = np.arange(0.0, _LARGEST, _STEP)
    transform = gaussian_mellin(law.dimension, 1j * t) / cells.mellin(law, 1j * t)
    transform[0] /= 2
    return (np.exp(-1j * np.multiply.outer(log_scale, t)) @ transform).real * (_STEP / np.pi)


def first_zero(law: cells.NormLaw) -> complex:
    """The zero of E T^s nearest to the real axis among those that Newton's method finds, right of -(n + 2).

    Right of that line E chi_{n+2}^s has neither a pole nor a zero, so that no law of S > 0 solves the
    equation.
    """
    radii, weights = cells.quadrature(law)
    log = np.log(radii / radii.max())
    starts = np.add.outer(np.arange(0.0, 160, 10), 1j * np.arange(10.0, 160, 10)).ravel()
    found = [s for s in (_newton(log, weights, start) for start in starts) if s is not None]
    return min((s for s in found if s.real > -(law.dimension + 2) and s.imag > 1), key=lambda s: s.imag)


def _newton(log: np.ndarray, weights: np.ndarray, start: complex) -> complex | None:
    """A zero of sum(weights * exp(s * log)), or None."""
    s = complex(start)
    for _ in range(60):
        terms = np.exp(s * log) * weights
        change = complex(terms.sum() / (terms @ log))
        s -= change
        if not (abs(s) < 1e3 and s.real > -50):
            return None
        if abs(change) < 1e-10:
            return s
    return None
