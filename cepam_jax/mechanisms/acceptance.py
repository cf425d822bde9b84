"""Which proposal of a block was accepted, as far as a decoder can tell beforehand.

The decoder of LRSUQ knows the dithers V_1, V_2, ... of a block. Without knowing x it can ask what x = 0
would do: the lattice point m* nearest to the dithered origin, and the error e* = m* + V that zero would
suffer. If the update is small beside the lattice, the first proposal with e* inside the layer is nearly
always the accepted one, and m* the point. `predict` turns |e*| into two probabilities, from a table in
the package that was made by `python -m experiments.acceptance_tables`.

The functions take arrays of numpy (a coder on the host: float64, basic operations alone, so that every
machine gets the same numbers) or of JAX (`Mechanism.bits` on the device).
"""

import functools
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np

from cepam_jax.mechanisms.arrays import ArrayT, namespace
from cepam_jax.mechanisms.lattices import Lattice

# The layer is a ball, a cross-polytope, or the whole cell, where nothing is rejected.
LAYERS = ("gaussian", "laplace", "cell")
LOG_SCALES = np.arange(-9, 4)  # rows of a table: log2 of the coordinates' deviation over the lattice's scale
Z = np.arange(-40, 41) / 4.0  # columns of a table: distance of |e*| from the layer's edge, in deviations
LEAST = 2.0**-20  # least probability that a coder assumes


def needed(lat: Lattice, layer: str) -> bool:
    """Whether the coordinates of a block depend on each other, so that they cannot be coded one by one."""
    return lat.dimension > 1 and (layer != "cell" or not lat.name.startswith("Z"))


def geometry(lat: Lattice, layer: str) -> tuple[float, float]:
    """The layer's radius at lattice scale 1, and the deviation of `norm` over that of one coordinate."""
    if layer == "laplace":
        return lat.cross, float(lat.dimension**0.5)
    return lat.inradius, 1.0


def norm(axes: Sequence[ArrayT], layer: str) -> ArrayT:
    """The norm that decides whether an error lies in the layer: n arrays [k] -> [k]."""
    total: Any = sum(abs(a) if layer == "laplace" else a * a for a in axes)
    return total if layer == "laplace" else total**0.5


def table_of(family: str) -> str:
    """The law, "gaussian" or "laplace", whose table serves for a family of `code_length.FAMILIES`."""
    return "gaussian" if family == "gaussian" else "laplace"


@functools.cache
def _tables() -> dict[str, np.ndarray]:
    """The package's tables by name: f64[tables, len(LOG_SCALES), len(Z)], probabilities."""
    with resources.files("cepam_jax.mechanisms").joinpath("acceptance.npz").open("rb") as file:
        return {name: values / 65536.0 for name, values in np.load(file).items()}


def predict(lat: Lattice, layer: str, family: str, rho: ArrayT, scale: ArrayT) -> tuple[ArrayT, ArrayT]:
    """Probabilities that a proposal is accepted, given its dither.

    Args:
      lat: lattice.
      layer: one of `LAYERS`.
      family: law of the coordinates, "gaussian" or "laplace".
      rho: float[k], norm of the error that zero would suffer, in units of the lattice's scale.
      scale: float[k], standard deviation of the coordinates in the same units.

    Returns:
      float[k] each: the probability that the proposal is accepted at the point that zero takes, and that it
      is accepted at another point. With the layer "cell" they add up to one.
    """
    xp = namespace(rho)
    radius, spread = geometry(lat, layer)
    table = _tables()[f"{lat.name}_{layer}_{family}"]
    z = xp.clip((radius - rho) / (scale * spread), float(Z[0]), float(Z[-1]))
    column = (z - float(Z[0])) * 4
    # log2 by exponent and mantissa, linear in between: basic operations alone.
    mantissa, exponent = xp.frexp(scale)
    row = xp.clip(exponent + 2 * mantissa - 2 - int(LOG_SCALES[0]), 0, len(LOG_SCALES) - 1)
    i = xp.clip(xp.floor(row), 0, len(LOG_SCALES) - 2)
    j = xp.clip(xp.floor(column), 0, len(Z) - 2)
    down, right = row - i, column - j
    at = (i * len(Z) + j).astype(xp.int32)
    probabilities = []
    for values in table:
        flat = xp.asarray(values.reshape(-1).astype(rho.dtype))
        upper = flat[at] * (1 - right) + flat[at + 1] * right
        lower = flat[at + len(Z)] * (1 - right) + flat[at + len(Z) + 1] * right
        probabilities.append(upper * (1 - down) + lower * down)
    same = probabilities[0]
    return same, (1 - same if layer == "cell" else probabilities[1])
