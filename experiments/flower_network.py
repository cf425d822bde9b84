"""Flower's processes on this machine: a SuperLink and SuperNodes behind relays that count.

TLS and node authentication are on. Between each SuperNode and the SuperLink is a relay, which ends TLS and
counts: bytes of the socket as the kernel has them, and requests of HTTP by their path.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cepam_jax.deploy import demo
from experiments.counting import Relay

ROOT, PROGRAMS = Path(__file__).resolve().parents[1], Path(sys.executable).parent
_PATIENCE = 120.0  # seconds for a part of Flower to start, and for a command
_ROUND = 60.0  # more seconds for each round
Running = dict[str, tuple[subprocess.Popen, Path]]


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


def wait(what: str, holds: Callable[[], bool], log: Path, running: Running) -> None:
    """Until something holds.

    Args:
      what: is waited for, for the message.
      holds: is asked again and again.
      log: file of its output.
      running: what must not fail meanwhile.

    Raises:
      RuntimeError: one of these failed, or it took too long.
    """
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
        wait("the SuperLink", lambda: _listens(port), log, running)
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
            wait("a SuperNode", lambda relay=relay: _calls(relay, "/activate-node"), log, running)
        yield Network(relays, running)


def _calls(relay: Relay, name: str) -> int:
    return sum(count for path, count in relay.requests.number.items() if path.endswith(name))


def counted(app: str, settings: dict[str, Any], net: Network, model: Path, rounds: int) -> dict[str, Any]:
    """Runs an app on the network, which leaves its model; sums over clients and rounds.

    Returns:
      {"up", "down": bytes of the sockets, "requests": path -> (number, bytes of heads, bytes of bodies),
      "seconds": of the run}.

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
