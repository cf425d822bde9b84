"""DP-SGD in one place: the reference of `experiments.figures.private`.

  python -m experiments.dpsgd --config=configs/mnist_private.py --held_out=5000 --workdir=/tmp/dpsgd

Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang: Deep Learning with Differential Privacy, arXiv
1607.00133. Model, sampling, clip, rates and accountant are those of the configuration, with its examples in
place of its clients; nothing is quantized, and nothing of the federation's rounds is used. With --held_out
some of the training examples judge the model in place of the test examples: rates are tuned so.
"""

import json
import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from jax.flatten_util import ravel_pytree

from cepam_jax import files, settings
from cepam_jax.data import sources
from cepam_jax.data.examples import number_of
from cepam_jax.federated import poisson, server
from cepam_jax.run import build, evaluation, guarantees
from experiments import cli

_MICROBATCH = 125
_EVALUATIONS = 5  # of a run


def noise_multiplier(config) -> float:
    """The noise's deviation over the clip, as the accountant calibrates the same noise by the server."""
    gamma = guarantees.calibrated(config, np.ones(config.num_clients, int)).mechanism.gamma
    return math.sqrt(poisson.places(config.num_clients, config.clients_per_round)) / gamma


def make_steps(config, task, constants, number: int, multiplier: float):
    """(params, optimizer's state, examples, keys [steps]) -> (params, state), steps of DP-SGD."""
    expected = config.clients_per_round
    places = -(-poisson.places(number, expected) // _MICROBATCH) * _MICROBATCH
    clip = config.mechanism.clip_norm
    optimizer = server.OPTIMIZERS[config.server.optimizer](
        config.server.learning_rate, config.server.momentum
    )

    def gradient(params, model, batch):
        """f32[d], the clipped gradient of one example."""
        one = jax.tree.map(lambda a: a[None], batch)
        found = jax.grad(lambda p: task.loss(model._replace(params=p), one, constants, jax.random.key(0))[0])(
            params
        )
        flat = ravel_pytree(found)[0]
        return flat * jnp.minimum(1.0, clip / jnp.maximum(jnp.linalg.norm(flat), 1e-20))

    def step(carry, key, model, examples):
        params, state = carry
        draw, noise = jax.random.split(key)
        rows, _ = poisson.choose(draw, number, expected, places)

        def add(total, mine):
            batch = jax.tree.map(lambda a: a[jnp.minimum(mine, number - 1)], examples)
            each = jax.vmap(gradient, (None, None, 0))(params, model, batch)
            return total + (mine < number).astype(jnp.float32) @ each, None

        flat, unravel = ravel_pytree(params)
        total, _ = jax.lax.scan(add, jnp.zeros_like(flat), rows.reshape(-1, _MICROBATCH))
        total += multiplier * clip * jax.random.normal(noise, flat.shape)
        change, state = optimizer.update(unravel(total / expected), state, params)
        return (optax.apply_updates(params, change), state), None

    def many(model, params, state, examples, keys):
        return jax.lax.scan(lambda carry, key: step(carry, key, model, examples), (params, state), keys)[0]

    return optimizer, jax.jit(many)


def train(config, held_out: int = 0, seed: int = 0) -> list[dict]:
    """The metrics after each fifth of the rounds, of the test examples or of those held out.

    Args:
      config: with a target epsilon, Poisson sampling and as many clients as examples are trained on.
      held_out: training examples, the last ones, that judge the model and do not train it.
      seed: added to those of the configuration.
    """
    settings.validate(config)
    data = sources.load_examples(config.data.name, config.data.dir, sources.options_of(config))
    number = number_of(data.train) - held_out
    if number != config.num_clients:
        config = config.copy_and_resolve_references()
        config.clients_per_round = round(config.clients_per_round * number / config.num_clients)
        config.num_clients = number
    task = build.task_of(config, data.specification)
    model = jax.jit(task.initialize)(jax.random.key(config.seeds.model + seed))
    multiplier, start = noise_multiplier(config), time.perf_counter()
    optimizer, run = make_steps(config, task, data.constants, number, multiplier)
    examples = {name: jnp.asarray(array[:number]) for name, array in data.train.items()}
    judges = {name: array[number:] for name, array in data.train.items()} if held_out else data.test
    tested = evaluation.HeldOut(jax.tree.map(jnp.asarray, judges), data.constants)
    evaluate = jax.jit(evaluation.make_evaluate(task, config.evaluation.batch_size))
    keys = jax.random.split(jax.random.key(config.seeds.training + seed), config.rounds)
    params, state, lines = model.params, optimizer.init(model.params), []
    for part in np.array_split(np.arange(config.rounds), min(_EVALUATIONS, config.rounds)):
        params, state = run(model, params, state, examples, keys[part])
        sums = jax.tree.map(np.asarray, evaluate(model._replace(params=params), tested, None, None).test)
        found = task.summarize(sums, float(number_of(judges)))
        seconds = time.perf_counter() - start
        lines.append(
            {"round": int(part[-1]) + 1, **found, "noise_multiplier": multiplier, "seconds": seconds}
        )
    return lines


def define_flags():
    cli.define_config("configs/mnist_private.py", "What is learned, how privately.")
    flags.DEFINE_string("workdir", None, "Where dpsgd.jsonl goes.", required=True)
    flags.DEFINE_integer("held_out", 0, "Training examples that judge the model.", lower_bound=0)
    flags.DEFINE_integer("seed", 0, "Added to the configuration's.")


def main():
    f = flags.FLAGS
    workdir = Path(f.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    lines = train(f.config, f.held_out, f.seed)
    files.write(workdir / "dpsgd.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    for line in lines:
        print(", ".join(f"{name} {value:.4g}" for name, value in line.items()))


if __name__ == "__main__":
    cli.run(main, define_flags)
