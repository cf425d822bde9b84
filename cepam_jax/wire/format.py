"""Messages as bytes: `pack` and `unpack`.

  data = wire.pack(message, mechanism, keys.shared, knobs)
  same = wire.unpack(data, mechanism, shared_key, knobs, length=d)

A message consists of the header (see `header`), the exceptions if there are any (see `exceptions`), the
side information, and then the scales of the tensors (see `scales`) and the symbols as one range-coded
stream. With `offsets=True` the scales are a stream, and so is every segment, with their lengths in front, so
that one tensor can be read alone.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.errors import is_whole, require
from cepam_jax.mechanisms import code_length, laws
from cepam_jax.mechanisms.base import Keys, Knobs, Mechanism, Message
from cepam_jax.mechanisms.knobs import check
from cepam_jax.wire import body, header, side
from cepam_jax.wire.context import Context

_NUMBERS = 2**32  # of rounds and clients, in the header
_LENGTHS = 2**31  # of updates, whose coordinates int32 counts


def key_words(key: jax.Array) -> np.ndarray:
    """The words of a PRNG key (typed or raw), uint32[2 or 4]."""
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    words = np.asarray(key)
    fits = words.dtype == np.uint32 and words.shape in ((2,), (4,))
    require(fits, "shared", f"{words.dtype}{list(words.shape)}", "one PRNG key, such as jax.random.key(1)")
    return words


def host_knobs(knobs: Knobs) -> Knobs:
    """The knobs as the device sees them, in numpy: float32 numbers, and `scale` as int32[segments]."""
    return Knobs(
        *(
            None if value is None else np.asarray(value, np.int32 if name == "scale" else np.float32)
            for name, value in knobs._asdict().items()
        )
    )


@functools.lru_cache(maxsize=64)
def _template(mechanism: Mechanism, length: int, given: tuple[bool, ...], tensors: int) -> Message:
    """Structure and shapes of a mechanism's messages.

    Args:
      mechanism: the mechanism that encodes.
      length: number of coordinates of the update.
      given: which knobs are not None.
      tensors: length of the knob `scale`, if it is given.

    Returns:
      A message with `jax.ShapeDtypeStruct` in place of arrays.
    """
    number = jax.ShapeDtypeStruct((), jnp.float32)
    knobs = Knobs(*(number if is_given else None for is_given in given))
    if knobs.scale is not None:
        knobs = knobs._replace(scale=jax.ShapeDtypeStruct((tensors,), jnp.int32))
    keys = Keys(jax.random.key(0), jax.random.key(0))
    x = jax.ShapeDtypeStruct((length,), jnp.float32)
    return jax.eval_shape(lambda x, knobs: mechanism.encode(keys, x, knobs), x, knobs)


def _check_number(field: str, value: Any, limit: int) -> None:
    """Raises ConfigError unless a value is a whole number from 0 to limit - 1."""
    whole = is_whole(value)
    require(whole and 0 <= value < limit, field, value, f"a whole number of at least 0 and below {limit}")


def _context(
    mechanism: Mechanism, shared: jax.Array, knobs: Knobs, length: int, round_number: int, client: int
) -> Context:
    """The context of a message; raises ConfigError for numbers or knobs that it cannot have."""
    needed = [name for name in mechanism.about.knobs if name != "scale"]
    _check_number("length", length, _LENGTHS)
    _check_number("round_number", round_number, _NUMBERS)
    _check_number("client", client, _NUMBERS)
    check(knobs, needed)
    for name in needed:
        shape = np.shape(getattr(knobs, name))
        require(shape == (), f"shape of knob {name}", shape, "(): the knobs of one client")
    if knobs.scale is not None:
        _check_scales(np.asarray(knobs.scale))
    given = tuple(value is not None for value in knobs)
    tensors = 0 if knobs.scale is None else len(knobs.scale)
    template = _template(mechanism, length, given, tensors)
    key = key_words(mechanism.code.key(shared))
    return Context(mechanism, key, host_knobs(knobs), template, round_number, client)


def _check_scales(scale: np.ndarray) -> None:
    """Raises ConfigError unless public scales are numbers that an encoder takes."""
    largest = code_length.LARGEST_SCALE
    allowed = f"whole numbers from {-largest} to {largest}, one per tensor"
    require(scale.ndim == 1, "shape of knob scale", scale.shape, allowed)
    wrong = scale[~((scale == np.round(scale)) & (np.abs(scale) <= largest))]
    require(not wrong.size, "knob scale", wrong[:1].tolist(), allowed)


def _bytes(data: Any) -> bytes:
    """The bytes of a message; ConfigError for what is none."""
    good = isinstance(data, (bytes, bytearray, memoryview))
    require(good, "data", type(data).__name__, "the bytes of a message")
    return bytes(data)


def _check_message(message: Message, template: Message) -> None:
    """Raises ConfigError unless the message has the arrays that the mechanism's messages have."""
    arrays, expected = (side.described(each).replace("\n", ", ") for each in (message, template))
    require(arrays == expected, "arrays of the message", arrays, f"{expected}, as its mechanism writes")


def pack(
    message: Message,
    mechanism: Mechanism,
    shared: jax.Array,
    knobs: Knobs,
    *,
    round_number: int = 0,
    client: int = 0,
    offsets: bool = False,
    bare: bool = False,
) -> bytes:
    """One client's message as bytes.

    Args:
      message: the message, from `mechanism.encode`.
      mechanism: the mechanism that encoded it.
      shared: shared key of this client and round.
      knobs: the knobs that it was encoded with, one number each.
      round_number: number of the round for the header, below 2^32.
      client: number of the client for the header, below 2^32.
      offsets: whether every segment is a stream of its own, so that `unpack(..., segment=i)` reads one tensor
        alone; this costs some 8 bytes per segment.
      bare: whether the header is left out but for version and check. Whoever reads the message must know
        whose it is; `describe` cannot say, nor does an error say what differs.

    Returns:
      5 (bare) or 14 to 26 bytes of header, side information, scales and symbols.

    Raises:
      ConfigError: a number, a knob or the message is not one that this mechanism can have written.
    """
    context = _context(mechanism, shared, knobs, message.length, round_number, client)
    _check_message(message, context.template)
    message = jax.tree.map(np.asarray, message)
    side.check(message, len(laws.LAWS))
    weight = None
    if mechanism.code.weight:
        weight = np.asarray(mechanism.code.weight(shared, message, knobs))
    return body.write(message, context, weight, offsets, bare)


def unpack(
    data: bytes,
    mechanism: Mechanism,
    shared: jax.Array,
    knobs: Knobs,
    length: int,
    *,
    segment: int | None = None,
) -> Message:
    """The message that `pack` wrote, equal to the bit in all that is sent.

    Args:
      data: the bytes.
      mechanism: as for `pack`.
      shared: as for `pack`.
      knobs: as for `pack`.
      length: d of the update. The receiver knows it: no memory is allocated because of what the bytes say.
      segment: number of a tensor to read alone, from a message packed with `offsets=True`; the symbols of the
        others are then 0.

    Returns:
      The message, with numpy arrays. Symbols that are not sent (masks, top-k) are 0.

    Raises:
      WireError: the bytes are not a message, are corrupt, or were packed with another version, mechanism,
        key, length or other knobs; its text says which.
    """
    context = _context(mechanism, shared, knobs, length, 0, 0)
    weight_of: Callable[[Message], np.ndarray] | None = None
    if mechanism.code.weight:
        weight_of = functools.partial(_weight, mechanism.code.weight, shared, knobs)
    return body.read(_bytes(data), context, weight_of, segment)


def _weight(weight: Callable, shared: jax.Array, knobs: Knobs, message: Message) -> np.ndarray:
    """`Code.weight` of a message as an array of numpy, f32[size]."""
    return np.asarray(weight(shared, message, knobs))


def describe(data: bytes) -> dict[str, Any]:
    """What the header of a message says, for people. The check is not verified: that takes the key.

    Args:
      data: the message.

    Returns:
      A dictionary with the entries mechanism, length, round, client (None each in a bare message), offsets
      and bytes.

    Raises:
      WireError: the bytes are not a message.
    """
    data = _bytes(data)
    parsed, _ = header.parse(data)
    return {
        "mechanism": None if parsed.kind is None else header.kind_text(parsed.kind),
        "length": parsed.length,
        "round": parsed.round,
        "client": parsed.client,
        "offsets": bool(parsed.flags & header.OFFSETS),
        "bytes": len(data),
    }
