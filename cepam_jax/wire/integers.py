"""Integers whose law follows from a continuous one: is it zero? which sign? how large, bit by bit?

An integer j names the cell of width w around c + w j, for a coordinate X with the tail function of `exact`.
Every decision takes its exact conditional probability, so together they cost -log2 P(X in the cell).
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cepam_jax.mechanisms import exact
from cepam_jax.wire.coder import Coder

_LARGEST = 31  # octaves of magnitude
# Zeros of a probability above 1 - _SURE are decided in groups of _GROUP first.
_SURE, _GROUP = 2.0**-8, 32
_TERMS = 8  # of a tail's sum, where the deviation is at most `_WIDE`
_WIDE = 1.0  # deviation from which the tail of a discrete Gaussian is an integral


def sides(center: np.ndarray, width: np.ndarray, family: str) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a positive and of a negative integer, f64[k] each.

    Args:
      center: f64[k], middle of the cell of zero, in units of the law's scale.
      width: f64[k], width of the cells, in the same units.
      family: law of the coordinate, one of `exact.COMPONENTS`.
    """
    return exact.tail(center + width / 2, family), exact.tail(width / 2 - center, family)


def code(
    coder: Coder,
    center: np.ndarray,
    width: np.ndarray,
    family: str,
    values: np.ndarray | None = None,
    stays: np.ndarray | None = None,
) -> np.ndarray:
    """Writes or reads integers.

    Args:
      coder: Writer or Reader.
      center: f64[k], middle of the cell of zero, in units of the law's scale.
      width: f64[k], width of the cells, in the same units.
      family: law of the coordinate, one of `exact.COMPONENTS`.
      values: int64[k], the integers, of absolute value below 2^31; None when reading.
      stays: f64[k], probability of zero if it is not the one that the law gives.

    Returns:
      int64[k], the integers.
    """
    above, below = sides(center, width, family)
    if stays is None:
        stays = 1.0 - above - below
    zero = zeros(coder, stays, None if values is None else values == 0)
    integers = np.zeros(center.shape, np.int64)
    at = np.flatnonzero(~zero)
    if not at.size:
        return integers
    above, below = above[at], below[at]
    given = None if values is None else values[at]
    positive = coder.code_bits(above / (above + below), None if given is None else given > 0)
    sign = np.where(positive, 1, -1)
    center, width = sign * center[at], width[at]
    size = magnitudes(
        coder,
        lambda some, number: exact.tail(center[some] + width[some] * (number - 0.5), family),
        np.where(positive, above, below),
        None if given is None else np.abs(given),
    )
    integers[at] = sign * size
    return integers


def zeros(coder: Coder, stays: np.ndarray, outcomes: np.ndarray | None) -> np.ndarray:
    """Decides for each integer whether it is zero; those that almost surely are come in groups first.

    A range coder loses some 2e-4 bits on every decision, whatever its probability, which is more than an
    almost sure zero costs. So one decision says of a whole group that all of it is zero.

    Args:
      coder: Writer or Reader.
      stays: f64[k], probability that each integer is zero.
      outcomes: bool[k], whether it is; None when reading.

    Returns:
      bool[k], whether it is.
    """
    sure = np.flatnonzero(stays > 1 - _SURE)
    groups = len(sure) // _GROUP
    if groups < 2:
        return coder.code_bits(stays, outcomes)
    sure = sure[: groups * _GROUP]
    single = np.ones(len(stays), bool)
    single[sure] = False
    zero = np.ones(len(stays), bool)
    zero[single] = coder.code_bits(stays[single], None if outcomes is None else outcomes[single])
    members = sure.reshape(groups, _GROUP)
    stays = np.minimum(stays[members], 1.0)
    later = np.cumprod(stays[:, ::-1], 1)[:, ::-1]  # P(this and all later ones of the group are zero)
    given = None if outcomes is None else outcomes[members]
    all_zero = coder.code_bits(later[:, 0], None if given is None else np.all(given, axis=1))
    at = np.flatnonzero(~all_zero)
    undecided = np.ones(len(at), bool)
    for i in range(_GROUP):
        after = later[at, i + 1] if i + 1 < _GROUP else 0.0 * undecided + 1.0
        p = stays[at, i]
        # One of them is not: while none was, a zero is less likely than the law says.
        p = np.where(undecided, _ratio(p * (1 - after), 1 - p * after), p)
        member_is_zero = coder.code_bits(p, None if given is None else given[at, i])
        zero[members[at, i]] = member_is_zero
        undecided &= member_is_zero
    return zero


def magnitudes(
    coder: Coder,
    tail: Callable[[np.ndarray, np.ndarray | float], np.ndarray],
    first_tail: np.ndarray,
    values: np.ndarray | None,
) -> np.ndarray:
    """Codes integers of at least 1: their octave, then the bits inside it from the highest down.

    Args:
      coder: Writer or Reader.
      tail: (numbers int[m] of some of the integers, f64[m] or a number) -> f64[m], the probability that each
        of them is at least so large, up to a factor of its own.
      first_tail: f64[k], `tail` of all integers at 1.
      values: int64[k], the integers; None when reading.

    Returns:
      int64[k], the integers.
    """
    count = len(first_tail)
    octave = np.zeros(count, np.int64)
    low, high = first_tail.copy(), np.zeros(count)  # tails at the octave's ends
    at = np.arange(count)
    for e in range(_LARGEST):
        beyond = tail(at, 2.0 ** (e + 1))
        more = coder.code_bits(
            _ratio(beyond, low[at]), None if values is None else values[at] >= 2 ** (e + 1)
        )
        high[at[~more]] = beyond[~more]
        at, beyond = at[more], beyond[more]
        octave[at] = e + 1
        low[at] = beyond
        if not at.size:
            break
    lowest = np.int64(1) << octave  # of the integers that are still possible
    for e in range(int(octave.max()), 0, -1):
        at = np.flatnonzero(octave >= e)
        middle = lowest[at] + (1 << (e - 1))
        between = tail(at, middle.astype(np.float64))
        upper = coder.code_bits(
            _ratio(between - high[at], low[at] - high[at]), None if values is None else values[at] >= middle
        )
        lowest[at] = np.where(upper, middle, lowest[at])
        low[at] = np.where(upper, between, low[at])
        high[at] = np.where(upper, high[at], between)
    return lowest


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole f64[k], and NaN where the whole is zero."""
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def gaussian_tail(x: np.ndarray, inverse: np.ndarray, number: Any) -> np.ndarray:
    """Tail of a discrete Gaussian: sum of exp(-((z + x)^2 - x^2) inverse) over the integers z >= number.

    Args:
      x: f64[k], at most 1/2 in magnitude.
      inverse: f64[J, k], 1 / (2 variance).
      number: f64[k] or a number, at least 1.

    Returns:
      f64[J, k].
    """
    number = np.broadcast_to(np.asarray(number, np.float64), x.shape)
    first = exact.exp(-(number * number + 2 * number * x) * inverse)
    # Horner's scheme: term r + 1 is term r times exp(-(2 r + 1 + 2 (number + x)) inverse).
    ratio, step = exact.exp(-(2 * (number + x) + 1) * inverse), exact.exp(-2 * inverse)
    ratios = [ratio]
    for _ in range(_TERMS - 2):
        ratios.append(ratios[-1] * step)
    terms = np.ones(inverse.shape)
    for ratio in reversed(ratios):
        terms = 1 + ratio * terms
    deviation = np.sqrt(0.5 / inverse)
    beyond = exact.tail((number + x - 0.5) / deviation, "gaussian")
    wide = math.sqrt(2 * math.pi) * deviation * beyond * exact.exp(np.minimum(x * x * inverse, 80.0))
    return np.where(deviation > _WIDE, wide, first * terms)
