"""Random crops and flips, inside the jitted round."""

import jax
import jax.numpy as jnp

from cepam_jax.registry import Registry


def crop_and_flip(key, images, pad: int = 4):
    """Shifts each image by up to `pad` pixels (zeros come in) and mirrors half of them.

    The usual CIFAR-10 augmentation (1512.03385, section 4.2).

    Args:
      key: PRNG key.
      images: f32[batch, height, width, channels].
    """
    batch, height, width, _ = images.shape
    shift_key, flip_key = jax.random.split(key)
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    corner = jax.random.randint(shift_key, (batch, 2), 0, 2 * pad + 1, jnp.int32)
    flip = jax.random.bernoulli(flip_key, jnp.float32(0.5), (batch, 1))
    rows = corner[:, :1] + jnp.arange(height)
    columns = jnp.arange(width)
    columns = corner[:, 1:] + jnp.where(flip, width - 1 - columns, columns)
    return padded[jnp.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]


AUGMENTATIONS = Registry("augmentation")
AUGMENTATIONS.register("none", lambda key, images: images)
AUGMENTATIONS.register("crop_flip", crop_and_flip)
