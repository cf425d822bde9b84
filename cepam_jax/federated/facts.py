"""What is public of all clients in a round, for aggregators and control rules that go by it."""

import jax
import jax.numpy as jnp

from cepam_jax.errors import ConfigError
from cepam_jax.federated import admission, central, counting, gathering, pairs
from cepam_jax.federated.aggregation.base import Aggregator, Public
from cepam_jax.federated.plan import Plan
from cepam_jax.mechanisms import About, Knobs


def check(plan: Plan) -> None:
    """Checks that the parts of a round have of each other what they need.

    An aggregator a clip, participants enough and the law of errors; a control rule the noise that it reads;
    the server's check a limit; an attack labels, or all updates.

    Raises:
      ConfigError: something is not there.
    """
    rule, about = plan.aggregator, plan.mechanism.about
    if plan.control.needs_noise and not (plan.server_noise or noise_is_known(about, rule)):
        raise ConfigError(
            "the control rule goes by the noise in the released aggregate, which is known only where the "
            "mechanism adds noise to updates and the aggregator is a sum with public weights; this is "
            f"{about.name} with another one, or without noise"
        )
    if plan.control.count_noise is not None:
        _check_count(plan)
    code = plan.mechanism.code
    scalar = code.kind == "lattice" and code.lattice == "Z1" and code.layer == "gaussian"
    modelled = scalar and about.server is None and about.clip is not None and code.weight is None
    if plan.control.needs_rate and not modelled:
        raise ConfigError(
            "the control rule counts bits (config.filter.bits) by the rate model of scalar LRSUQ at the "
            f"clip, which says nothing about the messages of {about.name}"
        )
    if plan.ends != "slowest":
        _check_late(plan)
    if plan.per_round < rule.least:
        raise ConfigError(
            f"the aggregator bears its lies among at least {rule.least} updates a round, and there are "
            f"{plan.per_round}"
        )
    if plan.false_alarm is not None:
        admission.check(about)
    if plan.pairs:
        _check_pairs(plan)
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


def _check_pairs(plan: Plan) -> None:
    """Checks that updates can be compared in pairs.

    Raises:
      ConfigError: they cannot, and why.
    """
    if plan.false_alarm is None:
        raise ConfigError(
            "a check of pairs (config.byzantine.pairs) goes with the check of norms "
            "(config.byzantine.check): a lie that is long enough is near to nobody"
        )
    if plan.aggregator.streams:
        raise ConfigError("an aggregator that streams sees no two updates together: see aggregation.guarded")
    if plan.aggregator.of_all:
        raise ConfigError(
            "a check of pairs (config.byzantine.pairs) refuses honest updates together with lies, and the "
            "aggregator tolerates as many lies among those that are left as among all (Aggregator.of_all)"
        )
    part = gathering.apart_of(plan)
    assert part is not None
    pairs.check(plan.mechanism.about, part)


def _check_late(plan: Plan) -> None:
    """Checks that parts bear participants whose messages come too late.

    Raises:
      ConfigError: one does not, and why.
    """
    late = f"participants may be late (config.links.ends is {plan.ends!r}), and "
    if plan.attack is not None and plan.attack.craft is not None:
        raise ConfigError(late + "nothing says how long the messages are that liars craft")
    if plan.control.watch:
        raise ConfigError(late + "the control rule reads the training losses of all, also of those who are")
    if plan.ends == "quorum" and plan.aggregator.streams:
        raise ConfigError(
            late + "the aggregator adds up updates before it is known who is: see aggregation.guarded"
        )
    if plan.control.budget is not None:
        raise ConfigError(
            late + "the control rule spends its budget in every round, also in one that has no result"
        )
    if plan.control.count_noise is not None:
        raise ConfigError(late + "the control rule counts whose updates are within their clips, of all")
    if plan.aggregator.combine is not None and not plan.aggregator.leaves_out:
        raise ConfigError(late + "the aggregator does not say that it leaves them out (leaves_out)")


def _check_count(plan: Plan) -> None:
    """Raises ConfigError where a control rule's count of updates within their clips means nothing."""
    counting.check(plan.control.count_noise, plan.per_round)
    if plan.mechanism.about.clip is None or plan.quantize == "weights":
        raise ConfigError(
            "the control rule counts the updates within their clips, and the mechanism "
            f"{plan.mechanism.about.name} clips no updates"
        )


def public(plan: Plan, counts, knobs: Knobs) -> Public:
    """The public facts of a round.

    Args:
      plan: of the round.
      counts: int[clients], examples of each client.
      knobs: of all clients in this round.
    """
    return of_knobs(plan.mechanism.about, counts, knobs, sum(plan.segments))


def noise_is_known(about: About, rule: Aggregator) -> bool:
    """Whether the variance of the noise in the aggregate follows from what is public."""
    return about.outsiders is not None and bool(rule.public_weights or rule.weights)


def noise_of_sum(plan: Plan, counts, knobs: Knobs, report) -> jax.Array:
    """E|noise|^2 of a round's aggregate, f32[]: d sum w^2 sigma^2 / (sum w)^2; NaN where it is not known.

    Args:
      plan: of the round.
      counts: int[clients], examples of each client.
      knobs: of all clients in this round.
      report: Report of the participants, whose weights are public where the noise is known.
    """
    if plan.server_noise is not None:
        return sum(plan.segments) * jnp.square(central.of_participants(knobs, report))
    if not noise_is_known(plan.mechanism.about, plan.aggregator):
        return jnp.float32(jnp.nan)
    share = report.weight / jnp.sum(report.weight)
    deviation = public(plan, counts, knobs).deviation[report.client]
    return sum(plan.segments) * jnp.sum(jnp.square(share * deviation))


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
