"""Federations over sockets whose processes are killed and messages spoilt: is what comes out right?

  python -m experiments.fault_campaign --runs=30

Each run starts a server and clients as processes and puts a proxy between them, which delays, duplicates and
alters messages and cuts connections, all at random. Now and then a process is killed with SIGKILL, the server
among them, and started again. In every other run two of three clients are drawn for a round. Afterwards:

  model    the answers that clients sent are put, without any failure, into a server that begins with the same
           keys: it comes to the same model, to the bit;
  ledger   it has the same ledger: each round counted once;
  keys     whoever answered a round sent one sequence of bytes, however often it was asked or killed;
  memory   nobody was refused as one that had forgotten something (rolledback, ahead, reenrolled);
  hung     no run takes longer than --limit seconds.
"""

import argparse
import asyncio
import collections
import contextlib
import multiprocessing
import os
import random
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from cepam_jax.deploy import (
    agreement,
    commands,
    demo,
    enrol,
    envelope,
    frames,
    join,
    keys,
    serve,
    step,
    store,
)
from cepam_jax.deploy.server import Server
from experiments.tables import markdown

CHANCES = {"delayed": 0.5, "duplicated": 0.15, "altered": 0.1, "cut": 0.03}
LONGEST = 0.3  # seconds of a delay
KILLS = 3  # of a run
NAMES = ("client0", "client1", "client2")
RIGHT = ("model", "ledger", "keys", "memory")
PARTS = multiprocessing.get_context("forkserver")


class Proxy:
    """Between clients and server, in the clear: what fails on a network, and worse.

    Attributes:
      counts: failure -> how often.
      answers: (round, client) -> the different bytes that the client sent as its answer.
      carried: messages so far.
    """

    def __init__(self, port: int, chance: random.Random):
        self._port, self._chance, self.carried = port, chance, 0
        self.counts: collections.Counter[str] = collections.Counter()
        self.answers: dict[tuple[int, int], set[bytes]] = {}

    async def connected(self, reader, writer) -> None:
        """One client's connection, and one to the server behind it."""
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.close()
            return
        ways = [self._carry(reader, back, True), self._carry(there, writer, False)]
        tasks = [asyncio.ensure_future(way) for way in ways]
        with contextlib.suppress(asyncio.CancelledError):  # the run is over
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        for end in (writer, back):
            end.close()

    async def _carry(self, reader, writer, up: bool) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                data = await frames.read(reader, 2**24)
                self.carried += 1
                if up:
                    self._note(data)
                if self._happens("cut"):
                    return
                if self._happens("delayed"):
                    await asyncio.sleep(self._chance.uniform(0, LONGEST))
                if self._happens("altered"):
                    place = self._chance.randrange(len(data))
                    spoilt = data[:place] + bytes([data[place] ^ self._chance.randrange(1, 256)])
                    await frames.write(writer, spoilt + data[place + 1 :])
                    continue
                await frames.write(writer, data)
                if self._happens("duplicated"):
                    await frames.write(writer, data)

    def _note(self, data: bytes) -> None:
        message = envelope.parse(data, 2**24)
        if message.kind == envelope.REPLY:
            self.answers.setdefault((message.round, message.client), set()).add(data)

    def _happens(self, what: str) -> bool:
        happens = self._chance.random() < CHANCES[what]
        self.counts[what] += happens
        return happens


def _process(log: Path, part, given: argparse.Namespace) -> None:
    """A part of the deployment as a process: what its command does, with its output in a file."""
    with log.open("a") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        commands.end_with(part(given))


def _given(folder: Path, who: str, **more) -> argparse.Namespace:
    common = {"agreement": folder / "agreement.json", "key": folder / f"{who}.key", "directory": folder / who}
    return argparse.Namespace(**common, insecure=False, **more)


def _started(folder: Path, who: str, port: int):
    if who == "server":
        more = {"listen": f"127.0.0.1:{port}", "certificate": None, "again": 1.0, "patience": 300.0}
        work = (serve.serve, _given(folder, who, **more))
    else:
        more = {"server": f"127.0.0.1:{port}", "authority": None, "attempts": 0, "data": ""}
        work = (join.join, _given(folder, who, **more))
    process = PARTS.Process(target=_process, args=(folder / f"{who}.log", *work))
    process.start()
    return process


def prepared(folder: Path, rounds: int, drawn: int = 0) -> agreement.Agreement:
    """Keys and agreement of a small federation; 0 are drawn: all."""
    changes = {"model": "linear", "num_clients": len(NAMES), "rounds": rounds, "partition.kind": "iid"}
    config = commands.config_of("configs/hospitals.py", [])
    changes |= {"evaluation.clients": "none", "local.steps": 2, "clients_per_round": drawn}
    config.update_from_flattened_dict(changes)
    server = enrol.make_key(folder / "server.key")
    clients = [enrol.make_key(folder / f"{name}.key") for name in NAMES]
    found = enrol.make_agreement(config, server, clients)
    agreement.save(found, folder / "agreement.json")
    return found


async def run(folder: Path, chance: random.Random, limit: float) -> tuple[Proxy, bool]:
    """One federation with failures; (its proxy, whether it hung)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    proxy = Proxy(port, chance)
    listener = await asyncio.start_server(proxy.connected, "127.0.0.1", 0)
    between = listener.sockets[0].getsockname()[1]
    ports = {"server": port} | dict.fromkeys(NAMES, between)
    processes = {who: _started(folder, who, its) for who, its in ports.items()}
    rounds = agreement.load(folder / "agreement.json").rounds
    expected = 2 * rounds * len(NAMES)  # messages
    triggers = sorted(chance.randrange(2, expected) for _ in range(KILLS))
    begun = time.monotonic()
    try:
        while processes["server"].exitcode != 0:
            await asyncio.sleep(0.01)
            if time.monotonic() - begun > limit:
                return proxy, True
            if triggers and proxy.carried >= triggers[0]:
                triggers.pop(0)
                # The server half of the time: it has the ledger.
                who = "server" if chance.random() < 0.5 else chance.choice(NAMES)
                if processes[who].exitcode is None:
                    os.kill(processes[who].pid, signal.SIGKILL)
                    proxy.counts[f"killed {'server' if who == 'server' else 'client'}"] += 1
            for who, process in processes.items():
                if process.exitcode not in (None, 0):
                    process.join()
                    processes[who] = _started(folder, who, ports[who])
        return proxy, False
    finally:
        listener.close()
        for process in processes.values():
            if process.exitcode is None:
                process.kill()
            process.join()


def replayed(folder: Path, found: agreement.Agreement, proxy: Proxy) -> Server:
    """A server that begins with the keys of a run, after the answers that the run's clients sent."""
    record, _ = store.load(folder / "server" / "server.state")
    again = folder / "again"
    again.mkdir()
    start = step.arrays_of(step.common(found).start)
    store.save(again / "server.state", record | {"round": 0, "ledger": "", "seen": {}}, start)
    server = Server(again, found, keys.read_private(folder / "server.key"))
    while not server.finished:
        for client in server.drawn:
            (answer,) = proxy.answers[server.round, client]
            server.receive(answer)
        server.close_round()
    return server


def judged(folder: Path, found: agreement.Agreement, proxy: Proxy) -> dict[str, bool]:
    """Whether model, ledger and keys of a run are right, and nobody was refused as forgetful."""
    once = all(len(different) == 1 for different in proxy.answers.values())
    record, arrays = store.load(folder / "server" / "server.state")
    server = replayed(folder, found, proxy) if once else None
    if server is None:
        return dict.fromkeys(RIGHT, False)
    leaves = step.arrays_of(server.state)
    model = all(np.array_equal(leaf, arrays[name]) for name, leaf in leaves.items())
    counted = record["ledger"] == server.ledger.text() and server.ledger.rounds == found.rounds
    server.close()
    refused = {event["reason"] for event in demo.events(folder / "server.log", "refused")}
    memory = not refused & {"rolledback", "ahead", "reenrolled"}
    return {"model": model, "ledger": counted, "keys": once, "memory": memory}


def one(number: int, given: argparse.Namespace) -> collections.Counter[str]:
    """Carries out a run and prints a line; what happened in it, and what was right, by name."""
    with tempfile.TemporaryDirectory(prefix="cepam_jax_") as name:
        folder = Path(name)
        found = prepared(folder, given.rounds, 2 * (number % 2))
        begun = time.monotonic()
        proxy, hung = asyncio.run(run(folder, random.Random(given.seed * 10**6 + number), given.limit))
        seconds = time.monotonic() - begun
        right = dict.fromkeys(RIGHT, False) if hung else judged(folder, found, proxy)
    said = [f"{what} {value}" for what, value in sorted(proxy.counts.items())]
    said += [f"{what} {'right' if value else 'WRONG'}" for what, value in right.items()]
    said += ["HUNG"] if hung else []
    print(f"run {number}: {seconds:.0f} s, {proxy.carried} messages, {', '.join(said)}", flush=True)
    totals = proxy.counts + collections.Counter({"messages": proxy.carried, "hung": int(hung), "runs": 1})
    return totals + collections.Counter({f"{what} right": int(value) for what, value in right.items()})


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=6, help="of each run")
    parser.add_argument("--seed", type=int, default=0, help="of the failures; the keys are new in every run")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds after which a run hangs")
    given = parser.parse_args()
    PARTS.set_forkserver_preload(["cepam_jax.deploy.serve", "cepam_jax.deploy.join"])
    totals: collections.Counter[str] = collections.Counter()
    for number in range(given.runs):
        totals += one(number, given)
    names = ["runs", "messages", *CHANCES, "killed server", "killed client"]
    names += [*(f"{what} right" for what in RIGHT), "hung"]
    print(markdown(["what", "number"], [[name, str(totals[name])] for name in names]))
    if totals["hung"] or any(totals[f"{what} right"] < totals["runs"] for what in RIGHT):
        sys.exit(1)


if __name__ == "__main__":
    main()
