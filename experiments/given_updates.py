"""The real compiled round, with updates that are given instead of trained."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cepam_jax.federated import ClientArrays, LocalUpdate, Plan, Trained, initial_state, make_round
from cepam_jax.federated.aggregation import AGGREGATORS
from cepam_jax.mechanisms import Knobs, Mechanism
from cepam_jax.tasks import Model

_TOGETHER = 25  # clients under one vmap


def _chosen(model, arrays, client, key, state, number) -> Trained:
    """The client's update, which is given."""
    return Trained(arrays.examples["update"][client], jnp.float32(0), jnp.float32(1))


def arrays_of(updates, knobs: Knobs, seed: int = 0) -> ClientArrays:
    """What a round takes of clients that send these updates.

    Args:
      updates: f32[clients, d].
      knobs: of all clients.
      seed: of private and shared keys.
    """
    clients = len(updates)
    return ClientArrays(
        examples={"update": jnp.asarray(updates)},
        constants={},
        rows=jnp.arange(clients, dtype=jnp.int32)[:, None],
        counts=jnp.ones(clients, jnp.int32),
        steps=jnp.ones(clients, jnp.int32),
        knobs=knobs,
        training_key=jax.random.key(2 * seed + 1),
        shared_key=jax.random.key(2 * seed + 2),
    )


def round_of(mechanism: Mechanism, knobs: Knobs, clients: int, d: int, server_noise: str | None = None):
    """((State, ClientArrays) -> (State, RoundReport), State): a round that adds the mean to a model of zeros.

    Args:
      mechanism: for updates of d coordinates.
      knobs: of all clients.
      clients: all of whom take part.
      d: coordinates of the model, whose parameters are {"w": f32[d]}.
      server_noise: law of the noise that the server adds; None: it adds none.
    """
    plan = Plan(
        local_update=LocalUpdate(_chosen),
        mechanism=mechanism,
        aggregator=AGGREGATORS["mean"],
        server=optax.sgd(1.0),
        segments=(d,),
        per_round=clients,
        per_chunk=min(clients, _TOGETHER),
        server_noise=server_noise,
    )
    first = float(np.asarray(knobs.clip)[0])
    state = initial_state(plan, Model({"w": jnp.zeros(d)}), knobs, clients, False, first)
    return make_round(plan), state
