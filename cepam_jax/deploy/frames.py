"""Messages on a stream of bytes: their length in four bytes, and then they; and what a socket has carried."""

import asyncio
import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cepam_jax.deploy.envelope import Refused

_LENGTH = struct.Struct("<I")
HANDSHAKE = 10.0  # seconds in which TLS's handshake must be done
_KEEP_ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPALIVE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
_INFO = 256  # bytes of Linux's struct tcp_info that are asked for
_ACKED = 120  # where it has the bytes that the other side has acknowledged; behind them those that came


class Traffic(NamedTuple):
    """Bytes of a connection as the kernel counts them: TLS, frames and messages, without TCP's headers."""

    sent: int
    received: int


async def read(reader: asyncio.StreamReader, limit: int) -> bytes:
    """The next message.

    Args:
      reader: of the connection.
      limit: bytes of the longest that is read; no memory is allocated for more.

    Raises:
      Refused: oversized; the connection cannot be read on.
      asyncio.IncompleteReadError, OSError: the other side has gone.
    """
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > limit:
        raise Refused("oversized", f"{length} bytes, at most {limit}")
    return await reader.readexactly(length)


async def write(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Sends a message, and waits where the other side is slow; ConnectionError: nobody will get it."""
    if writer.is_closing():  # what is written then is dropped, and nobody says so
        raise ConnectionResetError("the connection is being ended")
    writer.write(_LENGTH.pack(len(data)) + data)
    await writer.drain()


class Link:
    """A connection that is sent to by a task of its own, so that a peer that does not read holds up nobody.

    Attributes:
      writer: of the connection.
    """

    def __init__(self, writer: asyncio.StreamWriter):
        """Of a connection that was prepared; nothing is sent yet."""
        self.writer = writer
        self._sending: asyncio.Task | None = None

    @property
    def busy(self) -> bool:
        """Whether a message is on its way, and no other may follow yet."""
        return self._sending is not None and not self._sending.done()

    @property
    def free(self) -> bool:
        """Whether a message may be sent: none is on its way, and the connection is not being ended."""
        return not self.busy and not self.writer.is_closing()

    def send(self, data: bytes, seconds: float, sent: Callable[[], None], ended: Callable[[], None]) -> None:
        """Begins to send a message; a connection that has not taken it in time is ended.

        Args:
          data: the message.
          seconds: how long it may take.
          sent: is called when all of it has been handed to the system.
          ended: is called afterwards, and also when it failed.
        """
        self._sending = asyncio.ensure_future(self._send(data, seconds, sent, ended))

    async def _send(self, data, seconds, sent, ended) -> None:
        try:
            async with asyncio.timeout(seconds):
                await write(self.writer, data)
        except OSError:  # it has gone, or does not read: TimeoutError is one
            self.writer.transport.abort()
        else:
            sent()
        finally:
            ended()

    def close(self) -> None:
        """Ends the connection; what is on its way is given up."""
        if self._sending is not None and not self._sending.done():
            self._sending.cancel()
            self.writer.transport.abort()
        self.writer.close()


def handshake(tls: ssl.SSLContext | None) -> dict[str, Any]:
    """Arguments of asyncio that bound the handshake; none in the clear, where they are not allowed."""
    return {} if tls is None else {"ssl_handshake_timeout": HANDSHAKE}


def prepare(writer: asyncio.StreamWriter) -> None:
    """Of a new connection: the system looks whether the other side is there, and `write` waits for it.

    A peer whose power or network has failed says nothing. After 30 s of silence the system asks it three
    times, ten seconds apart, and ends the connection. Without a limit on what is kept here, `write` would
    return while 64 KiB of a message, or all of it, were still to be sent.
    """
    writer.transport.set_write_buffer_limits(high=0)
    connection = writer.get_extra_info("socket")
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if hasattr(socket, name):  # macOS has its own name for the first, and others have none
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def traffic(writer: asyncio.StreamWriter) -> Traffic:
    """What the connection has carried so far; zeros where the system does not say."""
    connection = writer.get_extra_info("socket")
    if connection is None or not hasattr(socket, "TCP_INFO") or connection.fileno() < 0:
        return Traffic(0, 0)
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO)
    return Traffic(*struct.unpack_from("=QQ", info, _ACKED)) if len(info) >= _ACKED + 16 else Traffic(0, 0)


def server_tls(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.3 of a server with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # nobody resumes: they would be bytes for nothing
    context.load_cert_chain(certificate, key)
    return context


def client_tls(authority: Path) -> ssl.SSLContext:
    """TLS 1.3 of a client that trusts certificates of this authority alone, for the host that it dialled."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(authority)
    return context
