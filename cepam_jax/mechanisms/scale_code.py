"""How scales, and the laws that go with them, are sent: their probabilities, and what they cost.

Tensors of one size resemble each other, so scales are sent in the order of the tensors' lengths (ties as they
lie in the update), which both sides know. The first is one of all that there are. Each of the others is the
same as the one before, law and all, with probability `SAME`; otherwise a law is said, all of them being
equally likely, and the step to the new scale, whose size follows a geometric law. Where all scales together
would cost more in this way, they are sent one by one as if all were equally likely; one decision says so.
`wire.scales` writes what is counted here.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LARGEST_SCALE = 880  # eighths of an octave: 2^110; f32 still has room for a lattice finer than the data
VALUES = 2 * LARGEST_SCALE + 1
SAME = 0.75  # probability that a tensor is coded as the one before
FARTHER = 0.95  # that a step goes on, having come so far
PLAIN = 2.0**-6  # that scales are sent one by one


def order(lengths: Sequence[int]) -> np.ndarray:
    """int[tensors], numbers of the tensors in the order in which their scales are sent.

    Args:
      lengths: of the tensors.
    """
    return np.argsort(np.asarray(lengths, np.int64), kind="stable")


def cost_of_change(laws: int) -> float:
    """Bits of a scale that is not that of the tensor before, without its step."""
    return float(-np.log2(1 - SAME) + np.log2(laws))


def cost_of_step(size: Any, xp: Any = jnp) -> Any:
    """Bits of steps of a size int[...] of at least 0: a geometric law, and the sign of one that is not 0."""
    return size * np.float32(-np.log2(FARTHER)) + np.float32(-np.log2(1 - FARTHER)) + xp.minimum(size, 1)


def most_bits(tensors: int, laws: int) -> float:
    """Bits that no scales of so many tensors exceed."""
    return float(tensors * np.log2(VALUES * laws) - np.log2(PLAIN)) if tensors else 0.0


def costs(scale: Any, law: Any, lengths: Sequence[int], laws: int, xp: Any = jnp) -> tuple[Any, Any]:
    """Bits of scales in either way, without the decision between them.

    Args:
      scale: int[tensors], eighths of an octave.
      law: int[tensors], numbers of laws; None where there is one.
      lengths: of the tensors, of which there is at least one.
      laws: how many laws there are.
      xp: `jax.numpy` or `numpy`.

    Returns:
      Bits of steps from one tensor to the next, and bits one by one.
    """
    at = order(lengths)
    scale = scale[at]
    size = xp.abs(scale[1:] - scale[:-1])
    same = size == 0
    if law is not None:
        same = same & (law[at][1:] == law[at][:-1])
    each = xp.where(same, np.float32(-np.log2(SAME)), cost_of_change(laws) + cost_of_step(size, xp))
    one = float(np.log2(VALUES * laws))
    return one + xp.sum(each), one * len(lengths)


def bits(scale: jax.Array, law: jax.Array | None, lengths: Sequence[int], laws: int) -> jax.Array:
    """f32[], bits of the scales of a message; arguments as of `costs`, but for tensors that may be none."""
    if not lengths:
        return jnp.float32(0)
    steps, plain = costs(scale, law, lengths, laws)
    return jnp.minimum(steps - np.float32(np.log2(1 - PLAIN)), np.float32(plain - np.log2(PLAIN)))
