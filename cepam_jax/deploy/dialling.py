"""A client on a socket: it dials the server, answers what it is asked, and dials again when it is cut off."""

import asyncio
import contextlib
import ssl
from collections.abc import Iterator

from cepam_jax.deploy import envelope, frames
from cepam_jax.deploy.client import Client
from cepam_jax.deploy.envelope import Refused
from cepam_jax.deploy.serving import Log

_SPOILT = ("oversized", "malformed", "version", "forged")
_FIRST, _LONGEST = 0.1, 5.0  # seconds before dialling again, which double
_GREETED = 30.0  # seconds in which the server must greet


class Cut(Exception):
    """The connection failed; what the client itself fails with is never one."""


async def run(
    client: Client, host: str, port: int, tls: ssl.SSLContext | None, log: Log, attempts: int = 0
) -> None:
    """Until the server says that no more rounds follow.

    Args:
      client: that answers.
      host, port: of the server.
      tls: of the client; None: in the clear, which is for tests on one machine alone.
      log: is told of events.
      attempts: how often it dials in vain, which is without being asked anything then, before it gives up;
        0: it never does.

    Raises:
      ConnectionError: it gave up.
      OSError: the client's state could not be written; nothing was sent.
      WorkdirInUseError: another process may have the client's state.
    """
    pause, vain = _FIRST, 0
    while not client.finished:
        try:
            reader, writer = await asyncio.open_connection(host, port, ssl=tls, **frames.handshake(tls))
        except ssl.SSLCertVerificationError:
            raise
        except OSError as error:
            vain += 1
            _check(host, port, vain, attempts, error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST)
            continue
        inbox, asked = None, client.asked
        try:
            with _io():
                frames.prepare(writer)
            inbox = _Inbox(reader, client.limit + envelope.OVERHEAD)
            await _answer(client, inbox, writer, log)
        except (Cut, Refused) as error:
            log("cut", why=str(error) if isinstance(error, Cut) else type(error).__name__)
            writer.transport.abort()  # what is still to be sent would keep it open
            # Who was asked has dialled well; a server that lets nobody in is not dialled all the time.
            if client.asked > asked:
                pause, vain = _FIRST, 0
            else:
                vain += 1
                _check(host, port, vain, attempts, error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST)
        finally:
            if inbox is not None:
                inbox.close()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def _check(host: str, port: int, vain: int, attempts: int, error: Exception) -> None:
    if attempts and vain >= attempts:
        raise ConnectionError(f"{host}:{port} was dialled {vain} times in vain: {error}") from error


@contextlib.contextmanager
def _io() -> Iterator[None]:
    """Around what a socket does, and nothing else: Cut in place of its errors."""
    try:
        yield
    except (OSError, asyncio.IncompleteReadError) as error:
        raise Cut(type(error).__name__) from error


class _Inbox:
    """Reads while the client computes, and keeps the newest message; a server repeats itself or goes on.

    A server that asks again would otherwise wait until this client has computed, and cut it.
    """

    def __init__(self, reader: asyncio.StreamReader, limit: int):
        self._queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._reading = asyncio.ensure_future(self._read(reader, limit))

    async def _read(self, reader: asyncio.StreamReader, limit: int) -> None:
        while True:
            data = await frames.read(reader, limit)
            while not self._queue.empty():
                self._queue.get_nowait()
            self._queue.put_nowait(data)

    async def next(self, seconds: float | None) -> bytes:
        """The newest message; TimeoutError after these seconds, and what `frames.read` raises."""
        if not self._queue.empty():
            return self._queue.get_nowait()
        getting = asyncio.ensure_future(self._queue.get())
        try:
            both = {getting, self._reading}
            done, _ = await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if getting in done:
                return getting.result()
            if not done:
                raise TimeoutError
            self._reading.result()
            raise AssertionError("it reads until it fails")
        finally:
            getting.cancel()

    def close(self) -> None:
        """Reads no more."""
        self._reading.cancel()
        if self._reading.done() and not self._reading.cancelled():
            self._reading.exception()  # was seen, or is of no interest any more


async def _answer(client: Client, inbox: _Inbox, writer: asyncio.StreamWriter, log: Log) -> None:
    seconds: float | None = _GREETED
    before, said = client.asked, False
    while not client.finished:
        try:
            with _io():
                data = await inbox.next(seconds)
        except Cut as error:
            if said and client.asked == before:  # as it does with who is refused, or dials a second time
                raise Cut(f"the server closed after the join, and its log may say why ({error})") from error
            raise
        seconds = None
        try:
            # In a thread: the connection stays alive while it computes. Its OSError is of the state on the
            # disk, and ends the process: nobody may be sent what is not written.
            answer = await asyncio.to_thread(client.answer, data)
        except Refused as error:
            log("refused", reason=error.name, detail=str(error))
            if error.name in _SPOILT:  # perhaps it was a greeting, which comes once on a connection
                raise
            continue
        if answer:
            with _io():
                await frames.write(writer, answer)
            said = True
            log("answered", rounds=client.answered)
