"""Bytes inside a compiled round: the message leaves the device, is packed, unpacked, and comes back.

The rest of the round is the same compiled code, so training with real bytes follows the very same
trajectory as training without.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.mechanisms.base import Knobs, Mechanism, Message
from cepam_jax.wire import body
from cepam_jax.wire.context import Context
from cepam_jax.wire.format import host_knobs


def transmit(
    mechanism: Mechanism,
    shared: jax.Array,
    message: Message,
    knobs: Knobs,
    round_number: jax.Array,
    client: jax.Array,
) -> tuple[Message, jax.Array]:
    """Packs and unpacks one message on the host; safe under jit, vmap and scan.

    The message is bare: in a round both sides know whose it is.

    Args:
      mechanism: as for `pack`.
      shared: as for `pack`, traced.
      message: as for `pack`, traced.
      knobs: as for `pack`, traced.
      round_number: int32[], number of the round for the header.
      client: int32[], number of the client for the header.

    Returns:
      The message that was unpacked, and its number of bytes as int32[].
    """
    weight = mechanism.code.weight(shared, message, knobs) if mechanism.code.weight else None
    key = jax.random.key_data(mechanism.code.key(shared))
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), message)
    return jax.pure_callback(
        partial(_on_host, mechanism),
        (shapes, jax.ShapeDtypeStruct((), jnp.int32)),
        *(message, key, knobs, weight, round_number, client),
        vmap_method="sequential",
    )


def _on_host(
    mechanism: Mechanism,
    message: Message,
    key: Any,
    knobs: Knobs,
    weight: Any,
    round_number: Any,
    client: Any,
) -> tuple[Message, np.int32]:
    """What `transmit` does outside the compiled code, with the values of its traced arguments.

    Args:
      mechanism: as for `pack`.
      message: as for `pack`.
      key: uint32[2 or 4], words of the shared key of the symbols.
      knobs: as for `pack`.
      weight: f32[size], 0 where a coordinate is not sent; None: all are.
      round_number: int32[], for the header.
      client: int32[], for the header.

    Returns:
      The message that was unpacked, with numpy arrays, and its number of bytes.
    """
    message, knobs, weight = jax.tree.map(np.asarray, (message, knobs, weight))
    context = Context(mechanism, np.asarray(key), host_knobs(knobs), message, int(round_number), int(client))
    data = body.write(message, context, weight, offsets=False, bare=True)
    unpacked = body.read(data, context, None if weight is None else lambda _: weight)
    return unpacked, np.int32(len(data))
