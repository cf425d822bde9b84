"""Makes the table of the components of random rotations, and prints how uniform these are.

  python -m experiments.rotation_components --output=cepam_jax/mechanisms/rotation_components.npz

A component is a standard normal variable cut into 65,536 cells of equal probability, each replaced by its
mean. That loses variance, mostly in the tail, so the outermost means are moved (by the least that does it)
until the moments of order 2, 4, 6 and 8 are the normal law's. Then all are multiplied by the deviation and
rounded to odd integers, one after the other, with what was lost by rounding carried on to the next. The file
is part of the package, and so of the message format, because encoder and decoder must turn blocks alike.

Printed are the root mean squares of the harmonics of the direction's density, degree by degree. The error of
`rotated` has the degrees that the cell has as well (A2: 12, 24, ...; D4: 6, 8, 12, ...; E8: 8, 12, ...), each
multiplied by the cell's own.
"""

from pathlib import Path

import numpy as np
from absl import flags
from scipy import special

from cepam_jax.mechanisms import rotations
from cepam_jax.theory import directions
from experiments import cli

_MOVED = 32
_ORDERS = (2, 4, 6, 8)


def means(count):
    """f64[count], means of the cells of |z|, z standard normal, of equal probability; the outermost first."""
    inner = -special.ndtri(np.arange(1, count) / (2 * count))
    density = np.exp(-np.square(inner) / 2) / np.sqrt(2 * np.pi)
    return (np.append(density, 1 / np.sqrt(2 * np.pi)) - np.insert(density, 0, 0.0)) * 2 * count


def with_moments(values):
    """The same with its outermost values moved, the most the outermost, to the normal law's moments."""
    values = values.copy()
    order = np.array(_ORDERS)[:, None]
    normal = special.factorial2(order - 1)
    weight = 1 / np.arange(1, _MOVED + 1)
    for _ in range(20):
        excess = np.mean(values**order / normal, 1) - 1
        change = order * values[:_MOVED] ** (order - 1) / normal / len(values)
        values[:_MOVED] -= weight * np.linalg.lstsq(change * weight, excess, rcond=1e-14)[0]
    return values


def rounded(values):
    """Odd integers int16[k] whose running sums are those of the values."""
    found, carried = [], 0.0
    for value in values:
        found.append(2 * int(np.floor((value + carried) / 2)) + 1)
        carried += value - found[-1]
    return np.abs(np.array(found, np.int16))


def define_flags():
    flags.DEFINE_string("output", None, "The .npz file to write.", required=True)


def main():
    table = rounded(rotations.DEVIATION * with_moments(means(rotations.MAGNITUDES)))
    np.savez_compressed(Path(flags.FLAGS.output), magnitude=table)
    values, counts = np.unique(table, return_counts=True)
    print(f"{len(table)} magnitudes from {values[0]} to {values[-1]}")
    for name, n in (("A2", 2), ("D4", 4), ("E8", 8)):
        found = directions.deviations(values / rotations.DEVIATION, counts / len(table), n, 14)
        print(name, ", ".join(f"{degree}: {rms:.1e}" for degree, rms in found.items() if degree > 2))


if __name__ == "__main__":
    cli.run(main, define_flags)
