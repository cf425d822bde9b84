"""In which rounds the ideal lengths of messages are counted: `config.metrics.bits`.

A length costs more than the message itself, and only what is logged depends on it: neither messages nor
decoded updates do. A round that does not count leaves out what only lengths need, the encoder's choice of
laws and scales included, which no decoder reads.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cepam_jax import settings
from cepam_jax.federated.plan import Plan

EVERY, AT_EVALUATION, NEVER = SCHEDULES = ("every_round", "at_evaluation", "never")

settings.declare(
    "metrics",
    {
        "bits": settings.choice(
            EVERY,
            "In which rounds the ideal lengths of messages are counted; at_evaluation: in the last before "
            "each evaluation. Messages and decoded updates do not depend on it.",
            SCHEDULES,
        ),
    },
    "What is measured beside the model.",
)


def counted(plan: Plan, when: jax.Array | None, count: Callable[[], jax.Array]) -> jax.Array:
    """The length of a message f32[], or NaN in a round that does not count.

    Args:
      plan: of the round.
      when: bool[], whether this round counts; None: it does.
      count: the length; what is calculated in it alone costs nothing in other rounds.
    """
    if not plan.counts:
        return jnp.float32(jnp.nan)
    if when is None:
        return count()
    return jax.lax.cond(when, count, lambda: jnp.float32(jnp.nan))


def which(plan: Plan, when: jax.Array | None) -> jax.Array | None:
    """`RoundReport.counted` of a round; arguments as of `counted`."""
    return when if plan.counts else jnp.bool_(False)


def needed(fields: dict[str, Any], asks: bool, why: str) -> settings.Check:
    """The check that every round counts where somebody asks for it, and why."""
    return (not asks or fields["metrics.bits"] == EVERY, "metrics.bits", f"{EVERY!r} {why}")


@settings.rule
def _rules(fields):
    yield needed(fields, fields["wire"], "with config.wire, which compares bytes with them")
    yield needed(
        fields, fields["links.name"] != "none", "with config.links: messages take time by their lengths"
    )
    # Where nobody came in the one round that counts, a line would say nothing of the others.
    poisson = fields["participation.sampling"] == "poisson" and fields["metrics.bits"] == AT_EVALUATION
    yield needed(fields, poisson, f"or {NEVER!r} with Poisson sampling: nobody may come where it counts")
    yield needed(
        fields,
        fields["filter.bits"] > 0,
        "with config.filter.bits: a budget of bits is only worth what is counted against it",
    )
