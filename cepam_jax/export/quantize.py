"""Weights rounded after training: a step for each channel with a calibrated clip, or one for a rate of bits.

Symmetric uniform quantization of weights alone, per output channel (Jacob, Kligys, Chen, Zhu, Tang, Howard,
Adam, Kalenichenko: Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference, arXiv 1712.05877); where to cut off is `mechanisms.clip_thresholds`. Pruning sets the smallest
magnitudes of each array to zero (Han, Mao, Dally: Deep Compression, arXiv 1510.00149, section 2, without
training on unless `refine` does it). Nothing but the weights is read, so that what protects the model
protects what is made of it.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cepam_jax.errors import ConfigError, require, require_choice
from cepam_jax.export import rates
from cepam_jax.export.loader import Weight, quantized, steps
from cepam_jax.mechanisms.clip_thresholds import THRESHOLDS

BITS = (8, 4, 3, 2)
_VECTOR_BITS = 8
_LEAST_RATE, _MOST_RATE = 0.5, 6.0
_MOST_STEPS = 100_000


class Setting(NamedTuple):
    """How weights are rounded.

    Attributes:
      bits: of a weight in an array of two axes or more, one of `BITS`; not read where there is a rate.
      clip: name of a rule of `clip_thresholds.THRESHOLDS`: where each channel is cut off; likewise.
      prune: share of each such array that becomes zero, at least 0 and below 1.
      rate: 0, or bits for each weight after entropy coding, on average over these arrays; see `rates`.
        Nothing is cut off, and codes have as many bits as the largest one needs.
      refine: 0, or for so many steps the weights are trained on as they are rounded; see `refine`.
    """

    bits: int = 4
    clip: str = "mse"
    prune: float = 0.0
    rate: float = 0.0
    refine: int = 0

    def check(self) -> None:
        """ConfigError unless all is allowed; it names the command's flag."""
        require(self.bits in BITS, "--bits", self.bits, "one of 8, 4, 3, 2")
        require_choice("--clip", self.clip, THRESHOLDS)
        require(0 <= self.prune < 1, "--prune", self.prune, "a number of at least 0 and below 1")
        fits = self.rate == 0 or _LEAST_RATE <= self.rate <= _MOST_RATE
        allowed = f"0, or a number of bits for each weight from {_LEAST_RATE:g} to {_MOST_RATE:g}"
        require(fits, "--rate", self.rate, allowed)
        allowed = f"0, or a number of steps up to {_MOST_STEPS:,}"
        require(0 <= self.refine <= _MOST_STEPS, "--refine", self.refine, allowed)


def quantize(leaves: Mapping[str, np.ndarray], setting: Setting) -> dict[str, Weight]:
    """Name -> Weight of a model's arrays. Vectors (biases, norms) always have 8 bits and one step.

    Args:
      leaves: name -> f32[...].
      setting: how they are rounded.

    Raises:
      ConfigError: a setting that is not allowed; a weight that is NaN or infinite.
    """
    setting.check()
    arrays = {name: np.asarray(leaf, np.float32) for name, leaf in leaves.items()}
    for name, values in arrays.items():
        if not np.all(np.isfinite(values)):
            raise ConfigError(f"the model's {name} is NaN or infinite in places; nothing was exported")
    matrices = {name: pruned(values, setting.prune) for name, values in arrays.items() if values.ndim > 1}
    found = {name: _vector(name, values) for name, values in arrays.items() if values.ndim < 2}
    if setting.rate:
        tables = [name for name in matrices if not _is_kernel(name)]
        shares = rates.shared({name: a.size for name, a in matrices.items()}, setting.rate, tables)
        found |= {name: _at_rate(name, values, shares[name]) for name, values in matrices.items()}
    else:
        found |= {name: _clipped(name, values, setting) for name, values in matrices.items()}
    return {name: found[name] for name in leaves}


def channels_of(name: str, axes: int) -> int:
    """The axis whose entries have a step each: outputs of a kernel, rows of an embedding."""
    return axes - 1 if _is_kernel(name) else 0


def _is_kernel(name: str) -> bool:
    """Whether a layer sums over the inputs of an array; the rows of others are looked up or added."""
    return name.rpartition("/")[2] == "kernel"


def pruned(values: np.ndarray, share: float) -> np.ndarray:
    """The same values with the share of smallest magnitude set to zero (rounded down to whole numbers)."""
    flat = values.reshape(-1).copy()
    flat[np.argsort(np.abs(flat), kind="stable")[: int(share * values.size)]] = 0
    return flat.reshape(values.shape)


def balanced(rows: np.ndarray, largest: int) -> np.ndarray:
    """Codes of rows of numbers, rounded so that the errors of each row add up to almost nothing.

    Each number is rounded to the nearest integer; then, of each row, those closest to the middle between two
    are rounded the other way, as many as bring the sum of the errors to at most 1/2, if there are so many.
    An output of a layer is a sum over a row, and what its inputs have in common meets this sum of errors.
    (Guo and others: SQuant: On-the-Fly Data-Free Quantization via Diagonal Hessian Approximation, arXiv
    2202.07471, whose sum of errors for each output channel this is.)

    Args:
      rows: f32[channels, size], in steps.
      largest: magnitude at which codes are cut off.

    Returns:
      int8[channels, size]. A zero stays zero.
    """
    codes = np.clip(np.rint(rows), -largest, largest)
    errors = rows - codes
    for row in np.flatnonzero(np.rint(errors.sum(1))):
        wanted = int(np.rint(errors[row].sum()))
        sign = 1 if wanted > 0 else -1
        able = np.flatnonzero((sign * errors[row] > 0) & (sign * codes[row] < largest))
        nearest = able[np.argsort(-sign * errors[row, able], kind="stable")[: abs(wanted)]]
        codes[row, nearest] += sign
    return codes.astype(np.int8)


def _vector(name: str, values: np.ndarray) -> Weight:
    largest = _largest(_VECTOR_BITS)
    number = rates.numbers_of(np.abs(values).max(initial=0).reshape(1) / np.float32(largest))
    step = steps(number)[0]
    codes = np.clip(np.rint(values / step), -largest, largest) if step else np.zeros_like(values)
    return quantized(name, codes.astype(np.int8), number, None, _VECTOR_BITS)


def _clipped(name: str, values: np.ndarray, setting: Setting) -> Weight:
    axis = channels_of(name, values.ndim)
    rows, largest = _rows(values, axis), _largest(setting.bits)
    # The grid has zero among its levels, and 2^B - 1 of them in place of 2^B.
    bounds = _thresholds(setting.clip)(jnp.asarray(_survivors(rows)), math.log2(2 * largest + 1))
    numbers = rates.numbers_of(np.asarray(bounds) / np.float32(largest))
    size = steps(numbers)[:, None]
    codes = balanced(np.divide(rows, size, out=np.zeros_like(rows), where=size > 0), largest)
    return quantized(name, _array(codes, values.shape, axis), numbers, axis, setting.bits)


def _at_rate(name: str, values: np.ndarray, rate: float) -> Weight:
    axis, number = channels_of(name, values.ndim), rates.number_of_rate(values, rate)
    step = steps(number)[0]
    codes = balanced(_rows(values, axis) / (step or np.float32(1)), _largest(max(BITS)))
    needed = next(bits for bits in range(2, 9) if np.abs(codes).max(initial=0) <= _largest(bits))
    return quantized(name, _array(codes, values.shape, axis), number, None, needed)


def _largest(bits: int) -> int:
    """The largest code."""
    return 2 ** (bits - 1) - 1


def _rows(values: np.ndarray, axis: int) -> np.ndarray:
    """[channels, size] of an array with its channels along an axis."""
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


def _array(rows: np.ndarray, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """The array of which `_rows` made rows."""
    moved = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    return np.ascontiguousarray(np.moveaxis(rows.reshape(moved), 0, axis))


@functools.lru_cache
def _thresholds(clip: str) -> Callable:
    """(rows f32[channels, size], bits) -> f32[channels], compiled once for each shape."""
    return jax.jit(lambda rows, bits: THRESHOLDS[clip](rows, bits, "deterministic"))


def _survivors(rows: np.ndarray) -> np.ndarray:
    """Magnitudes f32[channels, size] of what is not zero in each row, stretched to its length by quantiles.

    Zeros are represented without error, so they have no say in where to cut off.
    """
    size = rows.shape[1]
    ordered = np.sort(np.abs(rows), 1)
    zeros = (ordered == 0).sum(1)
    left = np.maximum(size - zeros, 1)
    places = zeros[:, None] + ((np.arange(size) + 0.5) / size * left[:, None]).astype(np.int64)
    return np.take_along_axis(ordered, np.minimum(places, size - 1), 1)
