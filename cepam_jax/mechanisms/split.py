"""An exact Gaussian error of which a part is private: some protection even from the server.

  x_hat = Q(x + N(0, share sigma^2)) = x + N(0, share sigma^2) + N(0, (1 - share) sigma^2)

The quantizer Q is LRSUQ or `rotated`. Its error is independent of its input, so the sum is exactly
N(0, sigma^2), whatever x is. Outsiders face all of it. A server that knows the shared randomness sees x plus
the private part to within a quantization cell, a function of x + N(0, share sigma^2): sigma sqrt(share)
counts against it.

Why this and not Poisson private representation (Liu, Chen, Özgür, Li: Universal Exact Compression of
Differentially Private Mechanisms, arXiv 2405.20782): that one is exact, too, and cheaper in bits where the
update is small beside the noise, but it costs the server's epsilon a factor of at least two, and its running
time grows exponentially with the information in a block.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from cepam_jax.errors import require, require_choice
from cepam_jax.mechanisms.base import Keys, Knobs, Mechanism, Message, Noise
from cepam_jax.mechanisms.chain import chain
from cepam_jax.mechanisms.knobs import knob
from cepam_jax.mechanisms.noise import coded_as_noise, scaled_noise
from cepam_jax.mechanisms.rotated import rotated
from cepam_jax.mechanisms.rsuq import lrsuq

# The quantizers with an exactly Gaussian error: (lattice, **options) -> Mechanism.
QUANTIZERS: dict[str, Callable[..., Mechanism]] = {"lrsuq": partial(lrsuq, "gaussian"), "rotated": rotated}


def split(lattice: str = "Z1", share: float = 0.5, quantizer: str = "lrsuq", **options: Any) -> Mechanism:
    """A quantizer after private Gaussian noise; together their error is exactly N(0, sigma^2).

    Args:
      lattice: as for the quantizer.
      share: part of the variance that is private, above 0 and below 1.
      quantizer: "lrsuq" or "rotated".
      **options: as for the quantizer; coding as for `noise_then_sdq`.

    Returns:
      A mechanism with knob `sigma`, the standard deviation of the whole error.

    Raises:
      ConfigError: share out of range, an unknown quantizer, or what the quantizer raises.
    """
    number = isinstance(share, (int, float, np.floating)) and 1e-6 <= share <= 1 - 1e-6
    require(number, "share", share, "a number above 0 and below 1, by at least 1e-6")
    require_choice("quantizer", quantizer, QUANTIZERS)
    private, public = np.float32(math.sqrt(share)), np.float32(math.sqrt(1 - share))
    last = QUANTIZERS[quantizer](lattice, **coded_as_noise("gaussian", options))
    noise = scaled_noise("gaussian", partial(_deviation, private), ("sigma",), "private")
    built = chain(noise, _with_part_of_sigma(last, public))
    digits = np.format_float_positional(float(share), trim="-")
    about = built.about._replace(
        name=f"split-{digits}-{'rotated-' * (quantizer == 'rotated')}{lattice}",
        law="gaussian",  # of the sum of both, whose deviation is known
        outsiders=Noise("gaussian", lambda knobs: knobs.sigma),
    )
    return built._replace(about=about)


def _deviation(part: np.float32, knobs: Knobs) -> jax.Array:
    """f32[], the part of `knobs.sigma` that one of the two errors has as its standard deviation."""
    return knob(knobs, "sigma") * part


def _part_of_sigma(part: np.float32, knobs: Knobs) -> Knobs:
    """The knobs of a mechanism that adds this part of the standard deviation."""
    return knobs._replace(sigma=_deviation(part, knobs))


def _with_part_of_sigma(mechanism: Mechanism, part: np.float32) -> Mechanism:
    """A mechanism over a lattice, with `part` times the knob `sigma` in place of the knob."""
    assert mechanism.code.width and mechanism.variance  # every mechanism over a lattice has both
    return mechanism._replace(
        encode=partial(_encode, mechanism, part),
        decode=partial(_decode, mechanism, part),
        bits=partial(_bits, mechanism, part),
        variance=partial(_variance, mechanism.variance, part),
        code=mechanism.code._replace(width=partial(_host_width, mechanism.code.width, part)),
    )


def _encode(
    mechanism: Mechanism,
    part: np.float32,
    keys: Keys,
    x: jax.Array,
    knobs: Knobs,
    weight: jax.Array | None = None,
) -> Message:
    """The message of x f32[d]; see `Mechanism.encode`."""
    return mechanism.encode(keys, x, _part_of_sigma(part, knobs), weight)


def _decode(
    mechanism: Mechanism, part: np.float32, shared: jax.Array, message: Message, knobs: Knobs
) -> jax.Array:
    """The update f32[d] that a message stands for; see `Mechanism.decode`."""
    return mechanism.decode(shared, message, _part_of_sigma(part, knobs))


def _bits(
    mechanism: Mechanism,
    part: np.float32,
    shared: jax.Array,
    message: Message,
    knobs: Knobs,
    weight: jax.Array | None = None,
) -> jax.Array:
    """f32[], the ideal code length of a message in bits; see `Mechanism.bits`."""
    return mechanism.bits(shared, message, _part_of_sigma(part, knobs), weight)


def _variance(variance: Callable, part: np.float32, x: jax.Array, knobs: Knobs) -> jax.Array:
    """Expected squared error per coordinate of x f32[d]; see `Mechanism.variance`."""
    return variance(x, _part_of_sigma(part, knobs))


def _host_width(width: Callable, part: np.float32, side: dict, knobs: Knobs) -> np.float64:
    """`Code.width` for a coder on the host.

    It multiplies as the device does, but without the device, which the coder on the host must not call.
    """
    return width(side, knobs._replace(sigma=np.float32(knobs.sigma) * part))
