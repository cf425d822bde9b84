"""exp and log of additions, multiplications and bits, which compilers turn into wide instructions.

XLA's own take two to eight times as long in a loop over an array on a CPU, and code lengths are little else:
`experiments.benchmarks.cost` counts what is left of them. The argument is split at a power of two, and what
is left of it goes into a short series.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

_LN_2 = math.log(2)
_SERIES = [np.float32(_LN_2**n / math.factorial(n)) for n in range(1, 8)]  # of (2^f - 1) / f
_LEAST = -126.0  # the exponent of the smallest normal f32
# The bits of sqrt(1/2), where mantissas are split: f32 and its logarithm are smooth around 1.
_HALF_ROOT = np.int32(0x3F3504F3)
_MANTISSA = np.int32(0x7FFFFF)


@jax.custom_jvp
def fall(t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """1 - exp(-t) without cancellation, and exp(-t), at least 2^-126.

    Args:
      t: f32[...], at least 0.

    Returns:
      f32[...] each; the relative error of the first is below 3e-7, that of the second below 3e-7 + 1e-7 t
      for t up to 86.
    """
    t = jnp.asarray(t, jnp.float32)
    exponent = jnp.maximum(t * np.float32(-1 / _LN_2), _LEAST)
    whole = jnp.round(exponent)
    part = exponent - whole
    series = jnp.full_like(part, _SERIES[-1])
    for coefficient in _SERIES[-2::-1]:
        series = series * part + coefficient
    power = jax.lax.bitcast_convert_type((whole.astype(jnp.int32) + 127) << 23, jnp.float32)
    grown = power * (part * series)  # exp(-t) - power, and power is exact
    return (1 - power) - grown, power + grown


@fall.defjvp
def _fall_jvp(primals, tangents):
    """Bits have no derivative; both results do."""
    first, rest = fall(*primals)
    change = rest * tangents[0]
    return (first, rest), (change, -change)


@jax.custom_jvp
def log(x: jax.Array) -> jax.Array:
    """ln(x).

    Args:
      x: f32[...], positive, normal and finite; of others nothing is said, not even that NaN is NaN.

    Returns:
      f32[...]; the error is below 2e-7 of the result or 1e-7, whichever is larger.
    """
    x = jnp.asarray(x, jnp.float32)
    raised = jax.lax.bitcast_convert_type(x, jnp.int32) - _HALF_ROOT
    mantissa = jax.lax.bitcast_convert_type((raised & _MANTISSA) + _HALF_ROOT, jnp.float32)
    s = (mantissa - 1) / (mantissa + 1)  # |s| < 0.172
    square = s * s
    series = 1 + square * (
        np.float32(1 / 3) + square * (np.float32(1 / 5) + square * (np.float32(1 / 7) + square / 9))
    )
    return (raised >> 23).astype(jnp.float32) * np.float32(_LN_2) + 2 * s * series


@log.defjvp
def _log_jvp(primals, tangents):
    return log(*primals), tangents[0] / primals[0]
