"""What a server learns that sees sums of dithered integers: all but what Gaussian noise on the sum hides.

A client's integer is round(u_k + N(0, c^2) + V_k) in units of the step, c (`Summed.cells`) the deviation of
its noise; the server knows all V_k and sees the sum S of n of them, perhaps modulo something. S is no
function of the sum of all u_k + noise: it depends on single u_k through the errors of rounding. But

  (1 - e) Q(S) <= P(S) <= (1 + e) Q(S)      for all u, V and S,

where Q rounds the sum of all u_k + noise at random, so it tells no more than that sum with Gaussian noise of
variance n c^2, and, with A* the dual of the root lattice A_(n-1),

  e = sum over 0 != v in A* of q^|v|^2 <= B / (1 - B),   B = sum_(s=1)^(n-1) binom(n, s) q^(s (n-s) / n),
  q = exp(-2 pi^2 c^2).

docs/secure_sums.md has the proof (Poisson summation over the integers with a given sum). Over N coordinates
of all rounds the probability of what the server sees differs by a factor between e^-eta and e^eta at most,
eta = -N log(1 - e), however rounds depend on earlier ones: they are products given the past.
"""

import functools
import math

import numpy as np
from scipy import special

from cepam_jax.privacy import noise_sums
from cepam_jax.privacy.federation import Federation, Phase

# Coordinates of an update are counted as so many, the most that 32 bits count: nothing here knows how many.
COORDINATES = 2**31
_MOST = 50.0  # of eta: twice that in an epsilon is no guarantee


@functools.lru_cache(maxsize=256)
def closeness(cells: float, fewest: int, most: int) -> float:
    """Bound on e for every number n of summed messages from `fewest` to `most`; infinity: none is known.

    In B of the module's text s (n - s) / n grows with n, as binom(n, s) does; s <= n / 2 is enough, twice:

      B <= 2 sum_(s=1)^(most / 2) binom(most, s) q^max(s - s^2 / fewest, s / 2)

    Args:
      cells: c, deviation of a client's noise in steps.
      fewest: at least 1. A sum of one message is Q itself.
      most: at least `fewest`.
    """
    if most < 2:
        return 0.0
    a, s = max(fewest, 2), np.arange(1, most // 2 + 1)
    binomials = special.gammaln(most + 1) - special.gammaln(s + 1) - special.gammaln(most - s + 1)
    exponents = binomials - 2 * (math.pi * cells) ** 2 * np.maximum(s - s**2 / a, s / 2)
    log_b = math.log(2) + float(special.logsumexp(exponents)) + 1e-9  # of rounding, on the safe side
    if log_b >= math.log(0.5):
        return math.inf
    return math.exp(log_b) / (1 - math.exp(log_b))


def participants(federation: Federation) -> int:
    """How many take part in a round."""
    return len(federation.clip) if federation.sampling == "all" else int(federation.per_round)


def least(federation: Federation) -> int:
    """How many messages a sum has at least that is opened."""
    assert federation.summed is not None
    return federation.summed.survivors or participants(federation)


def all_arrive(federation: Federation) -> bool:
    """Whether no sum is opened that lacks a participant: then who arrives is who was drawn."""
    return least(federation) == participants(federation)


def covers(federation: Federation) -> bool:
    """Whether the noises of a secure sum add up: a sum with public weights, fresh noise, a known number."""
    added = federation.aggregation == "weighted_sum" and federation.summable
    known = federation.sampling != "poisson" and federation.independent_coordinates
    return federation.summed is not None and added and known and federation.fresh


def multipliers(federation: Federation, phase: Phase, colluders: int) -> np.ndarray:
    """z_k f64[clients]: noise of the fewest that do not collude, over how far a client moves the sum."""
    fewest = federation._replace(sampling="fixed", per_round=least(federation) - colluders)
    return noise_sums.multipliers(fewest, phase._replace(outsiders=phase.server))


def slack(federation: Federation, colluders: int) -> float:
    """eta of all rounds; infinity where nothing is known.

    Args:
      federation: with a secure sum.
      colluders: whose messages are known: the sum of the others has that many fewer.
    """
    assert federation.summed is not None
    found = closeness(federation.summed.cells, least(federation) - colluders, participants(federation))
    if found >= 1:
        return math.inf
    rounds = sum(phase.rounds for phase in federation.phases)
    eta = -rounds * float(COORDINATES) * math.log1p(-found)
    return eta if eta < _MOST else math.inf
