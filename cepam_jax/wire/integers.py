"""Integers whose law follows from a continuous one: is it zero? which sign? how large, bit by bit?

An integer j names the cell of width w around c + w j, for a coordinate X with the tail function of `exact`;
every decision takes its exact conditional probability, so together they cost -log2 P(X in the cell).
"""

import numpy as np

from cepam_jax.mechanisms import exact

_LARGEST = 31  # octaves of magnitude
_SURE, _GROUP = 2.0**-8, 32


def sides(center, width, family: str):
    """P(j > 0) and P(j < 0) for cells around `center`, in units of the law's scale."""
    return exact.tail(center + width / 2, family), exact.tail(width / 2 - center, family)


def code(coder, center, width, family: str, values=None, stays=None):
    """Writes or reads integers.

    Args:
      coder: Writer or Reader.
      center: f64[k], where the cell of zero lies, in units of the law's scale.
      width: f64[k], of the cells, in the same units.
      family: law of the coordinate.
      values: int64[k], of absolute value below 2^31; None when reading.
      stays: f64[k], probability of zero if it is not the one that the law gives.

    Returns:
      int64[k].
    """
    above, below = sides(center, width, family)
    if stays is None:
        stays = 1.0 - above - below
    zero = _zeros(coder, stays, None if values is None else values == 0)
    found = np.zeros(center.shape, np.int64)
    at = np.flatnonzero(~zero)
    if not at.size:
        return found
    above, below = above[at], below[at]
    given = None if values is None else values[at]
    positive = coder.decide(above / (above + below), None if given is None else given > 0)
    sign = np.where(positive, 1, -1)
    size = _magnitudes(
        coder,
        sign * center[at],
        width[at],
        family,
        np.where(positive, above, below),
        None if given is None else np.abs(given),
    )
    found[at] = sign * size
    return found


def _zeros(coder, stays, outcomes):
    """Is each zero? Those that are all but surely zero are asked in groups first.

    A range coder loses some 2e-4 bits on every decision, whatever its probability: more than a sure zero
    costs.
    """
    sure = np.flatnonzero(stays > 1 - _SURE)
    groups = len(sure) // _GROUP
    if groups < 2:
        return coder.decide(stays, outcomes)
    sure = sure[: groups * _GROUP]
    single = np.ones(len(stays), bool)
    single[sure] = False
    found = np.ones(len(stays), bool)
    found[single] = coder.decide(stays[single], None if outcomes is None else outcomes[single])
    sure = sure.reshape(groups, _GROUP)
    stays = np.minimum(stays[sure], 1.0)
    later = np.cumprod(stays[:, ::-1], 1)[:, ::-1]  # P(this and all later ones of the group are zero)
    given = None if outcomes is None else outcomes[sure]
    all_zero = coder.decide(later[:, 0], None if given is None else given.all(1))
    at = np.flatnonzero(~all_zero)
    undecided = np.ones(len(at), bool)
    for i in range(_GROUP):
        after = later[at, i + 1] if i + 1 < _GROUP else 0.0 * undecided + 1.0
        p = stays[at, i]
        # One of them is not: while none was, a zero is less likely than the law says.
        p = np.where(undecided, _ratio(p * (1 - after), 1 - p * after), p)
        zero = coder.decide(p, None if given is None else given[at, i])
        found[sure[at, i]] = zero
        undecided &= zero
    return found


def _magnitudes(coder, center, width, family, first_tail, values):
    """Integers of at least 1: their octave, then the bits inside it from the highest down."""

    def tail(at, number):  # P(j >= number)
        return exact.tail(center[at] + width[at] * (number - 0.5), family)

    count = len(center)
    octave = np.zeros(count, np.int64)
    low, high = first_tail.copy(), np.zeros(count)  # tails at the octave's ends
    at = np.arange(count)
    for e in range(_LARGEST):
        beyond = tail(at, 2.0 ** (e + 1))
        more = coder.decide(_ratio(beyond, low[at]), None if values is None else values[at] >= 2 ** (e + 1))
        high[at[~more]] = beyond[~more]
        at, beyond = at[more], beyond[more]
        octave[at] = e + 1
        low[at] = beyond
        if not at.size:
            break
    found = np.int64(1) << octave
    for e in range(int(octave.max()), 0, -1):
        at = np.flatnonzero(octave >= e)
        middle = found[at] + (1 << (e - 1))
        between = tail(at, middle.astype(np.float64))
        upper = coder.decide(
            _ratio(between - high[at], low[at] - high[at]), None if values is None else values[at] >= middle
        )
        found[at] = np.where(upper, middle, found[at])
        low[at] = np.where(upper, between, low[at])
        high[at] = np.where(upper, high[at], between)
    return found


def _ratio(part, whole):
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
