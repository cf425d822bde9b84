"""Speed of packing and unpacking, in million coordinates a second, and bits per coordinate.

  python -m experiments.benchmarks.wire

Medians over rounds in which every call takes its turn. For one core on Linux: `taskset -c 0 python -m ...`.
"""

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from absl import flags

from cepam_jax import mechanisms, wire
from experiments import cli
from experiments.tables import markdown
from experiments.timing import interleaved


def measure(name: str, ratio: float, size: int, repeats: int, clock: Callable = time.perf_counter) -> dict:
    """One mechanism on Gaussian coordinates with deviation `ratio` times the error's."""
    mechanism = mechanisms.make(name)
    keys = mechanisms.Keys(jax.random.key(1), jax.random.key(2))
    knobs = mechanisms.Knobs(sigma=1.0, step=1.0, bits=4.0, levels=16.0, fraction=0.25)
    x = ratio * jax.random.normal(jax.random.key(0), (size,))
    message = jax.tree.map(np.asarray, jax.jit(mechanism.encode)(keys, x, knobs))
    data = wire.pack(message, mechanism, keys.shared, knobs)
    calls = {
        "pack": lambda: wire.pack(message, mechanism, keys.shared, knobs),
        "unpack": lambda: wire.unpack(data, mechanism, keys.shared, knobs, size),
    }
    speed = {step: size / seconds / 1e6 for step, seconds in interleaved(calls, repeats, clock).items()}
    return {"mechanism": name, "ratio": ratio, "bits": len(data) * 8 / size, **speed}


def define_flags():
    flags.DEFINE_list(
        "mechanisms",
        [f"lrsuq_gaussian_{lattice}" for lattice in ("z1", "z2", "z3", "d4", "e8")] + ["clipped_stochastic"],
        "Names of the registry.",
    )
    flags.DEFINE_list("ratios", ["0.05", "0.3", "1", "3"], "Deviation of the input over that of the error.")
    flags.DEFINE_integer("size", 1_000_000, "Coordinates.")
    flags.DEFINE_integer("repeats", 5, "Rounds; the median counts.")
    flags.DEFINE_bool("cpu_time", False, "Time of this process on the CPU, for a machine that others use.")
    flags.DEFINE_string("output", "", "Also write the figures to this JSON file.")


def main():
    ratios = cli.numbers("ratios")
    cli.choices("mechanisms", mechanisms.REGISTRY)
    print(f"{platform.machine()}, {flags.FLAGS.size} coordinates, {flags.FLAGS.repeats} repeats")
    clock = time.process_time if flags.FLAGS.cpu_time else time.perf_counter
    rows = [
        measure(name, ratio, flags.FLAGS.size, flags.FLAGS.repeats, clock)
        for name in flags.FLAGS.mechanisms
        for ratio in ratios
    ]
    print(
        markdown(
            ["mechanism", "s / sigma", "bits per coordinate", "pack M/s", "unpack M/s"],
            [
                [
                    r["mechanism"],
                    f"{r['ratio']:g}",
                    f"{r['bits']:.4f}",
                    f"{r['pack']:.1f}",
                    f"{r['unpack']:.1f}",
                ]
                for r in rows
            ],
        )
    )
    if flags.FLAGS.output:
        Path(flags.FLAGS.output).write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    cli.run(main, define_flags)
