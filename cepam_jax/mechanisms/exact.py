"""Tail probabilities that are the same numbers on every machine.

An entropy coder and its decoder must use identical probabilities; one last bit of difference ruins the
rest of a message. Library functions (exp, erf) differ between platforms, additions and multiplications of
float64 do not: numpy rounds each of them correctly, one by one. So the functions here use nothing else,
on numpy arrays only.
"""

import numpy as np

_LOG2_E = 1.4426950408889634
_LN_2 = 0.6931471805599453
_ROOT_HALF = 0.7071067811865476
_DEGREE = 9

# Family of laws of an update's coordinates: (weight, scale) of Laplace components, or None for a Gaussian.
# "mixture" has mean absolute value 1, like "laplace", and heavier tails: what trained updates look like.
COMPONENTS = {
    "gaussian": None,
    "laplace": ((1.0, 1.0),),
    "mixture": ((0.5, 0.4), (0.5, 1.6)),
}


def exp2(y):
    """2^y for y <= 0 in float64, relative error below 1e-10; y below -1000 counts as -1000."""
    y = np.maximum(y, -1000.0)
    whole = np.ceil(y)
    t = (y - whole + 0.5) * _LN_2  # |t| <= ln(2) / 2
    total = np.full_like(t, 1.0)
    for k in range(_DEGREE, 0, -1):  # Horner's scheme of the exponential series
        total *= t
        total /= k
        total += 1.0
    return np.ldexp(total * _ROOT_HALF, whole.astype(np.int32))


# erfc(z) = t exp(-z^2 + polynomial(t)), t = 1 / (1 + z/2): relative error 1.2e-7 for all z >= 0
# (Press et al., Numerical Recipes, section 6.2).
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


def _tail_of_magnitude(y, family):
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
    return 0.5 * exp2(y * -_LOG2_E)


def tail(y, family: str):
    """P(X > y) for the family's law with scale 1, float64[...]."""
    found = _tail_of_magnitude(np.abs(y), family)
    return np.where(y < 0, 1.0 - found, found)


def power_of_two(y: float) -> float:
    """Near 2^y, for an exponent that other arithmetic may have rounded differently: y counts in 64ths."""
    steps = np.floor(np.float64(y) * 64 + 0.5)
    whole = np.ceil(steps / 64)
    return float(np.ldexp(exp2(np.atleast_1d(steps / 64 - whole))[0], int(whole)))
