"""Additive noise from the client's private key: what quantizers without privacy are combined with."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cepam_jax.errors import require_choice
from cepam_jax.mechanisms.base import About, Knobs, Mechanism, Noise, Transform, check_knobs
from cepam_jax.mechanisms.chain import chain
from cepam_jax.mechanisms.identity import identity
from cepam_jax.mechanisms.latents import TARGETS

_DRAWS = {  # of standard deviation 1
    "gaussian": jax.random.normal,
    "laplace": lambda key, shape: jax.random.laplace(key, shape) * 2**-0.5,
}


def scaled_noise(law: str, deviation: Callable, knobs: tuple[str, ...], name: str) -> Transform:
    """Adds private noise whose standard deviation is a function of the knobs.

    Args:
      law: "gaussian" or "laplace".
      deviation: Knobs -> f32[].
      knobs: names of the knobs it needs.
      name: of the transform.
    """
    require_choice("law", law, TARGETS)

    def forward(keys, x, given: Knobs):
        return x + deviation(given) * _DRAWS[law](keys.private, x.shape), None

    return Transform(
        name=name,
        forward=forward,
        variance=lambda x, given, rest: jnp.square(deviation(given)) + rest(x, given),
        about=About(
            "",
            law,
            randomness=("private",),
            knobs=knobs,
            outsiders=Noise(law, deviation),
            server=Noise(law, deviation),
        ),
    )


def add_noise(law: str) -> Transform:
    """Adds Gaussian or Laplace noise of standard deviation `knobs.sigma` (1607.00133)."""

    def deviation(knobs):
        check_knobs(knobs, ("sigma",))
        return jnp.asarray(knobs.sigma, jnp.float32)

    return scaled_noise(law, deviation, ("sigma",), f"{law}-noise")


def additive(law: str) -> Mechanism:
    """32-bit floats with private noise: FedAvg + Gaussian or Laplace noise of the papers."""
    return chain(add_noise(law), identity())
