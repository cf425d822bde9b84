"""Steps before a mechanism: clipping, random rotation, random masks, top-k.

Clipping bounds how far one client can move the result, the sensitivity in every privacy
statement: L2 for Gaussian noise, L1 for Laplace noise.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.mechanisms import counter
from cepam_jax.mechanisms.base import About, Knobs, Transform
from cepam_jax.mechanisms.knobs import knob


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
        longest = knob(knobs, "clip")
        return x * jnp.minimum(1.0, longest / jnp.maximum(measure(x), longest))

    return Transform(
        name=f"clip_{norm}",
        forward=lambda keys, x, knobs: (apply(x, knobs), None),
        reference=apply,
        variance=lambda x, knobs, rest: rest(x, knobs),
        about=About("", "none", knobs=("clip",), clip=norm, local=False),
    )


_SIGNS, _MASK = 5, 6  # tags of shared streams; part of the message format
_FACTOR = 7  # Hadamard matrices up to 2^7 are multiplied out; larger ones are Kronecker products


@functools.cache
def _hadamard(exponent: int) -> np.ndarray:
    matrix = np.ones((1, 1), np.float32)
    for _ in range(exponent):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.float32(2.0 ** (exponent / 2))


def walsh_hadamard(x):
    """Orthonormal Walsh-Hadamard transform of f32[2^k], its own inverse, in O(d log d)."""
    exponent = x.shape[0].bit_length() - 1
    full, rest = divmod(exponent, _FACTOR)
    factors = [_FACTOR] * full + ([rest] if rest else [])
    y = x.reshape([2**e for e in factors] or [1])
    for axis, e in enumerate(factors):
        y = jnp.moveaxis(
            jnp.tensordot(jnp.asarray(_hadamard(e)), y, ([1], [axis]), precision="highest"), 0, axis
        )
    return y.reshape(-1)


def rotate() -> Transform:
    """Random signs, then a Walsh-Hadamard transform (1611.00429, section 3).

    Spreads the update's energy evenly over the coordinates, so that min and max come close and a
    quantizer of the range errs less. Any length: padded with zeros to a power of two. The signs
    come from the shared key.
    """

    def size(d):
        return 1 << max(d - 1, 0).bit_length()

    def signs(shared, length):
        ids = jnp.arange(length, dtype=jnp.uint32)
        word, _ = counter.words(counter.stream(shared, _SIGNS), 0, ids)
        return jnp.where(word >> np.uint32(31) == 1, np.float32(-1), np.float32(1))

    def forward(keys, x, knobs):
        length = size(x.shape[0])
        padded = jnp.pad(x, (0, length - x.shape[0]))
        return walsh_hadamard(padded * signs(keys.shared, length)), None

    def inverse(shared, y, side, knobs, d):
        return (walsh_hadamard(y) * signs(shared, y.shape[0]))[:d]

    return Transform(
        name="rotate",
        forward=forward,
        inverse=inverse,
        size=size,
        mixes=True,
        about=About("", "none", randomness=("shared",), local=False),
    )


def random_mask() -> Transform:
    """Sends each coordinate with probability `knobs.fraction`, scaled up: unbiased (1610.05492).

    Which ones follows from the shared key, so their positions cost nothing.
    """

    def mask(shared, knobs, d):
        ids = jnp.arange(d, dtype=jnp.uint32)
        word, _ = counter.words(counter.stream(shared, _MASK), 0, ids)
        # 24 bits, which f32 holds exactly: the same on every platform.
        uniform = (word >> np.uint32(8)).astype(jnp.float32) * np.float32(2.0**-24)
        return (uniform < knob(knobs, "fraction")).astype(jnp.float32)

    def forward(keys, x, knobs):
        chosen = mask(keys.shared, knobs, x.shape[0]) > 0
        return jnp.where(chosen | ~jnp.isfinite(x), x, 0.0), None  # an invalid update stays invalid

    def inverse(shared, y, side, knobs, d):
        chosen = mask(shared, knobs, d) > 0
        return jnp.where(chosen | ~jnp.isfinite(y), y, 0.0) / knob(knobs, "fraction")

    def variance(x, knobs, rest):
        after = rest(x, knobs)
        if after.ndim:  # depends on which coordinates were drawn
            return jnp.full(x.shape, jnp.nan)
        fraction = knob(knobs, "fraction")
        return jnp.square(x) * (1 / fraction - 1) + after / fraction

    return Transform(
        name="mask",
        forward=forward,
        inverse=inverse,
        weight=lambda shared, side, knobs, d: mask(shared, knobs, d),
        variance=variance,
        about=About("", "other", randomness=("shared",), knobs=("fraction",)),
    )


def top_k() -> Transform:
    """Sends the `knobs.fraction` largest coordinates by magnitude (1712.01887): biased.

    Which ones depends on the update and is part of the message: no noise covers it.
    """

    def support(x, knobs):
        order = jnp.argsort(-jnp.abs(x), stable=True)
        number = jnp.ceil(knob(knobs, "fraction") * x.shape[0])
        return jnp.zeros(x.shape, bool).at[order].set(jnp.arange(x.shape[0]) < number)

    def forward(keys, x, knobs):
        kept = support(x, knobs)
        x = jnp.where(jnp.isnan(knob(knobs, "fraction")), jnp.nan, x)  # as invalid as the knob
        # A NaN is never sorted away.
        return jnp.where(kept | ~jnp.isfinite(x), x, 0.0), kept

    def side_bits(kept, knobs, d):
        number = jnp.sum(kept).astype(jnp.float32)
        choose = math.lgamma(d + 1) - jax.lax.lgamma(number + 1) - jax.lax.lgamma(d - number + 1)
        return jnp.maximum(choose, 0.0) / np.float32(np.log(2))

    return Transform(
        name="top-k",
        forward=forward,
        inverse=lambda shared, y, kept, knobs, d: jnp.where(kept | ~jnp.isfinite(y), y, 0.0),
        weight=lambda shared, kept, knobs, d: kept.astype(jnp.float32),
        side_bits=side_bits,
        about=About(
            "",
            "other",
            unbiased=False,
            knobs=("fraction",),
            local=False,
            leaks=("which coordinates are largest (top-k)",),
        ),
    )
