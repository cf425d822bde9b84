"""Tail probabilities that are the same numbers on every machine.

An entropy coder and its decoder must use identical probabilities; one last bit of difference ruins the
rest of a message. Library functions (exp, erf) differ between platforms, additions and multiplications of
float64 do not: numpy rounds each of them correctly, one by one. So the functions here use nothing else,
on numpy arrays only.
"""

import numpy as np
from numpy.typing import ArrayLike

_LOG2_E = 1.4426950408889634
_LN_2 = 0.6931471805599453
_ROOT_HALF = 0.7071067811865476
_DEGREE = 9

MIXTURE = ((0.5, 0.4), (0.5, 1.6))
WIDE = ((0.8, 0.25), (0.2, 4.0))
# Families of laws of an update's coordinates at scale 1: (weight, scale) of Laplace components, or None for a
# Gaussian. "mixture" has mean absolute value 1, like "laplace", and heavier tails, as trained updates have;
# "wide" has those of updates most of which is zero.
COMPONENTS: dict[str, tuple[tuple[float, float], ...] | None] = {
    "gaussian": None,
    "laplace": ((1.0, 1.0),),
    "mixture": MIXTURE,
    "wide": WIDE,
}


def exp2(y: np.ndarray) -> np.ndarray:
    """2^y for f64[...] y < 1000, with a relative error below 1e-10; y below -1000 counts as -1000."""
    y = np.maximum(y, -1000.0)
    whole = np.ceil(y)
    t = (y - whole + 0.5) * _LN_2  # |t| <= ln(2) / 2
    total = np.full_like(t, 1.0)
    for k in range(_DEGREE, 0, -1):  # Horner's scheme of the exponential series
        total *= t
        total /= k
        total += 1.0
    return np.ldexp(total * _ROOT_HALF, whole.astype(np.int32))


def exp(y: np.ndarray) -> np.ndarray:
    """e^y for f64[...] y <= 600, with a relative error below 1e-10; y below -690 counts as -690."""
    return exp2(y * _LOG2_E)


def log(y: np.ndarray) -> np.ndarray:
    """ln(y) for positive f64[...] y, with an absolute error below 1e-13."""
    mantissa, exponent = np.frexp(y)  # mantissa from 1/2 to 1
    s = (mantissa - _ROOT_HALF) / (mantissa + _ROOT_HALF)
    square = s * s
    total = np.zeros_like(s)
    for k in range(17, 0, -2):  # 2 artanh(s) = ln(mantissa) + ln(2) / 2
        total *= square
        total += 2.0 / k
    return total * s + (exponent - 0.5) * _LN_2


# erfc(z) = t exp(-z^2 + polynomial(t)), t = 1 / (1 + z/2): relative error 1.2e-7 for all z >= 0
# (Press, Teukolsky, Vetterling, Flannery: Numerical Recipes, section 6.2).
_ERFC = (
    -1.26551223,
    1.00002368,
    0.37409196,
    0.09678418,
    -0.18628806,
    0.27886807,
    -1.13520398,
    1.48851587,
    -0.82215223,
    0.17087277,
)


def _tail_of_magnitude(y: np.ndarray, family: str) -> np.ndarray:
    """P(X > y) for f64[...] y >= 0 and the family's law with scale 1."""
    if family == "gaussian":
        z = y * _ROOT_HALF
        t = 1.0 / (1.0 + 0.5 * z)
        polynomial = np.full_like(t, _ERFC[-1])
        for coefficient in _ERFC[-2::-1]:
            polynomial *= t
            polynomial += coefficient
        return 0.5 * t * exp2(np.minimum(polynomial - z * z, 0.0) * _LOG2_E)
    if family == "mixture":  # the narrow component is the fourth power of the wide one
        wide = exp2(y * (-_LOG2_E / 1.6))
        square = wide * wide
        return 0.25 * (wide + square * square)
    if family == "wide":  # the narrow component is the sixteenth power of the wide one
        wide = exp2(y * (-_LOG2_E / 4.0))
        square = wide * wide
        square *= square
        square *= square
        return 0.1 * wide + 0.4 * (square * square)
    return 0.5 * exp2(y * -_LOG2_E)


def tail(y: np.ndarray, family: str) -> np.ndarray:
    """P(X > y) for the family's law with scale 1.

    Args:
      y: f64[...], in units of the law's scale.
      family: one of `COMPONENTS`.

    Returns:
      f64[...].
    """
    probability = _tail_of_magnitude(np.abs(y), family)
    return np.where(y < 0, 1.0 - probability, probability)


def power_of_two(y: ArrayLike) -> float:
    """2^y for a number y that is rounded to a multiple of 1/64 first.

    So machines on which other arithmetic led to slightly different exponents get the same number.
    """
    steps = np.floor(np.asarray(y, np.float64)[()] * 64 + 0.5)
    whole = np.ceil(steps / 64)
    return float(np.ldexp(exp2(np.atleast_1d(steps / 64 - whole))[0], int(whole)))
