"""Messages as bytes: `pack` and `unpack`.

  data = wire.pack(message, mechanism, keys.shared, knobs)
  same = wire.unpack(data, mechanism, shared_key, knobs, length=d)

Layout: header (see `header`), scales, exceptions if there are any, side information, then the symbols as one
range-coded stream, or as one for each segment with their lengths in front (`offsets=True`), so that
one tensor can be read alone.
"""

import functools
from numbers import Integral

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.errors import require
from cepam_jax.mechanisms.base import Keys, Knobs, Mechanism, Message
from cepam_jax.mechanisms.knobs import check
from cepam_jax.wire import body, header

_NUMBERS = 2**32  # of rounds and clients, in the header
_LENGTHS = 2**31  # of updates, whose coordinates int32 counts


def key_words(key) -> np.ndarray:
    """uint32 words of a PRNG key."""
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    return np.asarray(key)


def host_knobs(knobs: Knobs) -> Knobs:
    """Numbers as the device sees them: float32."""
    return Knobs(
        *(
            None if value is None else np.asarray(value, np.int32 if name == "scale" else np.float32)
            for name, value in knobs._asdict().items()
        )
    )


@functools.lru_cache(maxsize=64)
def _template(mechanism: Mechanism, length: int, given: tuple[bool, ...], tensors: int) -> Message:
    """Structure and shapes of the messages of updates with `length` coordinates."""
    number = jax.ShapeDtypeStruct((), jnp.float32)
    knobs = Knobs(*(number if there else None for there in given))
    if knobs.scale is not None:
        knobs = knobs._replace(scale=jax.ShapeDtypeStruct((tensors,), jnp.int32))
    keys = Keys(jax.random.key(0), jax.random.key(0))
    x = jax.ShapeDtypeStruct((length,), jnp.float32)
    return jax.eval_shape(lambda x, knobs: mechanism.encode(keys, x, knobs), x, knobs)


def _check_number(field: str, value, limit: int) -> None:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    require(whole and 0 <= value < limit, field, value, f"a whole number of at least 0 and below {limit}")


def _context(mechanism, shared, knobs, length, round_number, client) -> body.Context:
    needed = [name for name in mechanism.about.knobs if name != "scale"]
    _check_number("length", length, _LENGTHS)
    _check_number("round_number", round_number, _NUMBERS)
    _check_number("client", client, _NUMBERS)
    check(knobs, needed)
    for name in needed:
        shape = np.shape(getattr(knobs, name))
        require(shape == (), f"shape of knob {name}", shape, "(): the knobs of one client")
    given = tuple(value is not None for value in knobs)
    tensors = 0 if knobs.scale is None else len(knobs.scale)
    template = _template(mechanism, length, given, tensors)
    key = key_words(mechanism.code.key(shared))
    return body.Context(mechanism, key, host_knobs(knobs), template, round_number, client)


def _check_message(message: Message, template: Message) -> None:
    """Raises ConfigError unless the message has the arrays that the mechanism's messages have."""

    def text(tree):
        named, _ = jax.tree_util.tree_flatten_with_path(tree)
        return {jax.tree_util.keystr(at): f"{leaf.dtype}{list(np.shape(leaf))}" for at, leaf in named}

    found, expected = text(message), text(template)
    require(found == expected, "dict of the message's arrays", found, f"{expected}, as its mechanism writes")


def pack(
    message: Message,
    mechanism: Mechanism,
    shared: jax.Array,
    knobs: Knobs,
    *,
    round_number: int = 0,
    client: int = 0,
    offsets: bool = False,
) -> bytes:
    """One client's message as bytes.

    Args:
      message: from `mechanism.encode`.
      mechanism: that encoded it.
      shared: shared key of this client and round.
      knobs: that it was encoded with, one number each.
      round_number, client: for the header, below 2^32.
      offsets: a stream per segment, so that `unpack(..., segment=i)` reads one tensor alone; costs
        some 8 bytes per segment.

    Returns:
      At most 26 bytes of header, 2 per segment, side information and symbols.

    Raises:
      ConfigError: a number, a knob or the message is not one that this mechanism can have written.
    """
    context = _context(mechanism, shared, knobs, message.length, round_number, client)
    _check_message(message, context.template)
    weight = None
    if mechanism.code.weight:
        weight = np.asarray(mechanism.code.weight(shared, message, knobs))
    return body.write(jax.tree.map(np.asarray, message), context, weight, offsets)


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
      mechanism, shared, knobs: as for `pack`.
      length: d of the update. The receiver knows it; what the bytes claim allocates nothing.
      segment: read this tensor alone, from a message packed with `offsets=True`; the others' symbols
        are 0.

    Returns:
      The message, with numpy arrays. Symbols that are not sent (masks, top-k) are 0.

    Raises:
      WireError: the bytes are not a message, are corrupt, or were packed with another version, mechanism,
        key, length or other knobs; its text says which.
    """
    context = _context(mechanism, shared, knobs, length, 0, 0)
    weight = None
    if mechanism.code.weight:
        weight = lambda message: np.asarray(mechanism.code.weight(shared, message, knobs))  # noqa: E731
    return body.read(data, context, weight, segment)


def describe(data: bytes) -> dict:
    """What the header of a message says, for people: mechanism, length, round, client, bytes.

    Raises:
      WireError: not a message. The checksum is not verified: that takes the key.
    """
    found, _ = header.parse(data)
    return {
        "mechanism": header.kind_text(found.kind),
        "length": found.length,
        "round": found.round,
        "client": found.client,
        "offsets": bool(found.flags & header.OFFSETS),
        "bytes": len(data),
    }
