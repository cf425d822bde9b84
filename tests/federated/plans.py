"""Rounds of clients whose updates are given; each plan is compiled once for all keys and updates."""

import functools

import jax
import jax.numpy as jnp
import optax

from cepam_jax import mechanisms
from cepam_jax.federated import Trained, make_round
from cepam_jax.mechanisms import chain, clip

SERVER = optax.sgd(1.0)


def own(model, arrays, client, key, state, number):
    """Local training of a client: the update that is its example."""
    return Trained(arrays.examples["update"][client], jnp.float32(0), jnp.float32(1))


@functools.cache
def clipped(norm, mechanism):
    """A mechanism, by default without error, behind a clip."""
    return chain(clip(norm), mechanisms.identity() if mechanism is None else mechanism)


@functools.cache
def compiled(plan):
    """The round of a plan."""
    return jax.jit(make_round(plan))
