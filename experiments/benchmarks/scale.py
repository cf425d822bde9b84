"""Seconds and memory of a round against the number of clients, and against the size of the model.

  python -m experiments.benchmarks.scale

Every line is a process of its own. "peak" is the largest resident memory of the process, "buffers" what
XLA allots for intermediate results, in copies of the model too. Neither grows with the number of clients.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags

from cepam_jax.errors import ConfigError
from experiments import cli
from experiments.benchmarks import workloads
from experiments.benchmarks.processes import ours
from experiments.tables import markdown


def define_flags():
    flags.DEFINE_list("clients", ["30", "100", "1000", "10000"], "Clients of a W1 round.")
    flags.DEFINE_list("models", ["mlp", "dense1M", "dense25M"], "Models of a round of four clients.")
    flags.DEFINE_list("mechanisms", ["fedavg", "cepam Z1", "cepam E8"], "Mechanisms for the models.")
    flags.DEFINE_list("chunks", ["1", "4"], "Clients under one vmap, for the models.")
    flags.DEFINE_integer("core", 0, "CPU core that every process is pinned to (Linux); -1: all.")
    flags.DEFINE_string("output", "", "Also write the figures to this JSON file.")


def measure(core, *settings):
    found = ours(*settings, core=core)
    if "error" in found:
        raise ConfigError(f"{' '.join(settings)}: {found['error']}")
    return {**found, "seconds": float(np.median(found["seconds_per_round"]))}


def main():
    f = flags.FLAGS
    cli.choices("models", workloads.SHAPES)
    cli.choices("mechanisms", workloads.MECHANISMS)
    core = None if f.core < 0 else f.core
    by_clients = []
    for clients in cli.numbers("clients", int):
        for mechanism in ("fedavg", "cepam Z1"):
            rounds = max(1, min(5, 3000 // clients))
            by_clients.append(
                measure(core, f"--clients={clients}", f"--mechanism={mechanism}", f"--rounds={rounds}")
            )
    first = {line["mechanism"]: line for line in reversed(by_clients)}
    table = markdown(
        ["clients", "mechanism", "s per round", "ms per client", "peak MB", "over the first"],
        [
            [
                line["clients"],
                line["mechanism"],
                f"{line['seconds']:.3f}",
                f"{1e3 * line['seconds'] / line['clients']:.2f}",
                f"{line['peak_mb']:.0f}",
                f"{line['peak_mb'] - first[line['mechanism']]['peak_mb']:+.0f} MB",
            ]
            for line in by_clients
        ],
    )
    print(f"W1 (mlp) on {by_clients[0]['device']}, {by_clients[0]['version']}\n\n{table}\n", flush=True)
    by_size = [
        measure(
            core,
            *(f"--model={model}", f"--mechanism={mechanism}", f"--per_chunk={chunk}"),
            *("--clients=4", "--steps=2", "--rounds=3"),
        )
        for model in f.models
        for mechanism in f.mechanisms
        for chunk in cli.numbers("chunks", int)
    ]
    print(
        markdown(
            ["parameters", "mechanism", "under one vmap", "s per round", "peak MB", "buffers MB", "copies"],
            [
                [
                    f"{line['coordinates']:,}",
                    line["mechanism"],
                    line["per_chunk"],
                    f"{line['seconds']:.3f}",
                    f"{line['peak_mb']:.0f}",
                    f"{line['buffers_mb']:.0f}",
                    f"{1e6 * line['buffers_mb'] / 4 / line['coordinates']:.1f}",
                ]
                for line in by_size
            ],
        )
    )
    if f.output:
        Path(f.output).write_text(json.dumps({"clients": by_clients, "sizes": by_size}, indent=2))


if __name__ == "__main__":
    cli.run(main, define_flags)
