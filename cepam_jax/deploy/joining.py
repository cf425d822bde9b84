"""How a client joins: the server's greeting, the client's answer to it, and what neither may have forgotten.

  greeting   16 bytes run | 16 bytes challenge, new for each connection
  answer     16 bytes nonce of the client | 16 bytes challenge | 4 bytes rounds that it has answered through

The answer is authenticated (`keys.joining`), so it holds for this greeting alone: one that was recorded
brings nobody in. "Through" is the number behind the last round that the client has answered, 0 before its
first. If that is less than the server has seen, the client's directory was put back to an earlier state; if
it is more than the server has asked, the server's was. Going on, they would use keys again, or forget what
was spent.
"""

import os
import struct
from typing import NamedTuple

from cepam_jax.deploy import envelope, keys
from cepam_jax.deploy.envelope import Refused

CHALLENGE = 16  # bytes
GREETING = keys.NONCE + CHALLENGE
_ANSWER = struct.Struct(f"<{keys.NONCE}s{CHALLENGE}sI")
JOINING = envelope.OVERHEAD + _ANSWER.size  # bytes of the message that a client joins with


class Answer(NamedTuple):
    """What a client answers.

    Attributes:
      nonce: of the client, 16 bytes.
      challenge: of the greeting, 16 bytes.
      through: the number behind its last answered round.
    """

    nonce: bytes
    challenge: bytes
    through: int


def challenge() -> bytes:
    """16 bytes from the operating system, for one connection."""
    return os.urandom(CHALLENGE)


def read_greeting(body: bytes) -> tuple[bytes, bytes]:
    """(run, challenge) of a greeting's body; Refused (malformed) if it is of another length."""
    if len(body) != GREETING:
        raise Refused("malformed", "no run and challenge")
    return body[: keys.NONCE], body[keys.NONCE :]


def answer(nonce: bytes, challenge: bytes, through: int) -> bytes:
    """The body of a client's answer; the arguments as for `Answer`."""
    return _ANSWER.pack(nonce, challenge, through)


def read(body: bytes) -> Answer:
    """A client's answer; Refused (malformed) if it is of another length."""
    if len(body) != _ANSWER.size:
        raise Refused("malformed", "no nonce, challenge and rounds")
    return Answer(*_ANSWER.unpack(body))


def check(found: Answer, challenge: bytes, nonce: bytes | None, seen: int, asked: int) -> None:
    """That an answer is to this greeting, and of a client that has forgotten nothing.

    Args:
      found: the answer.
      challenge: of the greeting; b"" where none was sent.
      nonce: with which the client has joined before; None if it has not.
      seen: the number behind its last round whose answer is here.
      asked: how many rounds have begun.

    Raises:
      Refused: recorded, reenrolled, rolledback or ahead.
    """
    if found.challenge != challenge:
        raise Refused("recorded")
    if nonce is not None and found.nonce != nonce:
        raise Refused("reenrolled")
    if found.through < seen:
        raise Refused("rolledback", f"it says {found.through} rounds, and answers to {seen} are here")
    if found.through > asked:
        raise Refused("ahead", f"it has answered through round {found.through}, and {asked} have begun here")
