"""The update as it is: what FedAvg sends.

Source: McMahan, Moore, Ramage, Hampson, Agüera y Arcas: Communication-Efficient Learning of Deep Networks
from Decentralized Data (FedAvg, arXiv 1602.05629).
"""

import jax
import jax.numpy as jnp

from cepam_jax.mechanisms.base import About, Code, Keys, Knobs, Mechanism, Message, check_vector


def identity() -> Mechanism:
    """32-bit floats, without error and without privacy, as FedAvg sends them (arXiv 1602.05629)."""
    return Mechanism(
        encode=_encode,
        decode=lambda shared, message, knobs: jnp.asarray(message.symbols),
        bits=_bits,
        reference=lambda x, knobs: x,
        about=About(name="identity", law="none", leaves_noise=True),
        code=Code("float"),
        variance=lambda x, knobs: jnp.float32(0),
    )


def _encode(keys: Keys, x: jax.Array, knobs: Knobs, weight: jax.Array | None = None) -> Message:
    """The message whose symbols are x f32[d] itself."""
    del keys, knobs, weight
    check_vector(x)
    return Message(x, None, {}, x.shape[0])


def _bits(shared: jax.Array, message: Message, knobs: Knobs, weight: jax.Array | None = None) -> jax.Array:
    """f32[], 32 bits for each coordinate that is sent."""
    del shared, knobs
    sent = message.symbols.shape[0] if weight is None else jnp.sum(weight)
    return jnp.float32(32) * sent
