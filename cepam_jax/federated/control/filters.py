"""Budgets that no rule can exceed: what a round may spend is decided here, whatever a rule asks for.

A `Spender` says how large the factor f of gamma is to be in a round, from what was released so far. A filter
gives it an even share of what is left of the budget at most, and a stated part of that at least:

  least * left / rounds left <= f^2 <= left / rounds left

and on request no more than a fixed number, which a budget needs where clients are drawn. So sum f^2 <= budget
in every course of events, rounds cannot run out of budget before the last one, what a round saves goes to
later ones, and the noise of the last round is never more than that of an even spread. A round beyond the last
has nothing left: its noise is no number, and it is refused. docs/adaptive.md proves what these limits mean
for privacy.

The budget is kept in whole units, so that nothing is lost or gained by rounding over the rounds.

Bits have a budget of the same kind. Lengths of real messages depend on the updates themselves, and a rule
that read them would release them; so bits are those of the rate model at the clip: what scalar LRSUQ spends
in the mean on an update of Gaussian coordinates that is as long as its clip allows, without headers. It
follows from the knobs alone. Shorter updates take less.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax import settings
from cepam_jax.errors import is_whole, require
from cepam_jax.federated.control.base import Control, Released
from cepam_jax.mechanisms import Knobs
from cepam_jax.theory import rate

UNITS = 2**30  # that a budget is divided into
MARGIN = 2.0**-18  # of the budget that is not spent: a round's sigma is off by some 2^-22 in 32 bits
_OCTAVES = np.arange(-10.0, 10.5, 0.5)  # of s / sigma, where the rate is tabulated

settings.declare(
    "filter",
    {
        "rounds": settings.number(
            0.0,
            "The privacy budget, in rounds at the gamma of the start; 0: config.rounds.",
            lambda v: v == 0 or 1 <= v <= 1e6,
            "0, or a number from 1 to 1e6",
        ),
        "bits": settings.not_negative(
            0.0,
            "The budget of uplink bits per coordinate and round, in the mean over config.rounds, by the rate "
            "model at the clip; 0: none.",
        ),
        "most": settings.number(
            0.0,
            "The most that a round spends, in even shares of the whole budget; 0: no limit. "
            "With a limit, rounds without a client count for it where a part of the clients is drawn.",
            lambda v: v == 0 or 1 <= v <= 1e6,
            "0, or a number from 1 to 1e6",
        ),
        "least": settings.unit(
            0.01, "The least part of an even share of what is left that a round spends of a budget."
        ),
    },
    "The budgets of control rules that read what was released.",
)


class Purse(NamedTuple):
    """What a spender knows of the budget before a round.

    Attributes:
      number: int32[], rounds done.
      rounds: how many there are in all.
      even: f32[], the f^2 of an even share of what is left: the most that this round may have.
    """

    number: jax.Array
    rounds: int
    even: jax.Array


class Spender(NamedTuple):
    """A rule for the factor f of gamma, which a filter keeps within a budget.

    Attributes:
      wanted: (state, Purse) -> f32[], the f^2 that the next round is to have. Anything may be asked for.
      initialize: () -> state.
      observe: (state, f^2 of the round f32[], Released) -> state.
      needs_noise: whether it reads `Released.noise`.
    """

    wanted: Callable[[Any, Purse], jax.Array]
    initialize: Callable[[], Any]
    observe: Callable[[Any, jax.Array, Released], Any]
    needs_noise: bool = True


class Filtered(NamedTuple):
    """State of a rule with a filter.

    Attributes:
      spender: state of the spender.
      left: int32[], units of the privacy budget.
      bits_left: int32[], units of the budget of bits.
      number: int32[], rounds done.
      ratio: f32[], largest clip / sigma over the clients at the start.
    """

    spender: Any
    left: jax.Array
    bits_left: jax.Array
    number: jax.Array
    ratio: jax.Array


def filtered(
    spender: Spender,
    rounds: int,
    budget: float = 0.0,
    bits: float = 0.0,
    least: float = 0.01,
    d: int = 0,
    most: float = 0.0,
) -> Control:
    """A control rule that spends as a spender says, within a budget.

    Args:
      spender: says how much a round is to have.
      rounds: of the run; a later one has no budget left, and is refused.
      budget: the most that the sum of f^2 over the rounds may be, at least 1; 0: `rounds`.
      bits: the most bits per coordinate and round in the mean, by the rate model; 0: no such budget.
      least: part of an even share that a round has at least, above 0 and at most 1.
      d: coordinates of an update, which bits depend on; 0: not known yet.
      most: the most that f^2 of a round may be, in even shares budget / rounds, at least 1; 0: no limit.

    Raises:
      ConfigError: a number is out of range.
    """
    whole = is_whole(rounds) and rounds >= 1
    require(whole and rounds <= 10**6, "rounds", rounds, "a whole number from 1 to 1000000")
    budget = float(budget or rounds)
    fields = {"budget": ("filter.rounds", budget), "bits": ("filter.bits", bits)}
    fields |= {"least": ("filter.least", least), "most": ("filter.most", most)}
    for name, (field, value) in fields.items():
        require(settings.FIELDS[field].test(value), name, value, settings.FIELDS[field].words())
    rule = _Filter(spender, int(rounds), budget, float(bits), float(least), d, float(most))
    return Control(
        knobs=rule.knobs,
        initialize=rule.initialize,
        observe=rule.observe,
        budget=budget,
        most=most * budget / rounds if most else None,
        needs_noise=spender.needs_noise,
        needs_rate=bits > 0,
        sized=lambda d: filtered(spender, rounds, budget, bits, least, d, most),
    )


class _Filter(NamedTuple):
    """The functions of a filtered rule; the fields are the arguments of `filtered`."""

    spender: Spender
    rounds: int
    budget: float
    bits: float
    least: float
    d: int
    most: float

    def initialize(self, knobs: Knobs) -> Filtered:
        """The state before the first round."""
        ratio = jnp.float32(0)
        if self.bits:
            require(knobs.clip is not None, "clip", None, "given where bits have a budget: the rate model's")
            ratio = jnp.max(knobs.clip / knobs.sigma).astype(jnp.float32)
        units = jnp.int32(UNITS)
        return Filtered(self.spender.initialize(), units, units, jnp.int32(0), ratio)

    def knobs(self, state: Filtered, start: Knobs, number: jax.Array) -> Knobs:
        """Every sigma divided by the same factor; NaN where nothing is left."""
        del number  # the filter counts for itself
        return start._replace(sigma=start.sigma / jnp.sqrt(self._spends(state)[0]))

    def observe(self, state: Filtered, released: Released) -> Filtered:
        """What is left after the round, and what the spender makes of it."""
        square, units, bit_units = self._spends(state)
        return Filtered(
            self.spender.observe(state.spender, square, released),
            state.left - units,
            state.bits_left - bit_units,
            state.number + 1,
            state.ratio,
        )

    def _spends(self, state: Filtered):
        """(f^2 of the next round f32[], NaN if nothing is left; its units of both budgets int32[])."""
        each = np.float32(self.budget * (1 - MARGIN) / UNITS)
        remaining = self.rounds - state.number
        even = jnp.where(remaining > 0, state.left // jnp.maximum(remaining, 1), 0)
        if self.most:
            share = UNITS / self.rounds * (1 - MARGIN)  # 32 bits must not lead above the limit either
            even = jnp.minimum(even, max(1, int(min(self.most * share, UNITS))))
        most = even * each
        bits_even = jnp.where(remaining > 0, state.bits_left // jnp.maximum(remaining, 1), 0)
        if self.bits:
            allowed = bits_even * np.float32(self.bits * self.rounds / UNITS)
            most = jnp.minimum(most, jnp.square(_ratio_of_bits(allowed) / self._ratio(state)))
        wanted = self.spender.wanted(state.spender, Purse(state.number, self.rounds, most))
        # Not a number: as little as may be.
        wanted = jnp.where(wanted >= self.least * most, jnp.minimum(wanted, most), self.least * most)
        units = jnp.minimum(jnp.floor(wanted / each).astype(jnp.int32), even)
        units = jnp.where(most >= each, jnp.maximum(units, jnp.minimum(even, 1)), units)
        square = jnp.where(units > 0, units * each, jnp.float32(jnp.nan))
        if not self.bits:
            return square, units, jnp.int32(0)
        spent = _bits_of_ratio(jnp.sqrt(square) * self._ratio(state)) / (self.bits * self.rounds) * UNITS
        spent = jnp.minimum(jnp.ceil(spent), bits_even).astype(jnp.int32)
        return square, units, jnp.where(units > 0, spent, 0)

    def _ratio(self, state: Filtered) -> jax.Array:
        """s / sigma at the start of a coordinate of an update as long as its clip."""
        return state.ratio / np.float32(np.sqrt(max(self.d, 1)))


def spent_of(state: Filtered, budget: float) -> float:
    """The sum of f^2 that a state says was spent of a budget."""
    return (UNITS - int(state.left)) / UNITS * budget


@functools.lru_cache(maxsize=1)
def _rates() -> np.ndarray:
    """log2 of the bits per coordinate at 2^_OCTAVES."""
    return np.log2([rate.layered_limit(float(2**octave), 400) for octave in _OCTAVES])


def _bits_of_ratio(ratio: jax.Array) -> jax.Array:
    """Bits per coordinate of scalar LRSUQ at s / sigma, by the table; below it they are proportional."""
    bits = jnp.exp2(jnp.interp(jnp.log2(ratio), _OCTAVES, _rates()))
    return bits * jnp.minimum(1, ratio / np.float32(2 ** _OCTAVES[0]))


def _ratio_of_bits(bits: jax.Array) -> jax.Array:
    """The inverse of `_bits_of_ratio`; at most the end of the table."""
    ratio = jnp.exp2(jnp.interp(jnp.log2(bits), _rates(), _OCTAVES))
    return ratio * jnp.minimum(1, bits / np.float32(2 ** _rates()[0]))
