"""Trains a configuration's task in one place, on all its examples: what a model reaches without a federation.

  python -m experiments.central --config=configs/shakespeare.py --config.data.name=tiny_shakespeare \\
      --config.text.split=public --config.text.stride=1 --config.model=transformer_small \\
      --workdir=/tmp/central

The defaults are those of Karpathy: nanoGPT, characters on a CPU: AdamW, a rate that rises for 100 steps and
falls by a cosine to a tenth, gradients clipped to norm 1. Its loss there is 1.88 after 2,000 steps of 12
windows of 64 characters.
"""

import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from cepam_jax import files, settings
from cepam_jax.data import sources
from cepam_jax.data.examples import number_of
from cepam_jax.errors import NonFiniteUpdateError
from cepam_jax.federated.local import batch_of
from cepam_jax.run import build, evaluation
from cepam_jax.run.progress import Progress
from cepam_jax.tasks import Model, Task
from experiments import cli

_CONFIG = cli.define_config("configs/shakespeare.py", "What is learned, and from what.")
_EVALUATIONS = 10  # of a run


def define_flags():
    flags.DEFINE_string("workdir", None, "Where central.jsonl goes.", required=True)
    flags.DEFINE_integer("steps", 2000, "Steps of the optimizer.", lower_bound=_EVALUATIONS)
    flags.DEFINE_integer("batch_size", 12, "Examples of a step, drawn with replacement.", lower_bound=1)
    flags.DEFINE_float("learning_rate", 1e-3, "The highest one; it ends at a tenth.", lower_bound=1e-12)
    flags.DEFINE_bool("progress", True, "Show a progress bar.")


def optimizer_of(steps: int, rate: float) -> optax.GradientTransformation:
    """AdamW with the rate's rise and fall; weight decay for matrices alone, as in nanoGPT."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, min(100, steps // 2), steps, rate / 10)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            schedule, b2=0.99, weight_decay=0.1, mask=lambda tree: jax.tree.map(lambda a: a.ndim > 1, tree)
        ),
    )


def make_steps(task: Task, optimizer: optax.GradientTransformation, batch_size: int):
    """(Model, optimizer's state, examples, constants, keys [steps]) -> (Model, state, mean loss)."""

    def one(carry, key, examples, constants):
        model, state = carry
        draw, key = jax.random.split(key)
        batch = batch_of(examples, jax.random.randint(draw, (batch_size,), 0, number_of(examples)))

        def objective(params):
            return task.loss(model._replace(params=params), batch, constants, key)

        (loss, statistics), gradient = jax.value_and_grad(objective, has_aux=True)(model.params)
        change, state = optimizer.update(gradient, state, model.params)
        params = optax.apply_updates(model.params, change)
        return (Model(params, statistics, model.frozen), state), loss

    def many(model, state, examples, constants, keys):
        (model, state), losses = jax.lax.scan(
            lambda carry, key: one(carry, key, examples, constants), (model, state), keys
        )
        return model, state, losses.mean()

    return jax.jit(many, donate_argnums=(0, 1))


def train(config, steps: int, batch_size: int, rate: float, progress: bool = False) -> list[dict]:
    """The metrics on the test examples before training and after each tenth of it.

    Args:
      config: valid configuration; read are data, task, model, evaluation.batch_size and seeds.
      steps, batch_size, rate: of the optimizer.
      progress: show a bar.

    Raises:
      NonFiniteUpdateError: the loss was NaN or infinite.
    """
    settings.validate(config)
    data = sources.load_examples(config.data.name, config.data.dir, sources.options_of(config))
    task = build.task_of(config, data.specification)
    model = jax.jit(task.initialize)(jax.random.key(config.seeds.model))
    optimizer = optimizer_of(steps, rate)
    state, run = optimizer.init(model.params), make_steps(task, optimizer, batch_size)
    evaluate = jax.jit(evaluation.make_evaluate(task, config.evaluation.batch_size))
    train_arrays, held_out = jax.device_put((data.train, build.tested(data)))
    keys = jax.random.split(jax.random.key(config.seeds.training), steps)

    def judged(model):
        sums = jax.tree.map(np.asarray, evaluate(model, held_out, None, None).test)
        return task.summarize(sums, float(number_of(data.test)))

    lines, start = [{"step": 0, **judged(model)}], time.perf_counter()
    with Progress(steps, 0, f"{config.data.name} {config.model}", progress) as shown:
        for part in np.array_split(np.arange(steps), _EVALUATIONS):
            model, state, loss = run(model, state, train_arrays, data.constants, keys[part])
            if not jnp.isfinite(loss):
                raise NonFiniteUpdateError(
                    f"the training loss was NaN or infinite before step {part[-1] + 1}: lower "
                    f"--learning_rate, which is {rate:g}"
                )
            seconds = time.perf_counter() - start
            line = {"step": int(part[-1]) + 1, **judged(model), "train_loss": float(loss), "seconds": seconds}
            lines.append(line)
            shown.update(len(part), f"{task.headline} {line[task.headline]:.3f}")
    return lines


def main():
    f = flags.FLAGS
    workdir = Path(f.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    lines = train(_CONFIG.value, f.steps, f.batch_size, f.learning_rate, f.progress)
    files.write(workdir / "central.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    for line in lines:
        print(", ".join(f"{name} {value:.4g}" for name, value in line.items()))


if __name__ == "__main__":
    cli.run(main, define_flags)
