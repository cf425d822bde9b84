"""Deviations of lattice symbols from the points that an update of zero would get, axis by axis.

Deviations form the lattice, too, so those that are coded first restrict the rest: see `Lattice.residue`.
"""

import numpy as np

from cepam_jax.mechanisms import acceptance, lattices
from cepam_jax.wire import integers
from cepam_jax.wire.coder import Coder


def code(
    coder: Coder,
    lat: lattices.Lattice,
    family: str,
    error: np.ndarray,
    scales: np.ndarray,
    sent: np.ndarray,
    values: np.ndarray | None = None,
) -> np.ndarray:
    """Deviations, not all zero, from the points that zero would get; axis by axis.

    Args:
      coder: Writer or Reader.
      lat: lattice of n dimensions.
      family: law of the coordinates, one of `code_length.FAMILIES`.
      error: f64[n, k], errors that zero would suffer, in units of the lattice's scale.
      scales: f64[n, k], scales of the coordinates in the same units.
      sent: bool[n, k], axes that are coded.
      values: f64[n, k], the deviations; None when reading.

    Returns:
      int64[k, n], the deviations.
    """
    count = error.shape[1]
    stays = {}
    for axis in lat.order:
        above, below = integers.sides(error[axis] / scales[axis], lat.spacing[axis] / scales[axis], family)
        stays[axis] = np.where(sent[axis], np.clip(1.0 - above - below, 0.0, 1.0), 1.0)
    later, product = {}, np.ones(count)  # that all axes after this one stay
    for axis in reversed(lat.order):
        later[axis] = product
        product = product * stays[axis]
    before: dict[int, np.ndarray] = {}
    undecided = np.ones(count, bool)
    for axis in lat.order:
        first, start = lat.residue(axis, error[axis], before)
        width = lat.spacing[axis] / scales[axis]
        center = start / scales[axis]
        above, below = integers.sides(center, width, family)
        # Somewhere a deviation must come: while none has, staying is less likely than the law says.
        moves = np.maximum(1.0 - stays[axis] * later[axis], acceptance.LEAST)
        zero = np.where(undecided, stays[axis] * (1.0 - later[axis]) / moves, 1.0 - above - below)
        at = np.flatnonzero(sent[axis])
        given = None
        if values is not None:
            given = np.rint((values[axis] - first) / lat.modulus[axis]).astype(np.int64)[at]
        k = np.zeros(count)
        j = integers.code(coder, center[at], width[at], family, given, zero[at])
        k[at] = first[at] + lat.modulus[axis] * j
        before[axis] = k
        undecided &= k == 0
    return np.stack([before[axis] for axis in range(lat.dimension)], 1).astype(np.int64)


def is_lattice_point(lat: lattices.Lattice, symbols: np.ndarray, sent: np.ndarray) -> np.ndarray:
    """Whether symbols name lattice points, as far as they are sent.

    Args:
      lat: lattice of n dimensions.
      symbols: int[k, n].
      sent: bool[k, n].

    Returns:
      bool[k].
    """
    if not any(step > 1 for step in lat.modulus):
        return np.ones(len(symbols), bool)
    valid = np.ones(len(symbols), bool)
    before: dict[int, np.ndarray] = {}
    for axis in lat.order:
        integer = symbols[:, axis].astype(np.float64)
        first, _ = lat.residue(axis, np.zeros(len(symbols)), before)
        valid &= ~sent[:, axis] | (np.mod(integer - first, lat.modulus[axis]) == 0)
        before[axis] = integer
    return valid
