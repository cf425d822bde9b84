"""The first bytes of a message: what it is, for whom, and whether it arrived whole.

  bytes    field
  2        magic number
  1        format version and flags, 4 bits each
  1        kind: lattice, layer and family, or another kind of symbols
  3        hints: 6 bits of a hash of each of mechanism, segments, key, knobs
  1 to 5   length of the update, seven bits in each byte
  1 to 5   number of the round, likewise
  1 to 5   number of the client, likewise
  4        check

These 14 to 26 bytes are little-endian. Then comes the body.

A bare message says nothing of itself, and is for two who know what they exchange. Its header has 5 bytes:

  1        format version and flags, 4 bits each; a magic number begins otherwise
  4        check

The check covers all other bytes and, beside them, what sender and receiver must agree on: the chain of steps
with all that its symbols are decoded by, key, knobs, segments, tables; of a bare message kind and length,
too. So a message that is read with another key fails as surely as a corrupt one; the hints serve to say why.

It is a keyed hash (BLAKE2s, RFC 7693) under the shared key, and so is the key's hint. Whoever has the bytes
alone learns nothing of the key from them but by trying keys, and cannot seal other bytes, but for one try in
2^32. A sum such as CRC-32 would be linear in the key, half of which its 32 bits would give away.
"""

import functools
import hashlib
import struct
import zlib
from importlib import resources
from typing import NamedTuple

import numpy as np

from cepam_jax.errors import WireError
from cepam_jax.mechanisms import cell_scales, code_length, latents, lattices
from cepam_jax.mechanisms.base import Code, Knobs

MAGIC = b"\xceP"
VERSION = 4
EXCEPTIONS, OFFSETS, BARE = 1, 2, 4  # flags, below 8
BARE_BYTES = 5
_FRONT = struct.Struct("<2sBB3s")
_LATTICES = tuple(lattices.LATTICES)
_LAYERS = ("cell", "gaussian", "laplace", "rotated")
_FAMILIES = tuple(dict.fromkeys((*code_length.FAMILIES, *code_length.BLOCK_FAMILIES, code_length.FITTED)))
_KINDS = ("float", "levels", "lattice")


class Expectation(NamedTuple):
    """What both sides must agree on, as bytes.

    Attributes:
      mechanism: name of the mechanism, what else its symbols are decoded by, and a hash of its tables.
      segments: lengths of the segments, and what is sent of them: types and shapes of a message's arrays.
      key: words of the shared key.
      knobs: values of the knobs.
    """

    mechanism: bytes
    segments: bytes
    key: bytes
    knobs: bytes

    def check(self, *parts: bytes) -> bytes:
        """Four bytes: a hash, under the key, of the other fields and of these parts of a message."""
        found = hashlib.blake2s(digest_size=4, key=self.key)
        for field in (self.mechanism, self.segments, self.knobs):
            found.update(len(field).to_bytes(4, "little") + field)
        for part in parts:
            found.update(part)
        return found.digest()

    def hints(self) -> tuple[int, ...]:
        """Six bits of a hash of each of the four fields: numbers from 0 to 63; the key's is a keyed hash."""
        of_key = hashlib.blake2s(b"hint", digest_size=1, key=self.key).digest()[0]
        mechanism, segments, knobs = map(zlib.crc32, (self.mechanism, self.segments, self.knobs))
        return tuple(number & 63 for number in (mechanism, segments, of_key, knobs))


class Header(NamedTuple):
    """What the header says.

    Attributes:
      flags: sum of `EXCEPTIONS`, `OFFSETS` and `BARE` where they apply; behind `BARE` all else is None.
      kind: from `kind_of`.
      hints: from `Expectation.hints`.
      length: number of coordinates of the update.
      round: number of the round.
      client: number of the client.
    """

    flags: int
    kind: int | None = None
    hints: tuple[int, ...] | None = None
    length: int | None = None
    round: int | None = None
    client: int | None = None


def kind_of(code: Code) -> int:
    """One byte, from 0 to 255, that names kind, lattice, layer and family."""
    if code.kind != "lattice":
        return 240 + _KINDS.index(code.kind)
    place = _LATTICES.index(code.lattice) * len(_LAYERS) + _LAYERS.index(code.layer)
    return place * len(_FAMILIES) + _FAMILIES.index(code.family)


def kind_text(kind: int) -> str:
    """What the byte of `kind_of` names, in words."""
    if kind >= 240:
        return f"{_KINDS[kind - 240]} symbols" if kind - 240 < len(_KINDS) else f"unknown kind {kind}"
    place, family = divmod(kind, len(_FAMILIES))
    lattice, layer = divmod(place, len(_LAYERS))
    if lattice >= len(_LATTICES):
        return f"unknown kind {kind}"
    law = {0: "no layers", 3: "rotated cells"}.get(layer, f"{_LAYERS[layer]} layers")
    return f"lattice {_LATTICES[lattice]}, {law}, coded as {_FAMILIES[family]}"


@functools.cache
def tables(lattice: str, layer: str) -> bytes:
    """Four bytes, a hash of the tables that both sides must share to the bit for this lattice and layer."""
    if layer == "rotated":
        parts = [np.asarray(part, "<f4").tobytes() for part in cell_scales.scale_table(lattice)]
        return zlib.crc32(b"".join(parts)).to_bytes(4, "little")
    data = resources.files("cepam_jax.mechanisms").joinpath("acceptance.npz").read_bytes()
    if layer != "cell":
        table = latents.radius_table(layer, lattices.LATTICES[lattice].dimension)
        data += table.middle.astype("<f4").tobytes() + table.slope.astype("<f4").tobytes()
    return zlib.crc32(data).to_bytes(4, "little")


def _variable(number: int) -> bytes:
    """A number as 1 to 5 bytes: seven bits in each, lowest first; the highest bit says that more follow."""
    leading = bytearray()
    while number >= 0x80:
        leading.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*leading, number])


def write(header: Header, expectation: Expectation, rest: bytes) -> bytes:
    """A whole message: the header with its check, and the bytes that follow it, `rest`.

    Of a bare message kind and length are given, and not written.
    """
    assert header.kind is not None and header.hints is not None and header.length is not None
    if header.flags & BARE:
        front = bytes([VERSION << 4 | header.flags])
        return front + expectation.check(_unsaid(header.kind, header.length), front, rest) + rest
    assert header.round is not None and header.client is not None
    hints = sum(hint << 6 * i for i, hint in enumerate(header.hints)).to_bytes(3, "little")
    front = _FRONT.pack(MAGIC, VERSION << 4 | header.flags, header.kind, hints)
    front += b"".join(map(_variable, (header.length, header.round, header.client)))
    return front + expectation.check(front, rest) + rest


def _unsaid(kind: int, length: int) -> bytes:
    """What the check of a bare message covers though the message does not say it."""
    return struct.pack("<BI", kind, length)


def parse(data: bytes) -> tuple[Header, int]:
    """Reads a header without verifying it.

    Args:
      data: the message.

    Returns:
      What the header says, and how many bytes it takes, of which the last four are the check.

    Raises:
      WireError: too short, not a message, or of an unknown version.
    """
    truncated = WireError(f"the message is truncated: {len(data)} bytes do not hold its header")
    if len(data) >= BARE_BYTES and data[0] >> 4 == VERSION and data[0] & 12 == BARE:
        return Header(data[0] & 15), BARE_BYTES
    if len(data) >= BARE_BYTES and 0 < data[0] >> 4 < VERSION and data[0] & 12 == BARE:
        raise _of_version(data[0] >> 4)
    if len(data) < _FRONT.size:
        raise truncated
    magic, version, kind, hints = _FRONT.unpack_from(data)
    if magic != MAGIC:
        raise WireError(
            f"these bytes are not a message of format version {VERSION}: they begin with {magic!r}, not "
            f"{MAGIC!r}"
        )
    if version >> 4 != VERSION:
        raise _of_version(version >> 4)
    if version & 15 & ~(EXCEPTIONS | OFFSETS):
        raise WireError(
            f"the message is corrupt: its header has the flags {version & 15}, which no such message has"
        )
    at, numbers = _FRONT.size, []
    for _ in range(3):
        number = 0
        for i in range(5):
            if at >= len(data):
                raise truncated
            number |= (data[at] & 0x7F) << 7 * i
            at += 1
            if data[at - 1] < 0x80:
                break
        if number >= 2**32:
            raise WireError("the message is corrupt: its header has a number of more than 32 bits")
        numbers.append(number)
    if at + 4 > len(data):
        raise truncated
    packed = int.from_bytes(hints, "little")
    unpacked = tuple(packed >> 6 * i & 63 for i in range(4))
    return Header(version & 15, kind, unpacked, *numbers), at + 4


def _of_version(number: int) -> WireError:
    """The error for a message of another version."""
    return WireError(f"the message has format version {number}; this program reads {VERSION}")


def read(data: bytes, kind: int, length: int, expectation: Expectation) -> tuple[Header, bytes]:
    """Reads and verifies a header.

    Args:
      data: the message.
      kind: the kind that the receiver expects, from `kind_of`.
      length: number of coordinates that the receiver expects.
      expectation: what else sender and receiver must agree on, as the receiver knows it.

    Returns:
      What the header says, and the bytes that follow it.

    Raises:
      WireError: says in what the message differs from what its receiver expects, or that it is corrupt.
    """
    parsed, end = parse(data)
    rest = data[end:]
    bare = bool(parsed.flags & BARE)
    unsaid = _unsaid(kind, length) if bare else b""
    whole = expectation.check(unsaid, data[: end - 4], rest) == data[end - 4 : end]
    if whole and (bare or (parsed.kind, parsed.length) == (kind, length)):
        return parsed, rest
    if bare or parsed.kind is None or parsed.hints is None:
        raise WireError(
            "the bare message is corrupt, or was packed by another mechanism or with another length, shared "
            "key, knobs or tensors: its check does not fit"
        )
    if parsed.kind != kind:
        raise WireError(
            f"the message was packed by another mechanism ({kind_text(parsed.kind)}; expected: "
            f"{kind_text(kind)}), or it is corrupt"
        )
    if parsed.length != length:
        raise WireError(f"the message has {parsed.length} coordinates (expected: {length}), or it is corrupt")
    causes = (
        "by another mechanism (chain of steps, or what its symbols are decoded by), or with the tables of "
        "another version of this package",
        "with other tensors (segment lengths, or what is sent of each)",
        "with another shared key (seed, round and client make the key)",
        "with other knobs",
    )
    for cause, expected, hint in zip(causes, expectation.hints(), parsed.hints, strict=True):
        if expected != hint:
            raise WireError(f"the message was packed {cause}, or it is corrupt")
    raise WireError("the message is corrupt or truncated: its check does not fit its bytes")


def knobs_bytes(knobs: Knobs) -> bytes:
    """The knobs as float32 (the scales as int32), in order, marked where they are missing."""
    return b"".join(
        b"-" if value is None else np.asarray(value, np.int32 if name == "scale" else np.float32).tobytes()
        for name, value in knobs._asdict().items()
    )
