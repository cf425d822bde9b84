"""How a client joins: the server's greeting, the client's answer to it, and what neither may have forgotten.

  greeting   16 bytes run | 16 bytes challenge, new for each connection
  answer     16 bytes nonce of the client | 16 bytes challenge | 4 bytes: through which round it has answered

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
        raise Refused("malformed", "no nonce, challenge and round")
    return Answer(*_ANSWER.unpack(body))


def check(
    client: int, found: Answer, challenge: bytes | None, nonce: bytes | None, seen: int, begun: int
) -> None:
    """That an answer is to this greeting, and of a client that has forgotten nothing.

    Args:
      client: whose tag the answer has.
      found: the answer.
      challenge: of the greeting; None where none was sent.
      nonce: with which the client has joined before; None if it has not.
      seen: through which round it is known to have answered.
      begun: how many rounds have begun.

    Raises:
      Refused: recorded, reenrolled, rolledback or ahead; the last three are of this client, not recorded.
    """
    if found.challenge != challenge:
        raise Refused("recorded")
    if nonce is not None and found.nonce != nonce:
        raise Refused("reenrolled", "another nonce", client)
    said = f"it says that it has answered through round {found.through}"
    if found.through < seen:
        raise Refused("rolledback", f"{said}, and it has through round {seen}", client)
    if found.through > begun:
        raise Refused("ahead", f"{said}, and {begun} have begun here", client)
