"""What one client does with its own data: local training, or one gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from cepam_jax.data.augment import AUGMENTATIONS
from cepam_jax.mechanisms import counter
from cepam_jax.mechanisms.transforms import l2_norm

_BATCHES = 3  # stream tag of the words that order a client's examples


class LocalTraining(NamedTuple):
    """Settings of local training, the same for all clients.

    Attributes:
      steps: local iterations tau of a round.
      batch_size: examples per step.
      learning_rate, momentum: of local SGD; momentum starts at zero every round.
      update_kind: "weights", the change of the weights by `steps` SGD steps (FedAvg, 1602.05629), or
        "gradient", minus the mean gradient of `steps` batches at the global weights.
      proximal: weight mu of the proximal term mu/2 |w - w_global|^2 (FedProx, 1812.06127).
      normalize: whether an update is divided by the accumulated weight of its steps, relative to
        `steps` of them (FedNova, 2007.07481); the server multiplies by the mean of what was divided.
      sampling: "replacement", every batch drawn independently, or "shuffle", a random order of the
        client's examples each round, repeated when it is used up.
      augment: name of an augmentation.
      example_clip: L2 norm to which each example's gradient is clipped, for privacy of examples instead of
        clients; only with update_kind "gradient". 0: off.
    """

    steps: int
    batch_size: int
    learning_rate: float
    momentum: float = 0.0
    update_kind: str = "weights"
    sampling: str = "replacement"
    augment: str = "none"
    proximal: float = 0.0
    normalize: bool = False
    example_clip: float = 0.0

    def weight(self, steps):
        """Sum of the weights that SGD with momentum gives to the gradients of `steps` steps.

        |a|_1 of FedNova (2007.07481, section 4.1): steps for plain SGD.
        """
        rho = self.momentum
        return (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)


class Images(NamedTuple):
    """All clients' training images on the device.

    Attributes:
      images: uint8[examples, height, width, channels].
      labels: int32[examples].
      mean, std: f32[channels] of pixels scaled to [0, 1].
    """

    images: jax.Array
    labels: jax.Array
    mean: jax.Array
    std: jax.Array

    def normalized(self, images):
        """f32 images with zero mean and unit variance over the training set."""
        return (images.astype(jnp.float32) / 255 - self.mean) / self.std


def choose_batches(key, count, capacity: int, settings: LocalTraining):
    """Which of its examples a client trains on.

    Args:
      key: PRNG key of this client and round.
      count: int32[], how many examples the client has; positions beyond are padding.
      capacity: length of the padded row.
      settings: local training settings.

    Returns:
      int32[steps, batch_size] positions below `count`; they depend on the key and the count, not on
      the capacity, so padding changes nothing.
    """
    number = settings.steps * settings.batch_size
    shape = (settings.steps, settings.batch_size)
    if settings.sampling == "replacement":
        return jax.random.randint(key, shape, 0, count, jnp.int32)
    slots = jnp.arange(capacity, dtype=jnp.uint32)
    order, _ = counter.words(counter.stream(key, _BATCHES), 0, slots)
    padding = (slots >= count.astype(jnp.uint32)).astype(jnp.int32)
    _, _, order = jax.lax.sort((padding, order, slots.astype(jnp.int32)), num_keys=2)
    return order[jnp.arange(number) % count].reshape(shape)


def make_local_update(module: Any, settings: LocalTraining) -> Callable:
    """The function that computes one client's update.

    Args:
      module: flax module, called as module(images, train).
      settings: local training settings.

    Returns:
      (params, Images, row int32[capacity], count int32[], steps int32[], key) -> (update f32[d], mean
      training loss f32[], weight f32[]). The update is one flat vector in the order of
      `ravel_pytree(params)`; a client takes `steps` of the settings' steps (all of them for a
      gradient); `weight` is what it was divided by, 1 unless `normalize`.
    """
    optimizer = optax.sgd(settings.learning_rate, settings.momentum or None)
    augment = AUGMENTATIONS[settings.augment]

    def batch_loss(params, data: Images, rows, key):
        augment_key, dropout_key = jax.random.split(key)
        images = augment(augment_key, data.normalized(data.images[rows]))
        logits = module.apply({"params": params}, images, train=True, rngs={"dropout": dropout_key})
        return optax.softmax_cross_entropy_with_integer_labels(logits, data.labels[rows]).mean()

    def gradient_update(params, data, rows, steps, key):
        del steps
        if settings.example_clip:
            return clipped_gradient(params, data, rows, key)
        loss, gradient = jax.value_and_grad(batch_loss)(params, data, rows.reshape(-1), key)
        return -ravel_pytree(gradient)[0], loss

    def clipped_gradient(params, data, rows, key):
        """Mean of the examples' gradients, each clipped to L2 norm example_clip (1607.00133)."""

        def one(row, number):
            of_example = jax.random.fold_in(key, number)
            loss, gradient = jax.value_and_grad(batch_loss)(params, data, row[None], of_example)
            flat = ravel_pytree(gradient)[0]
            return flat / jnp.maximum(1.0, l2_norm(flat) / settings.example_clip), loss

        def add(carry, inputs):  # batch after batch: memory for one batch of gradients
            batch, number = inputs
            numbers = number * settings.batch_size + jnp.arange(settings.batch_size)
            gradients, losses = jax.vmap(one)(batch, numbers)
            return (carry[0] + gradients.sum(0), carry[1] + losses.sum()), None

        start = (jnp.zeros_like(ravel_pytree(params)[0]), jnp.float32(0))
        (total, loss), _ = jax.lax.scan(add, start, (rows, jnp.arange(settings.steps)))
        return -total / rows.size, loss / rows.size

    def weight_update(params, data, rows, steps, key):
        def step(carry, inputs):
            batch, number = inputs
            local, state = carry
            loss, gradient = jax.value_and_grad(batch_loss)(
                local, data, batch, jax.random.fold_in(key, number)
            )
            if settings.proximal:
                gradient = jax.tree.map(
                    lambda g, w, anchor: g + settings.proximal * (w - anchor), gradient, local, params
                )
            change, state = optimizer.update(gradient, state, local)
            after = (optax.apply_updates(local, change), state)
            active = number < steps
            kept = jax.tree.map(lambda new, old: jnp.where(active, new, old), after, carry)
            return kept, jnp.where(active, loss, 0.0)

        start = (params, optimizer.init(params))
        (local, _), losses = jax.lax.scan(step, start, (rows, jnp.arange(settings.steps)))
        return ravel_pytree(local)[0] - ravel_pytree(params)[0], losses.sum() / steps

    compute = {"weights": weight_update, "gradient": gradient_update}[settings.update_kind]

    def local_update(params, data, row, count, steps, key):
        batch_key, step_key = jax.random.split(key)
        rows = row[choose_batches(batch_key, count, row.shape[0], settings)]
        update, loss = compute(params, data, rows, steps, step_key)
        if not settings.normalize:
            return update, loss, jnp.float32(1)
        weight = settings.weight(steps.astype(jnp.float32)) / settings.weight(settings.steps)
        return update / weight, loss, weight

    return local_update


UPDATES = ("weights", "gradient")
SAMPLINGS = ("replacement", "shuffle")
