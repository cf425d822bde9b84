"""The first step of a round: what clients have of the model, and what it costs each of them to have it.

Messages of a compressed downlink are differences, so a client that was absent needs all that it missed, or
the model as the others have it, whichever is shorter. Counted is, for each client, how long the messages are
that it has not received: `Behind`. A client that was never there needs the model before training too, unless
it follows from a public seed. Parameters that are frozen never change and are not counted: they come with
the program.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from cepam_jax.federated import round_keys
from cepam_jax.federated.downlink import FLOAT_BITS, Size
from cepam_jax.federated.plan import Plan
from cepam_jax.federated.state import Behind, ClientArrays, State
from cepam_jax.federated.uplink import flat_model
from cepam_jax.mechanisms import Keys
from cepam_jax.tasks.base import Model

_HEADER = 26  # bytes, at most, of a message on the wire


class Broadcast(NamedTuple):
    """What clients have at the beginning of a round.

    Attributes:
      flat: f32[d], the model.
      model: the same as a tasks.Model.
      downlink: state of the downlink after it; None without one.
      message: Size of the round's message, whoever receives it.
      need: Size of all that each client would have to receive, arrays [clients].
      counted: bool[], whether the lengths of this round's messages are counted; None: they are.
    """

    flat: jax.Array
    model: Model
    downlink: object
    message: Size
    need: Size
    counted: jax.Array | None = None


def full_model(plan: Plan) -> Size:
    """Size of a model that is sent in full: 32 bits a number; as bytes with the longest header."""
    numbers = sum(plan.segments)
    size = (FLOAT_BITS // 8) * numbers + _HEADER if plan.wire else 0
    return Size(jnp.float32(FLOAT_BITS * numbers), jnp.int32(size))


def behind_at_start(plan: Plan, num_clients: int) -> Behind | None:
    """What clients lack before the first round; None where every round sends the model in full."""
    if plan.downlink is None:
        return None
    full = full_model(plan)
    lack = Size(jnp.zeros_like(full.bits), jnp.zeros_like(full.bytes)) if plan.seeded else full
    return Behind(*(jnp.full(num_clients, one) for one in lack))


def broadcast(plan: Plan, state: State, arrays: ClientArrays) -> Broadcast:
    """What the server sends in a round; in round 0 of a compressed downlink nothing has changed yet."""
    flat, full, clients = flat_model(state), full_model(plan), arrays.counts.shape[0]
    first = state.round == 0
    if plan.downlink is None:
        known = first & plan.seeded
        need = Size(*(jnp.where(known, jnp.zeros_like(one), one) for one in full))
        each = Size(*(jnp.full(clients, one) for one in need))
        return Broadcast(flat, state.model, None, need, each)
    shared, training = arrays.shared_key, arrays.training_key
    keys = Keys(*(round_keys.of_round(key, state.round, round_keys.DOWNLINK) for key in (shared, training)))
    received, after, message = plan.downlink.send(state.downlink, flat, keys, state.round, plan.wire)
    received, after, message = jax.tree.map(
        lambda old, new: jnp.where(first, old, new),
        (flat, state.downlink, Size(jnp.float32(0), jnp.int32(0))),
        (received, after, message),
    )
    assert state.behind is not None
    need = Size(*(jnp.minimum(a + b, most) for a, b, most in zip(state.behind, message, full, strict=True)))
    model = _as_model(plan, state, received)
    return Broadcast(ravel_pytree((model.params, model.statistics))[0], model, after, message, need)


def behind_after(sent: Broadcast, clients) -> Behind | None:
    """What clients lack after a round in which some, int32[participants], took part."""
    return Behind(*(need.at[clients].set(0) for need in sent.need))


def _as_model(plan: Plan, state: State, flat) -> Model:
    """A flat model as clients train on it: statistics that errors carried away are brought back in range."""
    params, statistics = ravel_pytree((state.params, state.statistics))[1](flat)
    if statistics is not None and plan.task is not None and plan.task.project is not None:
        statistics = plan.task.project(statistics)
    return Model(params, statistics, state.frozen)
