"""The layer variable of LRSUQ: from one random word to the radius of a superlevel set.

A density f that falls with a norm |.| is a mixture of uniform laws on the norm's balls
{|e| <= R}. For the error of LRSUQ to have density f exactly, R must follow a law that the target
fixes (Ling and Li: Rejection-Sampled Universal Quantization for Smaller Quantization Errors, arXiv
2402.03030, section "layered"; Ling, Shiu, Wu, Sun, Li, Song, Xu: Communication-Efficient and
Privacy-Adaptable Mechanism for Federated Learning, arXiv 2501.12046, section III):

  Gaussian N(0, sigma^2 I_n):        R = sigma * sqrt(W), W chi-squared with n + 2 degrees of freedom
  Laplace, density ~ exp(-|e|_1/b):  R = b * G, G ~ Gamma(n + 1, 1)

Client and server evaluate R from the same shared word by inverting its distribution function
F. One word suffices, nothing is rejected, and the computation is arranged so that every
platform gets the same float to the last bit (an entropy coder may rely on it):

- The word is folded at 2^31, so both tails are resolved down to 2^-32, and converted to f32.
  That conversion is correctly rounded everywhere; its exponent and first eight mantissa bits
  address a table with 256 cells an octave.
- Inside a cell R is a straight line. The position from the cell's middle has 11 bits and a
  sign, the slope 13 bits, so their product is exact in f32 and the sum is rounded once, with
  or without a fused multiply-add.

The worst relative error against F^-1 is below 1e-6 (a test holds the table against
scipy.stats), a few units in the last place of an f32. R stays within F^-1(2^-33) and
F^-1(1 - 2^-33): about 7e-4 and 7.0 sigma for a scalar Gaussian.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy import special

from cepam_jax.errors import require, require_choice
from cepam_jax.mechanisms.arrays import ArrayT, namespace

TARGETS = ("gaussian", "laplace")
_STEP_BITS = 8  # cells per octave: 2^8
_CELLS = 1 << _STEP_BITS
OCTAVES = 33  # folded words run from 1/2 to 2^31
_POSITIONS = 1 << 12  # positions inside a cell
_SLOPE_BITS = 13
_LOWEST = (np.float32(0.5).view(np.uint32) >> np.uint32(23)).astype(np.uint32)


class RadiusTable(NamedTuple):
    """Piecewise linear inverse distribution function of the radius, in units of sigma or b.

    Attributes:
      middle: f32[2 * octaves * cells], radius in the middle of a cell.
      slope: f32 of the same shape, change of the radius per 2^-12 of a cell.
    """

    middle: np.ndarray
    slope: np.ndarray


def quantile(target: str, dimension: int, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """F^-1 of the radius in float64, in units of sigma (Gaussian) or b (Laplace).

    Args:
      target: "gaussian" or "laplace".
      dimension: n, coordinates per block.
      lower: f64[...], probability below the radius.
      upper: f64[...], probability above it, 1 - lower; used where it is the smaller, for precision.

    Returns:
      f64[...], the radius.

    Raises:
      ConfigError: unknown target, or a dimension below 1.
    """
    require_choice("target", target, TARGETS)
    require(dimension >= 1, "dimension", dimension, "at least 1")
    shape = dimension / 2 + 1 if target == "gaussian" else dimension + 1
    small = lower < 0.5
    gamma = np.where(
        small,
        special.gammaincinv(shape, np.where(small, lower, 0.25)),
        special.gammainccinv(shape, np.where(small, 0.25, upper)),
    )
    return np.sqrt(2 * gamma) if target == "gaussian" else gamma


@functools.lru_cache
def radius_table(target: str, dimension: int) -> RadiusTable:
    """Builds the table for one target and one number of coordinates per block (0.03 s, once per process)."""
    octave = np.arange(OCTAVES)[:, None]
    edges = 2.0 ** (octave - 1) * (1 + np.arange(_CELLS + 1) / _CELLS)  # folded word at the edges
    near = np.minimum(edges, 2.0**31) / 2.0**32
    sides = []
    for lower, upper in ((near, 1 - near), (1 - near, near)):
        left = quantile(target, dimension, lower[:, :-1], upper[:, :-1])
        right = quantile(target, dimension, lower[:, 1:], upper[:, 1:])
        lower_mid, upper_mid = ((p[:, :-1] + p[:, 1:]) / 2 for p in (lower, upper))
        # The curve bends one way inside a cell: half way between chord and tangent the error is
        # least. Positions are counted down to their left edge, hence the half position.
        chord = (left + right) / 2
        tangent = quantile(target, dimension, lower_mid, upper_mid)
        slope = round_to_bits((right - left) / _POSITIONS, _SLOPE_BITS)
        sides.append(((chord + tangent) / 2 + slope / 2, slope))
    middle, slope = (np.stack(parts).astype(np.float32).ravel() for parts in zip(*sides, strict=True))
    return RadiusTable(middle, slope)


def round_to_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Rounds f64[...] to floating-point numbers with so many bits of mantissa."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(mantissa * 2**bits), exponent - bits)


def cell(word: ArrayT, step_bits: int = _STEP_BITS) -> tuple[ArrayT, ArrayT]:
    """The table cell of a word and the position inside it, computed in integers alone.

    Args:
      word: uint32[...], numpy or JAX.
      step_bits: the table has 2^step_bits cells per octave, at most 2^11.

    Returns:
      (uint32[...] cell index, int32[...] position from the cell's middle, in [-2^11, 2^11)).
    """
    xp = namespace(word)
    high = word >> np.uint32(31)
    folded = xp.maximum(xp.where(high == 1, ~word, word).astype(np.float32), np.float32(0.5))
    bits = folded.view(np.uint32)
    index = (bits >> np.uint32(23 - step_bits)) - (_LOWEST << np.uint32(step_bits))
    position = (bits >> np.uint32(23 - step_bits - 12)) & np.uint32(_POSITIONS - 1)
    return (
        index + high * np.uint32(OCTAVES << step_bits),
        position.astype(np.int32) - np.int32(_POSITIONS // 2),
    )


def radius(word: ArrayT, table: RadiusTable) -> ArrayT:
    """Radius of the layer, in units of sigma (Gaussian) or b (Laplace).

    Args:
      word: uint32[...], shared random words, one per block; numpy or JAX.
      table: from `radius_table`.

    Returns:
      f32[...], positive.
    """
    index, position = cell(word)
    if isinstance(word, np.ndarray):
        return table.middle[index] + table.slope[index] * position.astype(np.float32)
    middle = jnp.asarray(table.middle).at[index].get(mode="promise_in_bounds")
    slope = jnp.asarray(table.slope).at[index].get(mode="promise_in_bounds")
    return middle + slope * position.astype(jnp.float32)
