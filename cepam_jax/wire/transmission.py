"""Bytes inside a compiled round: the message leaves the device, is packed, unpacked, and comes back.

The rest of the round is the same compiled code, so training with real bytes follows the very same
trajectory as training without.
"""

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.mechanisms.base import Knobs, Mechanism, Message
from cepam_jax.wire import body
from cepam_jax.wire.format import host_knobs


def transmit(mechanism: Mechanism, shared, message: Message, knobs: Knobs, round_number, client):
    """Packs and unpacks one message on the host; safe under jit, vmap and scan.

    Args:
      mechanism, shared, message, knobs: as for `pack`, traced.
      round_number, client: int32[], for the header.

    Returns:
      (the message that was unpacked, its bytes as int32[]).
    """
    weight = mechanism.code.weight(shared, message, knobs) if mechanism.code.weight else None
    key = jax.random.key_data(mechanism.code.key(shared))

    def on_host(message, key, knobs, weight, round_number, client):
        message, knobs, weight = jax.tree.map(np.asarray, (message, knobs, weight))
        context = body.Context(
            mechanism,
            np.asarray(key),
            host_knobs(knobs),
            message,
            int(round_number),
            int(client),
        )
        data = body.write(message, context, weight, offsets=False)
        back = body.read(data, context, None if weight is None else lambda _: weight)
        return back, np.int32(len(data))

    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), message)
    return jax.pure_callback(
        on_host,
        (shapes, jax.ShapeDtypeStruct((), jnp.int32)),
        *(message, key, knobs, weight, round_number, client),
        vmap_method="sequential",
    )
