"""What a federation over sockets costs: rounds a second, bytes, CPU and memory of the server, by clients.

  python -m experiments.benchmarks.deploy
  python -m experiments.benchmarks.deploy --clients=5 --config=configs/hospitals.py:fedavg

The server of `cepam_jax.deploy.demo`, and clients as processes of the same machine, over loopback with TLS.
Where there are more clients than --processes, several share a process, and with it the interpreter and the
compiled step; each keeps its key, directory and connection. The first round, in which the server compiles, is
not counted but for its bytes.

Bytes are for each round and client, as the kernel counts them on the server's sockets, TLS's handshake and
the farewell at the end included. CPU and memory are read from /proc, so on Linux alone.
"""

import itertools
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import flags

from cepam_jax.deploy import demo
from cepam_jax.errors import ConfigError, require
from experiments import cli
from experiments.tables import markdown

_POLL = 0.02  # seconds between looks at a process


def define_flags():
    flags.DEFINE_list("clients", ["5", "20", "50"], "Numbers of clients.")
    flags.DEFINE_integer("rounds", 20, "Rounds of each.")
    flags.DEFINE_integer("processes", 10, "Processes of clients, at most; more clients share them.")
    flags.DEFINE_string("config", "configs/hospitals.py", "File, or file:variant.")
    flags.DEFINE_float("gamma", 30.0, "Of all clients, where the mechanism has one.")
    flags.DEFINE_string("output", "", "Also write the figures to this JSON file.")


def shared(names: tuple[str, ...], processes: int) -> list[tuple[str, ...]]:
    """The clients of each process, as even as can be."""
    number = min(processes, len(names))
    cuts = [round(i * len(names) / number) for i in range(number + 1)]
    return [names[a:b] for a, b in itertools.pairwise(cuts)]


def period(stamps: list[float]) -> float:
    """Median seconds from the end of a round to the end of the next.

    Args:
      stamps: seconds at which rounds ended, two at least.
    """
    return statistics.median(b - a for a, b in itertools.pairwise(stamps))


class Watch:
    """Looks at running processes.

    Attributes:
      cpu: (rounds that the server had done, CPU seconds of its process) of each look.
      peaks: name -> largest resident memory of the process so far, in megabytes.
    """

    def __init__(self, log: Path):
        self._log = log
        self.cpu: list[tuple[int, float]] = []
        self.peaks: dict[str, float] = {}

    def __call__(self, running: dict[str, subprocess.Popen]) -> None:
        """One look, and a short sleep."""
        done = len(demo.events(self._log, "round"))
        for name, process in running.items():
            try:
                status = (Path("/proc") / str(process.pid) / "status").read_text()
                # Behind the name in brackets, which may have blanks: field 3 on.
                stat = (Path("/proc") / str(process.pid) / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            peak = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
            if peak:
                self.peaks[name] = int(peak[0]) / 1e3
            if name == "server":
                ticks = int(stat[11]) + int(stat[12])  # fields 14 and 15: in user and in system mode
                self.cpu.append((done, ticks / os.sysconf("SC_CLK_TCK")))
        time.sleep(_POLL)

    def cpu_of_round(self, rounds: int) -> float:
        """CPU seconds of the server for each round, from the end of the first to that of the last.

        Args:
          rounds: of the run, two at least.
        """
        first = next(look for look in self.cpu if look[0] >= 1)
        last = next((look for look in self.cpu if look[0] >= rounds), self.cpu[-1])
        if last[0] <= first[0]:
            return float("nan")
        return (last[1] - first[1]) / (last[0] - first[0])


def measure(clients: int) -> dict[str, Any]:
    """One federation, and what it took."""
    f = flags.FLAGS
    changes = {
        "num_clients": clients,
        "rounds": f.rounds,
        "partition.kind": "iid",
        "evaluation.clients": "none",
    }
    changes["mechanism.per_client.gamma"] = (f.gamma,) * clients
    with tempfile.TemporaryDirectory(prefix="cepam_jax_") as name:
        folder = Path(name)
        found = demo.prepared(folder, f.config, [f"{field}={value}" for field, value in changes.items()])
        groups, watch = shared(found.names, f.processes), Watch(folder / "server.log")

        def commands(port: int) -> dict[str, list[object]]:
            front = ["experiments.benchmarks.many_clients", f"--folder={folder}", f"--port={port}"]
            return {f"process{i}": [*front, *group] for i, group in enumerate(groups)}

        end = demo.run(folder, found, show=False, clients=commands, watch=watch)
        stamps = [event["seconds"] for event in demo.events(folder / "server.log", "round")]
    each = found.rounds * clients
    both = end["bytes"]
    return {
        "clients": clients,
        "processes": len(groups),
        "coordinates": demo.step.common(found).coordinates,
        "rounds": found.rounds,
        "seconds_of_a_round": period(stamps),
        "bytes_up": both["received"] / each,
        "message_bytes_up": both["messages"] / each,
        "bytes_down": both["sent"] / each,
        "server_cpu_s": watch.cpu_of_round(found.rounds),
        "server_peak_mb": watch.peaks["server"],
        "client_peak_mb": max(mb for name, mb in watch.peaks.items() if name != "server"),
    }


def main():
    f = flags.FLAGS
    numbers = cli.numbers("clients", int)
    for number in numbers:
        require(number >= 2, "--clients", number, "at least 2")
    require(f.rounds >= 3, "--rounds", f.rounds, "at least 3, of which the first is not counted")
    require(f.processes >= 1, "--processes", f.processes, "at least 1")
    if not Path("/proc/self/stat").exists():
        raise ConfigError("this system has no /proc, from which CPU and memory of processes are read")
    found = []
    for number in numbers:
        found.append(measure(number))
        print(f"{number} clients: {found[-1]['seconds_of_a_round']:.3f} s a round", flush=True)
    print(
        f"\n{found[0]['coordinates']:,} parameters, {f.rounds} rounds, {os.cpu_count()} cores, {f.config}\n"
    )
    rows = [
        [
            one["clients"],
            one["processes"],
            f"{1 / one['seconds_of_a_round']:.2f}",
            f"{one['bytes_up']:,.0f}",
            f"{one['message_bytes_up']:,.0f}",
            f"{one['bytes_down']:,.0f}",
            f"{one['server_cpu_s']:.3f}",
            f"{one['server_peak_mb']:.0f}",
            f"{one['client_peak_mb']:.0f}",
        ]
        for one in found
    ]
    heads = ["clients", "their processes", "rounds a second", "bytes up", "messages alone", "bytes down"]
    heads += ["server's CPU s a round", "server's peak MB", "peak MB of a clients' process"]
    print(markdown(heads, rows))
    if f.output:
        Path(f.output).write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    cli.run(main, define_flags)
