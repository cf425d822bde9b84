"""The update as it is: what FedAvg sends."""

import jax.numpy as jnp

from cepam_jax.mechanisms.base import About, Code, Mechanism, Message, check_vector


def identity() -> Mechanism:
    """32-bit floats, no error, no privacy (FedAvg, 1602.05629)."""

    def encode(keys, x, knobs, weight=None):
        del keys, knobs, weight
        check_vector(x)
        return Message(x, None, {}, x.shape[0])

    def bits(shared, message, knobs, weight=None):
        sent = message.symbols.shape[0] if weight is None else jnp.sum(weight)
        return jnp.float32(32) * sent

    return Mechanism(
        encode=encode,
        decode=lambda shared, message, knobs: message.symbols,
        bits=bits,
        reference=lambda x, knobs: x,
        about=About(name="identity", law="none"),
        code=Code("float"),
        variance=lambda x, knobs: jnp.float32(0),
    )
