"""Who takes part in a round."""

import jax
import jax.numpy as jnp


def choose(key, num_clients: int, per_round: int):
    """Numbers of the clients that take part, int32[per_round].

    A uniformly random subset of fixed size without replacement, in increasing order; all clients
    when per_round equals num_clients.
    """
    if per_round == num_clients:
        return jnp.arange(num_clients, dtype=jnp.int32)
    return jnp.sort(jax.random.permutation(key, num_clients)[:per_round]).astype(jnp.int32)
