"""Several clients of a federation in one process, where one for each would not fit this machine.

  python -m experiments.benchmarks.many_clients --folder=/tmp/fed --port=7443 client0 client1

Each has its key, directory and connection, as `cepam_jax.deploy.join` has for one; they share the interpreter
and the compiled step, and answer in threads. The folder is one that `cepam_jax.deploy.demo` has prepared.
"""

import argparse
import asyncio
import contextlib
from pathlib import Path

from cepam_jax.deploy import commands, dialling, frames, join


async def work(given: argparse.Namespace) -> None:
    """Until the server has told all of them that no more rounds follow."""
    tls = frames.client_tls(given.folder / "tls" / "ca.pem")
    with contextlib.ExitStack() as stack:
        clients = []
        for name in given.names:
            own = {"key": given.folder / f"{name}.key", "directory": given.folder / name, "data": ""}
            agreement = given.folder / "agreement.json"
            clients.append(join.opened(argparse.Namespace(agreement=agreement, **own)))
            stack.callback(clients[-1].close)
        dialled = (dialling.run(one, "127.0.0.1", given.port, tls, commands.log) for one in clients)
        await asyncio.gather(*dialled)


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the demo")
    parser.add_argument("--port", type=int, required=True, help="of the server, on this machine")
    parser.add_argument("names", nargs="+", help="of the clients")
    commands.end_with(work(parser.parse_args()))


if __name__ == "__main__":
    main()
