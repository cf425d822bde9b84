"""What a server remembers of its clients: with which nonce each has joined, and how far each has come."""

from typing import Any

from cepam_jax.deploy import joining
from cepam_jax.deploy.envelope import Refused
from cepam_jax.deploy.joining import Answer


class Members:
    """A part of the server's state.

    Attributes:
      nonces: client -> its nonce; who has joined.
      seen: client -> through which round it is known to have answered.
      ahead: client -> through which round it has answered as it says, where fewer had begun here.
      changed: whether something is to be written before anything else is said or taken.
    """

    def __init__(self, record: dict[str, Any] | None = None):
        """From a `record`; by default nobody has joined."""
        found = record or {"nonces": {}, "seen": {}, "ahead": {}}
        self.nonces = {int(client): bytes.fromhex(nonce) for client, nonce in found["nonces"].items()}
        self.seen = {int(client): through for client, through in found["seen"].items()}
        self.ahead = {int(client): through for client, through in found["ahead"].items()}
        self.changed = False

    def record(self) -> dict[str, Any]:
        """Its plain values, for a file."""
        nonces = {client: nonce.hex() for client, nonce in sorted(self.nonces.items())}
        return {"nonces": nonces, "seen": self.seen, "ahead": self.ahead}

    def join(self, client: int, found: Answer, challenge: bytes | None, begun: int) -> None:
        """Takes what a client answers to a greeting.

        Args:
          client: whose tag the answer has.
          found: the answer.
          challenge: of the greeting; None where none was sent.
          begun: how many rounds have begun.

        Raises:
          Refused: as `joining.check`; of one that is ahead it is kept how far.
        """
        known = self.nonces.get(client)
        try:
            joining.check(client, found, challenge, known, self.seen.get(client, 0), begun)
        except Refused as error:
            if error.name == "ahead" and found.through > self.ahead.get(client, 0):
                self.ahead[client], self.changed = found.through, True
            raise
        self.nonces[client] = found.nonce
        self.changed |= known is None
        self.late(client, found.through)

    def late(self, client: int, through: int) -> None:
        """A client has proved to have answered so far, whatever became of its answers."""
        if through > self.seen.get(client, 0):
            self.seen[client], self.changed = through, True
