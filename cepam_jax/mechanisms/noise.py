"""Additive noise from the client's private key: what quantizers without privacy are combined with."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cepam_jax.errors import require_choice
from cepam_jax.mechanisms import code_length
from cepam_jax.mechanisms.base import RANGE, About, Knobs, Mechanism, Noise, Transform
from cepam_jax.mechanisms.chain import chain
from cepam_jax.mechanisms.identity import identity
from cepam_jax.mechanisms.knobs import knob
from cepam_jax.mechanisms.latents import TARGETS

_DRAWS = {  # of standard deviation 1
    "gaussian": lambda key, shape: jax.random.normal(key, shape, jnp.float32),
    "laplace": lambda key, shape: jax.random.laplace(key, shape, jnp.float32) * 2**-0.5,
}


def scaled_noise(law: str, deviation: Callable, knobs: tuple[str, ...], name: str) -> Transform:
    """Adds private noise whose standard deviation is a function of the knobs.

    A coordinate beyond `RANGE` standard deviations becomes NaN: beside it the noise would vanish.

    Args:
      law: "gaussian" or "laplace".
      deviation: Knobs -> f32[].
      knobs: names of the knobs it needs.
      name: of the transform.
    """
    require_choice("law", law, TARGETS)

    def forward(keys, x, given: Knobs):
        size = deviation(given)
        noised = x + size * _DRAWS[law](keys.private, x.shape)
        # Far from zero the sum is rounded coarsely. Where there is no noise, none can be lost.
        return jnp.where((jnp.abs(x) <= RANGE * size) | (size == 0), noised, jnp.nan), None

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


def coded_as_noise(law: str, options: dict) -> dict:
    """Options of a quantizer with coding "auto" turned into what suits an update under noise of this law.

    What is quantized is mostly noise, so its law is the noise's. Public scales are a guess; where it is too
    low, the thin tail of a Gaussian law costs the square of the error. The mixture forgives more.
    """
    best = law if options.get("scales", "own") == "own" else "mixture"
    return options | {"coding": code_length.resolved(options.get("coding", "auto"), best)}


def add_noise(law: str) -> Transform:
    """Adds Gaussian or Laplace noise of standard deviation `knobs.sigma` (1607.00133)."""

    def deviation(knobs):
        return knob(knobs, "sigma")

    return scaled_noise(law, deviation, ("sigma",), f"{law}-noise")


def additive(law: str) -> Mechanism:
    """32-bit floats with private noise: FedAvg + Gaussian or Laplace noise of the papers."""
    return chain(add_noise(law), identity())
