"""Random words addressed by a counter: the shared randomness of every mechanism.

A client and a server that hold the same key must see the same dithers, on any platform,
with any version of JAX, and the server must be able to look at the h-th dither of a block
without drawing the h - 1 before it. So the words are a pure integer function of
(key, stream, counter): Threefry-2x32 with 20 rounds (Salmon, Moraes, Dror, Shaw: Parallel
random numbers: as easy as 1, 2, 3, SC 2011), written in integer operations that XLA fuses into
the code that uses the words.

`jax.random.bits` will not do: its words per counter depend on a JAX configuration flag, and it
spends a whole block on one word. One call here gives two.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.mechanisms.arrays import Array, namespace

# Two uint32 words: a key, a counter, or what was drawn. Arrays of JAX or numpy, or numpy's scalars.
Words = tuple[Any, Any]

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


def threefry2x32(key: Words, counter: Words) -> Words:
    """The Threefry-2x32-20 block function.

    Args:
      key: pair of uint32 arrays.
      counter: pair of uint32 arrays, broadcastable against the key.

    Returns:
      Pair of uint32 arrays: two random words per counter.
    """
    if any(isinstance(word, jax.Array) for word in (*key, *counter)):
        return _traced_once(key, counter)
    return _block(key, counter)


def _block(key: Words, counter: Words) -> Words:
    schedule = (key[0], key[1], key[0] ^ key[1] ^ _PARITY)
    a = counter[0] + schedule[0]
    b = counter[1] + schedule[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            a = a + b
            b = (b << np.uint32(rotation)) | (b >> np.uint32(32 - rotation))
            b = a ^ b
        a = a + schedule[(group + 1) % 3]
        b = b + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return a, b


_traced_once = jax.jit(_block)  # programs draw words in dozens of places


def stream(key: Array, tag: int) -> Words:
    """An independent stream of words for one purpose, such as the dithers.

    Without this step a dither drawn from `key` would repeat the very words that
    `jax.random.normal(key, ...)` uses elsewhere, and error and input would correlate.

    Args:
      key: one PRNG key (typed, or raw uint32[2] or uint32[4]; numpy for the host).
      tag: names the purpose; different tags give unrelated streams.

    Returns:
      Pair of uint32 scalars, a key for `words` (arrays of one word for a numpy key).
    """
    if not isinstance(key, np.ndarray) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    # On the host as arrays of one word: numpy's scalars would warn when they wrap around.
    words_of_key = np.split(key, len(key)) if isinstance(key, np.ndarray) else key
    state = threefry2x32((words_of_key[0], words_of_key[1]), (np.uint32(0x43455041), np.uint32(tag)))
    for i in range(2, key.shape[0], 2):  # wider keys (rbg) are folded in, two words at a time
        state = threefry2x32(state, (words_of_key[i], words_of_key[i + 1]))
    return state


def words(stream_key: Words, major: Array | int | np.integer, minor: Array) -> Words:
    """Two random words for each counter (major, minor).

    Args:
      stream_key: from `stream`.
      major: uint32[...], first word of the counter, for instance a proposal.
      minor: uint32[...], second word of the counter, for instance a block; broadcastable against `major`.

    Returns:
      Pair of uint32[...], of numpy where `minor` is an array of numpy, otherwise of JAX.
    """
    xp = namespace(minor)
    major = xp.asarray(major, xp.uint32)
    minor = xp.asarray(minor, xp.uint32)
    return threefry2x32(stream_key, xp.broadcast_arrays(major, minor))


def centered(word: jax.Array) -> jax.Array:
    """Maps uint32[...] words to f32[...] uniform on [-1/2, 1/2], exactly the same on every platform.

    Integer to float conversion and scaling by a power of two are correctly rounded
    everywhere, so encoder and decoder agree to the bit.
    """
    return word.astype(jnp.int32).astype(jnp.float32) * np.float32(2.0**-32)
