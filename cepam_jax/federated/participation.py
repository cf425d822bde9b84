"""Who takes part in a round, and with which knobs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from cepam_jax.mechanisms import Knobs


def choose(key, num_clients: int, per_round: int):
    """Numbers of the clients that take part, int32[per_round].

    A uniformly random subset of fixed size without replacement, in increasing order; all clients
    when per_round equals num_clients.
    """
    if per_round == num_clients:
        return jnp.arange(num_clients, dtype=jnp.int32)
    return jnp.sort(jax.random.permutation(key, num_clients)[:per_round]).astype(jnp.int32)


SCHEDULES = {
    "linear": lambda end, rounds: optax.linear_schedule(1.0, end, rounds),
    "exponential": lambda end, rounds: optax.exponential_decay(1.0, rounds, end),
    "cosine": lambda end, rounds: lambda t: end + (1 - end) * optax.cosine_decay_schedule(1.0, rounds)(t),
}


def scheduled(factors: dict[str, Callable]) -> Callable:
    """Builds (Knobs, round) -> Knobs: each named knob times its optax schedule.

    Args:
      factors: name -> schedule (round -> factor). "gamma" stands for 1 / sigma; "bits" and "levels" are
        rounded to whole numbers.
    """

    def apply(knobs: Knobs, number):
        changed = {}
        for name, factor in factors.items():
            if name == "gamma":
                changed["sigma"] = knobs.sigma / factor(number)
            else:
                value = getattr(knobs, name) * factor(number)
                changed[name] = jnp.round(value) if name in ("bits", "levels") else value
        return knobs._replace(**changed)

    return apply
