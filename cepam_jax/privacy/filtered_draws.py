"""Rounds of drawn clients whose noise earlier results set, within a budget: a bound of their divergence."""

from typing import NamedTuple

import numpy as np


class FilteredDraws(NamedTuple):
    """Rounds as of `ObservedDraws` whose Gaussian noise earlier results set, within a budget.

    Each round divides the noise by f; sum f^2 and f^2 of a round have limits, whatever is released. Source:
    Feldman, Zrnic: Individual Privacy Accounting via a Rényi Filter (arXiv 2008.11193).

    Attributes:
      chance: q, probability of taking part in a round.
      budget: B, what sum f^2 is at most.
      most: M, what f^2 of a round is at most.
      multiplier: z, the noise of a round with the client at f = 1 over how far one unit moves the result.
      halving: 1, or 2 under the replace relation.
    """

    chance: float
    budget: float
    most: float
    multiplier: float
    halving: float


def filtered_divergence(draws: FilteredDraws, orders: np.ndarray) -> np.ndarray:
    """Rényi divergence of all rounds, at most; docs/adaptive.md has the proof.

    A round with its draw seen has exp((a - 1) D_a) = 1 - q + q exp(a (a - 1) (f / z)^2 / 2), whose logarithm
    is convex in f^2 and 0 at 0: no more than f^2 / M times that at M. The sum of these has a limit that was
    fixed beforehand, which a filter asks for, at every order.

    Args:
      draws: the rounds.
      orders: f64[n], above 1.

    Returns:
      f64[n].
    """
    most = min(draws.most, draws.budget)
    squares = orders * (orders - 1) * (draws.halving / draws.multiplier) ** 2 * most / 2
    one = np.logaddexp(
        np.log1p(-draws.chance) if draws.chance < 1 else -np.inf, np.log(draws.chance) + squares
    )
    return draws.budget / most * one / (orders - 1)
