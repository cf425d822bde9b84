"""The steps of local training: which examples, which gradient, which change of the weights."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from cepam_jax.errors import ConfigError
from cepam_jax.mechanisms import counter
from cepam_jax.mechanisms.transforms import l2_norm
from cepam_jax.tasks.base import Model, Task

_BATCHES = 3  # stream tag of the words that order a client's examples

UPDATES = ("weights", "gradient")
SAMPLINGS = ("replacement", "shuffle")


class LocalTraining(NamedTuple):
    """Settings of local training, the same for all clients.

    Attributes:
      steps: local iterations tau of a round.
      batch_size: examples per step.
      learning_rate, momentum: of the local optimizer, which starts anew every round.
      optimizer: name of the local optimizer.
      worker_momentum: beta; a client sends m <- beta m + (1 - beta) x in place of its update x, and keeps m
        from round to round (Karimireddy, He, Jaggi: Learning from History for Byzantine Robust Optimization,
        arXiv 2012.10333). 0: off.
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
    worker_momentum: float = 0.0

    def weight(self, steps):
        """Sum of the weights that SGD with momentum gives to the gradients of `steps` steps.

        |a|_1 of FedNova (2007.07481, section 4.1): steps for plain SGD.
        """
        rho = self.momentum
        return (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)


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


def gradient_update(task: Task, training: LocalTraining, model: Model, arrays, rows, steps, key):
    """(update f32[d], mean loss f32[]): minus the mean gradient at the global weights."""
    del steps
    (loss, statistics), gradient = _value_and_grad(task, model, arrays, rows.reshape(-1), key)
    change = jax.tree.map(lambda new, old: new - old, statistics, model.statistics)
    return ravel_pytree((jax.tree.map(jnp.negative, gradient), change))[0], loss


def clipped_gradient_update(task: Task, training: LocalTraining, model: Model, arrays, rows, steps, key):
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


def weight_update(optimizer, task: Task, training: LocalTraining, model: Model, arrays, rows, steps, key):
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
