"""From a short-lived process to the worker beside it, over a socket of this machine; it imports little."""

import socket
import struct
from collections.abc import Mapping
from typing import Any

ANSWERED, REFUSED = b"\0", b"\1"
_LENGTH = struct.Struct("<I")
LONGEST = 2**32 - 1  # bytes that the length of a message can say; the worker's own limit is far less


def body_of(record: Mapping[str, Any] | None, name: str, limit: int) -> bytes | None:
    """The bytes of a record's field; None where it has none, or has more than `limit`.

    A record that came over a network may have anything in the field: `bytes` of a number would allocate as
    many zeros.
    """
    body = None if record is None else record.get(name)
    return body if isinstance(body, bytes) and len(body) <= limit else None


def ask(path: str, data: bytes, seconds: float = 300.0) -> tuple[bool, bytes]:
    """(whether the worker answered, its answer or why it refused) to a message of the server.

    Args:
      path: of the worker's socket.
      data: the message.
      seconds: how long is waited.

    Raises:
      OSError: there is no worker, or it has gone.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(seconds)
        connection.connect(path)
        connection.sendall(_LENGTH.pack(len(data)) + data)
        (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
        found = _exactly(connection, length)
    return found[:1] == ANSWERED, found[1:]


def _exactly(connection: socket.socket, number: int) -> bytes:
    found = bytearray()
    while len(found) < number:
        part = connection.recv(number - len(found))
        if not part:
            raise ConnectionError("the worker has gone")
        found += part
    return bytes(found)
