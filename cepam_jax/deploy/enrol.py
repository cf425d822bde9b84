"""Before a federation begins: each party makes a key, and one of them puts the agreement together.

  python -m cepam_jax.deploy.enrol key --out=/tmp/fed/server.key
  python -m cepam_jax.deploy.enrol key --out=/tmp/fed/0.key
  python -m cepam_jax.deploy.enrol agreement --config=configs/hospitals.py --set rounds=10 \\
      --server=/tmp/fed/server.key.pub --clients /tmp/fed/?.key.pub --out=/tmp/fed/agreement.json

The private key stays on its machine; the file ending in .pub is what the others are given.
"""

import argparse
import sys
from pathlib import Path

from cepam_jax import files
from cepam_jax.data import sources
from cepam_jax.deploy import agreement, commands, keys
from cepam_jax.errors import EXPECTED
from cepam_jax.run import build


def make_key(path: Path) -> str:
    """A private key at `path` and its public one at `path`.pub, which is returned."""
    path.parent.mkdir(parents=True, exist_ok=True)
    public = keys.write_private(path)
    files.write(path.with_name(path.name + ".pub"), public + "\n")
    return public


def make_agreement(config, server: str, clients: list[str], names: list[str] | None = None):
    """The agreement of a configuration over its own data set; the arguments as for `agreement.make`."""
    data = sources.load_examples(config.data.name, config.data.dir, sources.options_of(config))
    return agreement.make(config, data, build.split_of(config, data), server, clients, names)


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    key = parts.add_parser("key", help="a key of one party")
    key.add_argument("--out", type=Path, required=True)
    made = parts.add_parser("agreement", help="the file that all parties have")
    made.add_argument("--config", required=True, help="file, or file:variant")
    made.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    made.add_argument("--server", type=Path, required=True, help="its public key")
    made.add_argument("--clients", type=Path, nargs="+", required=True, help="their public keys, in order")
    made.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    try:
        if given.part == "key":
            print(make_key(given.out))
            return
        public = [keys.read_public(path) for path in (given.server, *given.clients)]
        config = commands.config_of(given.config, given.set)
        names = [path.name.split(".")[0] for path in given.clients]
        found = make_agreement(config, public[0], public[1:], names)
        agreement.save(found, given.out)
        print(f"agreement {found.digest.hex()[:16]}: {len(found.names)} clients, {found.rounds} rounds")
    except (*EXPECTED, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
