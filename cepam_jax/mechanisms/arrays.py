"""Arrays of JAX on the device and of numpy on the host: what functions that take both have in common.

An entropy coder on the host must get the same numbers as the encoder on the device. So functions that both
need are written once, and calculate with the library that their arguments come from.
"""

from types import ModuleType
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray
# For functions that return arrays of the library that their arguments come from.
ArrayT = TypeVar("ArrayT", jax.Array, np.ndarray)


def namespace(array: Array) -> ModuleType:
    """`numpy` for an array of numpy, `jax.numpy` for any other."""
    return np if isinstance(array, np.ndarray) else jnp
