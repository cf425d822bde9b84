"""What one client does with its own examples: local training, or one gradient."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cepam_jax import settings
from cepam_jax.errors import ConfigError
from cepam_jax.federated.local_steps import (
    SAMPLINGS,
    UPDATES,
    LocalTraining,
    batch_of,
    choose_batches,
    clipped_gradient_update,
    gradient_update,
    weight_update,
)
from cepam_jax.federated.state import ClientArrays
from cepam_jax.registry import Registry
from cepam_jax.tasks.base import Model, Task

__all__ = [
    "OPTIMIZERS",
    "SAMPLINGS",
    "UPDATES",
    "Influence",
    "LocalTraining",
    "LocalUpdate",
    "Trained",
    "batch_of",
    "choose_batches",
    "influence_of",
    "make_local_update",
]

# Name -> function (learning rate, momentum) -> optax optimizer, for local steps.
OPTIMIZERS: Registry = Registry("local optimizer")
OPTIMIZERS.register("sgd", lambda rate, momentum: optax.sgd(rate, momentum or None))
OPTIMIZERS.register("adam", lambda rate, momentum: optax.adam(rate))
OPTIMIZERS.register("adamw", lambda rate, momentum: optax.adamw(rate))

settings.declare(
    "local",
    {
        "update_kind": settings.choice(
            "weights", "weights: the difference after local steps; gradient: one mean gradient.", UPDATES
        ),
        "steps": settings.integer(15, "Local iterations of a round."),
        "batch_size": settings.integer(32, "Examples per local iteration."),
        "optimizer": settings.choice(
            "sgd", "Optimizer of the local steps; it starts anew each round.", OPTIMIZERS
        ),
        "learning_rate": settings.positive(0.1, "Of the local steps."),
        "momentum": settings.below_one(0.5, "Of local sgd."),
        "sampling": settings.choice(
            "replacement", "How a client's batches are drawn: each anew, or from a random order.", SAMPLINGS
        ),
        "steps_by_size": settings.boolean(False, "Whether clients with fewer examples take fewer steps."),
        "proximal": settings.not_negative(0.0, "Weight mu of FedProx's proximal term."),
        "example_clip": settings.not_negative(
            0.0, "L2 norm to which each example's gradient is clipped; 0: off (privacy is then of clients)."
        ),
        "normalize": settings.boolean(
            False, "FedNova: whether updates are divided by the accumulated weight of the client's steps."
        ),
    },
    "Local training of one client.",
)


@settings.rule
def _rules(fields):
    for name in ("local.steps_by_size", "local.normalize"):
        yield (
            not fields[name] or fields["local.update_kind"] == "weights",
            name,
            "False where config.local.update_kind is 'gradient'",
        )
    yield (
        fields["local.optimizer"] == "sgd" or not fields["local.normalize"],
        "local.normalize",
        "False unless config.local.optimizer is 'sgd': the weights of other optimizers' steps are not known",
    )
    yield (
        fields["local.steps"] * fields["local.batch_size"] < 2**31,
        "local.steps",
        f"below 2**31 / config.local.batch_size = {2**31 // fields['local.batch_size']:,}",
    )
    clips = fields["local.example_clip"] > 0
    yield (
        not clips or (fields["local.update_kind"], fields["local.sampling"]) == ("gradient", "shuffle"),
        "local.example_clip",
        "0 unless config.local.update_kind is 'gradient' and config.local.sampling is 'shuffle': after "
        "several local steps one example may have moved every later gradient",
    )
    yield (
        not clips or fields["mechanism.clip"] == "none",
        "mechanism.clip",
        "'none' where config.local.example_clip is positive: the examples are clipped",
    )


class Trained(NamedTuple):
    """What local training leaves.

    Attributes:
      update: f32[d], the change of parameters and statistics, flat in the order of `ravel_pytree`.
      loss: f32[], mean training loss.
      weight: f32[], what the update was divided by; 1 unless FedNova normalizes.
      state: what the client keeps for its next round; None: nothing.
    """

    update: jax.Array
    loss: jax.Array
    weight: jax.Array
    state: Any = None


class Influence(NamedTuple):
    """How far one unit of privacy can move what a client hands to the mechanism, before any clip there.

    Influence() bounds nothing: the mechanism's clip must, and the unit is the client.

    Attributes:
      unit: "client" or "example": whose presence is protected.
      norm: in which norm the bound holds; None: local training bounds nothing, and the mechanism's clip must.
      bound: int[clients] of their examples -> f64[clients]; None as `norm`.
      exposes: what follows from the data and shapes the result without noise, in words.
    """

    unit: str = "client"
    norm: str | None = None
    bound: Callable[[np.ndarray], np.ndarray] | None = None
    exposes: tuple[str, ...] = ()


class LocalUpdate(NamedTuple):
    """The local part of a round.

    Attributes:
      run: (Model, ClientArrays, client int32[], key, the client's state, round int32[]) -> Trained.
      initialize: (number of clients, Model) -> what clients carry, a leading axis [clients]; None: nothing.
      influence: what it means for privacy. Stating one says that a client's update follows from its own
        examples and state and from the model alone, and what it was divided by from public numbers alone.
        None: nothing is stated, and nothing is guaranteed.
    """

    run: Callable[..., Trained]
    initialize: Callable | None = None
    influence: Influence | None = None


def make_local_update(
    task: Task,
    training: LocalTraining,
    optimizer: optax.GradientTransformation
    | Callable[[jax.Array], optax.GradientTransformation]
    | None = None,
) -> LocalUpdate:
    """Local training of a task.

    Args:
      task: what is learned.
      training: its settings.
      optimizer: any optax optimizer in place of the settings', or a function of the round int32[] that gives
        one, such as `lambda number: optax.sgd(schedule(number))`.

    Raises:
      ConfigError: examples are to be clipped where that bounds nothing.
    """
    influence = influence_of(training)
    if optimizer is None:
        optimizer = OPTIMIZERS.get_or_raise(training.optimizer)(training.learning_rate, training.momentum)

    def run(model: Model, arrays: ClientArrays, client, key, state, number) -> Trained:
        row, count, steps = arrays.rows[client], arrays.counts[client], arrays.steps[client]
        batch_key, step_key = jax.random.split(key)
        rows = row[choose_batches(batch_key, count, row.shape[0], training)]
        if training.update_kind == "weights":
            chosen = optimizer if isinstance(optimizer, optax.GradientTransformation) else optimizer(number)
            compute: Callable = functools.partial(weight_update, chosen)
        else:
            compute = clipped_gradient_update if training.example_clip else gradient_update
        update, loss = compute(task, training, model, arrays, rows, steps, step_key)
        if not training.normalize:
            return Trained(update, loss, jnp.float32(1), state)
        weight = training.weight(steps.astype(jnp.float32)) / training.weight(training.steps)
        return Trained(update / weight, loss, weight, state)

    return LocalUpdate(run, influence=influence)


def influence_of(training: LocalTraining) -> Influence:
    """What local training means for privacy: a clip bounds each example's part in the mean gradient.

    Raises:
      ConfigError: a clip of examples with local steps, which are not clipped, or with batches in which one
        example may come any number of times.
    """
    if not training.example_clip:
        return Influence()
    if (training.update_kind, training.sampling) != ("gradient", "shuffle"):
        raise ConfigError(
            f"example_clip is {training.example_clip:g}; it must be 0 unless update_kind is 'gradient' and "
            f"sampling 'shuffle' (they are {training.update_kind!r} and {training.sampling!r})"
        )
    batch = training.steps * training.batch_size

    def bound(counts):
        repeats = np.ceil(batch / np.asarray(counts))  # of one example in the shuffled, repeated order
        return repeats * training.example_clip / batch

    return Influence("example", "l2", bound)
