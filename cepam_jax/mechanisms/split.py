"""An exact Gaussian error of which a part is private: some protection even from the server.

  x_hat = LRSUQ(x + N(0, share sigma^2)) = x + N(0, share sigma^2) + N(0, (1 - share) sigma^2)

LRSUQ's error is independent of its input, so the sum is exactly N(0, sigma^2), whatever x is. Outsiders
face all of it. A server that knows the shared randomness sees x plus the private part to within a
quantization cell, a function of x + N(0, share sigma^2): sigma sqrt(share) counts against it.
"""

import functools
import math

import numpy as np

from cepam_jax.errors import require
from cepam_jax.mechanisms.base import Mechanism, Noise
from cepam_jax.mechanisms.chain import chain
from cepam_jax.mechanisms.knobs import knob
from cepam_jax.mechanisms.noise import coded_as_noise, scaled_noise
from cepam_jax.mechanisms.rsuq import lrsuq


def split(lattice: str = "Z1", share: float = 0.5, **options) -> Mechanism:
    """LRSUQ after private Gaussian noise; together exactly N(0, sigma^2) (2402.03030 for LRSUQ).

    Why this and not Poisson private representation (2405.20782): that one is exact, too, and cheaper in bits
    where the update is small beside the noise, but it costs the server's epsilon a factor of at least two,
    and its running time grows exponentially with the information in a block.

    Args:
      lattice, **options: as for `lrsuq`; coding as for `noise_then_sdq`.
      share: part of the variance that is private, above 0 and below 1.

    Returns:
      A mechanism with knob `sigma`, the standard deviation of the whole error.

    Raises:
      ConfigError: share out of range, or what `lrsuq` raises.
    """
    number = isinstance(share, (int, float, np.floating)) and 1e-6 <= share <= 1 - 1e-6
    require(number, "share", share, "a number above 0 and below 1, by at least 1e-6")
    private, public = np.float32(math.sqrt(share)), np.float32(math.sqrt(1 - share))

    def deviation(knobs):
        return knob(knobs, "sigma") * private

    def rest(knobs):
        """For what LRSUQ adds."""
        return knobs._replace(sigma=knob(knobs, "sigma") * public)

    def host_width(side, knobs, of):
        """As the device multiplies; without the device, which the host's coder must not call."""
        return of(side, knobs._replace(sigma=np.float32(knobs.sigma) * public))

    inner = lrsuq("gaussian", lattice, **coded_as_noise("gaussian", options))
    inner = inner._replace(
        encode=lambda keys, x, knobs, weight=None, of=inner: of.encode(keys, x, rest(knobs), weight),
        decode=lambda shared, message, knobs, of=inner: of.decode(shared, message, rest(knobs)),
        bits=lambda shared, message, knobs, weight=None, of=inner: of.bits(
            shared, message, rest(knobs), weight
        ),
        variance=lambda x, knobs, of=inner: of.variance(x, rest(knobs)),
        code=inner.code._replace(width=functools.partial(host_width, of=inner.code.width)),
    )
    built = chain(scaled_noise("gaussian", deviation, ("sigma",), "private"), inner)
    about = built.about._replace(
        name=f"split-{share:g}-{lattice}",
        outsiders=Noise("gaussian", lambda knobs: knobs.sigma),
    )
    return built._replace(about=about)
