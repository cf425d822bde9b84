"""Bytes on Flower's sockets: CEPAM's messages against Flower's own FedAvg of float32, on the same data.

  python -m experiments.flower_bytes

Two federations of the hospitals' data, one after the other, each with a SuperLink and SuperNodes as processes
of this machine, TLS and node authentication: examples/flower, which carries this package's messages, and
examples/flower_fedavg, Flower's FedAvg strategy on the same network in NumPy, from the same start and with
the same local steps. Counted (`experiments.flower_network`) is from the command `flwr run` until it returns.

Wants Flower (the extra `deploy`), and keeps Flower's files in a folder of its own.
"""

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from cepam_jax.deploy import commands, demo, step
from cepam_jax.deploy.agreement import Agreement
from cepam_jax.errors import EXPECTED, require
from cepam_jax.extras import need
from experiments import flower_network
from experiments.tables import markdown

_ROWS = (
    "bytes up, all",
    "of these, pushed bodies",
    "other bodies",
    "heads of HTTP's requests",
    "TLS",
    "bytes down, all",
    "requests",
)


class Found(NamedTuple):
    """What one federation took, sums over clients and rounds.

    Attributes:
      up, down: bytes of the sockets.
      requests: path -> (number, bytes of heads, bytes of bodies).
      seconds: of the run.
      accuracy: of its model on the test examples.
    """

    up: int
    down: int
    requests: dict[str, tuple[int, int, int]]
    seconds: float
    accuracy: float


def cepam(folder: Path, found: Agreement) -> Found:
    """The federation of examples/flower: this package's messages."""
    with contextlib.ExitStack() as stack:
        nodes, running = [], {}
        for name in found.names:
            path = folder / name / "worker.sock"
            path.parent.mkdir(mode=0o700, exist_ok=True)
            log = folder / f"{name}.log"
            own = ["cepam_jax.deploy.worker", *demo.common_of(folder, name), f"--socket={path}"]
            running[f"the worker of {name}"] = stack.enter_context(demo.process(log, *own)), log
            flower_network.wait(f"the worker of {name}", path.exists, log, running)
            nodes.append(f'worker="{path}"')
        net = stack.enter_context(flower_network.network(folder, nodes, running))
        files = {"agreement": "agreement.json", "key": "server.key", "directory": "server"}
        settings = {name: str(folder / file) for name, file in files.items()}
        model = folder / "server" / "model.npz"
        model.parent.mkdir(mode=0o700, exist_ok=True)
        took = flower_network.counted("examples/flower", settings, net, model, found.rounds)
    return Found(**took, accuracy=demo.judged(found, model)["accuracy"])


def fedavg(folder: Path, found: Agreement) -> Found:
    """The federation of examples/flower_fedavg: float32 arrays by Flower's own strategy."""
    config, start = found.config, step.common(found).start
    named = [(jax.tree_util.keystr(at), leaf) for at, leaf in _leaves(start)]
    np.savez(folder / "start.npz", **{short(name): leaf for name, leaf in named})
    nodes = []
    for number, name in enumerate(found.names):
        data = commands.examples_of(found, number, "")
        x = (data["x"] - found.constants["mean"]) / found.constants["std"]
        np.savez(folder / f"{name}.npz", x=x.astype(np.float32), label=data["label"].astype(np.float32))
        nodes.append(f'data="{folder / name}.npz"')
    local = config.local
    settings = {"start": str(folder / "start.npz"), "out": str(folder / "fedavg.npz")}
    settings |= {
        "rounds": found.rounds,
        "clients": len(nodes),
        "steps": local.steps,
        "batch": local.batch_size,
    }
    settings |= {"rate": float(local.learning_rate), "momentum": float(local.momentum)}
    with flower_network.network(folder, nodes, {}) as net:
        took = flower_network.counted(
            "examples/flower_fedavg", settings, net, folder / "fedavg.npz", found.rounds
        )
    with np.load(folder / "fedavg.npz") as arrays:
        np.savez(folder / "model.npz", **{name: arrays[short(name)] for name, _ in named})
    return Found(**took, accuracy=demo.judged(found, folder / "model.npz")["accuracy"])


def _leaves(start) -> list:
    return jax.tree_util.tree_leaves_with_path((start.params, start.statistics))


def short(name: str) -> str:
    """kernel0 for [0]['Dense_0']['kernel']."""
    layer, kind = name.split("'")[1::2]
    return kind + layer.removeprefix("Dense_")


def table(all_found: dict[str, Found], each: int) -> str:
    """Two tables in Markdown: bytes of the sockets with their parts, and what went up by the request's path.

    Args:
      all_found: name -> what it took; the first is compared with the second.
      each: rounds times clients.
    """
    columns, parts = [], []
    for name, one in all_found.items():
        messages = sum(body for path, (*_, body) in one.requests.items() if _pushes(path))
        heads = sum(head for _, head, _ in one.requests.values())
        bodies = sum(body for *_, body in one.requests.values())
        number = sum(count for count, *_ in one.requests.values())
        cells = [one.up, messages, bodies - messages, heads, one.up - heads - bodies, one.down, number]
        columns.append([cell / each for cell in cells])
        for path, (number, head, body) in sorted(one.requests.items()):
            values = f"{number / each:.2f}", f"{head / each:,.0f}", f"{body / each:,.0f}"
            parts.append([name, path.rpartition("/")[2], *values])
    rows = []
    for what, less, more in zip(_ROWS, *columns, strict=True):
        places = 1 if what == "requests" else 0
        rows.append([what, f"{less:,.{places}f}", f"{more:,.{places}f}", f"{more / less:.1f}"])
    rows.append(["test accuracy", *(f"{one.accuracy:.4f}" for one in all_found.values()), ""])
    detail = markdown(["run", "request", "number", "bytes of heads", "bytes of bodies"], parts)
    return markdown(["of a round and client", *all_found, "times less"], rows) + "\n\n" + detail


def _pushes(path: str) -> bool:
    return "/push-" in path


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--gamma", type=float, default=30.0)
    parser.add_argument("--folder", type=Path, help="empty or new; where logs stay; by default nowhere")
    given = parser.parse_args()
    changes = {"num_clients": given.clients, "rounds": given.rounds, "partition.kind": "iid"}
    changes |= {"evaluation.clients": "none", "mechanism.per_client.gamma": (given.gamma,) * given.clients}
    said = [f"{name}={value}" for name, value in changes.items()]
    all_found = {}
    try:
        need("experiments.flower_bytes", "deploy")
        for name in ("rounds", "clients"):
            least = 1 if name == "rounds" else 2
            require(getattr(given, name) >= least, f"--{name}", getattr(given, name), f"at least {least}")
        there = given.folder is not None and given.folder.exists() and any(given.folder.iterdir())
        require(not there, "--folder", str(given.folder), "one that is empty, or that does not exist yet")
        with contextlib.ExitStack() as stack:
            new = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cepam_jax_")))
            for name, run in {"CEPAM": cepam, "Flower's FedAvg": fedavg}.items():
                folder = new.resolve() / run.__name__
                folder.mkdir(parents=True, exist_ok=True)
                found = demo.prepared(folder, "configs/hospitals.py", said)
                all_found[name] = run(folder, found)
                one = all_found[name]
                print(f"{name}: {one.seconds / given.rounds:.1f} s a round, {one.up:,} bytes up", flush=True)
        d = step.common(found).coordinates
        print(f"\n{d:,} parameters, {given.rounds} rounds, {given.clients} clients; a round and client:\n")
        print(table(all_found, given.rounds * given.clients))
    except KeyboardInterrupt:
        sys.exit(130)
    except (*EXPECTED, OSError, RuntimeError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
