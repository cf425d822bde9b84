"""Clipped uniform quantization: a range [-c, c] for each tensor, with 2^B levels in it.

Levels are -c + j * 2c / (2^B - 1), j = 0, ..., 2^B - 1. The rules that choose the clip threshold c are in
`clip_thresholds`.

Source: Bozorgasl and Chen: Communication-Efficient Federated Learning via Clipped Uniform Quantization (arXiv
2405.13365).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.errors import require, require_choice
from cepam_jax.mechanisms import blocks
from cepam_jax.mechanisms.base import LARGEST, About, Code, Keys, Knobs, Mechanism, Message, check_vector
from cepam_jax.mechanisms.clip_thresholds import (
    THRESHOLDS,
    kl_threshold,
    max_threshold,
    mse_threshold,
    percentile_threshold,
)
from cepam_jax.mechanisms.knobs import WHOLE_BITS, knob
from cepam_jax.mechanisms.stochastic import stochastic_round, stochastic_variance

__all__ = [
    "GRANULARITIES",
    "ROUNDINGS",
    "THRESHOLDS",
    "clipped",
    "kl_threshold",
    "max_threshold",
    "mse_threshold",
    "percentile_threshold",
]

ROUNDINGS = ("deterministic", "stochastic")
GRANULARITIES = ("model", "tensor", "channel")
_FLOAT_BITS = 32


class _Setting(NamedTuple):
    """What is fixed when a clipped quantizer is built.

    Attributes:
      rounding: one of `ROUNDINGS`.
      threshold: one of `THRESHOLDS`.
      granularity: one of `GRANULARITIES`.
      shapes: shapes of the update's tensors; None: it is one vector.
    """

    rounding: str
    threshold: str
    granularity: str
    shapes: tuple[tuple[int, ...], ...] | None


class _Group(NamedTuple):
    """Where a tensor lies in the update.

    Attributes:
      start: first coordinate of the tensor.
      stop: coordinate after its last one.
      channels: number of the tensor's ranges. Coordinate start + i belongs to range i modulo channels.
    """

    start: int
    stop: int
    channels: int


def clipped(
    rounding: str = "stochastic",
    threshold: str = "mse",
    granularity: str = "tensor",
    shapes: tuple[tuple[int, ...], ...] | None = None,
) -> Mechanism:
    """Clipped uniform quantization with `knobs.bits` = 1 to 8 bits per coordinate (arXiv 2405.13365).

    Args:
      rounding: "deterministic" (to the nearest level: biased) or "stochastic" (to one of the two
        nearest, by private coin flips: unbiased inside the range).
      threshold: one of `THRESHOLDS`; "max" alone cuts nothing off.
      granularity: one range per "model", per "tensor" or per "channel" (last axis of a tensor).
      shapes: shapes of the tensors that the update is made of; by default it is one vector.

    Returns:
      A mechanism with knob `bits`. Its message has `symbols` int32[d], the numbers of the levels, and
      `side["threshold"]` f32[ranges].

    Raises:
      ConfigError: unknown rounding, threshold or granularity; on encoding, shapes that do not fit the update.
    """
    require_choice("rounding", rounding, ROUNDINGS)
    require_choice("threshold", threshold, THRESHOLDS)
    require_choice("granularity", granularity, GRANULARITIES)
    setting = _Setting(rounding, threshold, granularity, shapes)
    return Mechanism(
        encode=partial(_encode, setting),
        decode=partial(_decode, setting),
        bits=_bits,
        reference=lambda x, knobs: x,
        about=About(
            name=f"clipped-{rounding}-{threshold}-{granularity}",
            law="other",
            unbiased=rounding == "stochastic" and threshold == "max",
            randomness=("private",) if rounding == "stochastic" else (),
            knobs=("bits",),
            local=False,
        ),
        code=Code(
            "levels",
            alphabet=lambda knobs: (0, 2 ** int(knobs.bits)),
            identity=f"shapes {None if shapes is None else [list(map(int, shape)) for shape in shapes]}",
        ),
        variance=partial(_variance, setting),
    )


def _groups(setting: _Setting, d: int) -> list[_Group]:
    """Where each tensor that is not empty lies in an update of d coordinates, and how many ranges it has."""
    shapes = setting.shapes
    tensors: tuple[tuple[int, ...], ...] = ((d,),)
    if shapes is not None:
        total = sum(int(np.prod(shape)) for shape in shapes)
        require(total == d, "shapes", shapes, f"shapes with {d} elements together, the length of x")
        tensors = tensors if setting.granularity == "model" else shapes
    groups, start = [], 0
    for shape in tensors:
        size = int(np.prod(shape))
        channels = shape[-1] if setting.granularity == "channel" and len(shape) > 1 else 1
        if size:
            groups.append(_Group(start, start + size, channels))
        start += size
    return groups


def _thresholds(setting: _Setting, x: jax.Array, knobs: Knobs) -> jax.Array:
    """The clip thresholds of all ranges, f32[ranges], of the update x f32[d]."""
    rule, bits = THRESHOLDS[setting.threshold], knob(knobs, "bits", WHOLE_BITS)
    thresholds = []
    for start, stop, channels in _groups(setting, x.shape[0]):
        rows = x[start:stop].reshape(-1, channels).T
        thresholds.append(rule(rows, bits, setting.rounding))
    return jnp.concatenate(thresholds) if thresholds else jnp.zeros(0, jnp.float32)


def _per_coordinate(setting: _Setting, thresholds: jax.Array, d: int) -> jax.Array:
    """Thresholds f32[ranges] -> f32[d], the threshold of each coordinate's range."""
    parts, first = [jnp.zeros(0, jnp.float32)], 0
    for start, stop, channels in _groups(setting, d):
        repeats = (stop - start) // channels
        parts.append(jnp.tile(thresholds[first : first + channels], repeats))
        first += channels
    return jnp.concatenate(parts)


def _intervals(knobs: Knobs) -> jax.Array:
    """f32[], number of intervals between the levels of a range: 2^B - 1."""
    return 2.0 ** knob(knobs, "bits", WHOLE_BITS) - 1


def _positions(x: jax.Array, c: jax.Array, knobs: Knobs) -> tuple[jax.Array, jax.Array]:
    """Where coordinates lie between the levels.

    Args:
      x: f32[d], coordinates.
      c: f32[d], their clip thresholds.
      knobs: with bits.

    Returns:
      f32[d], distances from the lowest level in units of the spacing of the levels; f32[d], that spacing in
      units of the update.
    """
    spacing = 2 * c / _intervals(knobs)
    position = (jnp.clip(x, -c, c) + c) / jnp.where(spacing > 0, spacing, 1)
    return jnp.clip(position, 0, _intervals(knobs)), spacing


def _encode(
    setting: _Setting, keys: Keys, x: jax.Array, knobs: Knobs, weight: jax.Array | None = None
) -> Message:
    """The message of x f32[d]; see `Mechanism.encode`. Thresholds are measured on all coordinates."""
    del weight
    check_vector(x)
    thresholds = _thresholds(setting, x, knobs)
    position, _ = _positions(x, _per_coordinate(setting, thresholds, x.shape[0]), knobs)
    if setting.rounding == "stochastic":
        level = stochastic_round(position, keys.private)
    else:
        level = jnp.round(position)
    level = jnp.minimum(level, _intervals(knobs))
    # A coordinate that is infinite must not come back as a clipped one; beside one that is too large to be
    # divided by, no range is right.
    finite = jnp.isfinite(x)
    fits = jnp.max(jnp.where(finite, jnp.abs(x), 0.0), initial=0.0) <= LARGEST
    symbols = blocks.integers(jnp.where(finite & fits, level, jnp.nan))
    return Message(symbols, None, {"threshold": thresholds}, x.shape[0])


def _decode(setting: _Setting, shared: jax.Array, message: Message, knobs: Knobs) -> jax.Array:
    """The update f32[d] that a message stands for; see `Mechanism.decode`."""
    del shared
    c = _per_coordinate(setting, message.side["threshold"], message.length)
    return -c + 2 * c / _intervals(knobs) * blocks.numbers(message.symbols)


def _bits(shared: jax.Array, message: Message, knobs: Knobs, weight: jax.Array | None = None) -> jax.Array:
    """f32[], the length of a message in bits: B for each coordinate that is sent, 32 for each range."""
    del shared
    sent = message.length if weight is None else jnp.sum(weight)
    ranges = _FLOAT_BITS * message.side["threshold"].shape[0]
    return knob(knobs, "bits", WHOLE_BITS) * sent + ranges


def _variance(setting: _Setting, x: jax.Array, knobs: Knobs) -> jax.Array:
    """f32[d], expected squared error of each coordinate of x f32[d]: cut off, and rounded."""
    c = _per_coordinate(setting, _thresholds(setting, x, knobs), x.shape[0])
    position, spacing = _positions(x, c, knobs)
    if setting.rounding == "deterministic":
        nearest = jnp.minimum(jnp.round(position), _intervals(knobs)) * spacing - c
        return jnp.square(x - nearest)
    return jnp.square(x - jnp.clip(x, -c, c)) + stochastic_variance(position, spacing)
