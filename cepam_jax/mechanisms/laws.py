"""The laws among which an encoder chooses for each tensor: Laplace, or mixtures of two Laplace laws."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.mechanisms import exact

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


def cell_nats(center: Any, width: Any, scale: Any, parts: tuple[Any, Any, Any], xp: Any = jnp) -> Any:
    """-ln P(center - width/2 < X < center + width/2) of mixtures of two Laplace laws, far into the tails.

    Args:
      center: f32[...], middle of the cell, in any unit.
      width: f32[...], width of the cell in the same unit, positive.
      scale: f32[...], scale of X in the same unit, positive.
      parts: share of the wider component, scale of the narrower and of the wider one, as of `parameters`.
      xp: `jax.numpy` or `numpy`.

    Returns:
      f32[...], in nats.
    """
    share, *deviations = parts
    # Divisions where scales are, of which there are often few, and not at every coordinate.
    unit, narrow, wide = 1 / scale, 1 / deviations[0], 1 / deviations[1]
    near = xp.clip((xp.abs(center) - width / 2) * unit, -1e30, 1e30)
    across = xp.minimum(width * unit, 4e30)
    inside, beyond = xp.minimum(near, 0.0), xp.maximum(near, 0.0)
    masses = [-0.5 * (xp.expm1(-(inside + across) * s) + xp.expm1(inside * s)) for s in (narrow, wide)]
    # Both in units of the wider tail at the near end, of which the narrower one is a fraction.
    mass = share * masses[1] + (1 - share) * masses[0] * xp.exp(-beyond * (narrow - wide))
    return beyond * wide - xp.log(xp.maximum(mass, np.finfo(np.float32).tiny))
