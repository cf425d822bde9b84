"""Participants that are drawn independently: each client takes part in a round with the same probability.

A compiled round has a fixed number of places. It is chosen so that more clients come with probability
`OVERFLOW` at most; then the round is not applied, and the accountant counts that probability
(docs/privacy.md, "Poisson sampling"). Places that stay empty train and send like the last client, and count
nothing. The sum of the updates is divided by its expected weight, which is public, and never by the weight of
those who came, which would betray a client's absence.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from cepam_jax import settings
from cepam_jax.errors import ConfigError
from cepam_jax.federated.aggregation.base import AGGREGATORS, Aggregator
from cepam_jax.federated.plan import Plan
from cepam_jax.federated.state import ClientArrays

OVERFLOW = 1e-12  # of a round
_WORDS = 2**32


@functools.lru_cache
def places(clients: int, expected: int) -> int:
    """Places of a round for an expected number of participants: the fewest that `OVERFLOW` allows."""
    within, beyond = expected - 1, clients  # the tail at `beyond` is small enough, and at `within` is not
    while beyond - within > 1:
        middle = (within + beyond) // 2
        if overflow_of(middle, clients, expected) > OVERFLOW:
            within = middle
        else:
            beyond = middle
    return beyond


def overflow(clients: int, expected: int) -> float:
    """Probability that more clients come to a round than it has places."""
    return overflow_of(places(clients, expected), clients, expected)


def overflow_of(number: int, clients: int, expected: int) -> float:
    """Probability that more than this number of clients come."""
    if number >= clients:
        return 0.0
    return float(special.bdtrc(number, clients, expected / clients))


def choose(key: jax.Array, clients: int, expected: int, number: int):
    """Who takes part: (int32[number], `clients` in place of nobody; whether there were more, bool[]).

    A client comes if 32 random bits are below a threshold, so never with more than the stated probability.

    Args:
      key: of the round.
      clients: of the federation.
      expected: number of participants, below `clients`.
      number: of places.
    """
    threshold = np.uint32(expected * _WORDS // clients)
    comes = jax.random.bits(key, (clients,), jnp.uint32) < threshold
    found = jnp.nonzero(comes, size=number, fill_value=clients)[0].astype(jnp.int32)
    return found, jnp.sum(comes) > number


def weights_of_all(plan: Plan, arrays: ClientArrays) -> jax.Array:
    """f32[clients], what each client's update is weighed by where it takes part."""
    weigh = plan.aggregator.weigh
    assert weigh is not None
    errors = jnp.ones(len(plan.segments))  # which public weights do not read
    return jax.vmap(lambda count: weigh(count, errors))(arrays.counts.astype(jnp.float32))


def expected_weight(plan: Plan, arrays: ClientArrays) -> jax.Array:
    """f32[], what the weights of a round's participants add up to in the mean."""
    return jnp.sum(weights_of_all(plan, arrays)) * np.float32(plan.poisson / len(arrays.counts))


def check(plan: Plan) -> None:
    """Checks that the other parts of a round know what to do with a random number of participants.

    Raises:
      ConfigError: one does not, and which.
    """
    if not plan.poisson:
        return
    if plan.aggregator.public_weights is None:
        raise ConfigError(f"{_SETTING} {_RULE}")
    if plan.attack is not None or plan.false_alarm is not None:
        raise ConfigError(f"{_SETTING} {_HONEST}")
    if plan.ends != "slowest":
        raise ConfigError(f"{_SETTING} {_ALL}")
    if plan.mechanism.joint is not None:
        raise ConfigError(f"{_SETTING} {_KNOWN}")
    if plan.control.observe is not None or plan.control.watch is not None:
        raise ConfigError(f"{_SETTING} {_PLANNED}")


@settings.rule
def _rules(fields):
    """What is known of that before anything is loaded."""
    rule, each = AGGREGATORS.get(fields["aggregator"]), fields["participation.sampling"] == "poisson"
    sums = not isinstance(rule, Aggregator) or rule.public_weights is not None
    yield not each or sums, "aggregator", f"mean or examples: {_SETTING} {_RULE}"


_SETTING = "Poisson sampling (config.participation.sampling)"
_RULE = "needs an aggregator that is a sum with public weights, such as mean or examples"
_HONEST = "does not go with config.byzantine, whose rules know how many take part"
_ALL = "does not go with participants that may be late (config.links.ends)"
_KNOWN = "does not go with secure sums, whose rounds know how many messages there are"
_PLANNED = (
    "needs knobs that are planned: a rule for knobs that reads results has no theorem for participants that "
    "are drawn independently"
)
