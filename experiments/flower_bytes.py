"""Bytes on Flower's sockets: CEPAM's messages against Flower's own FedAvg of float32, on the same data.

  python -m experiments.flower_bytes

Two federations of the hospitals' data, one after the other, each with a SuperLink and SuperNodes as processes
of this machine, TLS and node authentication: examples/flower, which carries this package's messages, and
examples/flower_fedavg, Flower's FedAvg strategy on the same network in NumPy, from the same start and with
the same local steps. Between each SuperNode and the SuperLink is a relay, which ends TLS and counts: bytes of
the socket as the kernel has them, and requests of HTTP by their path. Counted is from the command `flwr run`
until it returns.

Wants Flower (the extra `deploy`), and keeps Flower's files in a folder of its own.
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cepam_jax.deploy import commands, demo, step
from cepam_jax.deploy.agreement import Agreement
from cepam_jax.errors import EXPECTED, require
from cepam_jax.extras import need
from experiments.counting import Relay
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
ROOT, PROGRAMS = Path(__file__).resolve().parents[1], Path(sys.executable).parent
_PATIENCE = 120.0  # seconds for a part of Flower to start, and for a command
_ROUND = 60.0  # more seconds for each round
Running = dict[str, tuple[subprocess.Popen, Path]]


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


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Network(NamedTuple):
    """What runs.

    Attributes:
      relays: before the SuperLink, one for each SuperNode.
      running: name -> process and log.
    """

    relays: list[Relay]
    running: Running


def _wait(what: str, holds, log: Path, running: Running) -> None:
    end = time.monotonic() + _PATIENCE
    while not holds():
        demo.check(running)
        if time.monotonic() > end:
            said = "\n".join(log.read_text(errors="replace").splitlines()[-5:]) if log.exists() else ""
            raise RuntimeError(f"{what} did not come in {_PATIENCE:.0f} s; {log.name} ends with\n{said}")
        time.sleep(0.2)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _node_key(path: Path) -> None:
    """A key pair at `path` and `path`.pub."""
    command = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(path)]
    subprocess.run(command, check=True, capture_output=True)


def flwr(*arguments: object, log: Path, running: Running, seconds: float = _PATIENCE) -> None:
    """Flower's command.

    Args:
      arguments: of the command.
      log: file of its output.
      running: what it needs; it is ended where one of these has failed.
      seconds: after which it is ended, too.

    Raises:
      RuntimeError: it failed, or one of the others, and what it said; or it took too long.
    """
    program, end = PROGRAMS / "flwr", time.monotonic() + seconds
    with demo.process(log, *arguments, program=(str(program),)) as command:
        while command.poll() is None:
            demo.check(running)
            if time.monotonic() > end:
                raise RuntimeError(
                    f"flwr {arguments[0]} did not end in {seconds:.0f} s; its log is {log.name}"
                )
            time.sleep(0.1)
    demo.check({f"flwr {arguments[0]}": (command, log)})


@contextlib.contextmanager
def network(folder: Path, nodes: list[str], others: Running) -> Iterator[Network]:
    """A SuperLink and its SuperNodes, each behind a relay.

    Args:
      folder: has `tls`; Flower's own files and all logs go there too.
      nodes: what each SuperNode is configured with.
      others: what runs already, and must not fail.
    """
    os.environ |= {"FLWR_HOME": str(folder / "flwr"), "FLWR_TELEMETRY_ENABLED": "0"}
    # Flower's programs start each other, and the apps, which import this package.
    for name, first in (("PATH", PROGRAMS), ("PYTHONPATH", ROOT)):
        os.environ[name] = os.pathsep.join([str(first), *filter(None, [os.environ.get(name)])])
    tls, port = folder / "tls", _port()
    (folder / "flwr").mkdir(exist_ok=True)
    lines = ["[superlink.here]", f'address = "127.0.0.1:{port}"', f'root-certificates = "{tls / "ca.pem"}"']
    (folder / "flwr" / "config.toml").write_text("\n".join(lines) + "\n")
    with contextlib.ExitStack() as stack:
        link = [f"--ssl-ca-certfile={tls / 'ca.pem'}", f"--ssl-certfile={tls / 'server.pem'}"]
        link += [f"--ssl-keyfile={tls / 'server.key'}", "--enable-supernode-auth", "--port", port]
        link += ["--disable-runtime-dependency-installation"]
        log, program = folder / "superlink.log", (str(PROGRAMS / "flower-superlink"),)
        running = others | {
            "the SuperLink": (stack.enter_context(demo.process(log, *link, program=program)), log)
        }
        _wait("the SuperLink", lambda: _listens(port), log, running)
        relays: list[Relay] = []
        for number, config in enumerate(nodes):
            key, log = folder / f"node{number}", folder / f"supernode{number}.log"
            _node_key(key)
            said = folder / "register.log"
            flwr("supernode", "register", f"{key}.pub", "here", log=said, running=running)
            relays.append(stack.enter_context(Relay(port, tls)))
            node = [f"--root-certificates={tls / 'ca.pem'}", f"--auth-supernode-private-key={key}"]
            node += ["--superlink", f"127.0.0.1:{relays[-1].port}", "--port", _port()]
            node += ["--node-config", config]
            program = (str(PROGRAMS / "flower-supernode"),)
            started = stack.enter_context(demo.process(log, *node, program=program))
            running[f"SuperNode {number}"] = started, log
        for number, relay in enumerate(relays):
            log = folder / f"supernode{number}.log"
            _wait("a SuperNode", lambda relay=relay: _calls(relay, "/activate-node"), log, running)
        yield Network(relays, running)


def _calls(relay: Relay, name: str) -> int:
    return sum(count for path, count in relay.requests.number.items() if path.endswith(name))


def counted(app: str, settings: dict[str, Any], net: Network, model: Path, rounds: int) -> dict[str, Any]:
    """Runs an app on the network, which leaves its model; the fields of `Found` but for the accuracy.

    Raises:
      RuntimeError: the run failed, or something could not be counted.
    """
    log, relays = model.with_name("run.log"), net.relays
    given = " ".join(f"{name}={json.dumps(value)}" for name, value in settings.items())
    traffic, requests = [relay.traffic() for relay in relays], [relay.requests for relay in relays]
    begun = time.monotonic()
    arguments = "run", app, "here", "--stream", "--run-config", given
    flwr(*arguments, log=log, running=net.running, seconds=_PATIENCE + _ROUND * rounds)
    seconds = time.monotonic() - begun
    if not model.exists():
        raise RuntimeError("the run left no model:\n" + "\n".join(log.read_text().splitlines()[-8:]))
    after = [relay.traffic() for relay in relays]
    up, down = (sum(b[i] - a[i] for a, b in zip(traffic, after, strict=True)) for i in (0, 1))
    found: dict[str, list[int]] = {}
    for before, relay in zip(requests, relays, strict=True):
        if relay.failed:
            raise RuntimeError(f"a relay could not count: {relay.failed}")
        now = relay.requests
        for path in now.number:
            kinds = ((now.number, before.number), (now.heads, before.heads), (now.bodies, before.bodies))
            for place, (b, a) in enumerate(kinds):
                found.setdefault(path, [0, 0, 0])[place] += b[path] - a[path]
    sums = {path: tuple(values) for path, values in found.items() if values[0]}
    return {"up": up, "down": down, "requests": sums, "seconds": seconds}


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
            _wait(f"the worker of {name}", path.exists, log, running)
            nodes.append(f'worker="{path}"')
        net = stack.enter_context(network(folder, nodes, running))
        files = {"agreement": "agreement.json", "key": "server.key", "directory": "server"}
        settings = {name: str(folder / file) for name, file in files.items()}
        model = folder / "server" / "model.npz"
        model.parent.mkdir(mode=0o700, exist_ok=True)
        took = counted("examples/flower", settings, net, model, found.rounds)
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
    with network(folder, nodes, {}) as net:
        took = counted("examples/flower_fedavg", settings, net, folder / "fedavg.npz", found.rounds)
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
