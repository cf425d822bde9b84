"""Temporary: every block is a ball block."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from cepam_jax.mechanisms import latents, lattices


class Table(NamedTuple):
    radius: latents.RadiusTable
    inradius: float
    rest: float


def table(lattice):
    lat = lattices.lattice(lattice)
    return Table(latents.radius_table("gaussian", lat.dimension), lat.inradius, 1.0)


def scales(word, spare, table):
    return latents.radius(word, table.radius) * np.float32(1 / table.inradius), spare == spare
