"""What one client does with its own examples: local training, or one gradient."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from cepam_jax import settings
from cepam_jax.errors import ConfigError
from cepam_jax.federated.state import ClientArrays
from cepam_jax.mechanisms import counter
from cepam_jax.mechanisms.transforms import l2_norm
from cepam_jax.registry import Registry
from cepam_jax.tasks.base import Model, Task

_BATCHES = 3  # stream tag of the words that order a client's examples

UPDATES = ("weights", "gradient")
SAMPLINGS = ("replacement", "shuffle")

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


class LocalTraining(NamedTuple):
    """Settings of local training, the same for all clients.

    Attributes:
      steps: local iterations tau of a round.
      batch_size: examples per step.
      learning_rate, momentum: of the local optimizer, which starts anew every round.
      optimizer: name of the local optimizer.
      update_kind: "weights", the change of the weights by `steps` local steps (McMahan, Moore, Ramage,
        Hampson,
        Agüera y Arcas: Communication-Efficient Learning of Deep Networks from Decentralized Data, arXiv
        1602.05629), or "gradient", minus the mean gradient of `steps` batches at the global weights.
      proximal: weight mu of the proximal term mu/2 |w - w_global|^2 (Li, Sahu, Zaheer, Sanjabi, Talwalkar,
        Smith: Federated Optimization in Heterogeneous Networks, arXiv 1812.06127).
      normalize: whether an update is divided by the accumulated weight of its steps, relative to `steps` of
        them (Wang, Liu, Liang, Joshi, Poor: Tackling the Objective Inconsistency Problem, arXiv 2007.07481);
        the server multiplies by the mean of what was divided.
      sampling: "replacement", every batch drawn independently, or "shuffle", a random order of the
        client's examples each round, repeated when it is used up.
      example_clip: L2 norm to which each example's gradient is clipped, for privacy of examples instead of
        clients; only with update_kind "gradient". 0: off.
    """

    steps: int
    batch_size: int
    learning_rate: float = 0.1
    momentum: float = 0.0
    update_kind: str = "weights"
    sampling: str = "replacement"
    proximal: float = 0.0
    normalize: bool = False
    example_clip: float = 0.0
    optimizer: str = "sgd"

    def weight(self, steps):
        """Sum of the weights that SGD with momentum gives to the gradients of `steps` steps.

        |a|_1 of FedNova (2007.07481, section 4.1): steps for plain SGD.
        """
        rho = self.momentum
        return (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)


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


def choose_batches(key, count, capacity: int, training: LocalTraining):
    """Which of its examples a client trains on.

    Args:
      key: PRNG key of this client and round.
      count: int32[], how many examples the client has; positions beyond are padding.
      capacity: length of the padded row.
      training: local training settings.

    Returns:
      int32[steps, batch_size] positions below `count`; they depend on the key and the count, not on
      the capacity, so padding changes nothing.
    """
    number = training.steps * training.batch_size
    shape = (training.steps, training.batch_size)
    if training.sampling == "replacement":
        return jax.random.randint(key, shape, 0, count, jnp.int32)
    slots = jnp.arange(capacity, dtype=jnp.uint32)
    order, _ = counter.words(counter.stream(key, _BATCHES), 0, slots)
    padding = (slots >= count.astype(jnp.uint32)).astype(jnp.int32)
    _, _, order = jax.lax.sort((padding, order, slots.astype(jnp.int32)), num_keys=2)
    return order[jnp.arange(number) % count].reshape(shape)


def batch_of(examples: dict[str, jax.Array], rows) -> dict[str, jax.Array]:
    """The examples of these rows."""
    return {name: array[rows] for name, array in examples.items()}


def _gradient_update(task: Task, training: LocalTraining, model: Model, arrays, rows, steps, key):
    """(update f32[d], mean loss f32[]): minus the mean gradient at the global weights."""
    del steps
    (loss, statistics), gradient = _value_and_grad(task, model, arrays, rows.reshape(-1), key)
    change = jax.tree.map(lambda new, old: new - old, statistics, model.statistics)
    return ravel_pytree((jax.tree.map(jnp.negative, gradient), change))[0], loss


def _clipped_gradient_update(task: Task, training: LocalTraining, model: Model, arrays, rows, steps, key):
    """(update f32[d], mean loss f32[]): minus the mean of the examples' gradients, each clipped.

    Each to L2 norm `example_clip` (Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang: Deep Learning
    with Differential Privacy, arXiv 1607.00133).
    """
    del steps
    if model.statistics is not None:
        raise ConfigError(
            "config.local.example_clip is positive, but the model has statistics (of batch normalization), "
            "by which every example of a batch moves the gradients of the others; use a model without"
        )

    def one_example(row, number):
        (loss, _), gradient = _value_and_grad(task, model, arrays, row[None], jax.random.fold_in(key, number))
        flat = ravel_pytree(gradient)[0]
        return flat / jnp.maximum(1.0, l2_norm(flat) / training.example_clip), loss

    def add(carry, inputs):  # batch after batch: memory for one batch of gradients
        batch, number = inputs
        numbers = number * training.batch_size + jnp.arange(training.batch_size)
        gradients, losses = jax.vmap(one_example)(batch, numbers)
        return (carry[0] + gradients.sum(0), carry[1] + losses.sum()), None

    start = (jnp.zeros_like(ravel_pytree(model.params)[0]), jnp.float32(0))
    (total, loss), _ = jax.lax.scan(add, start, (rows, jnp.arange(training.steps)))
    return -total / rows.size, loss / rows.size


def _weight_update(optimizer, task: Task, training: LocalTraining, model: Model, arrays, rows, steps, key):
    """(update f32[d], mean loss f32[]): the change of the weights by `steps` local steps."""

    def step(carry, inputs):
        batch, number = inputs
        local, statistics, state = carry
        (loss, renewed), gradient = _value_and_grad(
            task,
            model._replace(params=local, statistics=statistics),
            arrays,
            batch,
            jax.random.fold_in(key, number),
        )
        if training.proximal:
            gradient = jax.tree.map(
                lambda g, w, anchor: g + training.proximal * (w - anchor), gradient, local, model.params
            )
        change, state = optimizer.update(gradient, state, local)
        after = (optax.apply_updates(local, change), renewed, state)
        active = number < steps
        kept = jax.tree.map(lambda new, old: jnp.where(active, new, old), after, carry)
        return kept, jnp.where(active, loss, 0.0)

    start = (model.params, model.statistics, optimizer.init(model.params))
    (params, statistics, _), losses = jax.lax.scan(step, start, (rows, jnp.arange(training.steps)))
    before = ravel_pytree((model.params, model.statistics))[0]
    return ravel_pytree((params, statistics))[0] - before, losses.sum() / steps


def _value_and_grad(task, model, arrays, rows, key):
    """((loss, new statistics), gradient by the parameters) of a batch."""

    def loss(params):
        return task.loss(
            model._replace(params=params), batch_of(arrays.examples, rows), arrays.constants, key
        )

    return jax.value_and_grad(loss, has_aux=True)(model.params)


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
    """
    if optimizer is None:
        optimizer = OPTIMIZERS.get_or_raise(training.optimizer)(training.learning_rate, training.momentum)

    def run(model: Model, arrays: ClientArrays, client, key, state, number) -> Trained:
        row, count, steps = arrays.rows[client], arrays.counts[client], arrays.steps[client]
        batch_key, step_key = jax.random.split(key)
        rows = row[choose_batches(batch_key, count, row.shape[0], training)]
        if training.update_kind == "weights":
            chosen = optimizer if isinstance(optimizer, optax.GradientTransformation) else optimizer(number)
            compute = functools.partial(_weight_update, chosen)
        else:
            compute = _clipped_gradient_update if training.example_clip else _gradient_update
        update, loss = compute(task, training, model, arrays, rows, steps, step_key)
        if not training.normalize:
            return Trained(update, loss, jnp.float32(1), state)
        weight = training.weight(steps.astype(jnp.float32)) / training.weight(training.steps)
        return Trained(update / weight, loss, weight, state)

    return LocalUpdate(run, influence=influence_of(training))


def influence_of(training: LocalTraining) -> Influence:
    """What local training means for privacy: a clip bounds each example's part in the mean gradient."""
    if not training.example_clip:
        return Influence()
    batch = training.steps * training.batch_size

    def bound(counts):
        repeats = np.ceil(batch / np.asarray(counts))  # of one example in the shuffled, repeated order
        return repeats * training.example_clip / batch

    return Influence("example", "l2", bound)
