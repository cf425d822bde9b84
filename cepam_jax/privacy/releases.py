"""What a client's guarantee is computed from: descriptions of everything that was released about it.

A description is an event of `dp_accounting`, or `ObservedDraws`, which `dp_accounting` has no event for.
`epsilon` of `accounting` understands both.
"""

import math
from typing import NamedTuple

import dp_accounting
import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

from cepam_jax.privacy.filtered_draws import FilteredDraws

# ((rounds, z), ...): in so many rounds, noise over how far one unit moves the result under add/remove.
Multipliers = tuple[tuple[int, float], ...]

_CELLS = 1 << 14  # of the grid on which unlike rounds are added up
_KINDS = 6  # of rounds, where sampling is hidden


class ObservedDraws(NamedTuple):
    """Rounds in each of which a client takes part by chance, against an adversary who sees all the draws.

    The draws depend on no data, so seeing them costs nothing, and given them the client was in n of T rounds:

      delta(epsilon) = sum over n of Bin(n; T, q) delta of n rounds(epsilon)

    (the hockey-stick divergence of a mixture whose component is seen is the mean of the components').

    Attributes:
      law: law of the noise, "gaussian" or "laplace".
      chance: q, probability of taking part in a round.
      multipliers: ((rounds, z), ...), with z the noise of a round with the client over how far one unit moves
        the result under add/remove.
      halving: 1, or 2 under the replace relation.
    """

    law: str
    chance: float
    multipliers: Multipliers
    halving: float


class Overflowing(NamedTuple):
    """Rounds that end without a release where more clients come than there are places.

    Attributes:
      event: what is released without that.
      chance: of such a round over the run, whatever the data.
    """

    event: dp_accounting.DpEvent
    chance: float


Release = dp_accounting.DpEvent | ObservedDraws | FilteredDraws | Overflowing


def halving(relation: str) -> float:
    """How many times farther a client moves the result under a relation than under add/remove: 1 or 2."""
    return 2.0 if relation == "replace" else 1.0


def noise_scale(law: str, deviation: ArrayLike) -> np.ndarray:
    """The parameter of a law with a given standard deviation: sigma of a Gaussian, b of a Laplace law.

    Args:
      law: "gaussian" or "laplace".
      deviation: f64[...], standard deviations.

    Returns:
      f64[...].
    """
    deviation = np.asarray(deviation, np.float64)
    return deviation if law == "gaussian" else deviation / np.sqrt(2)


def composed(law: str, multipliers: Multipliers, halve: float) -> dp_accounting.DpEvent:
    """The event of rounds in all of which a client takes part.

    Args:
      law: law of the noise, "gaussian" or "laplace".
      multipliers: ((rounds, z), ...), as for `ObservedDraws`.
      halve: how many times farther than under add/remove a client moves the result, from `halving`.

    Returns:
      The event.
    """
    if law == "gaussian":  # a composition of Gaussian mechanisms is one Gaussian mechanism
        return dp_accounting.GaussianDpEvent(_mu(multipliers, halve) ** -1)
    events = tuple(
        dp_accounting.SelfComposedDpEvent(dp_accounting.LaplaceDpEvent(z / halve), count)
        for count, z in multipliers
    )
    # As a tuple: an event is a key of caches, and a list has no hash.
    return events[0] if len(events) == 1 else dp_accounting.ComposedDpEvent(events)


def _mu(multipliers: Multipliers, halve: float) -> float:
    """Parameter mu of the Gaussian mechanism that the rounds amount to.

    Source: Dong, Roth, Su: Gaussian Differential Privacy (arXiv 1905.02383, corollary 3.3).
    """
    return math.sqrt(math.fsum(count * (halve / z) ** 2 for count, z in multipliers))


def sampled_without_replacement(
    clients: int, per_round: int, multipliers: Multipliers
) -> dp_accounting.DpEvent:
    """The event of rounds with hidden draws of exchangeable clients; Gaussian noise, replace relation.

    Args:
      clients: number of clients.
      per_round: how many of them are drawn in each round.
      multipliers: ((rounds, z), ...), as for `ObservedDraws`.

    Returns:
      The event.
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


def poisson_sampled(chance: float, multipliers: Multipliers, overflow: float) -> Overflowing:
    """Rounds with hidden draws, each client by itself; Gaussian noise, add/remove relation.

    Args:
      chance: q, probability of taking part in a round.
      multipliers: ((rounds, z), ...), with z that of every round, whoever takes part.
      overflow: probability over the run that a round has more participants than places.

    Returns:
      What was released.
    """
    events = tuple(
        dp_accounting.SelfComposedDpEvent(
            dp_accounting.PoissonSampledDpEvent(chance, dp_accounting.GaussianDpEvent(z)), count
        )
        for count, z in _fewer_kinds(multipliers)
    )
    return Overflowing(events[0] if len(events) == 1 else dp_accounting.ComposedDpEvent(events), overflow)


def _fewer_kinds(multipliers: Multipliers) -> Multipliers:
    """The rounds as at most `_KINDS` kinds, each with its least noise; accounting takes time for each."""
    if len(multipliers) <= _KINDS:
        return multipliers
    ordered = sorted(multipliers, key=lambda pair: pair[1])
    parts = np.array_split(np.arange(len(ordered)), _KINDS)
    return tuple((sum(ordered[i][0] for i in part), ordered[part[0]][1]) for part in parts)


def gaussian_delta(epsilon: float, mu: ArrayLike) -> np.ndarray:
    """delta of Gaussian mechanisms at a given epsilon.

    Source: Balle and Wang: Improving the Gaussian Mechanism for Differential Privacy: Analytical Calibration
    and Optimal Denoising (arXiv 1805.06530, theorem 8).

    Args:
      epsilon: at least 0.
      mu: f64[n], how far the mean moves over the standard deviation; at least 0.

    Returns:
      f64[n], delta.
    """
    mu = np.asarray(mu, np.float64)
    safe = np.where(mu > 0, mu, 1.0)
    above = special.log_ndtr(safe / 2 - epsilon / safe)
    below = epsilon + special.log_ndtr(-safe / 2 - epsilon / safe)
    # exp(above) - exp(below), which is positive, without cancellation where both are small.
    delta = np.exp(above) * -np.expm1(np.minimum(below - above, 0.0))
    return np.where(mu > 0, delta, 0.0)


def participation(draws: ObservedDraws) -> tuple[np.ndarray, np.ndarray]:
    """Law of mu^2 summed over the rounds in which a client takes part, for Gaussian noise.

    Rounds that are all alike give a binomial law; others are added up on a grid, each rounded up to it, so
    that delta is never too small.

    Args:
      draws: the rounds, and the probability of taking part in each of them.

    Returns:
      f64[m] values of the sum of mu^2, and f64[m], their probabilities.
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
    """Law f64[m] of a sum of two numbers with laws f64[m] and f64[n] on the grid's cells.

    It is cut to the length of the first; the probability of what lies beyond is kept in the last cell.
    """
    total = np.zeros_like(law)
    for shift in np.flatnonzero(other):
        total[shift:] += other[shift] * law[: len(law) - shift]
        total[-1] += other[shift] * law[len(law) - shift :].sum() if shift else 0.0
    return total


def observed_gaussian_epsilon(draws: ObservedDraws, delta: float) -> float:
    """The least epsilon whose delta under `ObservedDraws` of Gaussian noise is at most `delta`.

    Args:
      draws: rounds with Gaussian noise.
      delta: above 0 and below 1.

    Returns:
      epsilon, rounded up; infinity beyond 1e12.
    """
    squares, chances = participation(draws)
    used = chances > 0
    mu, chances = np.sqrt(squares[used]), chances[used]

    def excess(epsilon: float) -> float:
        """How much delta at this epsilon exceeds the given one."""
        return float(np.sum(chances * gaussian_delta(epsilon, mu))) - delta

    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
        if high > 1e12:
            return math.inf
    root = optimize.brentq(excess, 0.0, high, xtol=1e-12, rtol=1e-9)
    while excess(root) > 0:
        root = root * (1 + 1e-9) + 1e-12
    return root


def fewer_rounds(draws: ObservedDraws, tail: float) -> tuple[Multipliers, float]:
    """The rounds in which a client takes part at most, except with a small probability.

    Args:
      draws: rounds with noise of any law.
      tail: largest probability of more rounds.

    Returns:
      Multipliers of that many rounds, those with the least noise, and the probability of more rounds. For
      every epsilon, delta is at most the delta of those rounds plus that probability.
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
