"""Makes the table that predicts which proposal a client accepted.

  python -m experiments.acceptance_tables --output=cepam_jax/mechanisms/acceptance.npz

A decoder knows every dither. If the update is small beside the lattice, the proposal that zero would
accept is nearly always the one that the update accepted, at the lattice point that zero would take. The
table holds, for each lattice, layer and law of the coordinates (standard deviation s, lattice scale 1),

  same:  P(accepted, at the point nearest to the dithered origin)
  other: P(accepted, at another point)

on a grid of log2 s and of z = (r - rho) / (s * spread): r the layer's radius, rho the norm of the error
that zero would suffer (L2 for balls and cells, L1 for cross-polytopes), spread 1 or sqrt(n). Estimated by
simulation with a fixed seed; the file is part of the package, and so of the wire format, because a coder
and a decoder must use the very same numbers.
"""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import flags

from cepam_jax.mechanisms import acceptance, lattices
from experiments import cli

_DIRECTIONS, _INPUTS = 2048, 32


def _norm(axes, layer):
    if layer == "laplace":
        return sum(jnp.abs(a) for a in axes)
    return jnp.sqrt(sum(jnp.square(a) for a in axes))


def _nodes(lat, layer, family):
    """(key, s, z) -> (same, other, valid directions) by simulation."""
    n, radius, spread = lat.dimension, *acceptance.geometry(lat, layer)

    def node(key, s, z):
        first, second, signs = jax.random.split(key, 3)
        if layer == "laplace":
            way = jax.random.exponential(first, (n, _DIRECTIONS)) * jax.random.rademacher(
                signs, (n, _DIRECTIONS), jnp.float32
            )
        else:
            way = jax.random.normal(first, (n, _DIRECTIONS))
        rho = radius - z * s * spread
        dither = list(way / _norm(list(way), layer) * rho)  # what zero would suffer
        zero = lat.nearest([-a for a in dither])
        valid = (rho >= 0) & (sum(jnp.abs(q) for q in zero) == 0)
        draw = jax.random.normal if family == "gaussian" else jax.random.laplace
        unit = 1.0 if family == "gaussian" else 2**-0.5
        x = draw(second, (n, _INPUTS, _DIRECTIONS)) * (unit * s)
        moved = [a - v for a, v in zip(x, dither, strict=True)]
        integers = lat.nearest(moved)
        points = lat.point(integers, [0.0] * n)
        error = _norm([p - y for p, y in zip(points, moved, strict=True)], layer)
        accepted = jnp.ones(error.shape, bool) if layer == "cell" else error <= radius
        at_zero = sum(jnp.abs(q) for q in integers) == 0
        share = lambda event: jnp.sum(event & valid) / jnp.maximum(jnp.sum(valid) * _INPUTS, 1)  # noqa: E731
        return share(accepted & at_zero), share(accepted & ~at_zero), jnp.sum(valid)

    return jax.jit(jax.vmap(node, in_axes=(0, None, 0)))


def table(lattice: str, layer: str, family: str):
    """uint16[2, log2 s, z]: probabilities in units of 2^-16."""
    lat = lattices.LATTICES[lattice]
    nodes = _nodes(lat, layer, family)
    rows = []
    for i, log_scale in enumerate(acceptance.LOG_SCALES):
        keys = jax.random.split(jax.random.key(i), len(acceptance.Z))
        same, other, valid = map(
            np.asarray, nodes(keys, jnp.float32(2.0**log_scale), jnp.asarray(acceptance.Z, jnp.float32))
        )
        usable = np.flatnonzero(valid >= _DIRECTIONS // 100)
        # What geometry forbids takes the value of the nearest node that it allows.
        nearest = usable[np.abs(np.arange(len(valid))[:, None] - usable).argmin(1)]
        rows.append(np.stack([same[nearest], other[nearest]]))
    return np.clip(np.round(np.stack(rows, 1) * 65536), 1, 65534).astype(np.uint16)


def define_flags():
    flags.DEFINE_string("output", None, "The .npz file to write.", required=True)


def main():
    combinations = [
        (lattice, layer, family)
        for lattice, layer, family in itertools.product(
            lattices.LATTICES, acceptance.LAYERS, ("gaussian", "laplace")
        )
        if acceptance.needed(lattices.LATTICES[lattice], layer)
    ]
    found = {
        "_".join(names): table(*names) for names in tqdm.tqdm(combinations, unit="table", dynamic_ncols=True)
    }
    np.savez_compressed(Path(flags.FLAGS.output), **found)


if __name__ == "__main__":
    cli.run(main, define_flags)
