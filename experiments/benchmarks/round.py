"""Seconds of a federated round, and of one client's local training with plain flax convolutions beside it.

  python -m experiments.benchmarks.round

Random images of MNIST's (CIFAR-10's for cnn3) shape, 30 clients, 15 local steps of batch 32, momentum .5:
the work does not depend on what the images show. Every repetition times each entry once, in turn;
medians. For one core on Linux: `taskset -c 0 python -m ...`, and `--cpu_time` where others use it too.

"Products" are what the matrix products and convolutions of a client's training would take by themselves at
the speed at which this device multiplies two square matrices in the same turns; "in their shapes" is what
they take one after another as they are, small as they may be, with nothing else of the training.
"""

import json
import time
from pathlib import Path

import flax.linen as nn
import jax
from absl import flags

from cepam_jax import models
from cepam_jax.federated import make_local_update
from experiments import cli
from experiments.benchmarks.products import alone, products, yardstick
from experiments.benchmarks.workloads import (
    EXAMPLES,
    MECHANISMS,
    SHAPES,
    arrays_of,
    round_call,
    settings,
    task_of,
)
from experiments.tables import markdown
from experiments.timing import interleaved


class PlainNetwork(nn.Module):
    """`models.Network` with flax's own convolution and pooling."""

    like: models.Network

    @nn.compact
    def __call__(self, x, train: bool = False):
        k = (self.like.kernel, self.like.kernel)
        for width in self.like.channels:
            x = nn.max_pool(nn.relu(nn.Conv(width, k, padding=self.like.padding)(x)), (2, 2), (2, 2))
            if self.like.dropout:
                x = nn.Dropout(self.like.dropout, deterministic=not train)(x)
        x = x.reshape(x.shape[0], -1)
        for width in self.like.dense:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.like.num_classes)(x)


def client_call(module, model: str, steps: int):
    """One client's local training, its multiplications, and its products alone; calls without arguments."""
    task = task_of(module, model)
    start = task.initialize(jax.random.key(0))
    run = jax.jit(make_local_update(task, settings(steps)).run)
    arguments = (start, arrays_of(model, 1, steps, EXAMPLES), 0, jax.random.key(1), None, 0)
    return lambda: run(*arguments), products(run, *arguments), alone(run, *arguments)


def local_training(model: str, steps: int, repeats: int, clock) -> dict:
    """Seconds of one client's training, ours and with flax's convolutions, and of its products alone."""
    networks = {"ours": models.build(model, 10)}
    networks["flax"] = PlainNetwork(networks["ours"])
    made = {name: client_call(module, model, steps) for name, module in networks.items()}
    calls = {name: call for name, (call, _, _) in made.items()}
    square, number = yardstick()
    found = interleaved({**calls, "alone": made["ours"][2], "square": square}, repeats, clock)
    each = found["square"] / number
    return {"model": model, **found, **{f"{name}_products": each * made[name][1] for name in networks}}


def define_flags():
    flags.DEFINE_list("models", ["mlp", "cnn2"], "Models whose rounds are timed.")
    flags.DEFINE_list("mechanisms", list(MECHANISMS), "What is timed; fedavg is always among them.")
    flags.DEFINE_list("convolutions", ["cnn2", "cnn3"], "Models whose local training is timed with flax's.")
    flags.DEFINE_integer("clients", 30, "Clients of a round.")
    flags.DEFINE_integer("steps", 15, "Local steps.")
    flags.DEFINE_integer("per_chunk", 1, "Clients under one vmap.")
    flags.DEFINE_integer("repeats", 5, "Repetitions; the median counts.")
    flags.DEFINE_bool("cpu_time", False, "Count this process's time on the CPU in place of the clock's.")
    flags.DEFINE_string("output", "", "Also write the figures to this JSON file.")


def main():
    f = flags.FLAGS
    for flag in ("models", "convolutions"):
        cli.choices(flag, SHAPES)
    cli.choices("mechanisms", MECHANISMS)
    names = ["fedavg", *(name for name in f.mechanisms if name != "fedavg")]
    calls = {
        (model, name, counts): round_call(
            model, MECHANISMS[name], f.clients, f.steps, f.per_chunk, counts=counts
        )
        for model in f.models
        for name in names
        for counts in (True, False)
    }
    clock = time.process_time if f.cpu_time else time.perf_counter
    found = interleaved(calls, f.repeats, clock)
    rows = []
    for model in f.models:
        for name in names:
            seconds = [found[model, name, counts] for counts in (True, False)]
            ratios = [t / found[model, "fedavg", True] for t in seconds]
            both = {"seconds": seconds[0], "uncounted": seconds[1]}
            ratio = {"ratio": ratios[0], "ratio_uncounted": ratios[1]}
            rows.append({"model": model, "mechanism": name, **both, **ratio})
    table = markdown(
        ["round", "mechanism", "seconds", "over fedavg", "lengths not counted", "over fedavg"],
        [
            [
                *(r["model"], r["mechanism"]),
                *(f"{r['seconds']:.4f}", f"{r['ratio']:.2f}"),
                *(f"{r['uncounted']:.4f}", f"{r['ratio_uncounted']:.2f}"),
            ]
            for r in rows
        ],
    )
    print(f"{jax.devices()[0].device_kind}, {f.clients} clients, {f.steps} steps of batch 32\n\n{table}\n")
    local = [local_training(model, f.steps, f.repeats, clock) for model in f.convolutions]
    print(
        markdown(
            [
                *("local training of one client", "seconds", "products", "of it", "in their shapes", "of it"),
                *("with flax's convolutions", "over ours", "products", "of it"),
            ],
            [
                [
                    *(r["model"], f"{r['ours']:.4f}"),
                    *(f"{r['ours_products']:.4f}", f"{r['ours_products'] / r['ours']:.0%}"),
                    *(f"{r['alone']:.4f}", f"{r['alone'] / r['ours']:.0%}"),
                    *(f"{r['flax']:.4f}", f"{r['flax'] / r['ours']:.1f}"),
                    *(f"{r['flax_products']:.4f}", f"{r['flax_products'] / r['flax']:.0%}"),
                ]
                for r in local
            ],
        )
    )
    if f.output:
        Path(f.output).write_text(json.dumps({"rounds": rows, "local": local}, indent=2))


if __name__ == "__main__":
    cli.run(main, define_flags)
