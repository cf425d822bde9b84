"""How far the error of rotated lattice cells is from Gaussian, from the numbers of the package's table.

Everything is spherical, so that densities are functions of the norm and distances are integrals over it. The
scales of cells are first taken to be uniform between two words, which makes their law a sum of integrals;
what the words themselves draw (the "grain") is then counted one by one, at fewer norms.
"""

from typing import NamedTuple

import numpy as np
from scipy import special

from cepam_jax.mechanisms import cell_scales, lattices
from cepam_jax.privacy.arithmetic import Defect
from cepam_jax.theory import cells, scale_mixtures
from experiments import rotation_words

_PANELS, _NODES = 160, 12  # of the integrals over the norm
_STRATA, _TAILS = 64, 30  # of the norms for the grain: equal ones, and halves of the outermost
_BLOCKS = 10_000_000  # for which the end of the bulk is best


class Deviation(NamedTuple):
    """The error's law beside N(0, I_n), by the norm: f64[k] each.

    Attributes:
      radii: norms, ascending.
      mass: the Gaussian's probability that each stands for.
      relative: density of the error over the Gaussian's, minus one.
    """

    radii: np.ndarray
    mass: np.ndarray
    relative: np.ndarray

    def total_variation(self) -> float:
        """Half the mean size."""
        return float(self.mass @ np.abs(self.relative)) / 2

    def inside(self, end: float) -> float:
        """Root of the integral of the square, over norms up to the end."""
        return float(np.sqrt((self.mass * self.relative**2)[self.radii <= end].sum()))

    def outside(self, end: float) -> float:
        """Integral of the size, over norms beyond the end."""
        return float((self.mass * np.abs(self.relative))[self.radii > end].sum())


class Blocks(NamedTuple):
    """The law of a block's error as the words draw it.

    Attributes:
      dimension: n.
      smooth: with scales of cells that are uniform between two words.
      grain: what the words' discreteness and the rounding of those scales add to it.
    """

    dimension: int
    smooth: Deviation
    grain: Deviation

    def total_variation(self) -> float:
        """Of one block, at most."""
        return self.smooth.total_variation() + self.grain.total_variation()

    def defect(self) -> Defect:
        """The numbers by which `cepam_jax.privacy.arithmetic` bounds the total variation of many blocks."""
        found = []
        for end in self.smooth.radii[self.smooth.radii > np.sqrt(self.dimension)][::_NODES]:
            tail = sum(part.outside(end) for part in (self.smooth, self.grain))
            beyond = special.gammaincc(self.dimension / 2, end**2 / 2)
            # Roots of chi^2 obey the triangle inequality. The mass beyond the end differs by `tail` at most.
            bulk = sum(part.inside(end) for part in (self.smooth, self.grain)) ** 2 + tail**2 / beyond
            tail += special.gammaincc(self.dimension / 2, self.smooth.radii[-1] ** 2 / 2)
            found.append(Defect(bulk, tail, float(end)))
        return min(found, key=lambda defect: defect.total_variation(_BLOCKS))


def of_table(lattice: str, table: cell_scales.ScaleTable) -> Blocks:
    """The law of a block's error on a lattice with a table of scales."""
    scales = rotation_words.law(np.stack(table[:3])[:, : len(table.middle) // 2])
    n = lattices.LATTICES[lattice].dimension
    return Blocks(n, _smooth(lattice, table, scales), _grain(lattice, table, scales))


def moment_and_end(lattice: str, table: cell_scales.ScaleTable) -> tuple[float, float]:
    """Mean square of a coordinate of the error over sigma^2, and the largest norm of a block's over sigma."""
    lat, share = lattices.LATTICES[lattice], table.threshold / 2**32
    (scale, chance), (ball, ball_chance) = (rotation_words.drawn(table, balls) for balls in (False, True))
    of_ball = lat.inradius**2 / (lat.dimension + 2)
    moment = (1 - share) * lat.second_moment * scale**2 @ chance + share * of_ball * ball**2 @ ball_chance
    circumradius = float(np.sqrt(cells.norm_law(lattice).edges[-1]))
    return float(moment), float(max(circumradius * scale.max(), lat.inradius * ball.max()))


def _gaussian(n: int, radii: np.ndarray) -> np.ndarray:
    """Density of N(0, I_n) at points with norms f64[k]."""
    return (2 * np.pi) ** (-n / 2) * np.exp(-(radii**2) / 2)


def _smooth(lattice: str, table: cell_scales.ScaleTable, scales: scale_mixtures.Parabolas) -> Deviation:
    """Up to the norm beyond which the Gaussian has 1e-16 of its mass."""
    lat, n = lattices.LATTICES[lattice], lattices.LATTICES[lattice].dimension
    points, weights = np.polynomial.legendre.leggauss(_NODES)
    edges = np.linspace(0, np.sqrt(2 * special.gammainccinv(n / 2, 1e-16)), _PANELS + 1)
    radii = (edges[:-1, None] + np.diff(edges)[:, None] * (points + 1) / 2).ravel()
    ball, chance = rotation_words.drawn(table, balls=True)
    share = table.threshold / 2**32
    density = (1 - share) * scale_mixtures.error_density(cells.norm_law(lattice), scales, radii)
    density += share * scale_mixtures.balls_density(n, lat.inradius * ball, chance, radii)
    surface = n * scale_mixtures.ball_volume(n) * radii ** (n - 1)
    mass = (np.diff(edges)[:, None] * weights / 2).ravel() * surface * _gaussian(n, radii)
    return Deviation(radii, mass, density / _gaussian(n, radii) - 1)


def _grain(lattice: str, table: cell_scales.ScaleTable, scales: scale_mixtures.Parabolas) -> Deviation:
    """At norms in the middle of strata of equal probability, the outermost of which are halved many times."""
    norm, n = cells.norm_law(lattice), lattices.LATTICES[lattice].dimension
    halved = 0.5 ** np.arange(_TAILS, -1, -1) / _STRATA
    lower = np.concatenate([[0.0], halved, np.arange(2, _STRATA // 2 + 1) / _STRATA])
    middle = (lower[1:] + lower[:-1]) / 2
    radii = np.sqrt(
        2 * np.concatenate([special.gammaincinv(n / 2, middle), special.gammainccinv(n / 2, middle)[::-1]])
    )
    exact = scale_mixtures.error_density_of_points(norm, *rotation_words.drawn(table), radii)
    smooth = scale_mixtures.error_density(norm, scales, radii)
    mass = np.concatenate([np.diff(lower), np.diff(lower)[::-1]])
    return Deviation(radii, mass, (1 - table.threshold / 2**32) * (exact - smooth) / _gaussian(n, radii))
