"""Whether a rule keeps the contract, and what it states about privacy is true of its weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval

from cepam_jax.errors import ConfigError, require
from cepam_jax.federated.aggregation.base import Aggregator

_TENSORS = 3  # of an update, where a rule is only looked at


def check(rule: Aggregator) -> Aggregator:
    """The rule, if it keeps the contract, and the program of its weights what it states.

    Raises:
      ConfigError: says what does not fit.
    """
    if not isinstance(rule, Aggregator):
        raise ConfigError(f"the aggregator is {rule!r}; it must be a federated.Aggregator")
    if sum(way is not None for way in (rule.weigh, rule.weights, rule.combine)) != 1:
        raise ConfigError(
            "an aggregator has either `weigh` or `weights` (it streams) or `combine` (it gathers)"
        )
    if rule.mix is not None and not rule.coordinatewise:
        raise ConfigError("an aggregator with `mix` is coordinatewise in what it makes of the mixed updates")
    if rule.from_last and (rule.mix is None or rule.initialize is None):
        raise ConfigError("an aggregator that begins from the last aggregate has `mix` and `initialize`")
    stateful = rule.initialize is not None and not rule.from_last
    if rule.coordinatewise and (rule.combine is None or stateful):
        raise ConfigError("a coordinatewise aggregator has `combine` and no state")
    if rule.initialize is not None and rule.weigh is not None:
        raise ConfigError("an aggregator that streams has no state, unless it has `weights`")
    with_state = rule.weights is not None and rule.initialize is not None
    if (rule.observe is not None) != with_state or (rule.least_ratios is not None and not with_state):
        raise ConfigError(
            "an aggregator has `observe`, and perhaps `least_ratios`, if it has `weights` and a state"
        )
    if rule.per_tensor and rule.weigh is None:
        raise ConfigError("an aggregator that weighs tensor by tensor has `weigh`")
    if rule.public_weights is not None and rule.weigh is None:
        raise ConfigError("an aggregator that states public weights is a weighted sum: it has `weigh`")
    if rule.public_weights is not None and rule.per_tensor:
        raise ConfigError(
            "an aggregator that weighs tensor by tensor states no public weights: those are one number for "
            "each client, and a client's part in one tensor may be larger than in all"
        )
    _check_errors(rule)
    return rule


def _check_errors(rule: Aggregator) -> None:
    """Checks that weights said to be public, or to follow from decoded updates, do not read errors.

    The program of `weigh` is looked at, not its values: a weight may depend on errors beyond any that are
    tried.

    Raises:
      ConfigError: they do.
    """
    if rule.weigh is None or not (rule.public_weights or rule.post_processing):
        return
    shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((), (_TENSORS,)))
    program = jax.make_jaxpr(rule.weigh)(*shapes).jaxpr
    _, used = partial_eval.dce_jaxpr(program, [True] * len(program.outvars))
    if used[1]:
        stated = "public_weights" if rule.public_weights else "post_processing"
        raise ConfigError(
            f"the aggregator states {stated}, but its `weigh` reads errors, which are functions of the "
            "updates themselves: leave one or the other out"
        )


def check_weights(rule: Aggregator, counts) -> None:
    """Checks that the weights that a rule states are those that it gives, and read what it states.

    Args:
      rule: the aggregator.
      counts: int[clients], examples of each client.

    Raises:
      ConfigError: they are not.
    """
    if rule.public_weights or rule.post_processing:
        _check_weights(rule, tuple(np.asarray(counts).tolist()))


@functools.lru_cache(maxsize=64)  # a run asks after every block
def _check_weights(rule, counts):
    _check_errors(rule)
    if rule.public_weights is None or rule.weigh is None:
        return
    stated = np.asarray(rule.public_weights(np.asarray(counts)), np.float64)
    shape = (len(counts),)
    require(stated.shape == shape, "shape of public_weights", stated.shape, f"{shape}, one per client")
    errors = jnp.ones(_TENSORS, jnp.float32)
    weights = jax.vmap(lambda count: jnp.mean(rule.weigh(count, errors)))(jnp.asarray(counts, jnp.float32))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.asarray(weights, np.float64)
        same = np.allclose(found / found[0], stated / stated[0], rtol=1e-4)
    require(same, "public_weights of the aggregator", stated.tolist(), "what `weigh` gives, always")
