"""The server of a federation, until all its rounds are done; the same command goes on after a kill.

  python -m cepam_jax.deploy.serve --agreement=/tmp/fed/agreement.json --key=/tmp/fed/server.key \\
      --directory=/tmp/fed/server --listen=127.0.0.1:7443 \\
      --certificate=/tmp/fed/server.pem --certificate_key=/tmp/fed/server.key.pem

Prints a line of JSON for each event. In the directory: server.state (model, ledger, rounds), at the end
model.npz and privacy.txt.
"""

import argparse
import math
from pathlib import Path

from cepam_jax.deploy import agreement, commands, frames, keys, spent
from cepam_jax.deploy.server import Server
from cepam_jax.deploy.serving import Serving, Waiting
from cepam_jax.run import runtime


async def serve(given: argparse.Namespace) -> None:
    """What the command does."""
    host, port = commands.address_of("--listen", given.listen)
    commands.check_secrecy(host, bool(given.certificate), given.insecure, "--certificate")
    runtime.keep_compiled()
    found = agreement.load(given.agreement)
    server = Server(given.directory, found, keys.read_private(given.key))
    tls = frames.server_tls(given.certificate, given.certificate_key) if given.certificate else None
    commands.log("started", round=server.round, rounds=found.rounds, agreement=found.digest.hex()[:16])
    serving = Serving(server, commands.log, Waiting(given.again, given.patience))
    try:
        # Also of a run that is not finished.
        with commands.leaving(given.directory / "privacy.txt", lambda: spent.report(server) + "\n"):
            await serving.run(host, port, tls, lambda port: commands.log("listening", port=port))
        spent.write_model(server, given.directory / "model.npz")
        # What has no guarantee is null: JSON has no infinity.
        epsilons = {
            name: [float(value) if math.isfinite(value) else None for value in values]
            for name, values in spent.epsilons(server).items()
        }
        commands.log(
            "finished",
            rounds=server.round,
            epsilon=epsilons,
            bytes=serving.sums,
            refused=server.refusals,
        )
    finally:
        server.close()


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--agreement", type=Path, required=True)
    parser.add_argument("--key", type=Path, required=True, help="private key of the server")
    parser.add_argument("--directory", type=Path, required=True, help="of this run alone")
    parser.add_argument("--listen", default="127.0.0.1:7443", help="host:port; port 0: any")
    parser.add_argument("--certificate", type=Path, help="of TLS, PEM; without it in the clear")
    parser.add_argument("--certificate_key", type=Path)
    parser.add_argument("--insecure", action="store_true", help="no TLS, though clients are elsewhere")
    parser.add_argument(
        "--again", type=float, default=30.0, help="seconds for sending a model, then asked again"
    )
    parser.add_argument("--patience", type=float, default=600.0, help="seconds before a round gives up")
    given = parser.parse_args()
    if bool(given.certificate) != bool(given.certificate_key):
        parser.error("--certificate and --certificate_key belong together")
    commands.end_with(serve(given))


if __name__ == "__main__":
    main()
