"""Integer noise of many clients in a secure sum, as two papers account for it: what secure sums are compared
with.

Clients scale their update by 1 / granularity, round it at random to integers, and add integer noise; the
server sees the sum modulo 2^b. Rounding moves what is summed, so the sensitivity grows with the dimension
d:

  Delta^2 = min( (C/g)^2 + d/4 + sqrt(2 log(1/beta)) (C/g + sqrt(d)/2), (C/g + sqrt d)^2 ),  beta = exp(-1/2)

(rounding is repeated until the result is that short). Noise:

- discrete Gaussians of deviation s, n of which are no discrete Gaussian: the sum is 1/2 e^2 concentrated DP
  with e = min( sqrt(Delta^2 / (n s^2) + tau d / 2), Delta / (sqrt(n) s) + tau sqrt d ), tau = 10 sum_(k<n)
  exp(-2 pi^2 s^2 k / (k+1)) (Kairouz, Liu, Steinke: The Distributed Discrete Gaussian Mechanism for Federated
  Learning with Secure Aggregation, arXiv 2102.06387);
- Skellam numbers, whose sums are Skellam, of variance m in all: Rényi DP of order a with a Delta^2 / (2 m) +
  min( ((2 a - 1) Delta^2 + 6 D) / (4 m^2), 3 D / (2 m) ), D = min(sqrt(d) Delta, Delta^2) (Agarwal, Kairouz,
  Liu: The Skellam Mechanism for Differentially Private Federated Learning, arXiv 2110.04995).

Both curves add up over rounds, whatever earlier rounds led to: T rounds have T times the curve of one.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import optimize

_ORDERS = np.concatenate([1 + np.geomspace(0.01, 1, 40), np.geomspace(2.1, 2000, 200)])
_WHOLE = np.unique(np.geomspace(2, 2000, 400).round())  # the bound of Skellam noise holds for these alone
METHODS = ("discrete gaussian", "skellam")


class Choice(NamedTuple):
    """Granularity and noise of a method for one epsilon.

    Attributes:
      granularity: g, in units of the update.
      deviation: of one client's noise, in units of g.
      error: variance of the sum's error per coordinate, in squared units of the update, at most.
      bits: per coordinate.
    """

    granularity: float
    deviation: float
    error: float
    bits: int


def sensitivity(clip: float, granularity: float, d: int) -> float:
    """Delta: L2 norm of a rounded update in units of the granularity, at most."""
    scaled = clip / granularity
    likely = scaled**2 + d / 4 + scaled + math.sqrt(d) / 2  # sqrt(2 log(1/beta)) is 1
    return math.sqrt(min(likely, (scaled + math.sqrt(d)) ** 2))


def epsilon(
    method: str, delta2: float, deviation: float, n: int, d: int, delta: float, rounds: int = 1
) -> float:
    """Epsilon of sums of n clients, one in each round.

    Args:
      method: one of `METHODS`.
      delta2: Delta, from `sensitivity`.
      deviation: of one client's noise, in units of the granularity.
      n, d: clients and coordinates.
      delta: that goes with epsilon.
      rounds: sums, each with fresh noise.
    """
    orders = _ORDERS if method == "discrete gaussian" else _WHOLE
    if method == "discrete gaussian":
        k = np.arange(1, n)
        tau = 10 * float(np.sum(np.exp(-2 * (math.pi * deviation) ** 2 * k / (k + 1))))
        moved = delta2 / (math.sqrt(n) * deviation)
        concentrated = min(math.sqrt(moved**2 + tau * d / 2), moved + tau * math.sqrt(d))
        curve = orders * concentrated**2 / 2
    else:
        whole, l1 = n * deviation**2, min(math.sqrt(d) * delta2, delta2**2)
        more = np.minimum(((2 * orders - 1) * delta2**2 + 6 * l1) / (4 * whole**2), 3 * l1 / (2 * whole))
        curve = orders * delta2**2 / (2 * whole) + more
    # Canonne, Kamath, Steinke: The Discrete Gaussian for Differential Privacy, arXiv 2004.00010.
    gained = (math.log(1 / delta) + (orders - 1) * np.log1p(-1 / orders) - np.log(orders)) / (orders - 1)
    return max(0.0, float(np.min(rounds * curve + gained)))


def choose(
    method: str,
    target: float,
    clip: float,
    n: int,
    d: int,
    most: float,
    width: int,
    wrap: float,
    delta: float,
    rounds: int = 1,
) -> Choice:
    """The coarsest granularity whose noise meets an epsilon with an error of at most `most`.

    Args:
      method, clip, n, d, delta, rounds: as for `epsilon`.
      target: epsilon of all rounds.
      most: variance of the sum's error per coordinate, in squared units of the update.
      width: 2^k; a coordinate of the rotated sum is sub-Gaussian with (n clip)^2 / width.
      wrap: bound on the probability that a coordinate wraps around.

    Raises:
      ValueError: no granularity does.
    """
    best = None
    for granularity in np.geomspace(1e-6, 1.0, 121) * math.sqrt(most):
        delta2 = sensitivity(clip, granularity, d)
        low, high = 0.2, 100 * math.sqrt(rounds) * delta2

        def excess(log_deviation, delta2=delta2):
            return epsilon(method, delta2, math.exp(log_deviation), n, d, delta, rounds) - target

        if excess(math.log(high)) > 0:
            continue
        deviation = low
        if excess(math.log(low)) > 0:
            deviation = math.exp(optimize.brentq(excess, math.log(low), math.log(high)) + 1e-9)
        error = n * granularity**2 * (deviation**2 + 0.25)
        if error <= most:
            square = (n * clip / granularity) ** 2 / width + n * (deviation**2 + 0.25)
            half = math.sqrt(2 * math.log(2 / wrap) * square) + 1
            best = Choice(float(granularity), deviation, error, math.ceil(math.log2(half)) + 1)
    if best is None:
        raise ValueError(f"no granularity of {method} noise has so small an error")
    return best
