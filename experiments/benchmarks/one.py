"""One workload in a process of its own: seconds of a round, start-up and peak memory, as one JSON line.

  python -m experiments.benchmarks.one --model=mlp --clients=30

The other benchmarks start it: peak memory is that of a process, and processes are what peers are.
"""

import json
import resource
import sys
import time

_START = time.perf_counter()

import jax  # noqa: E402
from absl import flags  # noqa: E402

from experiments import cli  # noqa: E402
from experiments.benchmarks import workloads  # noqa: E402

_IMPORTED = time.perf_counter() - _START


def peak_mb() -> float:
    """Largest resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def define_flags():
    workloads.define_flags("fedavg")
    flags.DEFINE_integer("rounds", 5, "Timed rounds, after one that is not.")


def main():
    f = flags.FLAGS
    function, arguments, coordinates, per_chunk = workloads.of_flags()
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - start
    seconds = []
    for _ in range(f.rounds + 1):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - start)
    memory = compiled.memory_analysis()
    found = {
        "peer": "cepam_jax",
        "workload": f.model,
        "mechanism": f.mechanism,
        "clients": f.clients,
        "aggregator": f.aggregator,
        "devices": f.devices,
        "per_chunk": per_chunk,
        "coordinates": coordinates,
        "seconds_per_round": seconds[1:],
        "first_round_s": seconds[0],
        "compile_s": compile_seconds,
        "import_s": _IMPORTED,
        "peak_mb": peak_mb(),
        "arguments_mb": memory.argument_size_in_bytes / 1e6 if memory else None,
        # What XLA allots beside arguments and results.
        "buffers_mb": memory.temp_size_in_bytes / 1e6 if memory else None,
        "version": f"jax {jax.__version__}",
        "device": jax.devices()[0].device_kind,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    cli.run(main, define_flags)
