"""One client of a federation, until its rounds are done; the same command goes on after a kill.

  python -m cepam_jax.deploy.join --agreement=/tmp/fed/agreement.json --key=/tmp/fed/0.key \\
      --directory=/tmp/fed/client0 --server=127.0.0.1:7443 --authority=/tmp/fed/ca.pem --data=own.npz

The .npz file has the training examples as the agreement says; without --data it is the client's part of the
configured data set, as in a simulation. Prints a line of JSON for each event. In the directory: client.state,
without which the client cannot go on.
"""

import argparse
from pathlib import Path

from cepam_jax.deploy import agreement, commands, dialling, frames, keys
from cepam_jax.deploy.client import Client
from cepam_jax.run import runtime


def opened(given: argparse.Namespace) -> Client:
    """The client of a command's arguments (agreement, key, directory, data), its step compiled."""
    runtime.keep_compiled()
    found, private = agreement.load(given.agreement), keys.read_private(given.key)
    number = agreement.number_of(found, keys.public_of(private))
    client = Client(given.directory, found, private, commands.examples_of(found, number, given.data))
    client.warm()
    commands.log("ready", client=client.number, name=found.names[number], answered=client.answered)
    return client


async def join(given: argparse.Namespace) -> None:
    """What the command does."""
    host, port = commands.address_of("--server", given.server)
    commands.check_secrecy(host, bool(given.authority), given.insecure, "--authority")
    client = opened(given)
    try:
        tls = frames.client_tls(given.authority) if given.authority else None
        await dialling.run(client, host, port, tls, commands.log, given.attempts)
        commands.log("finished", answered=client.answered, diverged=client.diverged)
    finally:
        client.close()


def arguments(parser: argparse.ArgumentParser) -> None:
    """What every command of a client is told."""
    parser.add_argument("--agreement", type=Path, required=True)
    parser.add_argument("--key", type=Path, required=True, help="private key of this client")
    parser.add_argument("--directory", type=Path, required=True, help="of this client alone")
    parser.add_argument("--data", default="", help=".npz file of training examples")


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments(parser)
    parser.add_argument("--server", required=True, help="host:port")
    parser.add_argument("--authority", type=Path, help="certificate of TLS that is trusted, PEM")
    parser.add_argument("--insecure", action="store_true", help="no TLS, though the server is elsewhere")
    parser.add_argument("--attempts", type=int, default=0, help="dials in vain before it gives up; 0: never")
    commands.end_with(join(parser.parse_args()))


if __name__ == "__main__":
    main()
