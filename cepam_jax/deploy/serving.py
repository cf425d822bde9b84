"""The server on a socket: it greets who comes, asks who was drawn, and closes rounds."""

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable
from typing import NamedTuple

from cepam_jax.deploy import envelope, frames
from cepam_jax.deploy.envelope import Refused
from cepam_jax.deploy.frames import Traffic
from cepam_jax.deploy.server import Server

_GREETED = 30.0  # seconds in which who has dialled must join
Log = Callable[..., None]


class Stalled(RuntimeError):
    """A round did not end in time; nothing is lost, and the same command goes on from there."""


class Waiting(NamedTuple):
    """How long is waited.

    Attributes:
      again: seconds after which who has not answered is asked again the same.
      patience: seconds after which a round that needs more answers ends the server.
      closing: seconds at the end, in which clients that are away may come back and be told.
    """

    again: float = 30.0
    patience: float = 600.0
    closing: float = 2.0


class Serving:
    """One server on one socket; `run` is all that is called.

    Attributes:
      traffic: client -> bytes on its connections, those that are closed and the last.
    """

    def __init__(self, server: Server, log: Log, waiting: Waiting | None = None):
        """Nothing is listened to yet.

        Args:
          server: at the round where it goes on.
          log: is told of events, by name and with plain values.
          waiting: how long.
        """
        self._server, self._log, self._waiting = server, log, waiting or Waiting()
        self._links: dict[int, asyncio.StreamWriter] = {}
        self._ended: dict[int, list[Traffic]] = {}
        self._told: set[int] = set()
        self._opened = time.monotonic()
        self._wake = asyncio.Event()

    @property
    def traffic(self) -> dict[int, Traffic]:
        """Bytes sent to and received from each client, by this process."""
        return {
            client: Traffic(*(sum(part) for part in zip(*ended, strict=True)))
            for client, ended in sorted(self._ended.items())
        }

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
          OSError: the address is taken, or the state could not be written.
        """
        listener = await asyncio.start_server(self._connected, host, port, ssl=tls)
        ready(listener.sockets[0].getsockname()[1])
        try:
            self._open()
            while not self._server.finished:
                await self._wait()
            await self._tell()
        finally:
            listener.close()
            for writer in list(self._links.values()):
                writer.close()
            self._links.clear()

    async def _wait(self) -> None:
        """Until something has arrived, somebody is to be asked again, or the round is to end."""
        config, server = self._server.agreement.config.links, self._server
        since = time.monotonic() - self._opened
        over = config.ends != "slowest" and config.deadline > 0 and since >= config.deadline
        if server.enough or over:
            await self._close_round()
            return
        if since > self._waiting.patience:
            raise Stalled(
                f"round {server.round + 1} waits for clients {', '.join(map(str, server.missing))} since "
                f"{since:.0f} s; what has arrived is asked for again when this server is started again"
            )
        self._wake.clear()
        pause = self._waiting.again
        if config.ends != "slowest" and config.deadline > 0:
            pause = min(pause, config.deadline - since)
        try:
            await asyncio.wait_for(self._wake.wait(), pause)
        except TimeoutError:
            for client in server.missing:
                await self._ask(client)

    def _open(self) -> None:
        self._opened = time.monotonic()

    async def _close_round(self) -> None:
        seconds = time.monotonic() - self._opened
        found = self._server.close_round()
        self._log("round", **found, seconds=round(seconds, 4))
        self._open()
        for client in self._server.drawn:
            await self._ask(client)

    async def _ask(self, client: int) -> None:
        writer = self._links.get(client)
        if writer is not None and client in self._server.missing:
            with contextlib.suppress(OSError):
                await frames.write(writer, self._server.request(client))

    async def _tell(self) -> None:
        """All who are there, or come back soon, that no more rounds follow."""
        for client in list(self._links):
            await self._farewell(client)
        end = time.monotonic() + self._waiting.closing
        while (self._links or set(self._server.joined) - self._told) and time.monotonic() < end:
            await asyncio.sleep(0.02)

    async def _farewell(self, client: int) -> None:
        with contextlib.suppress(OSError):
            await frames.write(self._links[client], self._server.done(client))
            self._told.add(client)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = None
        try:
            await frames.write(writer, self._server.hello())
            while True:
                wait = _GREETED if client is None else None
                reading = frames.read(reader, self._server.limit + envelope.OVERHEAD)
                data = await asyncio.wait_for(reading, wait)
                client = await self._taken(data, client, writer)
        except Refused:
            pass  # of a length that is not read, or before it has joined: there is no next message
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # it has gone, or this process ends
        finally:
            if client is not None:
                self._ended.setdefault(client, []).append(frames.traffic(writer))
                if self._links.get(client) is writer:
                    del self._links[client]
                    self._log("left", client=client)
            writer.close()

    async def _taken(self, data: bytes, client: int | None, writer: asyncio.StreamWriter) -> int | None:
        """Whose connection this is, after a message on it."""
        try:
            sender = self._server.receive(data)
        except Refused as error:
            self._log("refused", reason=error.name, client=client, detail=str(error))
            if client is None:  # who has not joined cannot be asked again; it may dial again
                raise
            return client
        if client is None:
            self._links[sender] = writer
            self._log("joined", client=sender)
            if self._server.finished:
                await self._farewell(sender)
            await self._ask(sender)
        self._wake.set()
        return sender if client is None else client
