"""The contract of messages that are decoded from their sum alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import jax

    from cepam_jax.mechanisms.base import Message


class Summed(NamedTuple):
    """Facts of a secure sum: the server sees sums of messages, and no message.

    Attributes:
      survivors: the least number of messages whose sum is opened; 0: those of all participants of the round.
      colluders: participants who may tell the server their noise.
      cells: deviation of one client's private noise over the largest common step of the integers.
    """

    survivors: int
    colluders: int
    cells: float


class Joint(NamedTuple):
    """How messages are made for a sum, and how a server decodes it that sees the sum alone.

    The integers of all messages are added up modulo 2^32, which is a multiple of the modulus 2^bits, and so
    are those of all dithers. Chunks and devices may add in any order: the result is the same to the bit.

    Attributes:
      bits: (Knobs of one client, participants, d) -> int32[], bits of an integer, so that the modulus is
        2^bits; 0 where the knobs ask for more than can be decoded.
      encode: (Keys, key common to all participants of the round, participants, bits, x f32[d], Knobs) ->
        Message, whose symbols int32[d] are below the modulus, or `blocks.INVALID`.
      dithers: (shared key of a client, d) -> int32[d], its part of the sum of dithers.
      decode: (common key, participants, arrived f32[], sum of symbols int32[d], sum of dithers int32[d],
        bits, Knobs, d) -> f32[d], the sum of the updates that arrived.
      lost: chance with which a message does not arrive, in this simulation; it depends on no data.
      most: largest number of participants.
    """

    bits: Callable[..., jax.Array]
    encode: Callable[..., Message]
    dithers: Callable[[jax.Array, int], jax.Array]
    decode: Callable[..., jax.Array]
    lost: float = 0.0
    most: int = 2**14
