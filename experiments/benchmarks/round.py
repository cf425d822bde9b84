"""Seconds of a federated round, and of one client's local training with plain flax convolutions beside it.

  python -m experiments.benchmarks.round

Random images of MNIST's (CIFAR-10's for cnn3) shape, 30 clients, 15 local steps of batch 32, momentum .5:
the work does not depend on what the images show. Every repetition times each entry once, in turn;
medians. For one core on Linux: `taskset -c 0 python -m ...`.
"""

import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from cepam_jax import mechanisms, models
from cepam_jax.federated import rounds
from cepam_jax.federated.aggregators import AGGREGATORS
from cepam_jax.federated.clients import Images, LocalTraining, make_local_update
from experiments import cli
from experiments.tables import markdown
from experiments.timing import interleaved

SHAPES = {"mlp": (28, 28, 1), "cnn2": (28, 28, 1), "cnn3": (32, 32, 3)}
_EXAMPLES = 2000  # of each client: one array for all, as only the shapes matter


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


def images(model: str) -> Images:
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (_EXAMPLES, *SHAPES[model]), dtype=np.uint8)
    labels = random.integers(0, 10, _EXAMPLES)
    return Images(jnp.asarray(pictures), jnp.asarray(labels), jnp.float32(0.5), jnp.float32(0.25))


def settings(steps: int) -> LocalTraining:
    return LocalTraining(steps=steps, batch_size=32, learning_rate=0.01, momentum=0.5)


def round_call(model: str, mechanism, clients: int, steps: int, per_chunk: int):
    """One compiled round as a call without arguments."""
    module = models.build(model, 10)
    params = models.initialize(module, jax.random.key(0), SHAPES[model])
    segments = tuple(leaf.size for leaf in jax.tree.leaves(params))
    server = optax.sgd(1.0)
    plan = rounds.Plan(
        make_local_update(module, settings(steps)),
        mechanism(segments),
        AGGREGATORS["mean"],
        server,
        segments,
        clients,
        per_chunk,
    )
    state = rounds.State(params, server.init(params), jnp.int32(0), jnp.int32(-1), None)
    federation = rounds.Federation(
        images(model),
        jnp.tile(jnp.arange(_EXAMPLES, dtype=jnp.int32), (clients, 1)),
        jnp.full(clients, _EXAMPLES, jnp.int32),
        jnp.full(clients, steps, jnp.int32),
        mechanisms.Knobs(sigma=jnp.full(clients, 0.01), clip=jnp.ones(clients)),
        jax.random.key(1),
        jax.random.key(2),
    )
    run = jax.jit(rounds.make_round(plan))
    return lambda: run(state, federation)


def client_call(module, model: str, steps: int):
    """One client's local training as a call without arguments."""
    params = module.init(jax.random.key(0), jnp.zeros((1, *SHAPES[model])))["params"]
    run = jax.jit(make_local_update(module, settings(steps)))
    rows = jnp.arange(_EXAMPLES, dtype=jnp.int32)
    count = jnp.int32(_EXAMPLES)
    data = images(model)
    return lambda: run(params, data, rows, count, jnp.int32(steps), jax.random.key(1))


MECHANISMS = {
    "fedavg": lambda segments: mechanisms.identity(),
    "cepam Z1": lambda segments: mechanisms.chain(mechanisms.clip("l2"), mechanisms.lrsuq(segments=segments)),
    "cepam E8": lambda segments: mechanisms.chain(
        mechanisms.clip("l2"), mechanisms.lrsuq(lattice="E8", segments=segments)
    ),
}


def define_flags():
    flags.DEFINE_list("models", ["mlp", "cnn2"], "Models whose rounds are timed.")
    flags.DEFINE_list("convolutions", ["cnn2", "cnn3"], "Models whose local training is timed with flax's.")
    flags.DEFINE_integer("clients", 30, "Clients of a round.")
    flags.DEFINE_integer("steps", 15, "Local steps.")
    flags.DEFINE_integer("per_chunk", 1, "Clients under one vmap.")
    flags.DEFINE_integer("repeats", 5, "Repetitions; the median counts.")
    flags.DEFINE_string("output", "", "Also write the figures to this JSON file.")


def main():
    f = flags.FLAGS
    for flag in ("models", "convolutions"):
        cli.choices(flag, SHAPES)
    calls = {
        (model, name): round_call(model, mechanism, f.clients, f.steps, f.per_chunk)
        for model in f.models
        for name, mechanism in MECHANISMS.items()
    }
    found = interleaved(calls, f.repeats)
    rows = [
        {"model": model, "mechanism": name, "seconds": t, "ratio": t / found[model, "fedavg"]}
        for (model, name), t in found.items()
    ]
    table = markdown(
        ["round", "mechanism", "seconds", "over fedavg"],
        [[r["model"], r["mechanism"], f"{r['seconds']:.4f}", f"{r['ratio']:.2f}"] for r in rows],
    )
    print(f"{jax.devices()[0].device_kind}, {f.clients} clients, {f.steps} steps of batch 32\n\n{table}\n")
    local = []
    for model in f.convolutions:
        ours = models.build(model, 10)
        pair = {"ours": client_call(ours, model, f.steps)}
        pair["flax"] = client_call(PlainNetwork(ours), model, f.steps)
        local.append({"model": model, **interleaved(pair, f.repeats)})
    print(
        markdown(
            ["local training of one client", "seconds", "with flax's convolutions", "ratio"],
            [
                [r["model"], f"{r['ours']:.4f}", f"{r['flax']:.4f}", f"{r['flax'] / r['ours']:.1f}"]
                for r in local
            ],
        )
    )
    if f.output:
        Path(f.output).write_text(json.dumps({"rounds": rows, "local": local}, indent=2))


if __name__ == "__main__":
    cli.run(main, define_flags)
