"""A client's long-lived process on its own machine, which answers what a transport's short-lived ones bring.

  python -m cepam_jax.deploy.worker --agreement=/tmp/fed/agreement.json --key=/tmp/fed/0.key \\
      --directory=/tmp/fed/client0 --socket=/tmp/fed/client0/worker.sock

Flower starts a process for each message; importing JAX and compiling the step would come on top of each. This
one holds the compiled step, the keys and the data, and ends when the server has said that no more follows.
"""

import argparse
import asyncio
import contextlib
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
        self._fault: Exception | None = None

    async def run(self, path: Path) -> None:
        """Until the client is finished.

        Raises:
          ConfigError: others may write where the socket is.
          OSError: the client's state could not be written; nothing was answered.
          WorkdirInUseError: another process may have the client's state.
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
        if self._fault is not None:
            raise self._fault

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answer = await self._answer(reader)
        except (OSError, asyncio.IncompleteReadError):  # of the socket: whoever asked has gone
            answer = None
        if answer is not None:
            # The answer is on the disk, so whoever asked may go.
            with contextlib.suppress(OSError):
                await frames.write(writer, answer)
        writer.close()
        if self._client.finished:
            self._ended.set()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes | None:
        """What is sent back; None where the client itself has failed, which ends this process."""
        try:
            data = await frames.read(reader, self._client.limit + envelope.OVERHEAD)
        except Refused as error:
            return self._refused(error)
        async with self._turn:
            if self._fault is not None:
                return None
            start = time.monotonic()
            try:
                answer = await asyncio.to_thread(self._client.answer, data)
            except Refused as error:
                return self._refused(error)
            except Exception as error:  # its state could not be written: nobody may be answered any more
                self._fault = error
                self._ended.set()
                return None
        took = round(time.monotonic() - start, 4)
        commands.log("answered", rounds=self._client.answered, took=took)
        return relay.ANSWERED + answer

    def _refused(self, error: Refused) -> bytes:
        commands.log("refused", reason=error.name, detail=str(error))
        return relay.REFUSED + error.name.encode()


async def work(given: argparse.Namespace) -> None:
    """What the command does."""
    client = join.opened(given)
    try:
        await Worker(client).run(given.socket)
        commands.log("finished", answered=client.answered, diverged=client.diverged)
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
