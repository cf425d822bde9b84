"""The update in 16-bit floats: FedAvg at half its cost, as mixed precision sends it.

The format is IEEE 754 binary16. Numbers are in units of a power of two that follows from the largest one, as
loss scaling has it (Micikevicius and others: Mixed Precision Training, arXiv 1710.03740): so none is too
large, and the smallest are 2^-24 times the largest.
"""

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.mechanisms.base import LARGEST, About, Code, Keys, Knobs, Mechanism, Message, check_vector

_BITS = 16
_UNIT_BITS = 32
_EXPONENT = np.uint32(0x7F800000)  # of a 32-bit float


def float16() -> Mechanism:
    """16-bit floats, rounded to nearest: 11 significant bits, no privacy.

    Returns:
      A mechanism without knobs. Its message has `symbols` int32[d], the 16 bits of each number, and
      `side["unit"]` f32[], the power of two at or below the largest finite magnitude.
    """
    return Mechanism(
        encode=_encode,
        decode=_decode,
        bits=_bits,
        reference=lambda x, knobs: x,
        about=About(name="float16", law="other", unbiased=False, local=False),
        code=Code("levels", alphabet=lambda knobs: (0, 1 << _BITS)),
        variance=_variance,
    )


def _unit(x: jax.Array) -> jax.Array:
    """f32[], the power of two at or below the largest finite magnitude of x f32[d], or 2^126; 1 for zeros."""
    largest = jnp.max(jnp.where(jnp.isfinite(x), jnp.abs(x), 0), initial=0)
    words = jax.lax.bitcast_convert_type(largest, jnp.uint32) & _EXPONENT
    unit = jax.lax.bitcast_convert_type(words, jnp.float32)
    return jnp.where(unit > 0, jnp.minimum(unit, LARGEST), 1.0)


def _encode(keys: Keys, x: jax.Array, knobs: Knobs, weight: jax.Array | None = None) -> Message:
    """The message of x f32[d]; see `Mechanism.encode`."""
    del keys, knobs, weight
    check_vector(x)
    unit = _unit(x)
    words = jax.lax.bitcast_convert_type((x / unit).astype(jnp.float16), jnp.uint16)
    return Message(words.astype(jnp.int32), None, {"unit": unit}, x.shape[0])


def _decode(shared: jax.Array, message: Message, knobs: Knobs) -> jax.Array:
    """The update f32[d] that a message stands for; see `Mechanism.decode`."""
    del shared, knobs
    words = jnp.asarray(message.symbols).astype(jnp.uint16)
    return jax.lax.bitcast_convert_type(words, jnp.float16).astype(jnp.float32) * message.side["unit"]


def _bits(shared: jax.Array, message: Message, knobs: Knobs, weight: jax.Array | None = None) -> jax.Array:
    """f32[], 16 bits for each coordinate that is sent, and the unit."""
    del shared, knobs
    sent = message.symbols.shape[0] if weight is None else jnp.sum(weight)
    return jnp.float32(_BITS) * sent + _UNIT_BITS


def _variance(x: jax.Array, knobs: Knobs) -> jax.Array:
    """f32[d], squared error of each coordinate of x f32[d]."""
    del knobs
    unit = _unit(x)
    return jnp.square(x - (x / unit).astype(jnp.float16).astype(jnp.float32) * unit)
