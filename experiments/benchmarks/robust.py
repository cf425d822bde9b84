"""What robust rules cost where nobody lies: seconds of a round, and time and memory of a thousand clients.

  python -m experiments.benchmarks.robust

W1 (mlp, 25,818 parameters). In the first table all rules take turns, and the median of each counts; "rule
alone" is the server's part, from updates that are there. In the second every line is a process of its own,
with floats, so that the rule and not the quantizer is timed; with several devices the CPU is divided
(XLA_FLAGS=--xla_force_host_platform_device_count). A robust rule bears a tenth of the clients. What rules
cost in accuracy is trained by `python -m experiments.byzantine_tables --tables=price`.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from cepam_jax.errors import ConfigError
from cepam_jax.federated import Facts
from cepam_jax.federated.aggregation import RULES
from cepam_jax.federated.gathering import combined
from experiments import cli
from experiments.benchmarks import workloads
from experiments.benchmarks.processes import ours
from experiments.tables import markdown
from experiments.timing import interleaved

USUAL = ("median", "trimmed_mean", "krum", "multi_krum", "geometric_median", "centered_clipping")


def define_flags():
    flags.DEFINE_list("rules", list(USUAL), "Robust rules beside the mean.")
    flags.DEFINE_string("model", "mlp", "The workload's model.")
    flags.DEFINE_string("mechanism", "cepam Z1", "Mechanism of the first table.")
    flags.DEFINE_integer("clients", 30, "Clients of the first table.")
    flags.DEFINE_integer("steps", 15, "Local steps of the first table.")
    flags.DEFINE_integer("repeats", 5, "Repetitions; the median counts.")
    flags.DEFINE_list("large_rules", [], "Rules of the second table; by default the mean and --rules.")
    flags.DEFINE_integer("large", 1000, "Clients of the second table; 0: no such table.")
    flags.DEFINE_list("devices", ["1", "2"], "Devices of the second table.")
    flags.DEFINE_string("output", "", "Also write the figures to this JSON file.")


def alone(rule_name: str, clients: int, d: int):
    """The rule on random updates f32[clients, d], as a call without arguments."""
    rule = workloads.rule_of(rule_name, clients)
    updates = jax.random.normal(jax.random.key(0), (clients, d))
    facts = Facts(jnp.arange(clients), jnp.ones(clients), jnp.zeros(clients), jax.random.key(1))
    state = rule.initialize(d) if rule.initialize else None
    run = jax.jit(lambda updates: combined(rule, state, updates, facts)[0])
    return lambda: run(updates)


def rounds_table(f) -> list[dict]:
    """Seconds of a round by rule, and of the rule alone; printed."""
    mechanism = workloads.MECHANISMS[f.mechanism]
    whole = interleaved(
        {
            rule: workloads.round_call(f.model, mechanism, f.clients, f.steps, 1, rule)
            for rule in ("mean", *f.rules)
        },
        f.repeats,
    )
    d = workloads.one_round(f.model, mechanism, f.clients, f.steps, 1)[2]
    rule_times = interleaved({rule: alone(rule, f.clients, d) for rule in f.rules}, f.repeats)
    rows = [
        {"rule": rule, "seconds": t, "ratio": t / whole["mean"], "alone": rule_times.get(rule)}
        for rule, t in whole.items()
    ]
    header = ["rule", "seconds of a round", "over the mean", "rule alone, ms"]
    print(
        f"{f.model} ({d:,} parameters), {f.clients} clients, {f.steps} steps of batch 32, {f.mechanism}, "
        f"{jax.devices()[0].device_kind}\n"
    )
    print(
        markdown(
            header,
            [
                [
                    row["rule"],
                    f"{row['seconds']:.3f}",
                    f"{row['ratio']:.2f}",
                    "" if row["alone"] is None else f"{1e3 * row['alone']:.1f}",
                ]
                for row in rows
            ],
        ),
        flush=True,
    )
    return rows


def large_table(f) -> list[dict]:
    """Seconds and peak memory of a round of many clients by rule and number of devices; printed."""
    rows = []
    for rule in f.large_rules or ["mean", *f.rules]:
        for number in cli.numbers("devices", int):
            split = f"--xla_force_host_platform_device_count={number}"
            found = ours(
                *(f"--model={f.model}", "--mechanism=fedavg", f"--clients={f.large}", "--steps=1"),
                *("--rounds=1", f"--aggregator={rule}", f"--devices={number}"),
                environment={"XLA_FLAGS": split} if number > 1 else None,
            )
            if "error" in found:
                raise ConfigError(f"{rule} on {number} devices: {found['error']}")
            rows.append({**found, "seconds": float(np.median(found["seconds_per_round"]))})
    updates = 4e-6 * rows[0]["clients"] * rows[0]["coordinates"]
    print(
        f"\n{f.large:,} clients, 1 step of batch 32, floats; all updates of a round are {updates:.0f} MB\n\n"
        + markdown(
            ["rule", "devices", "seconds of a round", "peak MB of the process", "buffers MB of a device"],
            [
                [
                    row["aggregator"],
                    row["devices"],
                    f"{row['seconds']:.2f}",
                    f"{row['peak_mb']:.0f}",
                    f"{row['buffers_mb']:.0f}",
                ]
                for row in rows
            ],
        )
    )
    return rows


def main():
    f = flags.FLAGS
    cli.choices("rules", RULES)
    cli.choices("large_rules", ("mean", *RULES))
    cli.choice("model", workloads.SHAPES)
    cli.choice("mechanism", workloads.MECHANISMS)
    found = {"rounds": rounds_table(f), "large": large_table(f) if f.large else []}
    if f.output:
        Path(f.output).write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    cli.run(main, define_flags)
