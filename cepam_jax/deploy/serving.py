"""The server on a socket: it greets who comes, asks who was drawn, and closes rounds.

No peer holds up the others. Each is sent to by a task of its own, one message at a time and in a limited
time; who has not joined may send what a client joins with, and nothing longer, and only so many are let in.
"""

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable
from typing import NamedTuple

from cepam_jax.deploy import envelope, frames, joining
from cepam_jax.deploy.envelope import Refused
from cepam_jax.deploy.frames import Link, Traffic
from cepam_jax.deploy.server import Server
from cepam_jax.errors import NonFiniteUpdateError

_GREETED = 30.0  # seconds in which who has dialled must join
_POLL = 0.02  # seconds between looks at the end
Log = Callable[..., None]


class Stalled(RuntimeError):
    """A round did not end in time; nothing is lost, and the same command goes on from there."""


class Waiting(NamedTuple):
    """How long is waited.

    Attributes:
      again: seconds after which who has not answered is asked again the same, and in which one message must
        have been taken: a slow link needs as many as the model takes on it.
      patience: seconds after which a round that needs more answers ends the server.
      closing: seconds at the end, in which clients that are away may come back and be told.
    """

    again: float = 30.0
    patience: float = 600.0
    closing: float = 7.0  # longer than a client waits until it dials again


class _Strangers:
    """Lines of a log about who has not joined, one a second at most: they can send as much as they like."""

    def __init__(self, log: Log):
        self._log, self._next, self._untold, self.number = log, 0.0, 0, 0

    def refused(self, reason: str, detail: str) -> None:
        now = time.monotonic()
        if now < self._next:
            self._untold += 1
            return
        self._log("refused", reason=reason, client=None, detail=detail, untold=self._untold)
        self._next, self._untold = now + 1.0, 0


class Serving:
    """One server on one socket; `run` is all that is called.

    Attributes:
      traffic: client -> bytes on its connections, those that are closed and the last.
      carried: bytes of all messages of the rounds that this process closed.
    """

    def __init__(self, server: Server, log: Log, waiting: Waiting | None = None):
        """Nothing is listened to yet.

        Args:
          server: at the round where it goes on.
          log: is told of events, by name and with plain values.
          waiting: how long.
        """
        self._server, self._log, self._waiting = server, log, waiting or Waiting()
        self._links: dict[int, Link] = {}
        self._strangers = _Strangers(log)
        self._ended: dict[int, list[Traffic]] = {}
        self._told: set[int] = set()
        self._fault: Exception | None = None
        self._wake = asyncio.Event()
        self.carried, self._heard = 0, set[int]()
        self._open()

    @property
    def traffic(self) -> dict[int, Traffic]:
        """Bytes sent to and received from each client, by this process."""
        return {
            client: Traffic(*(sum(part) for part in zip(*ended, strict=True)))
            for client, ended in sorted(self._ended.items())
        }

    @property
    def sums(self) -> dict[str, int] | None:
        """What may be logged of all that: sums over clients, of which two at least have answered; else None.

        What one message takes is in no log: where lengths depend on the update, it says something of that.
        """
        if len(self._heard & self._ended.keys()) < 2:
            return None
        sent, received = (sum(part) for part in zip(*self.traffic.values(), strict=True))
        return {"sent": sent, "received": received, "messages": self.carried}

    async def run(
        self, host: str, port: int, tls: ssl.SSLContext | None, ready: Callable = lambda port: None
    ):
        """Until all rounds are done.

        Args:
          host, port: to listen at; port 0: any.
          tls: of the server; None: in the clear, which is for tests on one machine alone.
          ready: is called with the port that is listened to.

        Raises:
          Stalled: a round did not end in time.
          NonFiniteUpdateError: the model diverged, now or in an earlier process.
          OSError: the address is taken, or the state could not be written.
          WorkdirInUseError: another process may have the state.
        """
        listener = await asyncio.start_server(self._connected, host, port, ssl=tls, **frames.handshake(tls))
        ready(listener.sockets[0].getsockname()[1])
        try:
            self._open()
            with contextlib.suppress(NonFiniteUpdateError):  # clients are told first
                while not self._server.finished:
                    await self._wait()
            await self._tell()
            if self._server.failed:  # now, or in an earlier process
                raise NonFiniteUpdateError(self._server.failed)
        finally:
            listener.close()
            for link in list(self._links.values()):
                link.close()
            self._links.clear()

    def _open(self) -> None:
        """Clocks of a round that begins."""
        self._opened = time.monotonic()
        self._asked: float | None = None  # when the first who was drawn had been sent the request
        self._due: dict[int, float] = {}  # client -> when it is asked again; who is not in it, at once

    async def _wait(self) -> None:
        """Until something has arrived, somebody is to be asked again, or the round is to end."""
        links, server, now = self._server.agreement.config.links, self._server, time.monotonic()
        if self._fault is not None:
            raise self._fault
        limited = links.ends != "slowest" and links.deadline > 0
        # The deadline of a round that nobody was asked in does not pass.
        until = self._asked + links.deadline if limited and self._asked is not None else float("inf")
        if server.enough or now >= until:
            self._close_round()
            return
        stalled = self._opened + self._waiting.patience
        if now > stalled:
            raise Stalled(
                f"round {server.round + 1} waits for clients {', '.join(map(str, server.missing))} since "
                f"{now - self._opened:.0f} s; what has arrived is asked for again when this server is "
                f"started again"
            )
        self._wake.clear()
        for client in server.missing:
            self._ask(client, now)
        due = [self._due[client] for client in server.missing if client in self._due]
        due = [when for when in due if when > now]  # who is past it is busy, and its end wakes this
        pause = min([until, stalled + 0.01, now + self._waiting.again, *due]) - now
        # wait_for of Python 3.11 loses a cancellation that meets what it waits for; this does not.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(pause, 0.0)):
                await self._wake.wait()

    def _close_round(self) -> None:
        took = time.monotonic() - self._opened
        found = self._server.close_round()
        sizes = found.pop("bytes")
        self.carried += sum(sizes.values())
        self._heard |= sizes.keys()
        self._log("round", **found, took=round(took, 4))
        self._open()

    def _ask(self, client: int, now: float) -> None:
        """Begins to send the request, if the client is there, is to be asked, and has read what was sent."""
        link = self._links.get(client)
        if link is None or not link.free or now < self._due.get(client, now):
            return
        self._due[client] = now + self._waiting.again
        number = self._server.round
        self._send(link, self._server.request(client), lambda: self._is_asked(number))

    def _is_asked(self, number: int) -> None:
        if self._asked is None and self._server.round == number:
            self._asked = time.monotonic()

    def _send(self, link: Link, data: bytes, sent: Callable[[], None]) -> None:
        link.send(data, self._waiting.again, sent, self._wake.set)

    async def _tell(self) -> None:
        """All who are there, or come back soon, that no more rounds follow."""
        begun = time.monotonic()
        while self._links or set(self._server.joined) - self._told:
            if self._fault is not None:
                raise self._fault
            for client in list(self._links):
                self._farewell(client)
            # Who is still reading the last request, late for its round, has the time for that.
            busy = any(link.busy for link in self._links.values())
            if time.monotonic() >= begun + (self._waiting.again if busy else self._waiting.closing):
                return
            await asyncio.sleep(_POLL)

    def _farewell(self, client: int) -> None:
        link = self._links[client]
        if link.free and client not in self._told:
            self._send(link, self._server.done(client), lambda: self._told.add(client))

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        limit = 2 * len(self._server.agreement.clients) + 16
        if self._strangers.number >= limit:
            self._strangers.refused("crowded", f"{limit} connections have not joined")
            writer.transport.abort()
            return
        self._strangers.number += 1
        client = None
        try:
            client = await self._joined(reader, writer)
        finally:
            self._strangers.number -= 1
            if client is None:
                writer.transport.abort()
        if client is not None:
            await self._listen(client, reader, writer)

    async def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int | None:
        """Who has joined on a new connection; None if it is to be closed."""
        try:
            frames.prepare(writer)
            async with asyncio.timeout(_GREETED):
                challenge = joining.challenge()
                await frames.write(writer, self._server.hello(challenge))
                data = await frames.read(reader, joining.JOINING)
        except Refused as error:  # of a length that is not read
            self._strangers.refused(error.name, str(error))
            return None
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            return None  # it has gone or says nothing, or this process ends
        client, refused = self._taken(data, challenge)
        if refused is not None and refused.client is not None:  # a client's own words, and not recorded
            self._log("refused", reason=refused.name, client=refused.client, detail=str(refused))
        elif refused is not None:  # who has not joined cannot be asked again; it may dial again
            self._strangers.refused(refused.name, str(refused))
        if client is None:
            return None
        before = self._links.get(client)
        if before is not None:  # a client has one connection; the one before is half open
            before.writer.transport.abort()
        self._links[client] = Link(writer)
        self._due.pop(client, None)
        self._told.discard(client)
        self._log("joined", client=client)
        self._wake.set()
        return client

    async def _listen(self, client: int, reader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                data = await frames.read(reader, self._server.limit + envelope.OVERHEAD)
                _, refused = self._taken(data)
                if refused is not None:
                    self._log("refused", reason=refused.name, client=client, detail=str(refused))
                self._wake.set()
        except Refused as error:  # of a length that is not read: there is no next message
            self._log("refused", reason=error.name, client=client, detail=str(error))
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # it has gone, or this process ends
        finally:
            self._ended.setdefault(client, []).append(frames.traffic(writer))
            link = self._links.get(client)
            if link is not None and link.writer is writer:
                del self._links[client]
                self._log("left", client=client)
            writer.close()

    def _taken(self, data: bytes, challenge: bytes | None = None) -> tuple[int | None, Refused | None]:
        """(whose message it is, why it is refused); what else goes wrong is the server's, and ends it."""
        try:
            return self._server.receive(data, challenge), None
        except Refused as error:
            return None, error
        except Exception as error:  # its state could not be written: nothing may be sent any more
            self._fault = error
            self._wake.set()
            return None, None
