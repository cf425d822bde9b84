"""Lattices: nearest points, cells, acceptance probabilities."""

import math
from typing import NamedTuple

from cepam_jax.errors import require_choice


class Lattice(NamedTuple):
    """A lattice of unit cell volume.

    Z^n alone so far: its cell is the unit cube, its nearest point is rounding, and a dither
    uniform on the cell is a word per coordinate.

    Attributes:
      name: "Z1", "Z2" or "Z3".
      dimension: n, coordinates per block.
      inradius: largest Euclidean ball inside the cell.
    """

    name: str
    dimension: int
    inradius: float = 0.5


LATTICES = {f"Z{n}": Lattice(f"Z{n}", n) for n in (1, 2, 3)}


def lattice(name: str) -> Lattice:
    """The lattice called `name`; ConfigError names the choices."""
    require_choice("lattice", name, LATTICES)
    return LATTICES[name]


def ball_acceptance(lat: Lattice) -> float:
    """Volume of the cell's inscribed ball over the volume of the cell (2402.03030)."""
    n = lat.dimension
    return math.pi ** (n / 2) / math.gamma(n / 2 + 1) * lat.inradius**n
