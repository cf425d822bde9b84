"""What an honest client's decoded update must satisfy, and what the server does with others.

A decoded update is x + n with |x| at most C, by the clip, and n of a known law. Its norm therefore lies
between two limits but with a stated probability, the false alarm: the server leaves out of its rule what lies
beyond them, or is not finite. A liar may choose what is decoded, but not beyond the limits: so it cannot do
without noise, and its lies are as long as honest updates.

Gaussian noise: |x + n|^2 / sigma^2 has a noncentral chi-squared law of d degrees of freedom with
noncentrality l <= C^2 / sigma^2. With probability at least 1 - exp(-t) each, it is at most
d + l + 2 sqrt((d + 2 l) t) + 2 t and at least d + l - 2 sqrt((d + 2 l) t) (Birgé: An Alternative Point of
View on Lepski's Method, 2001, lemma 8.1); over all l >= 0 the latter is at least d - 2 sqrt(d t). Laplace
noise of scale b: |x + n|_1 lies between |n|_1 - C and |n|_1 + C, and |n|_1 / b has a gamma law of shape d,
which is at most d + sqrt(2 d t) + t and at least d - sqrt(2 d t) (Boucheron, Lugosi, Massart: Concentration
Inequalities, 2013, section 2.4).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

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
    bounded = about.clip is not None and (about.outsiders is None or about.sensitivity is not None)
    l1 = about.outsiders is None or about.outsiders.law != "laplace" or about.sensitivity == "l1"
    if bounded and not l1:
        raise ConfigError(
            "the server is to check norms (config.byzantine.check), but where the Laplace noise comes in no "
            "L1 norm is bounded; clip the L1 norm (config.mechanism.clip=l1), and do not rotate"
        )
    if not bounded or not stated:
        cause = "states no law of its whole error"
        if not bounded:
            cause = (
                "does not clip updates" if about.clip is None else "clips no update before the noise comes in"
            )
        raise ConfigError(
            f"the server is to check norms (config.byzantine.check), but the mechanism {about.name} {cause}: "
            "nothing says how large an honest update may be decoded"
        )


class Limits(NamedTuple):
    """Between which an honest decoded update's norm lies, but for false alarms.

    Attributes:
      least, most: f32[...], of the norm that `norm` gives.
    """

    least: jax.Array
    most: jax.Array


def limits(about: About, knobs: Knobs, d: int, false_alarm: float) -> Limits:
    """Both limits.

    Args:
      about: of the mechanism; `check` has passed.
      knobs: f32[...] each.
      d: coordinates.
      false_alarm: probability with which an honest message is beyond, at most, whatever its update.
    """
    require(0 < false_alarm < 1, "false alarm", false_alarm, "a probability above 0 and below 1")
    t, bound = math.log(2) - math.log(false_alarm), jnp.asarray(knobs.clip, jnp.float32)
    deviation = about.outsiders.deviation(knobs) if about.outsiders else jnp.zeros_like(bound)
    if about.outsiders is not None and about.outsiders.law == "laplace":
        scale = deviation / math.sqrt(2)
        least = scale * (d - math.sqrt(2 * d * t)) - bound
        most = scale * (d + math.sqrt(2 * d * t) + t) + bound
    else:
        square = jnp.square(deviation)
        wide = 2 * deviation * jnp.sqrt((square * d + 2 * jnp.square(bound)) * t) + 2 * square * t
        least = deviation * math.sqrt(max(0.0, d - 2 * math.sqrt(d * t)))
        most = jnp.sqrt(square * d + jnp.square(bound) + wide)
    return Limits(jnp.maximum(least, 0.0) * (1 - _ROUNDING), most * (1 + _ROUNDING))


def norm_of(about: About) -> Callable[[jax.Array], jax.Array]:
    """f32[d] -> f32[], the norm of a decoded update that has a limit."""
    laplace = about.outsiders is not None and about.outsiders.law == "laplace"
    return l1_norm if laplace else l2_norm


def norm(about: About, decoded) -> jax.Array:
    """f32[], that norm of a decoded update f32[d]."""
    return norm_of(about)(decoded)


def admitted(about: About, decoded, limits: Limits) -> tuple[jax.Array, jax.Array]:
    """(a decoded update f32[d], or zeros if it is refused; whether it is taken bool[])."""
    found = norm(about, decoded)
    taken = jnp.isfinite(found) & (found <= limits.most) & (found >= limits.least)
    return jnp.where(taken, decoded, 0.0), taken
