"""A client's long-lived process on its own machine, which answers what a transport's short-lived ones bring.

  python -m cepam_jax.deploy.worker --agreement=/tmp/fed/agreement.json --key=/tmp/fed/0.key \\
      --directory=/tmp/fed/client0 --socket=/tmp/fed/client0/worker.sock

Flower starts a process for each message; importing JAX and compiling the step would come on top of each. This
one holds the compiled step, the keys and the data, and ends when the server has said that no more follows.
"""

import argparse
import asyncio
import os
import stat
import time
from pathlib import Path

from cepam_jax.deploy import commands, envelope, frames, join, relay
from cepam_jax.deploy.client import Client
from cepam_jax.deploy.envelope import Refused
from cepam_jax.errors import ConfigError


class Worker:
    """Answers messages that come over a socket of this machine, one at a time."""

    def __init__(self, client: Client):
        self._client, self._ended, self._turn = client, asyncio.Event(), asyncio.Lock()

    async def run(self, path: Path) -> None:
        """Until the client is finished.

        Raises:
          ConfigError: others may write where the socket is.
        """
        if path.parent.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigError(
                f"{path.parent} can be written to by others; the socket must be its owner's alone"
            )
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            listener = await asyncio.start_unix_server(self._connected, path)
        finally:
            os.umask(before)
        commands.log("listening", socket=str(path))
        async with listener:
            await self._ended.wait()
        path.unlink(missing_ok=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            data = await frames.read(reader, self._client.limit + envelope.OVERHEAD)
            async with self._turn:
                start = time.monotonic()
                answer = relay.ANSWERED + await asyncio.to_thread(self._client.answer, data)
            took = round(time.monotonic() - start, 4)
            commands.log("answered", bytes=len(answer) - 1, rounds=self._client.answered, took=took)
        except Refused as error:
            commands.log("refused", reason=error.name, detail=str(error))
            answer = relay.REFUSED + error.name.encode()
        except (OSError, asyncio.IncompleteReadError):
            writer.close()
            return
        try:
            await frames.write(writer, answer)
        except OSError:
            pass  # whoever asked has gone; the answer is on the disk
        writer.close()
        if self._client.finished:
            self._ended.set()


async def work(given: argparse.Namespace) -> None:
    """What the command does."""
    client = join.opened(given)
    try:
        await Worker(client).run(given.socket)
        commands.log("finished", answered=client.answered)
    finally:
        client.close()


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    join.arguments(parser)
    parser.add_argument("--socket", type=Path, required=True, help="where the transport finds this process")
    commands.end_with(work(parser.parse_args()))


if __name__ == "__main__":
    main()
