"""Seconds and memory of a round against the number of clients, and against the size of the model.

  python -m experiments.benchmarks.scale

Every line is a process of its own. "peak" is the largest resident memory of the process, "buffers" what
XLA allots for intermediate results, in copies of the model too. Neither grows with the number of clients of a
round; each client of the federation, in a round or not, takes some tens of bytes. `--tables` chooses: clients
of a round; a federation of which some take part, with one example each; models; and a Transformer of 124
million parameters, which takes ten minutes.
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
    flags.DEFINE_list("tables", ["clients", "federation", "models"], f"Of {', '.join(TABLES)}.")
    flags.DEFINE_list("clients", ["30", "100", "1000", "10000"], "Clients of a W1 round.")
    flags.DEFINE_list("populations", ["10000", "100000", "1000000"], "Clients of a federation.")
    flags.DEFINE_integer("drawn", 1000, "Of these in a round.", lower_bound=1)
    flags.DEFINE_list("per_round", ["1000", "3000", "10000"], "Clients of a round, of 60,000.")
    flags.DEFINE_list("models", ["mlp", "dense1M", "dense25M"], "Models of a round of four clients.")
    flags.DEFINE_list("mechanisms", ["fedavg", "cepam Z1", "cepam E8"], "Mechanisms for the models.")
    flags.DEFINE_list("chunks", ["1", "4"], "Clients under one vmap, for the models.")
    flags.DEFINE_integer("core", 0, "CPU core that every process is pinned to (Linux); -1: all.")
    flags.DEFINE_string("output", "", "Also write the figures to this JSON file.")


def measure(*settings):
    f = flags.FLAGS
    found = ours(*settings, core=None if f.core < 0 else f.core)
    if "error" in found:
        raise ConfigError(f"{' '.join(settings)}: {found['error']}")
    return {**found, "seconds": float(np.median(found["seconds_per_round"]))}


def by_clients():
    """(lines, table): a W1 round of ever more clients."""
    lines = []
    for clients in cli.numbers("clients", int):
        for mechanism in ("fedavg", "cepam Z1"):
            rounds = max(1, min(5, 3000 // clients))
            lines.append(measure(f"--clients={clients}", f"--mechanism={mechanism}", f"--rounds={rounds}"))
    first = {line["mechanism"]: line for line in reversed(lines)}
    rows = [
        [
            line["clients"],
            line["mechanism"],
            f"{line['seconds']:.3f}",
            f"{1e3 * line['seconds'] / line['clients']:.2f}",
            f"{line['peak_mb']:.0f}",
            f"{line['peak_mb'] - first[line['mechanism']]['peak_mb']:+.0f} MB",
        ]
        for line in lines
    ]
    return lines, markdown(
        ["clients", "mechanism", "s per round", "ms per client", "peak MB", "over the first"], rows
    )


def by_federation():
    """(lines, table): one example a client and one step, of which a round draws some clients."""
    lines = []
    asked = [(population, flags.FLAGS.drawn) for population in cli.numbers("populations", int)]
    asked += [(60_000, clients) for clients in cli.numbers("per_round", int)]
    for population, clients in asked:
        given = (f"--population={population}", f"--clients={clients}", "--own=1", "--batch=1", "--steps=1")
        lines.append({**measure(*given, "--mechanism=cepam Z1", "--rounds=3"), "population": population})
    rows = [
        [
            f"{line['population']:,}",
            f"{line['clients']:,}",
            f"{line['seconds']:.3f}",
            f"{1e3 * line['seconds'] / line['clients']:.2f}",
            f"{line['arguments_mb']:.0f}",
            f"{line['buffers_mb']:.0f}",
            f"{line['peak_mb']:.0f}",
        ]
        for line in lines
    ]
    header = ["clients", "in a round", "s per round", "ms per client of it", "arguments MB", "buffers MB"]
    return lines, markdown([*header, "peak MB"], rows)


def _of_models(lines):
    rows = [
        [
            f"{line['coordinates']:,}",
            line["mechanism"],
            line["per_chunk"],
            f"{line['seconds']:.3f}",
            f"{line['peak_mb']:.0f}",
            f"{line['buffers_mb']:.0f}",
            f"{1e6 * line['buffers_mb'] / 4 / line['coordinates']:.1f}",
        ]
        for line in lines
    ]
    header = ["parameters", "mechanism", "under one vmap", "s per round", "peak MB", "buffers MB", "copies"]
    return lines, markdown(header, rows)


def by_model():
    """(lines, table): four clients and two steps."""
    return _of_models(
        [
            measure(
                *(f"--model={model}", f"--mechanism={mechanism}", f"--per_chunk={chunk}"),
                *("--clients=4", "--steps=2", "--rounds=3"),
            )
            for model in flags.FLAGS.models
            for mechanism in flags.FLAGS.mechanisms
            for chunk in cli.numbers("chunks", int)
        ]
    )


def large():
    """(lines, table): two clients of one step of four windows with 124 million parameters."""
    given = (f"--model={workloads.LARGE}", "--clients=2", "--steps=1", "--batch=4", "--own=4", "--rounds=1")
    return _of_models([measure(*given, f"--mechanism={name}") for name in ("fedavg", "cepam Z1")])


TABLES = {"clients": by_clients, "federation": by_federation, "models": by_model, "large": large}


def main():
    f = flags.FLAGS
    cli.choices("tables", TABLES)
    cli.choices("models", workloads.SHAPES)
    cli.choices("mechanisms", workloads.MECHANISMS)
    found = {}
    for name in f.tables:
        found[name], table = TABLES[name]()
        print(f"{name}: {found[name][0]['device']}, {found[name][0]['version']}\n\n{table}\n", flush=True)
    if f.output:
        Path(f.output).write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    cli.run(main, define_flags)
