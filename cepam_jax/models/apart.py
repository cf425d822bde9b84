"""A loop of its own for one function: a border that XLA does not merge loops across.

XLA computes what several loops use again in each of them, and merges loops with branches (borders, pieces
put together) with those that could go through many elements at a time. `jax.lax.optimization_barrier` is gone
before it decides that. A loop of two turns stays.
"""

from collections.abc import Callable
from typing import Any

import jax


def apart(function: Callable, arrays: Any) -> Any:
    """function(arrays), computed in a loop that is not merged with those before and behind.

    Args:
      function: tree of arrays -> tree of arrays, row by row of the first axis.
      arrays: tree of arrays, all with the same first axis; where that is odd nothing is kept apart.
    """
    rows = jax.tree.leaves(arrays)[0].shape[0]
    if rows % 2:
        return function(arrays)
    halves = jax.tree.map(lambda a: a.reshape(2, rows // 2, *a.shape[1:]), arrays)
    return jax.tree.map(lambda a: a.reshape(rows, *a.shape[2:]), jax.lax.map(function, halves))
