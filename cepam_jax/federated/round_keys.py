"""The keys that a round draws for itself: the name of each is folded in where a client's number is otherwise.

One list, so that no two are the same: randomness that is used twice protects neither.
"""

import jax
import numpy as np

# In the order in which they came; a number that is taken is part of what runs are reproduced by.
PARTICIPANTS, DOWNLINK, PUBLIC, LIARS, COUNT, SERVER_NOISE, LOST, COMMON = (
    np.uint32(2**32 - 1 - place) for place in range(8)
)


def of_round(root: jax.Array, number: jax.Array, name: np.uint32) -> jax.Array:
    """One of these keys.

    Args:
      root: the training key, for what nobody else may know, or the shared key.
      number: int32[], of the round.
      name: PARTICIPANTS, DOWNLINK, ...
    """
    return jax.random.fold_in(jax.random.fold_in(root, number), name)
