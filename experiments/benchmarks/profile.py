"""What a round's time is spent on, from a trace of JAX's profiler.

  python -m experiments.benchmarks.profile --model=cnn2

XLA's operations, with the part of the program that they were made from. A time is an operation's own, without
what runs inside of it. Tracing slows small operations down: shares count, not times. The trace under
--workdir is for TensorBoard or Perfetto.
"""

import collections
import json
import re
import tempfile
from pathlib import Path

import jax
from absl import flags

from cepam_jax.errors import ConfigError
from experiments import cli
from experiments.benchmarks import workloads
from experiments.tables import markdown


def define_flags():
    workloads.define_flags("cepam Z1")
    flags.DEFINE_integer("rounds", 3, "Traced rounds.")
    flags.DEFINE_integer("top", 15, "Lines of the table.")
    flags.DEFINE_string("workdir", "", "Where the trace is kept; by default nowhere.")
    flags.DEFINE_string("output", "", "Also write the figures to this JSON file.")


def own_times(events) -> dict[str, list[float]]:
    """{name: durations in ms} of one thread's events, each less what runs inside of it."""
    found, open_events = collections.defaultdict(list), []

    def close(before):
        while open_events and open_events[-1][1] <= before:
            name, _, own = open_events.pop()
            found[name].append(own / 1e6)

    for event in sorted(events, key=lambda e: (e.start_ns, -e.duration_ns)):
        close(event.start_ns)
        if open_events:
            open_events[-1][2] -= event.duration_ns
        open_events.append([event.name, event.start_ns + event.duration_ns, event.duration_ns])
    close(float("inf"))
    return found


def operations(directory: Path, names) -> dict[str, list[float]]:
    """{operation: own times in ms} of the newest trace under a directory; those with known names alone."""
    traces = sorted(directory.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not traces:
        raise ConfigError(f"the profiler left no trace under {directory}")
    total = collections.defaultdict(list)
    for plane in jax.profiler.ProfileData.from_file(str(traces[-1])).planes:
        for line in plane.lines:
            for name, times in own_times(line.events).items():
                if name in names:
                    total[name] += times
    return total


def origins(text: str) -> dict[str, str]:
    """{operation: what it was made from} of a compiled program's text."""
    found = {}
    for name, rest in re.findall(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*)$", text, re.M):
        source = re.search(r'op_name="([^"]*)"', rest)
        parts = source.group(1).split("/") if source else []
        parts = [p for p in parts if p not in ("while", "body", "closed_call") and not p.startswith("jit(")]
        found[name] = "/".join(parts[-3:])
    return found


def measured(function, arguments, rounds: int, workdir: str = "") -> list[dict]:
    """The operations of a round, the longest first, with what they were made from and their times.

    Args:
      function: of the round.
      arguments: its arguments.
      rounds: that are traced.
      workdir: where the trace is kept; "": nowhere.

    Raises:
      ConfigError: the trace names no operation of the round.
    """
    compiled = jax.jit(function).lower(*arguments).compile()
    made_from = origins(compiled.as_text())
    jax.block_until_ready(compiled(*arguments))
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(workdir or scratch)
        with jax.profiler.trace(str(directory)):
            for _ in range(rounds):
                jax.block_until_ready(compiled(*arguments))
        found = operations(directory, made_from)
    if not found:
        raise ConfigError("the trace names no operation of the round; look at it with --workdir")
    total = sum(map(sum, found.values()))
    return [
        {
            "operation": name,
            "from": made_from[name],
            "ms_per_round": sum(times) / rounds,
            "calls_per_round": len(times) / rounds,
            "share": sum(times) / total,
        }
        for name, times in sorted(found.items(), key=lambda item: -sum(item[1]))
    ]


def main():
    f = flags.FLAGS
    function, arguments, _, _ = workloads.of_flags()
    rows = measured(function, arguments, f.rounds, f.workdir)
    device, traced = jax.devices()[0].device_kind, sum(row["ms_per_round"] for row in rows)
    print(f"{f.model}, {f.mechanism}, {f.clients} clients on {device}: {traced:.1f} ms traced\n")
    print(
        markdown(
            ["operation", "from", "ms per round", "calls", "share"],
            [
                [
                    row["operation"],
                    row["from"][-60:],
                    f"{row['ms_per_round']:.2f}",
                    f"{row['calls_per_round']:.0f}",
                    f"{row['share']:.1%}",
                ]
                for row in rows[: f.top]
            ],
        )
    )
    if f.output:
        Path(f.output).write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    cli.run(main, define_flags)
