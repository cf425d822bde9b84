"""The law of a factor: S such that S * T has the radius of a Gaussian's balls.

N(0, I_n) is the mixture of uniform laws on balls of radius chi_{n+2}, the root of a chi-squared variable with
n + 2 degrees of freedom (Ling and Li: Rejection-Sampled Universal Quantization for Smaller Quantization Errors,
arXiv 2402.03030). With T the radius law of a rotated Voronoi cell (`cells`), the law of log S is the one whose
characteristic function is

  E chi_{n+2}^{it} / E T^{it}.

The numerator falls as exp(-pi |t| / 4), so the quotient is the transform of an analytic function, which this
module computes. It is no density: far out it oscillates around zero, because E T^s has zeros off the real axis
(docs/rotated.md has the proof).
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


def zero_near(law: cells.NormLaw, start: complex) -> complex:
    """The zero of E T^s that Newton's method finds from `start`; NaN if it finds none."""
    radii, weights = cells.quadrature(law)
    log, s = np.log(radii / radii.max()), complex(start)
    for _ in range(60):
        terms = np.exp(s * log) * weights
        change = complex(terms.sum() / (terms @ log))
        s -= change
        if not abs(s) < 1e4:
            break
        if abs(change) < 1e-12:
            return s
    return complex(np.nan)
