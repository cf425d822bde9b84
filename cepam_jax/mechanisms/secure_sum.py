"""Integers that are decoded from their sum alone: noise that hides an update from the server itself.

  m_k = round((R x_k + n_k) / w + V_k) mod 2^b,     n_k ~ N(0, sigma^2) private, V_k shared with the server
  sum_k x_k  is about  R^-1 w (sum_k m_k - sum_k V_k)

A secure sum shows the server sum_k m_k mod 2^b and nothing else. R is a rotation and w = sigma / cells a step
that all participants share. What a server that knows all V_k learns is what sum_k (x_k + n_k) tells,
but for a factor 1 + 1e-14 in probability: docs/secure_sums.md has the theorem, `privacy.secure_sums` its
numbers.

The modulus is chosen so that a coordinate of the sum leaves it with a stated probability, whatever the
updates: after the rotation it is sub-Gaussian,

  P(|sum| > t) <= 2 exp(-t^2 / 2v),     v = (n C)^2 / 2^k + n (sigma^2 + w^2 / 12)

with n participants of clip C and 2^k the width of `common_rotation`. Leaving it is a loss of accuracy, not of
privacy: everything modulo 2^b follows from the sum.

Sources: Bonawitz, Ivanov, Kreuter, Marcedone, McMahan, Patel, Ramage, Segal, Seth: Practical Secure
Aggregation for Privacy-Preserving Machine Learning (CCS 2017); Kairouz, Liu, Steinke: The Distributed
Discrete Gaussian Mechanism for Federated Learning with Secure Aggregation, arXiv 2102.06387 (rotation,
modulus).
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.errors import WireError, is_whole, require
from cepam_jax.mechanisms import blocks, common_rotation, counter
from cepam_jax.mechanisms.base import (
    RANGE,
    About,
    Code,
    Keys,
    Knobs,
    Mechanism,
    Message,
    Noise,
    check_vector,
)
from cepam_jax.mechanisms.joint import Joint, Summed
from cepam_jax.mechanisms.knobs import knob

_DITHERS = 8  # tag of the shared stream; part of the message format
_FRACTION = 17  # bits of a dither behind the point: an odd multiple of 2^-17 between -1/2 and 1/2
_SIDE_BITS = 16  # of the number of bits
# More would leave f32 less than an eighth of a step for what lies between the integers.
MOST_BITS = 21
LEAST_CELLS, MOST_CELLS = 1.0, 64.0


class Setting(NamedTuple):
    """What is fixed when a secure sum is built; the fields are those of `secure_sum`."""

    cells: float
    wrap: float


def secure_sum(
    survivors: int = 0, colluders: int = 0, cells: float = 1.5, wrap: float = 1e-6, lost: float = 0.0
) -> Mechanism:
    """Integers for a secure sum, with private Gaussian noise of deviation `knobs.sigma` in each.

    Args:
      survivors: the least number of messages whose sum is opened, n_min: noise is accounted for as theirs; 0:
        those of all participants.
      colluders: f participants who may tell the server their noise; then n_min - f noises hide an update.
      cells: deviation of one client's noise over the step, between 1 and 64. A larger number costs bits, and
        saves 1 / (12 cells^2) of the noise's variance in error.
      wrap: bound on the probability that a coordinate of a sum wraps around, between 1e-12 and .1.
      lost: chance with which a message does not arrive in this simulation, from 0 to below 1.

    Returns:
      A mechanism with the knobs `sigma` and `clip`, the same for all clients, behind a clip in L2. Its
      message has `symbols` int32[d] and `side["bits"]` int32[1]; `encode` and `decode` are those of a sum of
      one.

    Raises:
      ConfigError: an argument is out of range.
    """
    check(survivors, colluders, cells, wrap, lost)
    return build(Setting(float(cells), float(wrap)), Summed(survivors, colluders, float(cells)), lost)


def check(survivors: int, colluders: int, cells: float, wrap: float, lost: float) -> None:
    """Raises ConfigError unless the arguments of `secure_sum` are in their ranges."""
    for name, value in (("survivors", survivors), ("colluders", colluders)):
        whole = is_whole(value) and value >= 0
        require(whole, name, value, "a whole number of at least 0")
    alone = survivors == 0 or colluders < survivors
    require(alone, "colluders", colluders, f"fewer than survivors = {survivors}")
    inside = LEAST_CELLS <= cells <= MOST_CELLS
    require(inside, "cells", cells, f"a number from {LEAST_CELLS:g} to {MOST_CELLS:g}")
    require(1e-12 <= wrap <= 0.1, "wrap", wrap, "a probability from 1e-12 to 0.1")
    require(0 <= lost < 1, "lost", lost, "a probability of at least 0 and below 1")


def build(setting: Setting, summed: Summed, lost: float) -> Mechanism:
    """The mechanism of checked settings."""
    noise = Noise("gaussian", lambda knobs: knob(knobs, "sigma"))
    joint = Joint(
        bits=partial(_bits_of, setting),
        encode=partial(_encode, setting),
        dithers=dithers,
        decode=partial(_decode, setting),
        lost=float(lost),
    )
    return Mechanism(
        encode=partial(_encode_alone, joint),
        decode=partial(_decode_alone, joint),
        bits=_message_bits,
        reference=lambda x, knobs: x,
        about=About(
            name="secure-sum",
            law="other",
            randomness=("private", "shared"),
            knobs=("sigma", "clip"),
            local=False,
            outsiders=noise,
            server=noise,
            summable=True,
            keeps=("l2",),
            mixes=True,
            summed=summed,
        ),
        code=Code(
            "levels",
            alphabet=lambda knobs: (0, 1 << int(knobs.bits)),
            informed=_with_bits,
            identity=f"cells {setting.cells!r}, wrap {setting.wrap!r}",
        ),
        variance=partial(_variance, setting),
        joint=joint,
    )


def _with_bits(side: dict, knobs: Knobs) -> Knobs:
    """The knobs with the number of bits that a message's side information states, known on the host.

    Raises:
      WireError: no sum has integers of so many.
    """
    bits = int(side["bits"][0])
    if not 0 <= bits <= MOST_BITS:
        raise WireError(f"the message says that its integers have {bits} bits; they have at most {MOST_BITS}")
    return knobs._replace(bits=np.float32(bits))


def step(setting: Setting, knobs: Knobs) -> jax.Array:
    """f32[], w in units of the update."""
    return knob(knobs, "sigma") / np.float32(setting.cells)


def squares(setting: Setting, knobs: Knobs, participants: int, d: int) -> jax.Array:
    """f32[], v / w^2: what a coordinate of the rotated sum is sub-Gaussian with, in squared steps."""
    longest = knob(knobs, "clip") / step(setting, knobs) * np.float32(participants)
    noise = participants * (setting.cells**2 + 1 / 12)
    return jnp.square(longest) / np.float32(common_rotation.width(d)) + np.float32(noise)


def _bits_of(setting: Setting, knobs: Knobs, participants: int, d: int) -> jax.Array:
    """Bits of an integer, int32[]; see `Joint.bits`."""
    tail = np.float32(2 * math.log(2 / setting.wrap))
    # One step more: the sum of integers is rounded up from the decoded one.
    half = jnp.sqrt(tail * squares(setting, knobs, participants, d)) + 1
    bits = jnp.ceil(jnp.log2(half)) + 1
    return jnp.where(bits <= MOST_BITS, bits, 0.0).astype(jnp.int32)  # NaN, too, is not allowed


def dithers(shared: jax.Array, d: int) -> jax.Array:
    """int32[d] v from -2^15 to 2^15 - 1; the dithers are (2 v + 1) / 2^17."""
    quarter = -(-d // 4)
    pair = counter.words(counter.stream(shared, _DITHERS), 0, jnp.arange(quarter, dtype=jnp.uint32))
    words = jnp.concatenate(pair)
    halves = jnp.concatenate([words >> np.uint32(16), words & np.uint32(0xFFFF)])
    return halves[:d].astype(jnp.int32) - np.int32(1 << 15)


def _encode(
    setting: Setting,
    keys: Keys,
    common: jax.Array,
    participants: int,
    bits: jax.Array,
    x: jax.Array,
    knobs: Knobs,
) -> Message:
    """The message of x f32[d] for a sum; see `Joint.encode`."""
    del participants
    check_vector(x)
    d, sigma = x.shape[0], knob(knobs, "sigma")
    y = common_rotation.rotate(common, x)
    noised = y + sigma * jax.random.normal(keys.private, (d,), jnp.float32)
    dither = (2 * dithers(keys.shared, d) + 1).astype(jnp.float32) * np.float32(2.0**-_FRACTION)
    rounded = jnp.round(noised / step(setting, knobs) + dither)
    # Beside a coordinate beyond RANGE the noise would vanish; a clipped one that is can have no modulus.
    valid = (jnp.abs(y) <= RANGE * sigma) & (jnp.abs(rounded) < 2.0**30) & (bits > 0)
    residues = jnp.where(valid, rounded, 0.0).astype(jnp.int32) & _mask(bits)
    return Message(jnp.where(valid, residues, blocks.INVALID), None, {"bits": bits.reshape(1)}, d)


def _mask(bits: jax.Array) -> jax.Array:
    """int32[], 2^bits - 1."""
    return (jnp.int32(1) << bits) - 1


def _decode(
    setting: Setting,
    common: jax.Array,
    participants: int,
    arrived: jax.Array,
    symbols: jax.Array,
    dither: jax.Array,
    bits: jax.Array,
    knobs: Knobs,
    d: int,
) -> jax.Array:
    """The sum of the updates that arrived, f32[d]; see `Joint.decode`."""
    del participants, d
    value = whole_and_fraction(arrived, symbols, dither, bits)
    return common_rotation.rotate_back(common, step(setting, knobs) * value)


def whole_and_fraction(arrived, symbols, dither, bits) -> jax.Array:
    """sum m - sum V in steps, f32[d], the nearest to zero of what is possible modulo 2^bits."""
    places = 2 * dither + arrived.astype(jnp.int32)  # in units of 2^-17, exact
    below = places >> np.int32(_FRACTION)
    rest = (places & np.int32((1 << _FRACTION) - 1)).astype(jnp.float32) * np.float32(2.0**-_FRACTION)
    free = np.int32(32) - bits
    whole = ((symbols - below) << free) >> free  # the sign follows from the highest bit of the modulus
    return jnp.where(bits > 0, whole.astype(jnp.float32) - rest, jnp.nan)


def _encode_alone(
    joint: Joint, keys: Keys, x: jax.Array, knobs: Knobs, weight: jax.Array | None = None
) -> Message:
    """The message of x f32[d] in a sum of one; see `Mechanism.encode`."""
    del weight
    check_vector(x)
    return joint.encode(keys, keys.shared, 1, joint.bits(knobs, 1, x.shape[0]), x, knobs)


def _decode_alone(joint: Joint, shared: jax.Array, message: Message, knobs: Knobs) -> jax.Array:
    """The update f32[d] that a sum of one stands for; see `Mechanism.decode`."""
    d = message.length
    found = joint.decode(
        shared,
        1,
        jnp.float32(1),
        jnp.asarray(message.symbols),
        joint.dithers(shared, d),
        jnp.asarray(message.side["bits"])[0],
        knobs,
        d,
    )
    return jnp.where((message.symbols == blocks.INVALID).any(), jnp.nan, found)


def _message_bits(
    shared: jax.Array, message: Message, knobs: Knobs, weight: jax.Array | None = None
) -> jax.Array:
    """f32[], the length of a message in bits: that of the modulus for each coordinate."""
    del shared, knobs, weight
    bits = jnp.asarray(message.side["bits"])[0].astype(jnp.float32)
    return bits * message.symbols.shape[0] + _SIDE_BITS


def _variance(setting: Setting, x: jax.Array, knobs: Knobs) -> jax.Array:
    """f32[], expected squared error of a coordinate of one update: its noise, and its rounding."""
    del x
    return jnp.square(knob(knobs, "sigma")) * np.float32(1 + 1 / (12 * setting.cells**2))
