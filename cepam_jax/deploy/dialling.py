"""A client on a socket: it dials the server, answers what it is asked, and dials again when it is cut off."""

import asyncio
import contextlib
import ssl

from cepam_jax.deploy import envelope, frames
from cepam_jax.deploy.client import Client
from cepam_jax.deploy.envelope import Refused
from cepam_jax.deploy.serving import Log

_SPOILT = ("oversized", "malformed", "version", "forged")
_FIRST, _LONGEST = 0.1, 5.0  # seconds before dialling again, which double


async def run(
    client: Client, host: str, port: int, tls: ssl.SSLContext | None, log: Log, attempts: int = 0
) -> None:
    """Until the server says that no more rounds follow.

    Args:
      client: that answers.
      host, port: of the server.
      tls: of the client; None: in the clear, which is for tests on one machine alone.
      log: is told of events.
      attempts: how often it dials in vain before it gives up; 0: it never does.

    Raises:
      ConnectionError: it gave up.
    """
    pause, vain = _FIRST, 0
    while not client.finished:
        try:
            reader, writer = await asyncio.open_connection(host, port, ssl=tls)
        except ssl.SSLCertVerificationError:
            raise
        except OSError as error:
            vain += 1
            if attempts and vain >= attempts:
                raise ConnectionError(f"{host}:{port} was dialled {vain} times in vain: {error}") from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST)
            continue
        pause, vain = _FIRST, 0
        try:
            await _answer(client, reader, writer, log)
        except (OSError, asyncio.IncompleteReadError, Refused) as error:
            log("cut", why=type(error).__name__)
            await asyncio.sleep(_FIRST)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _answer(client: Client, reader, writer, log: Log) -> None:
    limit = client.limit + envelope.OVERHEAD
    while not client.finished:
        data = await frames.read(reader, limit)
        try:
            # In a thread: the connection stays alive while it computes.
            answer = await asyncio.to_thread(client.answer, data)
        except Refused as error:
            log("refused", reason=error.name, detail=str(error))
            if error.name in _SPOILT:  # perhaps it was a greeting, which comes once on a connection
                raise
            continue
        if answer:
            await frames.write(writer, answer)
            log("answered", bytes=len(answer), rounds=client.answered)
