"""The update in 16-bit floats: FedAvg at half its cost, as mixed precision sends it."""

import jax
import jax.numpy as jnp

from cepam_jax.mechanisms.base import About, Code, Keys, Knobs, Mechanism, Message, check_vector

_BITS = 16


def float16() -> Mechanism:
    """IEEE 754 binary16, rounded to nearest: 11 significant bits, up to 65,504; no privacy.

    A coordinate beyond that range becomes infinite, and with it the update is not valid. Below 6e-5 in size
    there are fewer significant bits, below 3e-8 none.

    Returns:
      A mechanism without knobs. Its message has `symbols` int32[d], the 16 bits of each number.
    """
    return Mechanism(
        encode=_encode,
        decode=_decode,
        bits=_bits,
        reference=lambda x, knobs: x,
        about=About(name="float16", law="other", unbiased=False),
        code=Code("levels", alphabet=lambda knobs: (0, 1 << _BITS)),
        variance=lambda x, knobs: jnp.square(x - x.astype(jnp.float16).astype(jnp.float32)),
    )


def _encode(keys: Keys, x: jax.Array, knobs: Knobs, weight: jax.Array | None = None) -> Message:
    """The message of x f32[d]; see `Mechanism.encode`."""
    del keys, knobs, weight
    check_vector(x)
    words = jax.lax.bitcast_convert_type(x.astype(jnp.float16), jnp.uint16)
    return Message(words.astype(jnp.int32), None, {}, x.shape[0])


def _decode(shared: jax.Array, message: Message, knobs: Knobs) -> jax.Array:
    """The update f32[d] that a message stands for; see `Mechanism.decode`."""
    del shared, knobs
    words = jnp.asarray(message.symbols).astype(jnp.uint16)
    return jax.lax.bitcast_convert_type(words, jnp.float16).astype(jnp.float32)


def _bits(shared: jax.Array, message: Message, knobs: Knobs, weight: jax.Array | None = None) -> jax.Array:
    """f32[], 16 bits for each coordinate that is sent."""
    del shared, knobs
    sent = message.symbols.shape[0] if weight is None else jnp.sum(weight)
    return jnp.float32(_BITS) * sent
