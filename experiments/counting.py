"""A relay between a client of HTTPS and its server on this machine, which counts what goes up."""

import asyncio
import collections
import contextlib
import ssl
import threading
from pathlib import Path

from cepam_jax.deploy import frames

_PART = 2**16  # bytes that are read at once


class Requests:
    """Counts the requests of HTTP/1.1 on a stream of bytes.

    Attributes:
      number, heads, bodies: path -> how many requests, and the bytes of their heads and of their bodies.
    """

    def __init__(self) -> None:
        self.number: collections.Counter[str] = collections.Counter()
        self.heads: collections.Counter[str] = collections.Counter()
        self.bodies: collections.Counter[str] = collections.Counter()
        self._head, self._left = b"", 0

    def feed(self, data: bytes) -> None:
        """The next bytes.

        Raises:
          ValueError: a body whose length its head does not say.
        """
        while data:
            if self._left:
                self._left, data = max(self._left - len(data), 0), data[self._left :]
                continue
            head, end, rest = (self._head + data).partition(b"\r\n\r\n")
            if not end:
                self._head = head
                return
            first, *lines = head.decode("latin1").split("\r\n")
            fields = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
            }
            if "transfer-encoding" in fields:
                raise ValueError(f"{first}: a body in chunks")
            path, length = first.split(" ")[1].partition("?")[0], int(fields.get("content-length", "0"))
            self.number[path] += 1
            self.heads[path] += len(head) + len(end)
            self.bodies[path] += length
            self._head, self._left, data = b"", length, rest


class Relay:
    """Ends a client's TLS and dials the server with its own, in a thread; `with` starts and ends it.

    Attributes:
      port: on loopback, at which clients dial.
      requests: of all connections.
      failed: why a connection could not be counted; "" if all were.
    """

    def __init__(self, port: int, tls: Path):
        """Nothing is listened to yet.

        Args:
          port: of the server.
          tls: folder of `cepam_jax.deploy.certificates`, whose server both of them play.
        """
        self._server, self.port, self.failed = port, 0, ""
        self._own = frames.server_tls(tls / "server.pem", tls / "server.key")
        self._dials: ssl.SSLContext = frames.client_tls(tls / "ca.pem")
        self._open: set[asyncio.StreamWriter] = set()
        self._ended = [0, 0]
        self._counts: list[Requests] = []
        self._loop = asyncio.new_event_loop()

    @property
    def requests(self) -> Requests:
        """The sums over all connections so far."""
        found = Requests()
        for one in list(self._counts):
            found.number += one.number
            found.heads += one.heads
            found.bodies += one.bodies
        return found

    def traffic(self) -> tuple[int, int]:
        """(bytes up, bytes down) so far on the clients' sockets, as the kernel counts them, TLS included."""
        return asyncio.run_coroutine_threadsafe(self._traffic(), self._loop).result()

    async def _traffic(self) -> tuple[int, int]:
        now = [frames.traffic(writer) for writer in self._open]
        up = self._ended[0] + sum(one.received for one in now)
        return up, self._ended[1] + sum(one.sent for one in now)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        counts = Requests()
        self._counts.append(counts)
        back = None
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._server, ssl=self._dials)
            ways = [self._carry(reader, back, counts), self._carry(there, writer, None)]
            tasks = [asyncio.ensure_future(way) for way in ways]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
        except (OSError, asyncio.CancelledError):
            pass  # no server, and the client sees that its connection ends; or the relay ends
        finally:
            ended = frames.traffic(writer)
            self._ended[0] += ended.received
            self._ended[1] += ended.sent
            self._open.discard(writer)
            writer.close()
            if back is not None:
                back.close()

    async def _carry(self, reader, writer, counts: Requests | None) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_PART):
                if counts is not None:
                    try:
                        counts.feed(data)
                    except (ValueError, IndexError) as error:
                        self.failed = f"{type(error).__name__}: {error}"
                        return
                writer.write(data)
                await writer.drain()

    def __enter__(self) -> "Relay":
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        ready.wait()
        return self

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        started = asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._own)
        listener = self._loop.run_until_complete(started)
        self.port = listener.sockets[0].getsockname()[1]
        ready.set()
        self._loop.run_forever()
        listener.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    def __exit__(self, *raised) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
