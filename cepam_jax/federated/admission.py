"""What an honest client's decoded update must satisfy, and what the server does with others.

A decoded update is x + n with |x| at most C, by the clip, and n of a known law. Its norm is therefore below a
limit but with a stated probability, the false alarm: the server leaves out of its rule what lies beyond, or
is not finite. A liar may choose what is decoded, but not beyond the limit.

Gaussian noise: |x + n|^2 / sigma^2 has a noncentral chi-squared law of d degrees of freedom with
noncentrality l <= C^2 / sigma^2, and exceeds d + l + 2 sqrt((d + 2 l) t) + 2 t with probability at most
exp(-t) (Birgé: An Alternative Point of View on Lepski's Method, 2001, lemma 8.1). Laplace noise of scale b:
|x + n|_1 is at most |x|_1 + |n|_1, and |n|_1 / b has a gamma law of shape d, which exceeds
d + sqrt(2 d t) + t with probability at most exp(-t) (Boucheron, Lugosi, Massart: Concentration
Inequalities, 2013, section 2.4).
"""

import math

import jax
import jax.numpy as jnp

from cepam_jax.errors import ConfigError, require
from cepam_jax.mechanisms import About, Knobs
from cepam_jax.mechanisms.transforms import l1_norm, l2_norm

_ROUNDING = 1e-4  # of the limit: norms are added up in 32-bit floats


def check(about: About) -> None:
    """Checks that what a mechanism decodes to has a norm with a limit.

    Raises:
      ConfigError: it has not, and why.
    """
    stated = about.law == (about.outsiders.law if about.outsiders else "none")
    if about.clip is None or not stated:
        cause = "does not clip updates" if about.clip is None else "states no law of its whole error"
        raise ConfigError(
            f"the server is to check norms (config.byzantine.check), but the mechanism {about.name} {cause}: "
            "nothing says how large an honest update may be decoded"
        )
    if about.clip != "l1" and about.outsiders is not None and about.outsiders.law == "laplace":
        raise ConfigError(
            "the server is to check norms (config.byzantine.check), but the noise is Laplace noise and the "
            "clip bounds the L2 norm; clip the L1 norm (config.mechanism.clip=l1)"
        )


def limit(about: About, knobs: Knobs, d: int, false_alarm: float) -> jax.Array:
    """The largest norm of an honest decoded update, but with probability `false_alarm`.

    Args:
      about: of the mechanism; `check` has passed.
      knobs: f32[...] each.
      d: coordinates.
      false_alarm: probability with which an honest update of the largest norm is beyond, at most; of one
        message.

    Returns:
      f32[...], of the norm that `norm` gives.
    """
    require(0 < false_alarm < 1, "false alarm", false_alarm, "a probability above 0 and below 1")
    t, bound = math.log(1 / false_alarm), jnp.asarray(knobs.clip, jnp.float32)
    deviation = about.outsiders.deviation(knobs) if about.outsiders else jnp.zeros_like(bound)
    if about.outsiders is not None and about.outsiders.law == "laplace":
        noise = deviation / math.sqrt(2) * (d + math.sqrt(2 * d * t) + t)
        return (bound + noise) * (1 + _ROUNDING)
    square = jnp.square(deviation)
    middle = square * d + jnp.square(bound)
    width = 2 * deviation * jnp.sqrt((square * d + 2 * jnp.square(bound)) * t) + 2 * square * t
    return jnp.sqrt(middle + width) * (1 + _ROUNDING)


def norm(about: About, decoded) -> jax.Array:
    """f32[], the norm of a decoded update f32[d] that has a limit."""
    laplace = about.outsiders is not None and about.outsiders.law == "laplace"
    return (l1_norm if laplace else l2_norm)(decoded)


def admitted(about: About, decoded, limits) -> tuple[jax.Array, jax.Array]:
    """(decoded updates f32[n, d], zeros in place of those that are refused; who is taken bool[n])."""
    found = jax.vmap(lambda one: norm(about, one))(decoded)
    taken = jnp.isfinite(found) & (found <= limits)
    return jnp.where(taken[:, None], decoded, 0.0), taken
