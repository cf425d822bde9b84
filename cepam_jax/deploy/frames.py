"""Messages on a stream of bytes: their length in four bytes, and then they; and what a socket has carried."""

import asyncio
import socket
import ssl
import struct
from pathlib import Path
from typing import NamedTuple

from cepam_jax.deploy.envelope import Refused

_LENGTH = struct.Struct("<I")
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
    """Sends a message, and waits where the other side is slow."""
    writer.write(_LENGTH.pack(len(data)) + data)
    await writer.drain()


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
