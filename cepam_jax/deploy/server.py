"""The server: it opens a round, takes answers, and closes it; what is on its disk is ahead of what it sends.

A round is asked from the state on the disk alone, so after a kill it is asked again the same, to the bit, and
clients answer what they have answered. It is counted once, when it is closed; model, ledger and number are
then written in one file, before anybody is sent that model.
"""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cepam_jax.deploy import envelope, joining, keys, step, store
from cepam_jax.deploy.agreement import Agreement
from cepam_jax.deploy.envelope import Envelope, Refused
from cepam_jax.deploy.members import Members
from cepam_jax.errors import CheckpointMismatchError, NonFiniteUpdateError, require
from cepam_jax.federated import State, participation
from cepam_jax.mechanisms import Message
from cepam_jax.run import guarantees, ledger, provenance
from cepam_jax.run.locks import Lock


class Server:
    """One run of an agreement, in a directory of its own.

    Attributes:
      agreement: what is run.
      state: State after the rounds done, on the host.
      ledger: what they applied.
      coordinates: d, of an update.
      drawn: who takes part in the open round.
      failed: why the run ended before its last round; "" if it did not.
      members: who has joined, and how far each has come.
      refusals: name -> how many messages were refused for it, since this process began.
    """

    def __init__(
        self,
        directory: Path,
        agreement: Agreement,
        private: X25519PrivateKey,
        source: keys.Source | None = None,
        draws: jax.Array | None = None,
    ):
        """Claims the directory, and goes on from what is there; nothing is compiled yet.

        Args:
          directory: of this run alone.
          agreement: of all.
          private: the server's key; the public one is in the agreement.
          source: of a round's shared keys; by default as a deployment has them.
          draws: key of who is drawn; by default from private key and run.

        Raises:
          ConfigError: the key is not the agreement's.
          CheckpointMismatchError: the directory holds a run of another agreement.
          CheckpointDamagedError: what it holds is damaged.
          WorkdirInUseError: another server has it.
        """
        mine = keys.public_of(private)
        require(mine == agreement.server, "public key", mine[:8] + "...", "the server's in the agreement")
        self.agreement = agreement
        self._source = source or keys.fresh()
        self._secrets = [keys.agree(private, public) for public in agreement.clients]
        self._common = step.common(agreement)
        self.coordinates = self._common.coordinates
        facts = guarantees.facts_of(agreement.config, agreement.counts)
        self._parts, self._names = provenance.parts_of(facts), facts.knobs
        self._path = Path(directory) / "server.state"
        Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = Lock(Path(directory))
        self.refusals: dict[str, int] = {}
        self.members, self.failed = Members(), ""
        try:
            self._restore()
        except BaseException:
            self.close()
            raise
        self._draws = keys.draws(private, self._run) if draws is None else draws
        self._begin()

    def _restore(self) -> None:
        self.state, self.ledger = self._common.start, ledger.Ledger()
        found = store.load(self._path)
        if found is None:
            self._run = os.urandom(keys.NONCE)
            self._save()
            return
        record, arrays = found
        if record["agreement"] != self.agreement.digest.hex():
            where = self._path.parent
            raise CheckpointMismatchError(f"{where} holds a run of another agreement; take another directory")
        self._run = bytes.fromhex(record["run"])
        self.members = Members(record)
        self.ledger, self.failed = ledger.read(record["ledger"]), record["failed"]
        self.state = step.of_arrays(self._common, arrays)

    def _save(self) -> None:
        self._lock.check()
        record = {
            "agreement": self.agreement.digest.hex(),
            "run": self._run.hex(),
            **self.members.record(),
            "ledger": self.ledger.text(),
            "round": self.round,
            "failed": self.failed,
        }
        store.save(self._path, record, step.arrays_of(self.state))
        self.members.changed = False

    def _begin(self) -> None:
        """Opens the round behind those that are done."""
        config, plan = self.agreement.config, self._common.plan
        self._arrived, self._bytes = dict[int, Message](), dict[int, int]()
        with jax.enable_x64(False):
            key = participation.round_key(self._draws, self.state.round)
            drawn = participation.choose(key, config.num_clients, plan.per_round)
            self._knobs = self._common.knobs_of(self.state.control, self._common.knobs, self.state.round)
        self.drawn = () if self.finished else tuple(np.asarray(drawn).tolist())

    @property
    def open_entry(self) -> ledger.Entry | None:
        """What the open round applies, as the ledger would have it; None where none is open.

        Its answers may be out already, so it counts as spent, like a round that failed.
        """
        if self.finished:
            return None
        drawn = () if len(self.drawn) == self.agreement.config.num_clients else (self.drawn,)
        return ledger.Entry(1, jax.tree.map(np.asarray, self._knobs), drawn, self._parts, failed=True)

    @property
    def round(self) -> int:
        """Rounds done, which is also the number of the open one."""
        return int(self.state.round)

    @property
    def finished(self) -> bool:
        """Whether no more rounds follow."""
        return bool(self.failed) or self.round >= self.agreement.rounds

    @property
    def missing(self) -> tuple[int, ...]:
        """Who was drawn and has not answered."""
        return tuple(client for client in self.drawn if client not in self._arrived)

    @property
    def enough(self) -> bool:
        """Whether the round may be closed before all have answered, as config.links.ends says."""
        links = self.agreement.config.links
        if links.ends == "slowest":
            return not self.missing
        share = links.quorum if links.ends == "quorum" else 1.0
        return len(self._arrived) >= max(1, int(np.ceil(share * len(self.drawn) - 1e-6)))

    @property
    def joined(self) -> tuple[int, ...]:
        """Who has joined."""
        return tuple(sorted(self.members.nonces))

    @property
    def _begun(self) -> int:
        """How many rounds have begun, the open one too."""
        return min(self.round + 1, self.agreement.rounds)

    def hello(self, challenge: bytes) -> bytes:
        """What everybody is told first: which run this is. Its tag proves nothing; the requests do.

        Args:
          challenge: of `joining.challenge`, new each time.
        """
        message = self._envelope(envelope.HELLO, 0, 0, self._run + challenge)
        return envelope.seal(message, self.agreement.digest)

    def request(self, client: int) -> bytes:
        """What a client that was drawn and has joined is asked in the open round."""
        message = self._envelope(envelope.REQUEST, self.round, client, step.flat_of(self.state))
        return envelope.seal(message, self._keys(client).down)

    def done(self, client: int) -> bytes:
        """What a client that has joined is told when no more rounds follow."""
        return envelope.seal(self._envelope(envelope.DONE, self.round, client), self._keys(client).down)

    def _envelope(self, kind: int, number: int, client: int, body: bytes = b"") -> Envelope:
        return Envelope(kind, self._run[:8], self.agreement.digest[:8], number, client, body)

    def _keys(self, client: int) -> keys.Derived:
        given = self._run, self.members.nonces[client], self.agreement.digest, client
        return keys.derive(self._secrets[client], *given)

    def receive(self, data: bytes, challenge: bytes | None = None) -> int:
        """Takes a message of a client, and returns whose it is.

        Args:
          data: the message.
          challenge: of the greeting that it answers, where its sender has not joined yet: nothing but an
            answer to it is taken then. None where the sender has joined.

        Raises:
          Refused: says why; the round is as it was.
        """
        try:
            return self._receive(data, challenge)
        except Refused as error:
            self.refusals[error.name] = self.refusals.get(error.name, 0) + 1
            raise
        finally:
            if self.members.changed:  # an OSError ends the process, as in `close_round`
                self._save()

    def _receive(self, data: bytes, challenge: bytes | None) -> int:
        message = envelope.parse(data, self.limit)
        client = message.client
        if client >= len(self.agreement.clients):
            raise Refused("stranger", f"client {client}")
        if (message.run, message.agreement) != (self._run[:8], self.agreement.digest[:8]):
            raise Refused("foreign")
        if message.kind == envelope.JOIN:
            return self._join(data, message, challenge)
        # A recorded answer, of somebody who has joined elsewhere, brings nobody in.
        if challenge is not None:
            raise Refused("unexpected", f"{envelope.KINDS[message.kind]} of who has not joined")
        if client not in self.members.nonces:
            raise Refused("stranger", f"client {client} has not joined")
        envelope.check(data, self._keys(client).up)
        if message.kind != envelope.REPLY:
            raise Refused("unexpected", envelope.KINDS[message.kind])
        if message.round != self.round or self.finished:
            over = message.round < self.round or self.finished
            if message.round < self._begun:
                self.members.late(client, message.round + 1)
            raise Refused("stale" if over else "early", f"round {message.round}")
        if client not in self.drawn:
            raise Refused("undrawn", f"client {client}")
        if client in self._arrived:
            raise Refused("replay", f"client {client}")
        self._arrived[client] = self._decoded(message)
        self._bytes[client] = len(message.body)
        self.members.seen[client] = self.round + 1  # written with the round
        return client

    @property
    def limit(self) -> int:
        """The longest body that is read: twice what floats would take."""
        return 8 * self._common.coordinates + 4096

    def _join(self, data: bytes, message: Envelope, challenge: bytes | None) -> int:
        client, digest = message.client, self.agreement.digest
        envelope.check(data, keys.joining(self._secrets[client], self._run, digest, client))
        self.members.join(client, joining.read(message.body), challenge, self._begun)
        return client

    def _decoded(self, message: Envelope) -> Message:
        knobs = step.of_client(self._common, self._knobs, message.client, self.state.scale)
        return step.unpacked(self._common, message, self._shared(message.client), knobs)

    def _shared(self, client: int) -> jax.Array:
        return self._source.shared(self._keys(client).master, self.round, client)

    def close_round(self) -> dict[str, Any]:
        """Aggregates what has arrived, writes model and ledger, and opens the next round.

        Returns:
          What may be logged: the round, who was late, bytes of the messages.

        Raises:
          NonFiniteUpdateError: the model would not be finite; the run ends, and what was sent is counted.
          OSError: it could not be written; the process must end.
        """
        number = len(self.agreement.clients)
        found = {"round": self.round + 1, "late": self.missing, "bytes": dict(self._bytes)}
        after, report = self._aggregated(number)
        block = jax.tree.map(lambda a: np.asarray(a)[None], report)
        if not bool(report.ran):
            self.ledger = self.ledger.add_failure(block, number, self._names, self._parts)
            self.failed = f"round {self.round + 1}: what was decoded, or the model, was not finite"
            self._save()
            raise NonFiniteUpdateError(self.failed)
        self.ledger = self.ledger.add(block, number, self._parts)
        self.state = jax.tree.map(np.asarray, after)
        self._save()
        self._begin()
        return found

    def _aggregated(self, number: int) -> tuple[State, Any]:
        messages = [self._arrived.get(client) for client in range(number)]
        shared = [self._shared(client) if client in self._arrived else None for client in range(number)]
        with jax.enable_x64(False):
            arrays = step.server_arrays(self.agreement, self._common, self._draws, shared, messages)
            return self._common.server_round(self.state, arrays)

    def close(self) -> None:
        """Lets other processes in; may be called twice."""
        self._lock.release()
