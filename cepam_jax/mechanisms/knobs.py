"""What each knob may be, and a knob as the number that a mechanism calculates with.

A value that is known when it is given (a Python number, an array) is checked at once. Inside `jit` and `vmap`
nothing is known yet: there a knob that is not allowed becomes NaN, and so does all that is decoded with it.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.errors import require
from cepam_jax.mechanisms.base import Knobs

_FLOAT = np.finfo(np.float32)


class Limits(NamedTuple):
    """Which values of a knob are allowed.

    Attributes:
      low: the least allowed number, compared as float32.
      high: the largest allowed number, compared as float32.
      text: the same in words, for messages: "it must be `text`".
      whole: whether only whole numbers are allowed.
    """

    low: float
    high: float
    text: str
    whole: bool = False


# A millionth part of such a number is still a normal number of float32: smaller ones are flushed to zero, and
# with them a part of the noise.
_POSITIVE = Limits(1e-32, 1e32, "a positive number between 1e-32 and 1e32, of which float32 holds the parts")
_ANY_POSITIVE = Limits(
    float(_FLOAT.tiny), float(_FLOAT.max), "a positive number that float32 holds (1.2e-38 to 3.4e38)"
)
LIMITS = {
    "sigma": _POSITIVE,
    "clip": _ANY_POSITIVE,
    "step": _POSITIVE,
    "bits": Limits(1, 8, "a number from 1 to 8"),
    "levels": Limits(1, 2**20, "a whole number from 1 to 1048576", whole=True),
    "fraction": Limits(float(_FLOAT.tiny), 1, "a number above 0 and at most 1"),
}
WHOLE_BITS = Limits(1, 8, "a whole number from 1 to 8", whole=True)
SEVERAL_LEVELS = Limits(2, 2**20, "a whole number from 2 to 1048576", whole=True)


def _holds(xp: ModuleType, number: Any, limits: Limits) -> Any:
    """Whether numbers float32[...] are within limits, bool[...]; xp is `numpy` or `jax.numpy`."""
    inside = (number >= np.float32(limits.low)) & (number <= np.float32(limits.high))
    return inside & (number == xp.round(number)) if limits.whole else inside


def on_host(value: Any) -> np.ndarray | None:
    """A known value as an array; None for a value that is traced or that this process does not hold."""
    if isinstance(value, jax.core.Tracer):
        return None
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return None
    try:
        return np.asarray(value)
    except (TypeError, ValueError):  # ragged lists
        return np.asarray(value, object)


def check(knobs: Knobs, names: Sequence[str], limits: Limits | None = None) -> None:
    """Raises ConfigError if a knob is missing, or is known and not allowed.

    Args:
      knobs: numbers, or arrays with one number for each client.
      names: the knobs that are needed; `scale` is not one of them.
      limits: limits to use instead of `LIMITS`, where a mechanism allows less.

    Raises:
      ConfigError: names the knob, its value and what is allowed.
    """
    for name in names:
        value, allowed = getattr(knobs, name), limits or LIMITS[name]
        field = f"knob {name}"
        require(value is not None, field, value, allowed.text)
        known = on_host(value)
        if known is None:
            continue
        number = jnp.issubdtype(known.dtype, np.integer) or jnp.issubdtype(known.dtype, np.floating)
        require(number, field, value, allowed.text)
        with np.errstate(over="ignore", under="ignore"):
            wrong = ~_holds(np, known.astype(np.float32), allowed)
        require(known.size > 0, field, value, allowed.text)
        if wrong.any():
            require(False, field, known[wrong].ravel()[0].item(), allowed.text)


def knob(knobs: Knobs, name: str, limits: Limits | None = None) -> jax.Array:
    """A knob as float32, NaN where it is traced and turns out not to be allowed.

    Every mechanism takes its knobs from here before it calculates with them: float32 first, so that 0.1 and
    float32(0.1) lead to the same bits.

    Args:
      knobs: as for `check`.
      name: name of the knob.
      limits: as for `check`.

    Returns:
      f32[], or f32[clients] if the knob is an array.

    Raises:
      ConfigError: the knob is missing, or is known and not allowed.
    """
    check(knobs, (name,), limits)
    value = getattr(knobs, name)
    number = jnp.asarray(value, jnp.float32)
    if not isinstance(value, jax.core.Tracer):
        return number
    return jnp.where(_holds(jnp, number, limits or LIMITS[name]), number, jnp.float32(jnp.nan))
