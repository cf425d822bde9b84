"""What one client does with its own examples: local training, or one gradient."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cepam_jax import settings
from cepam_jax.errors import require
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
    "check",
    "choose_batches",
    "influence_of",
    "make_local_update",
]

Rule = tuple[bool, str, str]

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
        "worker_momentum": settings.below_one(
            0.0, "What each client keeps of its last update: it sends their running mean. 0: off."
        ),
        "normalize": settings.boolean(
            False, "FedNova: whether updates are divided by the accumulated weight of the client's steps."
        ),
    },
    "Local training of one client.",
)


def rules(values: Mapping[str, Any], clip: str | None, name: Callable[[str], str]) -> Iterator[Rule]:
    """What the settings of local training ask of each other.

    Args:
      values: fields of `LocalTraining` by name.
      clip: the norm that the mechanism bounds, "none" or None.
      name: field, or "clip" for the mechanism's clip -> what a message calls it.

    Yields:
      (whether it holds, the field or "clip", what is allowed).
    """
    kind, sampling = values["update_kind"], values["sampling"]
    yield (
        not values["normalize"] or kind == "weights",
        "normalize",
        f"False where {name('update_kind')} is 'gradient'",
    )
    yield (
        not values["normalize"] or values["optimizer"] == "sgd",
        "normalize",
        f"False unless {name('optimizer')} is 'sgd': the weights of other optimizers' steps are not known",
    )
    yield (
        not values["worker_momentum"] or not values["normalize"],
        "worker_momentum",
        f"0 where {name('normalize')} is True: updates of other weights would be averaged",
    )
    yield (
        not values["worker_momentum"] or not values["example_clip"],
        "worker_momentum",
        f"0 where {name('example_clip')} is positive: an example would move the updates of later rounds too",
    )
    yield (
        values["steps"] * values["batch_size"] < 2**31,
        "steps",
        f"below 2**31 / {name('batch_size')} = {2**31 // values['batch_size']:,}",
    )
    clips = values["example_clip"] > 0
    yield (
        not clips or (kind, sampling) == ("gradient", "shuffle"),
        "example_clip",
        f"0 unless {name('update_kind')} is 'gradient' and {name('sampling')} is 'shuffle': after several "
        "local steps one example may have moved every later gradient, and drawn anew it may come again",
    )
    yield (
        not clips or clip in (None, "none"),
        "clip",
        f"'none' where {name('example_clip')} is positive: the examples are clipped",
    )


def check(training: LocalTraining, clip: str | None = None) -> LocalTraining:
    """The settings, if they go together.

    Args:
      training: the settings.
      clip: the norm that the mechanism bounds; None: it does not, or that is not known.

    Raises:
      ConfigError: names the field, its value and what is allowed.
    """
    values = {**training._asdict(), "clip": clip}
    called = {"clip": "clip of the mechanism"}
    for holds, field, allowed in rules(values, clip, lambda field: field):
        require(holds, called.get(field, field), values[field], allowed)
    return training


@settings.rule
def _rules(fields):
    yield (
        not fields["local.steps_by_size"] or fields["local.update_kind"] == "weights",
        "local.steps_by_size",
        "False where config.local.update_kind is 'gradient'",
    )
    values = {name: fields[f"local.{name}"] for name in LocalTraining._fields}
    for holds, field, allowed in rules(values, fields["mechanism.clip"], "config.local.{}".format):
        yield holds, "mechanism.clip" if field == "clip" else f"local.{field}", allowed


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
        if training.worker_momentum:
            update = training.worker_momentum * state + (1 - training.worker_momentum) * update
            return Trained(update, loss, jnp.float32(1), update)
        if not training.normalize:
            return Trained(update, loss, jnp.float32(1), state)
        weight = training.weight(steps.astype(jnp.float32)) / training.weight(training.steps)
        return Trained(update / weight, loss, weight, state)

    return LocalUpdate(run, _no_momentum if training.worker_momentum else None, influence)


def _no_momentum(clients: int, model: Model):
    """f32[clients, d] of zeros, what clients keep of their updates before the first."""
    d = sum(leaf.size for leaf in jax.tree.leaves((model.params, model.statistics)))
    return jnp.zeros((clients, d), jnp.float32)


def influence_of(training: LocalTraining) -> Influence:
    """What local training means for privacy: a clip bounds each example's part in the mean gradient.

    Raises:
      ConfigError: a clip of examples with local steps, which are not clipped, or with batches in which one
        example may come any number of times.
    """
    if not training.example_clip:
        return Influence()
    check(training)
    batch = training.steps * training.batch_size

    def bound(counts):
        repeats = np.ceil(batch / np.asarray(counts))  # of one example in the shuffled, repeated order
        return repeats * training.example_clip / batch

    return Influence("example", "l2", bound)
