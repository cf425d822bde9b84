"""Steps before a mechanism: whole-model clipping.

Clipping bounds how far one client can move the result, the sensitivity in every privacy
statement: L2 for Gaussian noise, L1 for Laplace noise.
"""

import jax.numpy as jnp

from cepam_jax.mechanisms.base import Knobs, Transform, check_knobs


def l2_norm(x):
    """Euclidean norm of f32[d] that neither overflows nor vanishes for extreme scales."""
    scale = _scale(x)
    return scale * jnp.sqrt(jnp.sum(jnp.square(x / scale)))


def l1_norm(x):
    """Sum of absolute values of f32[d], likewise."""
    scale = _scale(x)
    return scale * jnp.sum(jnp.abs(x) / scale)


def _scale(x):
    largest = jnp.max(jnp.abs(x), initial=0.0)
    return jnp.where(largest > 0, largest, 1.0)


NORMS = {"l2": l2_norm, "l1": l1_norm}


def clip(norm: str) -> Transform:
    """Scales x down to norm `knobs.clip` where it is longer (1607.00133, algorithm 1).

    Args:
      norm: "l2" or "l1", over the whole model.
    """
    measure = NORMS[norm]

    def apply(x, knobs: Knobs):
        check_knobs(knobs, ("clip",))
        return x * jnp.minimum(1.0, knobs.clip / jnp.maximum(measure(x), knobs.clip))

    return Transform(apply, knobs=("clip",), clip=norm)
