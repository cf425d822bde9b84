"""Which rule a configuration names; what is left of its statements where clients may lie, or be late."""

import functools

import jax
import jax.numpy as jnp

from cepam_jax.errors import ConfigError
from cepam_jax.federated.aggregation.base import AGGREGATORS, Aggregator
from cepam_jax.federated.attacks import ATTACKS


def guarded(rule: Aggregator, attacked: bool, checked: bool = False) -> Aggregator:
    """A rule whose result is no longer a sum of honest decoded updates with known weights.

    What a liar sends has no noise that could protect others, and an update that is refused or late leaves
    the sum with its noise. What is refused follows from decoded updates alone, and what is late from messages
    (which noise covers them is said elsewhere): so each client keeps the protection of its own noise, and
    nothing more is stated.

    Args:
      rule: the aggregator.
      attacked: whether all decoded updates are gathered: liars who craft updates look at them, a check of
        pairs compares them, and a quorum is known when all have sent.
      checked: whether the server leaves out updates that it refuses, or that are late.

    Raises:
      ConfigError: the rule weighs by errors or by noise, which were not thought through with lies, or leaves
        out nothing.
    """
    if rule.combine is not None and checked and not rule.leaves_out:
        raise ConfigError(
            "the server is to refuse updates (config.byzantine.check) or to do without late ones "
            "(config.links.ends), and the aggregator does not say that it leaves them out "
            "(Aggregator.leaves_out, Facts.taken)"
        )
    if rule.combine is not None:
        return rule
    if rule.weigh is None or rule.public_weights is None:
        raise ConfigError(
            "clients that lie and checks of norms (config.byzantine), and participants that may be late "
            "(config.links.ends), go with aggregators that gather, and with sums whose weights are public "
            "numbers of examples; this one weighs by errors or by noise"
        )
    if not attacked:
        return rule._replace(public_weights=None, post_processing=True)
    return Aggregator(
        combine=functools.partial(_mean, rule.weigh),
        coordinatewise=True,
        post_processing=True,
        leaves_out=True,
        exposes=rule.exposes,
    )


def _mean(weigh, state, updates, facts):
    """The weighted mean f32[c] of gathered updates f32[n, c]."""
    weights = jax.vmap(lambda examples: weigh(examples, jnp.ones(1)))(facts.examples)
    weights = weights if facts.taken is None else weights * facts.taken
    total = jnp.matmul(weights, updates, precision=jax.lax.Precision.HIGHEST)
    return total / jnp.maximum(weights.sum(), 1e-30), state


def of_config(config) -> Aggregator:
    """The rule that a configuration names, guarded where clients lie, are checked or may be late."""
    rule = AGGREGATORS.get_or_raise(config.aggregator)
    if isinstance(rule, Aggregator) and rule.configure:
        rule = rule.configure(config)
    name = config.byzantine.attack
    ends = config.links.ends
    if name == "none" and not config.byzantine.check and ends == "slowest":
        return rule
    crafted = name != "none" and ATTACKS.get_or_raise(name).craft is not None
    gathers = crafted or config.byzantine.pairs or ends == "quorum"
    return guarded(rule, gathers, config.byzantine.check or ends != "slowest")
