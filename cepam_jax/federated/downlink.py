"""The contract of a downlink: what the server sends to the clients of a round, and what they receive.

Both sides may remember what was sent before. The model that the server keeps is exact; what is sent follows
from it alone, so a downlink releases nothing that the model does not.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cepam_jax.mechanisms import Keys, Knobs, Mechanism


class Downlink(NamedTuple):
    """How the model reaches the clients.

    Attributes:
      initialize: flat model f32[d] -> state.
      send: (state, flat model f32[d], Keys of the round) -> (what clients receive f32[d], state, bits f32[]
        of the message to one client).
    """

    initialize: Callable[[jax.Array], Any]
    send: Callable[[Any, jax.Array, Keys], tuple[jax.Array, Any, jax.Array]]


def compressed(mechanism: Mechanism, knobs: Knobs) -> Downlink:
    """The change since the last broadcast goes through a mechanism; what it loses is sent with the next.

    Server and clients remember the model as it was received; clients that were absent catch up from the same
    messages. Mishchenko, Gorbunov, Takáč, Richtárik: Distributed Learning with Compressed Gradient
    Differences, arXiv 1901.09269, for the same on the way up.

    Args:
      mechanism: codes the change f32[d].
      knobs: its knobs.
    """

    def send(received, model, keys):
        message = mechanism.encode(keys, model - received, knobs)
        received = received + mechanism.decode(keys.shared, message, knobs)
        return received, received, mechanism.bits(keys.shared, message, knobs)

    return Downlink(jnp.asarray, send)
