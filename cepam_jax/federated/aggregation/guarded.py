"""Which rule a configuration names; and what is left of a rule's statements where clients may lie."""

import functools

import jax
import jax.numpy as jnp

from cepam_jax.errors import ConfigError
from cepam_jax.federated.aggregation.base import AGGREGATORS, Aggregator
from cepam_jax.federated.attacks import ATTACKS


def guarded(rule: Aggregator, attacked: bool, checked: bool = False) -> Aggregator:
    """A rule whose result is no longer a sum of honest decoded updates with known weights.

    What a liar sends has no noise that could protect others, and an update that is refused leaves the sum
    with its noise. Both follow from decoded updates alone: so each client keeps the protection of its own
    noise, and nothing more is stated.

    Args:
      rule: the aggregator.
      attacked: whether liars craft updates; then all decoded updates are gathered, for they look at them.
      checked: whether the server refuses updates.

    Raises:
      ConfigError: the rule weighs by errors or by noise, which were not thought through with lies, or leaves
        out nothing.
    """
    if rule.combine is not None and checked and not rule.leaves_out:
        raise ConfigError(
            "the server is to refuse updates (config.byzantine.check), and the aggregator does not say that "
            "it leaves them out (Aggregator.leaves_out, Facts.taken)"
        )
    if rule.combine is not None:
        return rule
    if rule.weigh is None or rule.public_weights is None:
        raise ConfigError(
            "clients that lie and checks of norms (config.byzantine) go with aggregators that gather, and "
            "with sums whose weights are public numbers of examples; this one weighs by errors or by noise"
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
    """The rule that a configuration names, with its settings, guarded where clients lie or are checked."""
    rule = AGGREGATORS.get_or_raise(config.aggregator)
    if isinstance(rule, Aggregator) and rule.configure:
        rule = rule.configure(config)
    name = config.byzantine.attack
    if name == "none" and not config.byzantine.check:
        return rule
    crafted = name != "none" and ATTACKS.get_or_raise(name).craft is not None
    return guarded(rule, crafted, config.byzantine.check)
