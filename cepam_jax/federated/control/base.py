"""The contract of a control rule: the knobs of each round, from the rounds before.

A rule that reads nothing but the number of rounds done is a schedule; its knobs can be planned, and a budget
calibrated, before anything is trained. A rule that reads results has `observe`. What it is given is a
`Released`: a type that holds what the server published and nothing else, so that no rule can pass on what was
not released. Such a rule has a guarantee only if it states a `budget` that it keeps whatever it reads
(`filters` makes rules that do), or if it reads a noisy count (`count_noise`) and leaves gamma as it is
(`clipping`). A rule that needs more, such as training losses, says so by `watch`; it is
given a `Measured`, which no noise covers, and a run with it has no guarantee.

Whatever the rule, every round reports the knobs that it applied, and the accountant counts those, or holds
them against the budget.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax import settings
from cepam_jax.mechanisms import Knobs
from cepam_jax.registry import Registry


class Released(NamedTuple):
    """What a round made public: all that a control rule may read.

    Attributes:
      round: int32[], rounds done.
      aggregate: f32[d], the aggregated update that the server applied.
      params: the global model's parameters after the round.
      noise: f32[], E|noise|^2 of the aggregate, from public knobs and weights; NaN where the aggregate is no
        sum with public weights, or where the mechanism adds no noise.
      within: f32[], part of the participants whose update was within its clip, with the noise that the server
        added to their count (`federated.counting`): about 0 to 1. NaN unless the rule has `count_noise`.
    """

    round: jax.Array
    aggregate: jax.Array
    params: Any
    noise: jax.Array
    within: jax.Array | float = float("nan")


class Measured(NamedTuple):
    """What a server without promises of privacy would have beside: no noise covers it.

    Attributes:
      round: int32[], rounds done.
      loss: f32[participants], mean loss of each participant's local training.
      examples: f32[participants], how many examples each has.
      all_examples: f32[clients], the same of all clients.
    """

    round: jax.Array
    loss: jax.Array
    examples: jax.Array
    all_examples: jax.Array


class Control(NamedTuple):
    """A rule for the knobs.

    Attributes:
      knobs: (state, Knobs of all clients at the start, rounds done int32[]) -> Knobs of all clients for the
        next round, the same shapes.
      initialize: Knobs at the start -> state; None: the rule has none.
      advance: state -> state, after each round, whatever it gave; None: the state stays.
      observe: (state, Released) -> state, after each round; None: the rule reads no results.
      watch: (state, Measured) -> state, after each round, for a rule that reads what is not released: nothing
        is guaranteed then. None: it does not.
      budget: of a rule with `observe`: in each round it divides the sigmas of all clients at the start by a
        common factor f, and leaves clips as they are; the sum of f^2 over the rounds stays at or below this
        number, whatever is released. So the whole run spends no more than so many rounds at the start's
        knobs. None: it states none, and has no guarantee.
      most: of a rule with a budget: what f^2 of a round is at most, whatever is released. None: it states no
        such limit, and the draws of clients are not counted.
      count_noise: of a rule with `observe` that reads `Released.within`: deviation of the noise that the
        server adds to the count, in participants. It multiplies clips and sigmas of all clients at the start
        by one common factor (`scaled`), so that no gamma changes. None: it reads no count, and none is made.
      needs_noise: whether it reads `Released.noise`; where that is not known it is refused.
      needs_rate: whether it counts bits by the rate model of scalar LRSUQ; other mechanisms are refused.
      sized: d -> the rule for updates of that length; None: it does not depend on d.
    """

    knobs: Callable[[Any, Knobs, jax.Array], Knobs]
    initialize: Callable[[Knobs], Any] | None = None
    advance: Callable[[Any], Any] | None = None
    observe: Callable[[Any, Released], Any] | None = None
    watch: Callable[[Any, Measured], Any] | None = None
    budget: float | None = None
    most: float | None = None
    count_noise: float | None = None
    needs_noise: bool = False
    needs_rate: bool = False
    sized: Callable[[int], "Control"] | None = None

    @property
    def adaptive(self) -> bool:
        """Whether knobs may depend on results, released or not."""
        return self.observe is not None or self.watch is not None


def scaled(start: Knobs, factor: jax.Array) -> Knobs:
    """Knobs with clips and sigmas times a factor f32[]; in 32 bits no gamma becomes larger by that."""
    sigma = None if start.sigma is None else start.sigma * factor * np.float32(1 + 2.0**-20)
    return start._replace(clip=start.clip * factor, sigma=sigma)


def unchanged(state: Any, knobs: Knobs, number: jax.Array) -> Knobs:
    """The knobs of `constant`: those at the start."""
    return knobs


def constant() -> Control:
    """The knobs stay as they are."""
    return Control(unchanged)


def for_updates(rule: Control, d: int) -> Control:
    """The rule for updates of d coordinates."""
    return rule.sized(d) if rule.sized else rule


# Name -> function config -> Control: the choices of config.control.
CONTROLS: Registry = Registry("control rule")

settings.declare("", {"control": settings.choice("schedule", "What sets the knobs of each round.", CONTROLS)})


def plan(rule: Control, knobs: Knobs, rounds: int) -> list[Knobs]:
    """The knobs of each of `rounds` rounds, for a rule that reads no results."""
    state = rule.initialize(knobs) if rule.initialize else None
    planned = []
    for number in map(jnp.int32, range(rounds)):
        planned.append(rule.knobs(state, knobs, number))
        state = rule.advance(state) if rule.advance else state
    return planned
