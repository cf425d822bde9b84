"""Which proposal of a block was accepted, as far as a decoder can tell beforehand.

The decoder of LRSUQ knows the dithers V_1, V_2, ... of a block. Without knowing x it can ask what x = 0
would do: the lattice point m* nearest to the dithered origin and the error e* = m* + V that zero would
suffer. If the update is small beside the lattice, the first proposal with e* inside the layer is nearly
always the accepted one, and m* the point. `predict` turns |e*| into two probabilities, from a table in
the package that was made by `python -m experiments.acceptance_tables`.

The functions take numpy arrays (a coder on the host: float64, basic operations alone, so that every
machine gets the same numbers) or jax arrays (`Mechanism.bits` on the device).
"""

import functools
from importlib import resources

import jax.numpy as jnp
import numpy as np

from cepam_jax.mechanisms.lattices import Lattice

LAYERS = ("gaussian", "laplace", "cell")  # ball, cross-polytope; the whole cell: nothing is rejected
LOG_SCALES = np.arange(-9, 4)  # log2 of s / d
Z = np.arange(-40, 41) / 4.0
LEAST = 2.0**-20  # least probability that a coder assumes


def needed(lat: Lattice, layer: str) -> bool:
    """Whether coordinates cannot simply be coded one by one."""
    return lat.dimension > 1 and (layer != "cell" or not lat.name.startswith("Z"))


def geometry(lat: Lattice, layer: str) -> tuple[float, float]:
    """(radius of the layer, how the norm's deviation follows from one coordinate's), lattice scale 1."""
    if layer == "laplace":
        return lat.cross, lat.dimension**0.5
    return lat.inradius, 1.0


def norm(axes, layer: str):
    """The norm that decides whether an error lies in the layer."""
    if layer == "laplace":
        return sum(abs(a) for a in axes)
    return sum(a * a for a in axes) ** 0.5


def table_of(family: str) -> str:
    """The law whose table serves for a family of coordinate laws."""
    return "gaussian" if family == "gaussian" else "laplace"


@functools.cache
def _tables():
    with resources.files("cepam_jax.mechanisms").joinpath("acceptance.npz").open("rb") as file:
        return {name: values / 65536.0 for name, values in np.load(file).items()}


def predict(lat: Lattice, layer: str, family: str, rho, scale):
    """Probabilities that a proposal is accepted, given its dither.

    Args:
      lat: lattice.
      layer: one of `LAYERS`.
      family: law of the coordinates, "gaussian" or "laplace".
      rho: norm of the error that zero would suffer, in units of the lattice's scale.
      scale: standard deviation of the coordinates in the same units, as an array like rho.

    Returns:
      (accepted at the point that zero takes, accepted at another point); with the layer "cell" they
      add up to one.
    """
    xp = np if isinstance(rho, np.ndarray) else jnp
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
    found = []
    for values in table:
        flat = xp.asarray(values.reshape(-1).astype(rho.dtype))
        upper = flat[at] * (1 - right) + flat[at + 1] * right
        lower = flat[at + len(Z)] * (1 - right) + flat[at + len(Z) + 1] * right
        found.append(upper * (1 - down) + lower * down)
    if layer == "cell":
        return found[0], 1 - found[0]
    return tuple(found)
