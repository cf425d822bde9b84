"""One client: what it is asked, it answers once; the same question again has the same answer, to the bit.

A round's answer is on the disk before it leaves. So a client that is killed afterwards answers with the same
bytes, and one that was killed before had sent nothing: no key hides two updates, whatever fails. What it was
asked last is on the disk before it trains on it: a server that was put back asks otherwise, and is refused.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cepam_jax import wire
from cepam_jax.deploy import envelope, joining, keys, step, store
from cepam_jax.deploy.agreement import Agreement, number_of
from cepam_jax.deploy.envelope import Envelope, Refused
from cepam_jax.errors import CheckpointMismatchError, ConfigError
from cepam_jax.mechanisms import Keys
from cepam_jax.run.locks import Lock

KEPT = 2  # answers: that of the open round, and the one before it


class Client:
    """One party of an agreement, with a directory of its own.

    Attributes:
      number: which client it is.
      answered: rounds that it has answered.
      asked: messages of the server's own that have come since this process began, greetings not among them.
      diverged: rounds in which its training left no numbers, so that noise alone was sent, since this process
        began; nobody else is told.
      finished: whether the server has said that no more follow.
    """

    def __init__(
        self,
        directory: Path,
        agreement: Agreement,
        private: X25519PrivateKey,
        examples: Mapping[str, np.ndarray],
        source: keys.Source | None = None,
    ):
        """Claims the directory, and goes on from what is there; nothing is compiled yet.

        Args:
          directory: of this client alone.
          agreement: of all.
          private: its key; the public one is in the agreement.
          examples: its own, name -> array [its count, ...].
          source: of a round's keys; by default as a deployment must have them.

        Raises:
          ConfigError: the key is none of the agreement's.
          CheckpointMismatchError: the directory holds the answers to another agreement.
          CheckpointDamagedError: what it holds is damaged.
          WorkdirInUseError: another process has it.
        """
        self.number, self.finished = number_of(agreement, keys.public_of(private)), False
        self.diverged, self.asked = 0, 0
        self._agreement, self._source = agreement, source or keys.fresh()
        self._secret = keys.agree(private, agreement.server)
        self._arrays = step.client_arrays(agreement, self.number, dict(examples))
        self._common = step.common(agreement)
        self._path = Path(directory) / "client.state"
        Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = Lock(Path(directory))
        try:
            self._run, self._nonce, self._answers, self.answered, self._last = self._restored()
        except BaseException:
            self.close()
            raise

    def _restored(self):
        found = store.load(self._path)
        if found is None:
            nonce = os.urandom(keys.NONCE)
            last = (-1, "")
            self._save(None, nonce, {}, 0, last)  # before it is known to anybody
            return None, nonce, {}, 0, last
        record, arrays = found
        if record["agreement"] != self._agreement.digest.hex():
            raise CheckpointMismatchError(
                f"{self._path.parent} holds answers to another agreement; take another directory"
            )
        digests = {int(number): digest for number, digest in record["answers"].items()}
        answers = {
            number: (digest, arrays[f"answer{number}"].tobytes()) for number, digest in digests.items()
        }
        run = bytes.fromhex(record["run"]) or None
        last = tuple(record["last"])
        return run, bytes.fromhex(record["nonce"]), answers, record["answered"], last

    def _save(
        self, run: bytes | None, nonce: bytes, answers: dict, answered: int, last: tuple[int, str]
    ) -> None:
        """Writes what is to hold from now on; only then may it hold here, or be known to anybody."""
        self._lock.check()
        record = {
            "agreement": self._agreement.digest.hex(),
            "run": (run or b"").hex(),
            "nonce": nonce.hex(),
            "answered": answered,
            "last": last,  # round and digest of the last request
            "answers": {number: digest for number, (digest, _) in answers.items()},
        }
        packed = {f"answer{n}": np.frombuffer(data, np.uint8) for n, (_, data) in answers.items()}
        store.save(self._path, record, packed)

    @property
    def limit(self) -> int:
        """The longest body that is read: the model, or a greeting."""
        return max(self._common.model_bytes, joining.GREETING)

    def warm(self) -> None:
        """Compiles the step, so that the first round does not wait for it; nothing of it is kept."""
        state = step.state_of(self._common, step.flat_of(self._common.start), 0)
        jax.block_until_ready(self._made(state, *keys.private_keys(), jax.random.key(0))[0])

    def answer(self, data: bytes) -> bytes:
        """The answer to a message of the server; b"" where none is due.

        Raises:
          Refused: it is not one that this client answers.
        """
        asked = envelope.parse(data, self.limit)
        if asked.agreement != self._agreement.digest[:8]:
            raise Refused("foreign", "another agreement")
        if asked.kind == envelope.HELLO:
            return self._join(data, asked)
        if self._run is None or asked.run != self._run[:8]:
            raise Refused("foreign", "another run")
        if asked.client != self.number:
            raise Refused("stranger", f"it is for client {asked.client}")
        derived = keys.derive(self._secret, self._run, self._nonce, self._agreement.digest, self.number)
        envelope.check(data, derived.down)
        self.asked += 1
        if asked.kind == envelope.DONE:
            self.finished = True
            return b""
        if asked.kind != envelope.REQUEST:
            raise Refused("unexpected")
        return self._reply(data, asked, derived)

    def _join(self, data: bytes, asked: Envelope) -> bytes:
        """Joins a run. The first request binds this client to it: another would spend its epsilon again.

        A greeting alone binds to nothing, since all who know the agreement can write one.
        """
        envelope.check(data, self._agreement.digest)
        run, challenge = joining.read_greeting(asked.body)
        if self._last[0] >= 0 and run != self._run:
            raise Refused("foreign", "this client was asked in another run of the same agreement")
        self._run = run
        key = keys.joining(self._secret, self._run, self._agreement.digest, self.number)
        body = joining.answer(self._nonce, challenge, max(self._answers, default=-1) + 1)
        return envelope.seal(self._envelope(envelope.JOIN, 0, body), key)

    def _envelope(self, kind: int, number: int, body: bytes = b"") -> Envelope:
        assert self._run is not None
        return Envelope(kind, self._run[:8], self._agreement.digest[:8], number, self.number, body)

    def _reply(self, data: bytes, asked: Envelope, derived: keys.Derived) -> bytes:
        number, digest = asked.round, hashlib.sha256(data).hexdigest()
        if number in self._answers:
            before, answer = self._answers[number]
            if before != digest:
                raise Refused("twice", f"round {number}")
            return answer
        if number < self._last[0]:
            raise Refused("stale", f"round {number}")
        if number == self._last[0] and digest != self._last[1]:
            raise Refused("twice", f"round {number}")
        if number >= self._agreement.rounds:
            raise Refused("finished", f"{self._agreement.rounds} rounds")
        try:
            state = step.state_of(self._common, asked.body, number)
        except ConfigError as error:
            raise Refused("malformed", str(error)) from None
        if self._last != (number, digest):
            self._save(self._run, self._nonce, self._answers, self.answered, (number, digest))
            self._last = number, digest
        shared = self._source.shared(derived.master, number, self.number)
        training, private = self._source.private(number, self.number)
        (message, _, finite), mine = self._made(state, training, private, shared)
        mechanism = self._common.plan.mechanism
        with jax.enable_x64(False):
            if not self._common.decodes(shared, message, mine):
                # Numbers that the mechanism cannot code, as of updates without a clip: zeros, as where
                # training has left no numbers, for the server would refuse this message whenever it came.
                zeros = np.zeros(self._common.coordinates, np.float32)
                message, finite = mechanism.encode(Keys(shared, private), zeros, mine), False
        self.diverged += not bool(finite)
        body = wire.pack(message, mechanism, shared, mine, bare=True)
        answer = envelope.seal(self._envelope(envelope.REPLY, number, body), derived.up)
        answers = {**self._answers, number: (digest, answer)}
        answers = {kept: answers[kept] for kept in sorted(answers)[-KEPT:]}
        self._save(self._run, self._nonce, answers, self.answered + 1, self._last)
        self._answers, self.answered = answers, self.answered + 1
        return answer

    def _made(self, state, training, private, shared):
        """((Message, loss, whether it is finite), this client's knobs) of a round."""
        with jax.enable_x64(False):
            knobs = self._common.knobs_of(state.control, self._common.knobs, state.round)
            mechanism_keys = Keys(shared, private)
            client = np.int32(self.number)
            found = self._common.client_step(state, self._arrays, knobs, client, training, mechanism_keys)
            return found, step.of_client(self._common, knobs, self.number, state.scale)

    def close(self) -> None:
        """Lets other processes in; may be called twice."""
        self._lock.release()
