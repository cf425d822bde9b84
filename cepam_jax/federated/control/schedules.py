"""Schedules: knobs that follow from the number of rounds done alone."""

from collections.abc import Callable

import jax.numpy as jnp
import optax

from cepam_jax import settings
from cepam_jax.federated.control.base import CONTROLS, Control, constant
from cepam_jax.mechanisms import Knobs
from cepam_jax.mechanisms.configured import FIELD_OF_KNOB, knob_values, stays_in_range
from cepam_jax.registry import Registry

# Name -> function (end, rounds) -> schedule (round -> factor), from 1 to `end`.
SCHEDULES: Registry = Registry("schedule")
SCHEDULES.register("linear", lambda end, rounds: optax.linear_schedule(1.0, end, rounds))
SCHEDULES.register("exponential", lambda end, rounds: optax.exponential_decay(1.0, rounds, end))
SCHEDULES.register(
    "cosine", lambda end, rounds: lambda t: end + (1 - end) * optax.cosine_decay_schedule(1.0, rounds)(t)
)

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
