"""The contract of a control rule: the knobs of each round, from the rounds before.

A rule that reads nothing but the number of rounds done is a schedule; its knobs can be planned, and a budget
calibrated, before anything is trained. A rule that reads results has `observe`. What it is given is a
`Released`: a type that holds what the server published and nothing else, so that no rule can pass on what was
not released. A rule that needs more, such as training losses, says so by `watch` in place of `observe`; it is
given a `Measured`, which no noise covers, and a run with it has no guarantee.

Whatever the rule, every round reports the knobs that it applied, and the accountant counts those.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cepam_jax import settings
from cepam_jax.mechanisms import Knobs
from cepam_jax.mechanisms.configured import FIELD_OF_KNOB, knob_values, stays_in_range
from cepam_jax.registry import Registry


class Released(NamedTuple):
    """What a round made public: all that a control rule may read.

    Attributes:
      round: int32[], rounds done.
      aggregate: f32[d], the aggregated update that the server applied.
      params: the global model's parameters after the round.
    """

    round: jax.Array
    aggregate: jax.Array
    params: Any


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
    """

    knobs: Callable[[Any, Knobs, jax.Array], Knobs]
    initialize: Callable[[Knobs], Any] | None = None
    advance: Callable[[Any], Any] | None = None
    observe: Callable[[Any, Released], Any] | None = None
    watch: Callable[[Any, Measured], Any] | None = None

    @property
    def adaptive(self) -> bool:
        """Whether knobs may depend on results, released or not."""
        return self.observe is not None or self.watch is not None


def unchanged(state: Any, knobs: Knobs, number: jax.Array) -> Knobs:
    """The knobs of `constant`: those at the start."""
    return knobs


def constant() -> Control:
    """The knobs stay as they are."""
    return Control(unchanged)


# Name -> function (end, rounds) -> schedule (round -> factor), from 1 to `end`.
SCHEDULES: Registry = Registry("schedule")
SCHEDULES.register("linear", lambda end, rounds: optax.linear_schedule(1.0, end, rounds))
SCHEDULES.register("exponential", lambda end, rounds: optax.exponential_decay(1.0, rounds, end))
SCHEDULES.register(
    "cosine", lambda end, rounds: lambda t: end + (1 - end) * optax.cosine_decay_schedule(1.0, rounds)(t)
)

# Name -> function config -> Control: rules beyond constant knobs and schedules.
CONTROLS: Registry = Registry("control rule")

settings.declare("", {"control": settings.choice("schedule", "What sets the knobs of each round.", CONTROLS)})
settings.declare(
    "schedule",
    {
        "knob": settings.choice("none", "The knob that is multiplied.", tuple(FIELD_OF_KNOB), "none"),
        "kind": settings.choice("linear", "How the factor goes from 1 to `end`.", SCHEDULES),
        "end": settings.positive(1.0, "The factor after the last round."),
    },
    "A knob times a factor that goes from 1 to `end`.",
)


@settings.rule
def _rules(fields):
    """A schedule goes from 1 to `end` without leaving what lies between, so its end decides."""
    knob, end = fields["schedule.knob"], fields["schedule.end"]
    if knob == "none":
        return
    yield (
        fields["control"] == "schedule",
        "schedule.knob",
        "'none' unless config.control is 'schedule': another rule sets the knobs",
    )
    for value in knob_values(fields, knob):
        final = round(value * end) if knob in ("bits", "levels") else value * end
        yield (
            stays_in_range(fields, knob, final),
            "schedule.end",
            f"such that {knob} = {value:g} times it stays within its range: {FIELD_OF_KNOB[knob].words()} "
            f"(it becomes {final:g})",
        )


def scheduled(factors: dict[str, Callable]) -> Control:
    """Each named knob times its optax schedule.

    Args:
      factors: name -> schedule (round -> factor). "gamma" stands for 1 / sigma; "bits" and "levels" are
        rounded to whole numbers.
    """

    def knobs(state, start: Knobs, number):
        changed = {}
        for name, factor in factors.items():
            if name == "gamma":
                changed["sigma"] = start.sigma / factor(number)
            else:
                value = getattr(start, name) * factor(number)
                changed[name] = jnp.round(value) if name in ("bits", "levels") else value
        return start._replace(**changed)

    return Control(knobs)


def _schedule_of_config(config) -> Control:
    """`config.schedule`, over config.rounds."""
    if config.schedule.knob == "none":
        return constant()
    factor = SCHEDULES[config.schedule.kind](config.schedule.end, config.rounds)
    return scheduled({config.schedule.knob: factor})


CONTROLS.register("schedule", _schedule_of_config)


def plan(rule: Control, knobs: Knobs, rounds: int) -> list[Knobs]:
    """The knobs of each of `rounds` rounds, for a rule that reads no results."""
    state = rule.initialize(knobs) if rule.initialize else None
    planned = []
    for number in map(jnp.int32, range(rounds)):
        planned.append(rule.knobs(state, knobs, number))
        state = rule.advance(state) if rule.advance else state
    return planned
