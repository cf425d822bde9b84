"""A federation on this machine, over loopback: one process for the server, one for each client, TLS between.

  python -m cepam_jax.deploy.demo
  python -m cepam_jax.deploy.demo --config=configs/hospitals.py:split --set rounds=10

Makes keys and certificates in a folder of its own, trains, and prints what came out: accuracy, the epsilon of
each client against each adversary, and bytes up and down as the kernel counts them on all sockets. Ctrl-C
ends all processes; with --folder the same command goes on from there.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cepam_jax.data import sources
from cepam_jax.deploy import agreement, certificates, commands, enrol, step
from cepam_jax.deploy.agreement import Agreement
from cepam_jax.errors import EXPECTED
from cepam_jax.run import build, evaluation

# Of the eight hospitals the smallest asks for much noise, and the largest for little.
STRICT, USUAL, GENEROUS = 1.0, 10.0, 30.0


def prepared(folder: Path, name: str, changes: list[str]) -> Agreement:
    """Keys, certificates and agreement in a folder, those that are there already if there are."""
    path = folder / "agreement.json"
    if path.exists():
        return agreement.load(path)
    config = commands.config_of(name, changes)
    if not config.mechanism.per_client.gamma and config.mechanism.target == "gaussian":
        between = (USUAL,) * (config.num_clients - 2)
        config.mechanism.per_client.gamma = (STRICT, *between, GENEROUS)
    names = [f"client{number}" for number in range(config.num_clients)]
    certificates.make(folder / "tls", "127.0.0.1")
    server = enrol.make_key(folder / "server.key")
    found = enrol.make_agreement(
        config, server, [enrol.make_key(folder / f"{one}.key") for one in names], names
    )
    agreement.save(found, path)
    return found


@contextlib.contextmanager
def process(
    log: Path, *arguments: object, program: tuple[str, ...] = (sys.executable, "-m")
) -> Iterator[subprocess.Popen]:
    """`python -m arguments` with its output in a file; ended, if it has not, when the block is left."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    with log.open("ab") as out:
        command = [*program, *map(str, arguments)]
        started = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | one)
    try:
        yield started
    finally:
        if started.poll() is None:
            started.send_signal(signal.SIGTERM)
            try:
                started.wait(10)
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait()


def events(log: Path, name: str) -> list[dict[str, Any]]:
    """The lines of a log about an event."""
    found = []
    for line in log.read_text(errors="replace").splitlines() if log.exists() else []:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [event for event in found if isinstance(event, dict) and event.get("event") == name]


def common_of(folder: Path, who: str) -> list[object]:
    """Arguments that every process has."""
    return [
        f"--agreement={folder / 'agreement.json'}",
        f"--key={folder / who}.key",
        f"--directory={folder / who}",
    ]


def server_command(folder: Path, port: int, tls: bool = True) -> list[object]:
    """Arguments of the server's process."""
    found = ["cepam_jax.deploy.serve", *common_of(folder, "server"), f"--listen=127.0.0.1:{port}"]
    if tls:
        certificate = folder / "tls"
        found += [f"--certificate={certificate / 'server.pem'}"]
        found += [f"--certificate_key={certificate / 'server.key'}"]
    return found


def client_command(folder: Path, name: str, port: int, tls: bool = True) -> list[object]:
    """Arguments of a client's process."""
    found = ["cepam_jax.deploy.join", *common_of(folder, name), f"--server=127.0.0.1:{port}"]
    return found + ([f"--authority={folder / 'tls' / 'ca.pem'}"] if tls else [])


def run(
    folder: Path,
    found: Agreement,
    show: bool = True,
    clients: Callable[[int], dict[str, list[object]]] | None = None,
    watch: Callable[[dict[str, subprocess.Popen]], None] | None = None,
) -> dict[str, Any]:
    """Starts all processes and waits for them; the server's last event.

    Args:
      folder: of `prepared`.
      found: what is run.
      show: whether the number of the round is printed.
      clients: port -> name and arguments of each client's process; by default one for each client.
      watch: is called again and again with the processes by name, and may sleep.

    Raises:
      RuntimeError: one of them failed, and what it said.
    """
    log, watch = folder / "server.log", watch or (lambda running: time.sleep(0.1))
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(process(log, *server_command(folder, 0)))
        before = len(events(log, "listening"))
        port = _wait(lambda: events(log, "listening")[before:], {"server": (server, log)})[-1]["port"]
        running = {"server": (server, log)}
        own = {name: client_command(folder, name, port) for name in found.names}
        for name, command in (clients(port) if clients else own).items():
            said = folder / f"{name}.log"
            running[name] = (stack.enter_context(process(said, *command)), said)
        seen = 0
        while server.poll() is None:
            check(running)
            lines = events(log, "round") if show else []
            if len(lines) != seen:
                print(f"round {lines[-1]['round']} of {found.rounds}", end="\r", flush=True)
            seen = len(lines)
            watch({name: started for name, (started, _) in running.items()})
        check(running)
    return events(log, "finished")[-1]


def _wait(look, running) -> Any:
    while not (found := look()):
        check(running)
        time.sleep(0.05)
    return found


def check(running: dict[str, tuple[subprocess.Popen, Path]]) -> None:
    """That no process, by name and with its log, has failed; RuntimeError if one has, and what it said."""
    for name, (started, log) in running.items():
        if started.poll() not in (None, 0):
            said = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
            raise RuntimeError(f"{name} ended with code {started.returncode}:\n{said}")


def judged(found: Agreement, model: Path) -> dict[str, float]:
    """The task's metrics of a model file on the configured data set's test examples."""
    config, (task, _, _) = found.config, found.parts()
    start = step.common(found).start
    with np.load(model) as arrays:
        leaves, tree = jax.tree.flatten((start.params, start.statistics))
        named = jax.tree_util.tree_leaves_with_path((start.params, start.statistics))
        leaves = [arrays[jax.tree_util.keystr(place)] for place, _ in named]
    params, statistics = jax.tree.unflatten(tree, leaves)
    data = sources.load_examples(config.data.name, config.data.dir, sources.options_of(config))
    evaluate = jax.jit(evaluation.make_evaluate(task, config.evaluation.batch_size))
    state = start._replace(params=params, statistics=statistics)
    sums = evaluate(state.model, build.tested(data), None, np.zeros(0, np.int32)).test
    number = float(len(next(iter(data.test.values()))))
    return task.summarize(jax.tree.map(np.asarray, sums), number)


def table(found: Agreement, end: dict[str, Any], metrics: dict[str, float], seconds: float) -> str:
    """What came out, in lines of Markdown."""
    adversaries = list(end["epsilon"])
    heads = ["client", "examples", "gamma", *(f"epsilon, {a}" for a in adversaries)]
    gammas = found.config.mechanism.per_client.gamma or [found.config.mechanism.gamma] * len(found.names)
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    for number, name in enumerate(found.names):
        cells = [name, str(found.counts[number]), f"{gammas[number]:g}"]
        spent = [end["epsilon"][adversary][number] for adversary in adversaries]
        cells += ["no guarantee" if value is None else f"{value:.4g}" for value in spent]
        lines.append("| " + " | ".join(cells) + " |")
    shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    rounds, both = end["rounds"], end["bytes"]
    lines += ["", f"{rounds} rounds in {seconds:.1f} s; test {shown}"]
    if both is not None:  # else this process of the server has heard of one client at most
        each = both["received"] / rounds / len(found.names)
        lines.append(
            f"up {each:.0f} bytes a round and client, TLS's handshake included; in all {both['received']:,} "
            f"up, of which {both['messages']:,} of messages, and {both['sent']:,} down"
        )
    return "\n".join(lines)


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", default="configs/hospitals.py", help="file, or file:variant")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--folder", type=Path, help="where keys, states and logs stay; by default nowhere")
    given = parser.parse_args()
    start = time.monotonic()
    try:
        with contextlib.ExitStack() as stack:
            folder = given.folder or Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="cepam_jax_"))
            )
            folder.mkdir(parents=True, exist_ok=True)
            found = prepared(folder, given.config, given.set)
            end = run(folder, found)
            seconds = time.monotonic() - start
            print(table(found, end, judged(found, folder / "server" / "model.npz"), seconds))
    except KeyboardInterrupt:
        where = f"; the same command goes on from {given.folder}" if given.folder else ""
        print(f"interrupted: all processes are ended{where}", file=sys.stderr)
        sys.exit(130)
    except (*EXPECTED, OSError, RuntimeError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
