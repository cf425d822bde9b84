"""One message between a client and the server: what it belongs to, its body, and who wrote it.

  bytes    field
  2        magic number
  1        schema version
  1        kind
  8        run, the first bytes of its nonce
  8        agreement, the first bytes of its digest (so the configuration's, too)
  4        round
  4        client
  n        body
  16       HMAC-SHA256 of all that, its first half

Little-endian; 44 bytes beside the body. Krawczyk, Bellare, Canetti: HMAC: Keyed-Hashing for Message
Authentication, RFC 2104. The body is not encrypted here: that is TLS's job.
"""

import hashlib
import hmac
import struct
from typing import NamedTuple

MAGIC = b"\xceF"
VERSION = 2
JOIN, REQUEST, REPLY, HELLO, DONE = range(5)
KINDS = ("join", "request", "reply", "hello", "done")
_FRONT = struct.Struct("<2sBB8s8sII")
_TAG = 16
OVERHEAD = _FRONT.size + _TAG

# Why a message is refused, by name.
REASONS = {
    "oversized": "it is longer than any that is expected",
    "malformed": "it is no message of this protocol",
    "version": "it was written by another version of this protocol",
    "unexpected": "it is of a kind that nobody asked for",
    "stranger": "nobody of that number takes part, or has joined",
    "foreign": "it belongs to another run or another agreement",
    "forged": "it was altered, or not written by who it says",
    "stale": "its round is over",
    "early": "its round has not begun",
    "undrawn": "this client was not drawn in this round",
    "replay": "this client's answer is here already",
    "reenrolled": "this client has joined with another nonce: its state was lost, or somebody plays it",
    "recorded": "no greeting on this connection waits for it: it answers another one, or comes twice",
    "rolledback": "this client has answered more than it says: it was put back, or it answers late",
    "ahead": "this client has answered more than was asked here: the server's directory was put back",
    "corrupt": "its body cannot be decoded",
    "twice": "this round was asked before, with another request: the server's directory was put back",
    "finished": "all rounds that were agreed to are answered",
}


class Refused(Exception):
    """A message that is not taken.

    Attributes:
      name: one of `REASONS`.
      client: who has proved to have written it just now; None where nobody has.
    """

    def __init__(self, name: str, detail: str = "", client: int | None = None):
        """Args: as the attributes, and what else there is to say."""
        detail = detail if client is None else f"client {client}: {detail}"
        super().__init__(f"{name}: {REASONS[name]}" + (f" ({detail})" if detail else ""))
        self.name, self.client = name, client


class Envelope(NamedTuple):
    """A message without its tag.

    Attributes:
      kind: one of `JOIN`, `REQUEST`, ...
      run, agreement: 8 bytes each.
      round, client: numbers.
      body: bytes.
    """

    kind: int
    run: bytes
    agreement: bytes
    round: int
    client: int
    body: bytes = b""


def seal(message: Envelope, key: bytes) -> bytes:
    """The bytes of a message, with its tag under a key of 32 bytes."""
    front = _FRONT.pack(MAGIC, VERSION, *message[:4], message.client)
    return front + message.body + _tag(front + message.body, key)


def parse(data: bytes, limit: int) -> Envelope:
    """A message, whose tag is still to be checked.

    Args:
      data: the bytes.
      limit: the longest body that is expected.

    Raises:
      Refused: oversized, malformed or version.
    """
    if len(data) > limit + OVERHEAD:
        raise Refused("oversized", f"{len(data)} bytes, at most {limit + OVERHEAD}")
    if len(data) < OVERHEAD or data[:2] != MAGIC:
        raise Refused("malformed")
    _, version, kind, run, agreement, number, client = _FRONT.unpack_from(data)
    if version != VERSION:
        raise Refused("version", f"{version}, here {VERSION}")
    if kind >= len(KINDS):
        raise Refused("malformed", f"kind {kind}")
    return Envelope(kind, run, agreement, number, client, bytes(data[_FRONT.size : -_TAG]))


def check(data: bytes, key: bytes) -> None:
    """Refused (forged) unless the bytes carry the tag of this key."""
    if not hmac.compare_digest(data[-_TAG:], _tag(data[:-_TAG], key)):
        raise Refused("forged")


def _tag(data: bytes, key: bytes) -> bytes:
    return hmac.new(key, data, hashlib.sha256).digest()[:_TAG]
