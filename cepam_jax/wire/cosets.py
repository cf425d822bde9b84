"""Lattice vectors by coset, class and multiple, as `mechanisms.cell_law.Grid` explains: the form in which
they are coded."""

from typing import NamedTuple

import numpy as np

from cepam_jax.mechanisms import lattices


class Vectors(NamedTuple):
    """A lattice vector by coset, classes and multiples of the step.

    Attributes:
      half: bool[m], whether it lies in the second coset.
      odd: bool[m, n], whether a coordinate has class 1.
      multiple: int64[m, n]; the coordinate is step * (multiple + odd / 2) + shift.
    """

    half: np.ndarray
    odd: np.ndarray
    multiple: np.ndarray


def split(lat: lattices.Lattice, vectors: np.ndarray) -> Vectors:
    """Lattice vectors int64[m, n], in integers as `Lattice.nearest` returns them, by coset and class."""
    if lat.name == "E8":
        half = (vectors[:, 0] & 1).astype(bool)
        whole = (vectors - half[:, None]) >> 1
        return Vectors(half, (whole & 1).astype(bool), whole >> 1)
    half = np.zeros(len(vectors), bool)
    if lat.name == "A2":  # rows hold every second multiple of the row's half step
        odd = (vectors[:, 1] & 1).astype(bool)
        rows = vectors[:, 1] >> 1
        return Vectors(half, np.stack([odd, odd], 1), np.stack([vectors[:, 0] + rows, rows], 1))
    return Vectors(half, (vectors & 1).astype(bool), vectors >> 1)


def join(lat: lattices.Lattice, given: Vectors) -> np.ndarray:
    """The inverse of `split`: int64[m, n]."""
    whole = 2 * given.multiple + given.odd
    if lat.name == "E8":
        return 2 * whole + given.half[:, None]
    if lat.name == "A2":
        return np.stack([given.multiple[:, 0] - given.multiple[:, 1], whole[:, 1]], 1)
    return whole
