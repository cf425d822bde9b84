"""What a client's guarantee is computed from: descriptions of everything that was released about it.

A description is an event of `dp_accounting`, or `ObservedDraws`, which `dp_accounting` has no event for.
`epsilon` of `accounting` understands both.
"""

import math
from typing import NamedTuple

import dp_accounting
import numpy as np
from scipy import optimize, special, stats

_CELLS = 1 << 14  # of the grid on which unlike rounds are added up
_KINDS = 6  # of rounds, where sampling is hidden


class ObservedDraws(NamedTuple):
    """Rounds in each of which a client takes part by chance, against an adversary who sees all the draws.

    The draws depend on no data, so seeing them costs nothing, and given them the client was in n of T rounds:

      delta(epsilon) = sum over n of Bin(n; T, q) delta of n rounds(epsilon)

    (the hockey-stick divergence of a mixture whose component is seen is the mean of the components').

    Attributes:
      law: "gaussian" or "laplace".
      chance: q, of taking part in a round.
      multipliers: ((rounds, z), ...), noise of a round with the client over how far one unit moves the result
        under add/remove.
      halving: 1, or 2 under the replace relation.
    """

    law: str
    chance: float
    multipliers: tuple[tuple[int, float], ...]
    halving: float


Release = dp_accounting.DpEvent | ObservedDraws


def halving(relation: str) -> float:
    """How many times farther a client moves the result than under add/remove."""
    return 2.0 if relation == "replace" else 1.0


def noise_scale(law: str, deviation):
    """f64[...], the noise in units of its own sensitivity: sigma, or b of a Laplace law of that deviation."""
    deviation = np.asarray(deviation, np.float64)
    return deviation if law == "gaussian" else deviation / np.sqrt(2)


def composed(law: str, multipliers, halve: float) -> dp_accounting.DpEvent:
    """Rounds in all of which a client takes part.

    Args:
      law: "gaussian" or "laplace".
      multipliers: ((rounds, z), ...), as for `ObservedDraws`.
      halve: from `halving`.
    """
    if law == "gaussian":  # a composition of Gaussian mechanisms is one Gaussian mechanism
        return dp_accounting.GaussianDpEvent(_mu(multipliers, halve) ** -1)
    events = tuple(
        dp_accounting.SelfComposedDpEvent(dp_accounting.LaplaceDpEvent(z / halve), count)
        for count, z in multipliers
    )
    # As a tuple: an event is a key of caches, and a list has no hash.
    return events[0] if len(events) == 1 else dp_accounting.ComposedDpEvent(events)


def _mu(multipliers, halve: float) -> float:
    """Parameter of the Gaussian mechanism that the rounds amount to (1905.02383, corollary 3.3)."""
    return math.sqrt(math.fsum(count * (halve / z) ** 2 for count, z in multipliers))


def sampled_without_replacement(clients: int, per_round: int, multipliers) -> dp_accounting.DpEvent:
    """Rounds with hidden draws of exchangeable clients, under the replace relation; Gaussian noise.

    Args:
      clients, per_round: of them so many are drawn in each round.
      multipliers: ((rounds, z), ...) as for `ObservedDraws`.
    """
    halve = halving("replace")
    multipliers = _fewer_kinds(multipliers)
    events = tuple(
        dp_accounting.SelfComposedDpEvent(
            dp_accounting.SampledWithoutReplacementDpEvent(
                clients, per_round, dp_accounting.GaussianDpEvent(z / halve)
            ),
            count,
        )
        for count, z in multipliers
    )
    return events[0] if len(events) == 1 else dp_accounting.ComposedDpEvent(events)


def _fewer_kinds(multipliers):
    """The rounds as at most `_KINDS` kinds, each with its least noise: each takes the accountant time."""
    if len(multipliers) <= _KINDS:
        return multipliers
    ordered = sorted(multipliers, key=lambda pair: pair[1])
    parts = np.array_split(np.arange(len(ordered)), _KINDS)
    return tuple((sum(ordered[i][0] for i in part), ordered[part[0]][1]) for part in parts)


def gaussian_delta(epsilon: float, mu):
    """delta of Gaussian mechanisms (Balle and Wang: Analytical Gaussian mechanism, 1805.06530, theorem 8).

    Args:
      epsilon: at least 0.
      mu: f64[n], how far the mean moves over the standard deviation; at least 0.

    Returns:
      f64[n].
    """
    mu = np.asarray(mu, np.float64)
    safe = np.where(mu > 0, mu, 1.0)
    above = special.log_ndtr(safe / 2 - epsilon / safe)
    below = epsilon + special.log_ndtr(-safe / 2 - epsilon / safe)
    # exp(above) - exp(below), which is positive, without cancellation where both are small.
    found = np.exp(above) * -np.expm1(np.minimum(below - above, 0.0))
    return np.where(mu > 0, found, 0.0)


def participation(draws: ObservedDraws) -> tuple[np.ndarray, np.ndarray]:
    """Law of mu^2 summed over the rounds that a client takes part in, Gaussian noise.

    Rounds that are all alike give a binomial law; others are added up on a grid, each rounded up to it, so
    that delta is never too small.

    Returns:
      (mu^2 f64[m], probabilities f64[m]).
    """
    squares = [(count, (draws.halving / z) ** 2) for count, z in draws.multipliers]
    if len(squares) == 1:
        rounds, square = squares[0]
        n = np.arange(rounds + 1)
        return n * square, stats.binom.pmf(n, rounds, draws.chance)
    total = math.fsum(count * square for count, square in squares)
    cells = _CELLS + sum(count for count, _ in squares)  # room for what is rounded up
    law = np.zeros(cells + 1)
    law[0] = 1.0
    for count, square in squares:
        step = math.ceil(square / total * _CELLS)
        n = np.arange(count + 1)
        pmf = stats.binom.pmf(n, count, draws.chance)
        sparse = np.zeros(min(count * step, cells) + 1)
        np.add.at(sparse, np.minimum(n * step, cells), pmf)
        law = _convolve(law, sparse)
    return np.arange(cells + 1) / _CELLS * total, law


def _convolve(law: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Law of a sum, cut to the length of the first; what lies beyond is kept in the last cell."""
    found = np.zeros_like(law)
    for shift in np.flatnonzero(other):
        found[shift:] += other[shift] * law[: len(law) - shift]
        found[-1] += other[shift] * law[len(law) - shift :].sum() if shift else 0.0
    return found


def observed_gaussian_epsilon(draws: ObservedDraws, delta: float) -> float:
    """Least epsilon, rounded up, whose delta under `ObservedDraws` of Gaussian noise is at most `delta`."""
    squares, chances = participation(draws)
    used = chances > 0
    mu, chances = np.sqrt(squares[used]), chances[used]

    def excess(epsilon):
        return float(np.sum(chances * gaussian_delta(epsilon, mu))) - delta

    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
        if high > 1e12:
            return math.inf
    found = optimize.brentq(excess, 0.0, high, xtol=1e-12, rtol=1e-9)
    while excess(found) > 0:
        found = found * (1 + 1e-9) + 1e-12
    return found


def fewer_rounds(draws: ObservedDraws, tail: float) -> tuple[tuple[tuple[int, float], ...], float]:
    """The rounds that a client takes part in at most, but for a small chance.

    Args:
      draws: of any law.
      tail: largest chance of more rounds.

    Returns:
      (multipliers of the rounds with the least noise, chance of more rounds); for every epsilon
      delta <= delta of those rounds + that chance.
    """
    rounds = sum(count for count, _ in draws.multipliers)
    most = int(stats.binom.isf(tail, rounds, draws.chance))
    while stats.binom.sf(most, rounds, draws.chance) > tail:
        most += 1
    left, chosen = most, []
    for count, z in sorted(draws.multipliers, key=lambda pair: pair[1]):
        taken = min(count, left)
        if taken:
            chosen.append((taken, z))
        left -= taken
    return tuple(chosen), float(stats.binom.sf(most, rounds, draws.chance))
