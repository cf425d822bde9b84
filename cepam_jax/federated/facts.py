"""What is public of all clients before a round, for aggregators that weigh them by it."""

import jax.numpy as jnp

from cepam_jax.errors import ConfigError
from cepam_jax.federated import admission
from cepam_jax.federated.aggregation.base import Aggregator, Public
from cepam_jax.federated.plan import Plan
from cepam_jax.mechanisms import About, Knobs


def check(plan: Plan) -> None:
    """Checks that an aggregator which needs a clip has one, and participants enough; so for norms and lies.

    Raises:
      ConfigError: the mechanism does not clip, or something is not there.
    """
    rule = plan.aggregator
    if plan.per_round < rule.least:
        raise ConfigError(
            f"the aggregator bears its lies among at least {rule.least} updates a round, and there are "
            f"{plan.per_round}"
        )
    if plan.false_alarm is not None:
        admission.check(plan.mechanism.about)
    about = plan.mechanism.about
    if rule.needs_law and (about.outsiders is None or about.law != about.outsiders.law):
        raise ConfigError(
            "the aggregator uses the law of each update's whole error (config.byzantine.noise=known), and "
            f"the mechanism {about.name} states none"
        )
    if plan.attack is not None and plan.attack.craft is not None and rule.streams:
        raise ConfigError("an aggregator that streams has no place for an attack: see aggregation.guarded")
    if plan.attack is not None and plan.attack.turns_labels and (plan.task is None or not plan.task.turned):
        raise ConfigError("the attack turns labels, and the task has none that it could turn (Task.turned)")
    if plan.aggregator.needs_clip and plan.mechanism.about.clip is None:
        raise ConfigError(
            f"the mechanism {plan.mechanism.about.name} does not clip updates, and the aggregator estimates "
            "the spread of the clients' updates, which nothing public limits then; give the spread "
            "(config.precision.tau; in Python aggregator=federated.precision(tau=...)), or clip updates"
        )


def public(plan: Plan, counts, knobs: Knobs) -> Public:
    """The public facts of a round.

    Args:
      plan: of the round.
      counts: int[clients], examples of each client.
      knobs: of all clients in this round.
    """
    return of_knobs(plan.mechanism.about, counts, knobs, sum(plan.segments))


def of_knobs(about: About, counts, knobs: Knobs, coordinates: int) -> Public:
    """The same, from the mechanism's statements and the length of an update; 0: not known, no limit."""
    counts = jnp.asarray(counts, jnp.float32)
    deviation = about.outsiders.deviation(knobs) if about.outsiders else 0.0
    limit = jnp.float32(jnp.inf)
    if about.clip is not None and knobs.clip is not None and coordinates:
        # An L1 norm is no smaller than the L2 norm.
        limit = jnp.mean(jnp.square(jnp.asarray(knobs.clip, jnp.float32))) / coordinates
    return Public(counts, jnp.broadcast_to(jnp.asarray(deviation, jnp.float32), counts.shape), limit)


def stated_weights(rule: Aggregator, about: About, counts, knobs: Knobs):
    """f32[clients] of a rule whose weights follow from a round's knobs alone, up to a common factor."""
    assert rule.weights is not None
    return rule.weights(None, of_knobs(about, counts, knobs, 0))
