"""Privacy losses of rounds with Poisson sampling and Gaussian noise, on a grid that suits the noise."""

import functools
import math
from typing import Any

import dp_accounting
from dp_accounting import pld

# Steps of the grid for one round: fewer are composed by a slower way, more take long.
_FEWEST, _MOST = 2000, 1 << 17
_TOO_MUCH = 1000.0  # nats that rounds may tell; beyond, an epsilon means nothing


def epsilon(rounds: list[tuple[Any, int]], delta: float) -> float:
    """Of rounds of different kinds, each a PoissonSampledDpEvent and how many there are of it.

    Infinity where there is so little noise that it would mean nothing.
    """
    told = sum(count * math.log1p(_square(round_)) for round_, count in rounds)
    return math.inf if told > _TOO_MUCH else float(_losses(rounds).get_epsilon_for_delta(delta))


def _losses(rounds: list[tuple[Any, int]]) -> Any:
    """The distribution of the privacy loss of all rounds.

    On any grid of losses epsilon is not too small, but for rounding. What a grid adds grows with the square
    of its step over the deviation of one round's loss: at a 25th it is some 1e-4 of epsilon, and more where
    few losses are very large. The library's own step of 1e-4 adds more to many rounds with much noise, and
    takes a second for each kind of round with little.
    """
    parts = [_losses_of_a_round(round_, _step(rounds)).self_compose(count) for round_, count in rounds]
    return functools.reduce(lambda losses, other: losses.compose(other), parts)


def _step(rounds: list[tuple[Any, int]]) -> float:
    """Of the grid, by the rounds with the most noise. A power of two, so that few grids are made."""
    least = min(math.sqrt(_square(round_)) for round_, _ in rounds)
    largest = []
    for round_, _ in rounds:  # the loss at ten deviations
        z = round_.event.noise_multiplier
        largest.append(math.log1p(round_.sampling_probability * math.expm1(10 / z + z**-2 / 2)))
    wanted = max(min(least / 25, min(largest) / _FEWEST), max(largest) / _MOST, 2.0**-20)
    return 2.0 ** math.floor(math.log2(wanted))


def _square(round_: Any) -> float:
    """Mean square of the ratio of densities less 1: about that of the loss, where it is small."""
    return round_.sampling_probability**2 * math.expm1(round_.event.noise_multiplier**-2)


@functools.lru_cache(maxsize=32)  # searches for a number of rounds ask for one again and again
def _losses_of_a_round(round_: dp_accounting.PoissonSampledDpEvent, step: float) -> Any:
    """Of one round."""
    return pld.privacy_loss_distribution.from_gaussian_mechanism(
        round_.event.noise_multiplier,
        sampling_prob=round_.sampling_probability,
        value_discretization_interval=step,
    )
