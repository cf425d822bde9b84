"""The laws among which an encoder chooses for each tensor: Laplace, or mixtures of two Laplace laws."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.mechanisms import blocks, exact, wide_math

# From updates that are even in size to those most of which is zero.
LAWS = ("laplace", "mixture", "wide")
MIXTURE = LAWS.index("mixture")
# (share of the wider component, scale of the narrower one, scale of the wider one) of each law.
PARTS = np.array(
    [(parts[-1][0], parts[0][1], parts[-1][1]) for parts in map(exact.COMPONENTS.get, LAWS) if parts],
    np.float32,
)


def parameters(law: jax.Array, lengths: Sequence[int]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Share of the wider component, and both scales, of each coordinate's law: three arrays f32[d].

    Args:
      law: int[tensors], places in `LAWS`.
      lengths: of the tensors.
    """
    table = jnp.asarray(PARTS)[law]
    spread = [
        jnp.concatenate(
            [jnp.zeros(0, jnp.float32)] + [jnp.full((n,), table[i, part]) for i, n in enumerate(lengths)]
        )
        for part in range(3)
    ]
    return spread[0], spread[1], spread[2]


def edges(center: Any, width: Any, rate: Any) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Of cells and the one-sided exponential laws exp(-rate x): how far they are out, and what is in them.

    Args:
      center: f32[...], middle of the cell, in any unit.
      width: f32[...], width of the cell in the same unit, positive.
      rate: f32[...], decay of the law per unit; broadcastable.

    Returns:
      f32[...] each: the distance of the cell from zero times the rate (0: it contains zero); exp(-that); the
      mass of its part beyond zero, in units of the tail at its near end; and that of its part before zero.
    """
    # Bounded, so that an all-zero segment (the smallest scale) under huge noise is no inf - inf.
    rate = jnp.minimum(rate, 3e38)
    near = jnp.clip((jnp.abs(center) - width / 2) * rate, -1e30, 1e30)  # negative: the cell contains zero
    across = jnp.minimum(width * rate, 4e30)  # beyond twice the bound of `near`
    inside, tail = wide_math.fall(jnp.abs(near))
    out = near > 0
    beyond, _ = wide_math.fall(jnp.minimum(near, 0.0) + across)
    return jnp.maximum(near, 0.0), jnp.where(out, tail, 1.0), beyond, jnp.where(out, 0.0, inside)


def _power(rest: Any, ratio: Any) -> Any:
    """1 - (1 - rest)^ratio for ratio 4 or 16, without cancellation: a few squares."""
    for _ in range(2):
        rest = rest * (2 - rest)
    fourth = rest
    for _ in range(2):
        rest = rest * (2 - rest)
    return jnp.where(ratio > 8, rest, fourth)


def _tail(tail: Any, ratio: Any) -> Any:
    """tail^(ratio - 1) for ratio 4 or 16."""
    third = tail * tail * tail
    fifth = third * tail * tail
    return jnp.where(ratio > 8, fifth * fifth * fifth, third)


def cell(
    center: Any, width: Any, scale: Any, parts: tuple[Any, Any, Any]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """How far out a cell is, and its mass, under mixtures of two Laplace laws.

    With A = 1 - exp(-t) of the wide component, the narrow one, r times as narrow, has 1 - (1 - A)^r: a few
    squares, and no exponentials of its own. So r is 4 or 16, or there is no narrow component.

    Args:
      center: f32[...], middle of the cell, in any unit.
      width: f32[...], width of the cell in the same unit, positive.
      scale: f32[...], scale of X in the same unit, positive.
      parts: share of the wider component, scale of the narrower and of the wider one, as of `parameters`.

    Returns:
      f32[...] each: the distance D of the cell from zero in scales of the wider component, exp(-D), and the
      mass over exp(-D), at least the smallest normal number.
    """
    share, narrow, wide = parts
    # Divisions where scales are, of which there are often few, and not at every coordinate.
    out, tail, *masses = edges(center, width, 1 / (scale * wide))
    # What lies in the narrower component, in units of the wider tail at the near end.
    ratio = wide / narrow
    narrower = (_power(masses[0], ratio) + _power(masses[1], ratio)) * _tail(tail, ratio)
    mass = 0.5 * (share * (masses[0] + masses[1]) + (1 - share) * narrower)
    return out, tail, jnp.maximum(mass, jnp.finfo(jnp.float32).tiny)


def cell_nats(center: Any, width: Any, scale: Any, parts: tuple[Any, Any, Any]) -> jax.Array:
    """-ln P(center - width/2 < X < center + width/2) of mixtures of two Laplace laws, far into the tails.

    Args:
      center, width, scale, parts: as for `cell`.

    Returns:
      f32[...], in nats.
    """
    out, _, mass = cell(center, width, scale, parts)
    return nats(out, mass)


def nats(out: jax.Array, mass: jax.Array) -> jax.Array:
    """-ln(mass exp(-out)) f32[...] of both in f32[...], where the mass is a normal number."""
    # Mass and logarithm in one loop are too much for wide instructions.
    return out - wide_math.log(blocks.in_memory(mass.reshape(-1)).reshape(mass.shape))


def cell_nats_on_host(center: Any, width: Any, scale: Any, parts: Sequence[float]) -> np.ndarray:
    """`cell_nats` in float64 on the host, of any two Laplace laws; not the same numbers on every machine."""
    share, narrow, wide = parts
    near = (np.abs(center) - width / 2) / scale
    inside, beyond = np.minimum(near, 0.0), np.maximum(near, 0.0)
    masses = [-0.5 * (np.expm1(-(inside + width / scale) / s) + np.expm1(inside / s)) for s in (narrow, wide)]
    # Both in units of the wider tail at the near end, of which the narrower one is a fraction.
    mass = share * masses[1] + (1 - share) * masses[0] * np.exp(-beyond * (1 / narrow - 1 / wide))
    return beyond / wide - np.log(np.maximum(mass, np.finfo(np.float32).tiny))
