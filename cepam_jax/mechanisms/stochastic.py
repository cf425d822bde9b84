"""Probabilistic binarization, k-level quantization and QSGD: unbiased by private coin flips.

A coordinate between two neighbouring levels goes to the upper one with the probability that makes its
mean right (1611.00429, sections 2 and 3; QSGD, 1610.02132). The error depends on x and gives no
differential privacy: a coordinate at the end of the range is sent as it is.
"""

import jax
import jax.numpy as jnp

from cepam_jax.mechanisms import blocks
from cepam_jax.mechanisms.base import About, Code, Mechanism, Message, check_vector
from cepam_jax.mechanisms.knobs import SEVERAL_LEVELS, knob
from cepam_jax.mechanisms.transforms import l2_norm

_FLOAT_BITS = 32


def stochastic_round(position, key):
    """Rounds to one of the two nearest integers, with mean `position`."""
    return jnp.floor(position + jax.random.uniform(key, position.shape, jnp.float32))


def stochastic_variance(position, spacing):
    """Variance of `spacing * stochastic_round(position)`."""
    chance = position - jnp.floor(position)
    return jnp.square(spacing) * chance * (1 - chance)


def k_level() -> Mechanism:
    """`knobs.levels` >= 2 equally spaced levels from min(x) to max(x); 2 levels: binarization."""

    def grid(low, high, knobs):
        intervals = knob(knobs, "levels", SEVERAL_LEVELS) - 1
        return (high - low) / intervals, intervals

    def positions(x, low, high, knobs):
        spacing, intervals = grid(low, high, knobs)
        scaled = (x - low) / jnp.where(spacing > 0, spacing, 1)  # all coordinates equal: level 0
        return jnp.clip(scaled, 0, intervals), spacing

    def encode(keys, x, knobs, weight=None):
        del weight
        check_vector(x)
        low, high = _range(x)
        position, _ = positions(x, low, high, knobs)
        top = knob(knobs, "levels", SEVERAL_LEVELS) - 1
        level = jnp.minimum(stochastic_round(position, keys.private), top)
        return Message(blocks.integers(level), None, {"range": jnp.stack([low, high])}, x.shape[0])

    def decode(shared, message, knobs):
        low, high = message.side["range"]
        spacing, _ = grid(low, high, knobs)
        return low + spacing * _valid(message.symbols)

    def bits(shared, message, knobs, weight=None):
        return _fixed_length(message, knob(knobs, "levels", SEVERAL_LEVELS), weight) + 2 * _FLOAT_BITS

    def variance(x, knobs):
        return stochastic_variance(*positions(x, *_range(x), knobs))

    return Mechanism(
        encode,
        decode,
        bits,
        lambda x, knobs: x,
        About("k-level", "other", randomness=("private",), knobs=("levels",), local=False),
        Code("levels", alphabet=lambda knobs: (0, int(knobs.levels))),
        variance,
    )


def binary() -> Mechanism:
    """One bit per coordinate: max(x) with probability (x - min)/(max - min), else min(x)."""
    built = k_level()
    two = lambda knobs: knobs._replace(levels=2)  # noqa: E731
    return Mechanism(
        lambda keys, x, knobs, weight=None: built.encode(keys, x, two(knobs)),
        lambda shared, message, knobs: built.decode(shared, message, two(knobs)),
        lambda shared, message, knobs, weight=None: built.bits(shared, message, two(knobs), weight),
        built.reference,
        built.about._replace(name="binary", knobs=()),
        Code("levels", alphabet=lambda knobs: (0, 2)),
        lambda x, knobs: built.variance(x, two(knobs)),
    )


def qsgd() -> Mechanism:
    """Sign and `knobs.levels` steps of |x_i| / |x|_2 (QSGD, 1610.02132, section 3.1)."""

    def positions(x, norm, knobs):
        levels = knob(knobs, "levels")
        return jnp.minimum(jnp.abs(x) / jnp.where(norm > 0, norm, 1), 1) * levels, norm / levels

    def encode(keys, x, knobs, weight=None):
        del weight
        check_vector(x)
        norm = l2_norm(x)
        position, _ = positions(x, norm, knobs)
        level = jnp.minimum(stochastic_round(position, keys.private), knob(knobs, "levels"))
        return Message(blocks.integers(jnp.sign(x) * level), None, {"norm": norm}, x.shape[0])

    def decode(shared, message, knobs):
        return message.side["norm"] / knob(knobs, "levels") * _valid(message.symbols)

    def bits(shared, message, knobs, weight=None):
        return _fixed_length(message, 2 * knob(knobs, "levels") + 1, weight) + _FLOAT_BITS

    def variance(x, knobs):
        return stochastic_variance(*positions(x, l2_norm(x), knobs))

    return Mechanism(
        encode,
        decode,
        bits,
        lambda x, knobs: x,
        About("qsgd", "other", randomness=("private",), knobs=("levels",), local=False),
        Code("levels", alphabet=lambda knobs: (-int(knobs.levels), 2 * int(knobs.levels) + 1)),
        variance,
    )


def _range(x):
    if not x.shape[0]:
        return jnp.float32(0), jnp.float32(0)
    return jnp.min(x), jnp.max(x)


def _valid(symbols):
    return jnp.where(symbols == blocks.INVALID, jnp.nan, symbols.astype(jnp.float32))


def _fixed_length(message, alphabet, weight):
    """log2 of the alphabet for every symbol that is sent."""
    sent = message.symbols.shape[0] if weight is None else jnp.sum(weight)
    return jnp.log2(alphabet) * sent
