"""Seconds of the same round in other libraries: FedAvg on W1, W2, a Transformer, pfl's CIFAR-10, on one core.

  python -m experiments.benchmarks.peers --torch=v1/bin/python --fedjax=v2/bin/python --pfl=v1/bin/python \\
    --blazefl=v3/bin/python --flower=v4/bin/python

The Transformer (`transformer_tiny`, windows of 64 characters) has 10 clients, as if 10 of 100 speakers were
drawn; pfl-research's own benchmark of CIFAR-10 (arXiv 2404.06430) has 50 of its 1,000 users, each with 50
images for one pass of batches of 10; BlazeFL's has 100 clients with 500 images for five passes of batches of
50, and a small network; the other workloads have as many clients as --clients says.

Each peer needs an interpreter with its packages, as its file says (their versions exclude each other). Every
turn starts one process per peer, one after another on the same core; the median over all rounds of all turns
counts. A peer that cannot be run is listed with the reason.
"""

import json
import sys
from pathlib import Path

import numpy as np
from absl import flags

from experiments import cli
from experiments.benchmarks.processes import measured, ours
from experiments.tables import markdown

_HERE = Path(__file__).parent
WORKLOADS = ("mlp", "cnn2", "transformer", "pfl_cifar10", "blazefl_cifar10")
# Clients of the rounds that have a number of their own, and what else tells these workloads apart.
OWN_CLIENTS = {"transformer": 10, "pfl_cifar10": 50, "blazefl_cifar10": 100}
OWN_SETTINGS = {
    "pfl_cifar10": ("--steps=5", "--batch=10", "--own=50", "--momentum=0"),
    "blazefl_cifar10": ("--steps=50", "--batch=50", "--own=500", "--momentum=0", "--rounds=1"),
}
PEERS = {
    "torch": "torch_eager.py",
    "pfl": "pfl_fedavg.py",
    "fedjax": "fedjax_fedavg.py",
    "blazefl": "blazefl_fedavg.py",
    "flower": "flower_fedavg.py",
}


def define_flags():
    for name, file in PEERS.items():
        flags.DEFINE_string(name, sys.executable, f"Interpreter for peers/{file}.")
    flags.DEFINE_list("models", list(WORKLOADS), "Workloads.")
    flags.DEFINE_list("clients", ["30", "1000"], "Clients; more than 30 for the first workload only.")
    flags.DEFINE_integer("rounds", 5, "Rounds of a process, after one that is not counted.")
    flags.DEFINE_integer("turns", 3, "Processes of each peer.")
    flags.DEFINE_integer("core", 0, "CPU core that every process is pinned to (Linux); -1: all.")
    flags.DEFINE_string("output", "", "Also write the figures to this JSON file.")


def compare(model: str, clients: int) -> list[dict]:
    """One line per peer: median seconds, peak memory, or the error."""
    f = flags.FLAGS
    core = None if f.core < 0 else f.core
    rounds = max(1, min(f.rounds, 3000 // clients))
    settings = [f"--model={model}", f"--clients={clients}", f"--rounds={rounds}"]
    settings += OWN_SETTINGS.get(model, ())
    runs = {name: [] for name in ("cepam_jax", "cepam_jax Z1", *PEERS)}
    for _ in range(f.turns):
        runs["cepam_jax"].append(ours(*settings, core=core))
        runs["cepam_jax Z1"].append(ours(*settings, "--mechanism=cepam Z1", core=core))
        for name, file in PEERS.items():
            runs[name].append(measured([getattr(f, name), str(_HERE / file), *settings], core))
    lines = []
    for name, found in runs.items():
        line = {"peer": name, "model": model, "clients": clients}
        errors = [run["error"] for run in found if "error" in run]
        if errors:
            lines.append(line | {"error": errors[0]})
            continue
        seconds = np.concatenate([run["seconds_per_round"] for run in found])
        lines.append(
            line
            | {
                "version": found[0]["version"],
                "seconds": float(np.median(seconds)),
                "fastest": float(seconds.min()),
                "slowest": float(seconds.max()),
                "peak_mb": float(np.median([run["peak_mb"] for run in found])),
            }
        )
    return lines


def main():
    cli.choices("models", WORKLOADS)
    sizes = cli.numbers("clients", int)
    pairs = []
    for model in flags.FLAGS.models:
        own = (
            [OWN_CLIENTS[model]] if model in OWN_CLIENTS else [n for n in sizes if n <= 30 or model == "mlp"]
        )
        pairs += [(model, n) for n in own]
    lines = [line for model, clients in pairs for line in compare(model, clients)]
    baseline = {
        (line["model"], line["clients"]): line["seconds"]
        for line in lines
        if line["peer"] == "cepam_jax" and "error" not in line
    }
    rows = []
    for line in lines:
        start = [line["model"], line["clients"], line["peer"]]
        if "error" in line:
            rows.append([*start, "not run", "", "", line["error"][:60]])
            continue
        base = baseline.get((line["model"], line["clients"]))
        rows.append(
            [
                *start,
                f"{line['seconds']:.3f} ({line['fastest']:.3f} to {line['slowest']:.3f})",
                f"{line['seconds'] / base:.2f}" if base else "",
                f"{line['peak_mb']:.0f}",
                line["version"],
            ]
        )
    header = ["workload", "clients", "library", "s per round (range)", "over cepam_jax", "peak MB", "version"]
    print(markdown(header, rows))
    if flags.FLAGS.output:
        Path(flags.FLAGS.output).write_text(json.dumps(lines, indent=2))


if __name__ == "__main__":
    cli.run(main, define_flags)
