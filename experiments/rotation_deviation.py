"""How far the error of rotated lattice cells is from Gaussian, from the numbers of the package's table.

Everything is spherical, so that densities are functions of the norm and distances are integrals over it.
"""

from typing import NamedTuple

import numpy as np
from scipy import special

from cepam_jax.mechanisms import cell_scales, lattices
from cepam_jax.theory import cells, scale_mixtures
from experiments import rotation_words

_PANELS, _NODES = 160, 12  # of the integrals over the norm
_OUTSIDE = 1e-15  # probability of the norms beyond the radius at which chi^2 is printed
_STRATA = 96  # norms at which the words are counted one by one


class Deviation(NamedTuple):
    """The error's law beside N(0, I_n), by the norm: f64[k] each.

    Attributes:
      radii: nodes of an integral over the norm, ascending.
      gaussian: the Gaussian's probability at the node.
      relative: density of the error over the Gaussian's, minus one.
      outside: the Gaussian's probability above the node.
    """

    radii: np.ndarray
    gaussian: np.ndarray
    relative: np.ndarray
    outside: np.ndarray

    def total_variation(self) -> float:
        """Of one block."""
        return float(self.gaussian @ np.abs(self.relative)) / 2

    def chi_squared(self) -> np.ndarray:
        """Mean square of `relative` over the Gaussian within each radius, f64[k]."""
        return np.cumsum(self.gaussian * self.relative**2)


class Blocks(NamedTuple):
    """The law of a block's error as the words draw it.

    Attributes:
      smooth: with a scale that is uniform between two words of a cell.
      grain: root mean square, and mean size, of the relative difference that the words' discreteness and the
        rounding of the scale make in the density.
    """

    smooth: Deviation
    grain: tuple[float, float]

    def total_variation(self) -> float:
        """A bound for one block."""
        return self.smooth.total_variation() + self.grain[1] / 2

    def root(self) -> float:
        """A bound on the root of chi^2 of one block, within the radius that a million blocks hardly leave."""
        within = self.smooth.outside > _OUTSIDE
        return float(np.sqrt(self.smooth.chi_squared()[within][-1]) + self.grain[0])

    def joint(self, blocks: int) -> float:
        """A bound on the total variation of so many independent blocks.

        Within a radius by chi^2, which multiplies: TV <= sqrt((1 + chi^2)^B - 1) / 2. Beyond it the density
        may be anything: B times the probability, by replacing the law there. The best radius counts.
        """
        size = np.square(np.sqrt(self.smooth.chi_squared()) + self.grain[0])
        return float(np.min(np.sqrt(np.expm1(blocks * np.log1p(size))) / 2 + blocks * self.smooth.outside))


def halves(lattice: str, table: cell_scales.ScaleTable) -> tuple[scale_mixtures.Parabolas, ...]:
    """The laws of S and of the balls' radius that a table stands for."""
    words, inradius = rotation_words.words_of_cells(), lattices.LATTICES[lattice].inradius
    scales, balls = (rotation_words.law(half, words) for half in np.split(np.stack(table[:3]), 2, 1))
    return scales, scale_mixtures.Parabolas(balls.probability, *(inradius * part for part in balls[1:]))


def of_table(lattice: str, table: cell_scales.ScaleTable) -> Blocks:
    """The law of a block's error."""
    scales, balls = halves(lattice, table)
    share = table.threshold / 2**32
    smooth = _smooth(lattice, scales, balls, share)
    return Blocks(smooth, _grain(lattice, table, scales, share))


def _gaussian(n: int, radii: np.ndarray) -> np.ndarray:
    """Density of N(0, I_n) at points with norms f64[k]."""
    return (2 * np.pi) ** (-n / 2) * np.exp(-(radii**2) / 2)


def _smooth(
    lattice: str, scales: scale_mixtures.Parabolas, balls: scale_mixtures.Parabolas, share: float
) -> Deviation:
    """Up to the norm above which the Gaussian has 1e-16 of its mass."""
    norm, n = cells.norm_law(lattice), lattices.LATTICES[lattice].dimension
    points, weights = np.polynomial.legendre.leggauss(_NODES)
    edges = np.linspace(0, np.sqrt(2 * special.gammainccinv(n / 2, 1e-16)), _PANELS + 1)
    radii = (edges[:-1, None] + np.diff(edges)[:, None] * (points + 1) / 2).ravel()
    surface = n * scale_mixtures.ball_volume(n) * radii ** (n - 1)
    density = _gaussian(n, radii)
    drawn = (1 - share) * scale_mixtures.error_density(norm, scales, radii)
    drawn += share * scale_mixtures.balls_density(n, balls, radii)
    mass = (np.diff(edges)[:, None] * weights / 2).ravel() * surface * density
    return Deviation(radii, mass, drawn / density - 1, special.gammaincc(n / 2, radii**2 / 2))


def _grain(
    lattice: str, table: cell_scales.ScaleTable, scales: scale_mixtures.Parabolas, share: float
) -> tuple[float, float]:
    """See `Blocks.grain`; from norms in the middle of strata of equal probability."""
    norm, n = cells.norm_law(lattice), lattices.LATTICES[lattice].dimension
    radii = np.sqrt(2 * special.gammaincinv(n / 2, (np.arange(_STRATA) + 0.5) / _STRATA))
    exact = scale_mixtures.error_density_of_points(norm, *rotation_words.drawn(table), radii)
    smooth = scale_mixtures.error_density(norm, scales, radii)
    relative = (1 - share) * (exact - smooth) / _gaussian(n, radii)
    return float(np.sqrt(np.mean(relative**2))), float(np.mean(np.abs(relative)))
