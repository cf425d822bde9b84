"""Additive noise from the client's private key, which gives privacy to quantizers that have none.

Source: Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang: Deep Learning with Differential Privacy
(arXiv 1607.00133).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from cepam_jax.errors import require_choice
from cepam_jax.mechanisms import code_length
from cepam_jax.mechanisms.base import RANGE, About, Keys, Knobs, Mechanism, Noise, Transform
from cepam_jax.mechanisms.chain import chain
from cepam_jax.mechanisms.identity import identity
from cepam_jax.mechanisms.knobs import knob
from cepam_jax.mechanisms.latents import TARGETS

_DRAWS: dict[str, Callable] = {  # of standard deviation 1
    "gaussian": lambda key, shape: jax.random.normal(key, shape, jnp.float32),
    "laplace": lambda key, shape: jax.random.laplace(key, shape, jnp.float32) * 2**-0.5,
}


def scaled_noise(
    law: str, deviation: Callable[[Knobs], jax.Array], knobs: tuple[str, ...], name: str
) -> Transform:
    """Adds private noise whose standard deviation is a function of the knobs.

    A coordinate beyond `RANGE` standard deviations becomes NaN: beside it the noise would vanish.

    Args:
      law: "gaussian" or "laplace".
      deviation: Knobs -> f32[], standard deviation in units of the update.
      knobs: names of the knobs that `deviation` needs.
      name: name of the transform.

    Returns:
      A transform that keeps the length of the vector.

    Raises:
      ConfigError: unknown law.
    """
    require_choice("law", law, TARGETS)
    noise = Noise(law, deviation)
    return Transform(
        name=name,
        forward=partial(_add, noise),
        variance=lambda x, given, rest: jnp.square(deviation(given)) + rest(x, given),
        about=About("", law, randomness=("private",), knobs=knobs, outsiders=noise, server=noise),
        keeps=("l1", "l2"),
    )


def _add(noise: Noise, keys: Keys, x: jax.Array, knobs: Knobs) -> tuple[jax.Array, None]:
    """x f32[d] plus noise from the private key; NaN where the noise would vanish beside a coordinate."""
    size = noise.deviation(knobs)
    noised = x + size * _DRAWS[noise.law](keys.private, x.shape)
    # Far from zero the sum is rounded coarsely. Where there is no noise, none can be lost.
    return jnp.where((jnp.abs(x) <= RANGE * size) | (size == 0), noised, jnp.nan), None


def coded_as_noise(law: str, options: dict) -> dict:
    """Options of a quantizer with coding "auto" replaced by what suits an update under noise of this law.

    What is quantized is mostly noise, so its law is the noise's. Public scales are a guess; where it is too
    low, the thin tail of a Gaussian law costs the square of the error, and the mixture costs less.

    Args:
      law: "gaussian" or "laplace".
      options: arguments of the quantizer by name, of which "coding" and "scales" are read.

    Returns:
      The options, with "coding" resolved.
    """
    best = law if options.get("scales", "own") == "own" else "mixture"
    return options | {"coding": code_length.resolved(options.get("coding", "auto"), best)}


def add_noise(law: str) -> Transform:
    """Adds Gaussian or Laplace noise of standard deviation `knobs.sigma` (arXiv 1607.00133).

    Args:
      law: "gaussian" or "laplace".

    Returns:
      A transform with knob `sigma`.

    Raises:
      ConfigError: unknown law.
    """
    return scaled_noise(law, _sigma, ("sigma",), f"{law}-noise")


def _sigma(knobs: Knobs) -> jax.Array:
    """f32[], the knob `sigma`."""
    return knob(knobs, "sigma")


def additive(law: str) -> Mechanism:
    """32-bit floats with private noise of standard deviation `knobs.sigma`: FedAvg + noise.

    Args:
      law: "gaussian" or "laplace".

    Returns:
      A mechanism with knob `sigma`.

    Raises:
      ConfigError: unknown law.
    """
    return chain(add_noise(law), identity())
