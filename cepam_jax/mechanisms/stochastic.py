"""Probabilistic binarization, k-level quantization and QSGD: unbiased by private coin flips.

A coordinate between two neighbouring levels goes to the upper one with the probability that makes its
mean right. The error depends on x and gives no differential privacy: a coordinate at the end of the range is
sent as it is.

Sources: Suresh, Yu, Kumar, McMahan: Distributed Mean Estimation with Limited Communication (arXiv 1611.00429,
sections 2 and 3); Alistarh, Grubic, Li, Tomioka, Vojnovic: QSGD: Communication-Efficient SGD via Gradient
Quantization and Encoding (arXiv 1610.02132, section 3.1).
"""

import jax
import jax.numpy as jnp

from cepam_jax.mechanisms import blocks
from cepam_jax.mechanisms.base import LARGEST, About, Code, Keys, Knobs, Mechanism, Message, check_vector
from cepam_jax.mechanisms.knobs import SEVERAL_LEVELS, knob
from cepam_jax.mechanisms.transforms import l2_norm

_FLOAT_BITS = 32


def stochastic_round(position: jax.Array, key: jax.Array) -> jax.Array:
    """Rounds f32[...] at random to one of the two nearest integers, so that the mean is `position`."""
    lower = jnp.floor(position)
    # Not floor(position + uniform): far from zero that sum is rounded, and what lies on a level would move.
    up = jax.random.uniform(key, position.shape, jnp.float32) >= 1 - (position - lower)
    return lower + up.astype(jnp.float32)


def stochastic_variance(position: jax.Array, spacing: jax.Array) -> jax.Array:
    """Variance f32[...] of `spacing * stochastic_round(position)`, elementwise."""
    chance = position - jnp.floor(position)
    return jnp.square(spacing) * chance * (1 - chance)


def k_level() -> Mechanism:
    """k-level quantization (arXiv 1611.00429): `knobs.levels` >= 2 equally spaced levels, min(x) to max(x).

    Returns:
      A mechanism with knob `levels`. Its message has `symbols` int32[d], the numbers of the levels, and
      `side["range"]` f32[2], the smallest and the largest coordinate. With 2 levels it is `binary`.
    """
    return Mechanism(
        encode=_k_level_encode,
        decode=_k_level_decode,
        bits=_k_level_bits,
        reference=lambda x, knobs: x,
        about=About("k-level", "other", randomness=("private",), knobs=("levels",), local=False),
        code=Code("levels", alphabet=lambda knobs: (0, int(knobs.levels))),
        variance=_k_level_variance,
    )


def _range(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Smallest and largest coordinate of x f32[d], f32[] each; zeros of an empty update."""
    if not x.shape[0]:
        return jnp.float32(0), jnp.float32(0)
    return jnp.min(x), jnp.max(x)


def _grid(low: jax.Array, high: jax.Array, knobs: Knobs) -> tuple[jax.Array, jax.Array]:
    """Spacing of the levels from `low` to `high`, and the number of intervals between them: f32[] each."""
    intervals = knob(knobs, "levels", SEVERAL_LEVELS) - 1
    return (high - low) / intervals, intervals


def _k_level_positions(
    x: jax.Array, low: jax.Array, high: jax.Array, knobs: Knobs
) -> tuple[jax.Array, jax.Array]:
    """Distances f32[d] of x f32[d] from the lowest level in units of the spacing, and the spacing f32[]."""
    spacing, intervals = _grid(low, high, knobs)
    scaled = (x - low) / jnp.where(spacing > 0, spacing, 1)  # all coordinates equal: level 0
    return jnp.clip(scaled, 0, intervals), spacing


def _k_level_encode(keys: Keys, x: jax.Array, knobs: Knobs, weight: jax.Array | None = None) -> Message:
    """The message of x f32[d]; see `Mechanism.encode`. The range is that of all coordinates."""
    del weight
    check_vector(x)
    low, high = _range(x)
    position, spacing = _k_level_positions(x, low, high, knobs)
    top = knob(knobs, "levels", SEVERAL_LEVELS) - 1
    level = jnp.minimum(stochastic_round(position, keys.private), top)
    level = jnp.where(spacing <= LARGEST, level, jnp.nan)
    return Message(blocks.integers(level), None, {"range": jnp.stack([low, high])}, x.shape[0])


def _k_level_decode(shared: jax.Array, message: Message, knobs: Knobs) -> jax.Array:
    """The update f32[d] that a message stands for; see `Mechanism.decode`."""
    del shared
    low, high = message.side["range"]
    spacing, _ = _grid(low, high, knobs)
    return low + spacing * blocks.numbers(message.symbols)


def _k_level_bits(
    shared: jax.Array, message: Message, knobs: Knobs, weight: jax.Array | None = None
) -> jax.Array:
    """f32[], the length of a message in bits; see `Mechanism.bits`."""
    del shared
    return _fixed_length(message, knob(knobs, "levels", SEVERAL_LEVELS), weight) + 2 * _FLOAT_BITS


def _k_level_variance(x: jax.Array, knobs: Knobs) -> jax.Array:
    """f32[d], expected squared error of each coordinate of x f32[d]."""
    low, high = _range(x)
    return stochastic_variance(*_k_level_positions(x, low, high, knobs))


def binary() -> Mechanism:
    """One bit per coordinate: max(x) with probability (x - min)/(max - min), else min(x) (arXiv 1611.00429).

    Returns:
      A mechanism without knobs, with the messages of `k_level` at two levels.
    """
    return Mechanism(
        encode=lambda keys, x, knobs, weight=None: _k_level_encode(keys, x, _two_levels(knobs), weight),
        decode=lambda shared, message, knobs: _k_level_decode(shared, message, _two_levels(knobs)),
        bits=lambda shared, message, knobs, weight=None: _k_level_bits(
            shared, message, _two_levels(knobs), weight
        ),
        reference=lambda x, knobs: x,
        about=About("binary", "other", randomness=("private",), local=False),
        code=Code("levels", alphabet=lambda knobs: (0, 2)),
        variance=lambda x, knobs: _k_level_variance(x, _two_levels(knobs)),
    )


def _two_levels(knobs: Knobs) -> Knobs:
    """The knobs with two levels, whatever they say."""
    return knobs._replace(levels=2)


def qsgd() -> Mechanism:
    """QSGD: sign and `knobs.levels` steps of |x_i| / |x|_2 (arXiv 1610.02132, section 3.1).

    Returns:
      A mechanism with knob `levels`. Its message has `symbols` int32[d] from -levels to levels, and
      `side["norm"]` f32[], the L2 norm of the update.
    """
    return Mechanism(
        encode=_qsgd_encode,
        decode=_qsgd_decode,
        bits=_qsgd_bits,
        reference=lambda x, knobs: x,
        about=About("qsgd", "other", randomness=("private",), knobs=("levels",), local=False),
        code=Code("levels", alphabet=lambda knobs: (-int(knobs.levels), 2 * int(knobs.levels) + 1)),
        variance=lambda x, knobs: stochastic_variance(*_qsgd_positions(x, l2_norm(x), knobs)),
    )


def _qsgd_positions(x: jax.Array, norm: jax.Array, knobs: Knobs) -> tuple[jax.Array, jax.Array]:
    """Magnitudes of x f32[d] in units of the spacing of the levels f32[d], and the spacing f32[]."""
    levels = knob(knobs, "levels")
    return jnp.minimum(jnp.abs(x) / jnp.where(norm > 0, norm, 1), 1) * levels, norm / levels


def _qsgd_encode(keys: Keys, x: jax.Array, knobs: Knobs, weight: jax.Array | None = None) -> Message:
    """The message of x f32[d]; see `Mechanism.encode`. The norm is that of all coordinates."""
    del weight
    check_vector(x)
    norm = l2_norm(x)
    position, _ = _qsgd_positions(x, norm, knobs)
    level = jnp.minimum(stochastic_round(position, keys.private), knob(knobs, "levels"))
    level = jnp.where(norm <= LARGEST, level, jnp.nan)
    return Message(blocks.integers(jnp.sign(x) * level), None, {"norm": norm}, x.shape[0])


def _qsgd_decode(shared: jax.Array, message: Message, knobs: Knobs) -> jax.Array:
    """The update f32[d] that a message stands for; see `Mechanism.decode`."""
    del shared
    return message.side["norm"] / knob(knobs, "levels") * blocks.numbers(message.symbols)


def _qsgd_bits(
    shared: jax.Array, message: Message, knobs: Knobs, weight: jax.Array | None = None
) -> jax.Array:
    """f32[], the length of a message in bits; see `Mechanism.bits`."""
    del shared
    return _fixed_length(message, 2 * knob(knobs, "levels") + 1, weight) + _FLOAT_BITS


def _fixed_length(message: Message, alphabet: jax.Array, weight: jax.Array | None) -> jax.Array:
    """f32[], bits of the symbols that are sent, each log2(alphabet), with alphabet f32[] its size."""
    sent = message.symbols.shape[0] if weight is None else jnp.sum(weight)
    return jnp.log2(alphabet) * sent
