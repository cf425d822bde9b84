"""Privacy losses of rounds with Poisson sampling and Gaussian noise, on a grid that suits the noise."""

import functools
import math
from typing import Any

import dp_accounting
from dp_accounting import pld

_MOST_STEPS = 1 << 16  # of the grid, for one round


def rounding(rounds: int) -> float:
    """How much delta of composed rounds may be too small by the rounding of Fourier transforms.

    The transform of a law is at most 1, and its n-th power in f64 is wrong by some n pi 2^-53 of itself. Over
    a support of a few dozen deviations that is no more than 16 n 2^-52 in total variation.
    """
    return rounds * 2.0**-48


def epsilon(release: Any, delta: float) -> float:
    """Of the event in what `releases.poisson_sampled` returns; infinity where delta is lost in rounding."""
    within = delta - rounding(sum(count for _, count in _rounds(release)))
    return float(_losses(release).get_epsilon_for_delta(within)) if within > 0 else math.inf


def _losses(release: Any) -> Any:
    """The distribution of the privacy loss of all rounds.

    Whatever the grid of losses is, epsilon is not too small. What a grid adds grows with the square of its
    step over the deviation of one round's loss: at a 25th, less than 1e-4 of epsilon. The library's own step
    of 1e-4 adds more to many rounds with much noise, and takes a second for each kind of round with little.
    """
    rounds = _rounds(release)
    parts = [_losses_of_a_round(round_, _step(rounds)).self_compose(count) for round_, count in rounds]
    return functools.reduce(lambda losses, other: losses.compose(other), parts)


def _step(rounds: list[tuple[Any, int]]) -> float:
    """Of the grid, a power of two: other numbers of the same rounds then have the same distributions."""
    squares, most = 0.0, 0.0
    for round_, count in rounds:
        chance, z = round_.sampling_probability, round_.event.noise_multiplier
        squares += count * chance**2 * math.expm1(z**-2)  # of the ratio of densities, count times
        most = max(most, math.log1p(chance * math.expm1(10 / z + z**-2 / 2)))  # at ten deviations
    deviation = math.sqrt(squares / sum(count for _, count in rounds))
    wanted = max(deviation / 25, most / _MOST_STEPS, 2.0**-20)
    return min(2.0 ** math.floor(math.log2(wanted)), 2.0**-7)


def _rounds(release: Any) -> list[tuple[Any, int]]:
    """The kinds of rounds that `releases.poisson_sampled` puts together, and how many there are of each."""
    if isinstance(release, dp_accounting.ComposedDpEvent):
        return [pair for part in release.events for pair in _rounds(part)]
    if isinstance(release, dp_accounting.SelfComposedDpEvent):
        return [(release.event, release.count)]
    return [(release, 1)]


@functools.lru_cache(maxsize=32)  # searches for a number of rounds ask for one again and again
def _losses_of_a_round(round_: dp_accounting.PoissonSampledDpEvent, step: float) -> Any:
    """Of one round."""
    return pld.privacy_loss_distribution.from_gaussian_mechanism(
        round_.event.noise_multiplier,
        sampling_prob=round_.sampling_probability,
        value_discretization_interval=step,
    )
