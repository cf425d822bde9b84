"""A clip that follows the updates' norms: adaptive clipping by a private quantile.

Andrew, Thakkar, McMahan, Ramaswamy: Differentially Private Learning with Adaptive Clipping (arXiv
1905.03871). Each participant says in one bit whether its update was within the clip; the server adds noise to
their count and releases it; and the clip goes where a given part of the updates is within:

  C <- C exp(-rate (within - quantile))

sigma follows the clip, so that gamma is what it was, and so is the epsilon of the updates. That of the count
comes on top. docs/clipping.md derives both.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax import settings
from cepam_jax.errors import require
from cepam_jax.federated.control.base import CONTROLS, Control, Released, scaled
from cepam_jax.mechanisms import Knobs

_MOST = 20 * math.log(2)  # of |log(C / C at the start)|: a clip stays where 32 bits hold it

settings.declare(
    "quantile_clip",
    {
        "quantile": settings.unit(0.5, "Part of the updates that are to be within the clip."),
        "rate": settings.positive(0.2, "By how much the clip's logarithm moves, for each unit of that part."),
        "noise": settings.not_negative(
            0.0,
            "Deviation of the noise on the count of updates within the clip, in participants; 0: a twentieth "
            "of the participants.",
        ),
    },
    "Of config.control=quantile_clip: the clip follows the norms of the updates, gamma stays.",
)


@settings.rule
def _rules(fields):
    """Settings that nobody reads are errors; so is a clip that is not there."""
    chosen = fields["control"] == "quantile_clip"
    if chosen:
        why = "where config.control is 'quantile_clip', which leaves gamma as it is"
        yield from settings.unread(fields, "filter", why)
    else:
        yield from settings.unread(fields, "quantile_clip", "unless config.control is 'quantile_clip'")
    yield (
        not chosen or fields["mechanism.clip"] != "none",
        "mechanism.clip",
        "a norm where config.control is 'quantile_clip', which sets the clip of that norm",
    )
    yield (
        not chosen or fields["mechanism.quantize"] == "updates",
        "mechanism.quantize",
        "'updates' where config.control is 'quantile_clip': it goes by the norms of updates",
    )


def quantile_clip(noise: float, quantile: float = 0.5, rate: float = 0.2) -> Control:
    """Clip and sigma of all clients times a common factor that follows a quantile of the updates' norms.

    Args:
      noise: deviation of the Gaussian noise on the count of updates within their clips, in participants; the
        paper takes a twentieth of the participants.
      quantile: part of the updates that are to be within, above 0 and at most 1.
      rate: of the steps of the clip's logarithm, above 0.

    Raises:
      ConfigError: a number is out of range.
    """
    require(0 < noise < math.inf, "noise", noise, "a positive number")
    for name, value in (("quantile", quantile), ("rate", rate)):
        field = settings.FIELDS[f"quantile_clip.{name}"]
        require(field.test(value), name, value, field.words())
    step, goal = np.float32(rate), np.float32(quantile)

    def knobs(state: jax.Array, start: Knobs, number: jax.Array) -> Knobs:
        del number
        return scaled(start, jnp.exp(state))

    def observe(state: jax.Array, released: Released) -> jax.Array:
        return jnp.clip(state - step * (released.within - goal), -_MOST, _MOST)

    return Control(knobs, initialize=lambda knobs: jnp.float32(0), observe=observe, count_noise=float(noise))


def _of_config(config) -> Control:
    options = config.quantile_clip
    participants = config.clients_per_round or config.num_clients
    return quantile_clip(options.noise or participants / 20, options.quantile, options.rate)


CONTROLS.register("quantile_clip", _of_config)
