"""Makes the tables from which the scales of rotated lattice cells are drawn, and says how good they are.

  python -m experiments.rotation_tables --output=cepam_jax/mechanisms/cell_scales.npz

The exact deconvolution (`cepam_jax.theory.deconvolution`) is a function of log S that is positive but for a tiny
oscillation far out. It is cut off smoothly where a few ten-millionths of the mass are left at each end, and
written into a table of parabolas. The law of S * T is then computed from the table's own numbers. The
probability of a ball is the least at which that law nowhere exceeds the Gaussian's; what is missing is the
law of the balls' radius, and becomes the second half of the table.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags
from scipy import interpolate, special

from cepam_jax.mechanisms import cell_scales, lattices
from cepam_jax.theory import cells, deconvolution, scale_mixtures
from experiments import cli

_TAIL = 3e-7  # mass that is cut off at each end of the law of S
_GRID = 1 / 512  # in log S
_MARGIN = 1.05  # of the probability of a ball over the least one
_FIT_NODES = 8


class Cells(NamedTuple):
    """Words that fall into the cells of one half of a table, below 2^31 and by symmetry above it.

    Attributes:
      start, stop: f64[cells], the folded words of the cell, from `start` to before `stop`; equal if there are none.
      step: f64[cells], positions from one word to the next, at least 1.
    """

    start: np.ndarray
    stop: np.ndarray
    step: np.ndarray


def word_cells(step_bits: int = cell_scales.STEP_BITS) -> Cells:
    """Which words fall into which cell of `latents.cell`."""
    count = 1 << step_bits
    octave = np.arange(33)[:, None]
    left = 2.0 ** (octave - 1) * (1 + np.arange(count) / count)
    width = np.broadcast_to(2.0 ** (octave - 1) / count, left.shape)
    # A word above 2^24 is rounded to 24 bits, so a cell begins half a unit below its edge.
    below = np.where(left == 2.0 ** (octave - 1), 2.0 ** (octave - 2), 2.0 ** (octave - 1)) / 2.0**23
    start = np.where(below >= 2, left - below / 2, np.ceil(left))
    start[0] = np.where(np.arange(count) == 0, 0.0, 1.0)  # the word 0 counts as 1/2
    start = np.minimum(start.ravel(), 2.0**31)
    stop = np.append(start[1:], 2.0**31)
    return Cells(start, stop, np.maximum(1.0, 4096 / width.ravel()))


class Quantiles(NamedTuple):
    """A law on an interval of the line: its inverse distribution function from both ends."""

    lower: interpolate.PPoly  # mass below y
    upper: interpolate.PPoly  # mass above -y
    left: float
    right: float

    def at(self, probability: np.ndarray, from_above: bool) -> np.ndarray:
        """The point with so much mass beyond it, f64[...]."""
        mass, ends = (
            (self.upper, (-self.right, -self.left)) if from_above else (self.lower, (self.left, self.right))
        )
        low, high = (np.full(probability.shape, end) for end in ends)
        wanted = probability * float(mass(ends[1]))
        for _ in range(52):
            middle = (low + high) / 2
            beyond = mass(middle) > wanted
            low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
        return -(low + high) / 2 if from_above else (low + high) / 2


def _rise(x: np.ndarray) -> np.ndarray:
    """From 0 to 1 on [0, 1] with three derivatives that vanish at both ends."""
    x = np.clip(x, 0, 1)
    return x**4 * (35 - 84 * x + 70 * x**2 - 20 * x**3)


def scale_law(norm: cells.NormLaw) -> tuple[Quantiles, float]:
    """The law of log S, and how much of the deconvolution's mass it has."""
    grid = np.arange(-10.0, 4.0, _GRID)
    whole = deconvolution.signed_density(norm, grid)
    mass = interpolate.make_interp_spline(grid, whole, 5).antiderivative()(grid)
    low, high = (float(np.interp(m, mass - mass[0], grid)) for m in (_TAIL, 1 - _TAIL))
    # Ramps over three e-foldings of the density.
    up, down = 3 / (norm.dimension + 2), 3 / (np.exp(2 * high) * np.exp(2 * np.log(norm.edges[0]) / 2))
    left, right = low - up / 2, high + down / 2
    ramped = whole * _rise((grid - left) / up) * _rise((right - grid) / down)
    inside = (grid >= left - 10 * _GRID) & (grid <= right + 10 * _GRID)
    grid, ramped = grid[inside], np.where((grid > left) & (grid < right), ramped, 0.0)[inside]
    law = Quantiles(
        _mass_above(grid, ramped, left), _mass_above(-grid[::-1], ramped[::-1], -right), left, right
    )
    return law, float(law.lower(right))


def _mass_above(grid, density, start):
    """Integral from `start` of the spline through a density."""
    found = interpolate.make_interp_spline(grid, density, 5).antiderivative()
    return lambda y: found(y) - found(start)


def _bits(values: np.ndarray, bits: int) -> np.ndarray:
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(mantissa * 2**bits), exponent - bits)


def fit(quantile, words: Cells) -> np.ndarray:
    """f32[3, 2 * cells]: middle, slope and bend of a law's inverse distribution function.

    Args:
      quantile: (probability f64[...], whether it is counted from above) -> f64[...].
    """
    points, weights = np.polynomial.legendre.leggauss(_FIT_NODES)
    center, half = (words.stop + words.start) / 2, (words.stop - words.start) / 2
    probability = (center + half * points[:, None]) / 2**32
    sides = []
    for from_above in (False, True):
        values = quantile(probability, from_above)
        # Projections on Legendre's polynomials: the mean of S in a cell, above all, is the law's.
        mean, slope, bend = (
            (2 * k + 1) / 2 * (weights * special.eval_legendre(k, points)) @ values for k in range(3)
        )
        sides.append(parabola(mean, slope, bend, words))
    return np.concatenate(sides, 1)


def parabola(mean, slope, bend, words: Cells) -> np.ndarray:
    """The numbers of the table, f32[3, cells], for mean + slope u + bend (3 u^2 - 1) / 2 on [-1, 1]."""
    several = words.stop - words.start > 1
    slope, bend = np.where(several, slope, 0), np.where(several, bend, 0)
    half = words.step / 2  # a position stands for its word's or its interval's middle
    curve = 1.5 * bend / 2048**2
    per_position = slope / 2048 + 2 * curve * half
    bent = _bits(curve * 2048, 12)
    middle = mean - bend / 2 + slope * half / 2048 + curve * half**2 + bent / 2 * several
    return np.stack([middle, _bits(per_position, 13), bent]).astype(np.float32)


def parabolas(table: np.ndarray, words: Cells) -> scale_mixtures.Parabolas:
    """The law that half of a table stands for: f32[3, 2 * cells] -> what the words draw from it."""
    middle, slope, bend = table.astype(np.float64)
    half, several = np.tile(words.step, 2) / 2, np.tile(words.stop - words.start > 1, 2)
    curve = bend / 2048
    across = (slope - 2 * curve * half) * 2048
    turned = curve * 2048**2 / 1.5
    mean = middle + turned / 2 - across * half / 2048 - curve * half**2 - bend / 2 * several
    used = np.tile(words.stop - words.start, 2) > 0
    narrow = np.where(several, across, 1e-7 * mean)  # one word: an atom, nearly
    return scale_mixtures.Parabolas(
        *(part[used] for part in (np.tile(words.stop - words.start, 2) / 2**32, mean, narrow, turned))
    )


class Rest(NamedTuple):
    """The law of the balls' radius."""

    probability: float
    radii: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    density: np.ndarray


def remainder(norm: cells.NormLaw, law: scale_mixtures.Parabolas, count: int = 1500) -> Rest:
    """What the law of S * T lacks."""
    n = norm.dimension
    half = (n + 2) / 2
    ends = law.at(np.array([[-1.0], [1.0]]))
    least, most = ends.min() * np.sqrt(norm.edges[0]), ends.max() * np.sqrt(norm.edges[-1])
    radii = np.exp(np.linspace(np.log(least), np.log(most), count))
    have = scale_mixtures.density(norm, law, radii)
    want = np.exp((n + 1) * np.log(radii) - radii**2 / 2 - (half - 1) * np.log(2) - special.gammaln(half))
    excess = np.max(have / want) - 1
    threshold = np.ceil(2.0**32 * _MARGIN * excess / (1 + excess))
    eps = threshold / 2**32
    # Beyond the range the Gaussian's radii are all missing.
    far_low = np.exp(np.linspace(np.log(least) - 12 / (n + 2) * 2, np.log(least), 200, endpoint=False))
    far_high = np.linspace(most, 12.0 + most, 600)[1:]
    lower = special.gammainc(half, radii**2 / 2) - (1 - eps) * scale_mixtures.cdf(norm, law, radii)
    upper = special.gammaincc(half, radii**2 / 2) - (1 - eps) * scale_mixtures.cdf(norm, law, radii, True)
    r = np.concatenate([far_low, radii, far_high])
    low = np.concatenate(
        [special.gammainc(half, far_low**2 / 2), lower, eps - special.gammaincc(half, far_high**2 / 2)]
    )
    up = np.concatenate(
        [eps - special.gammainc(half, far_low**2 / 2), upper, special.gammaincc(half, far_high**2 / 2)]
    )
    chi = lambda r: np.exp((n + 1) * np.log(r) - r**2 / 2 - (half - 1) * np.log(2) - special.gammaln(half))
    q = np.concatenate([chi(far_low), want - (1 - eps) * have, chi(far_high)])
    return Rest(eps, r, low / eps, up / eps, q / eps)


def rest_quantile(rest: Rest, probability, from_above):
    mass = interpolate.CubicHermiteSpline(
        rest.radii, rest.upper if from_above else rest.lower, rest.density * (-1 if from_above else 1)
    )
    low, high = np.full(probability.shape, rest.radii[0]), np.full(probability.shape, rest.radii[-1])
    for _ in range(52):
        middle = (low + high) / 2
        larger = (mass(middle) < probability) if from_above else (mass(middle) > probability)
        low, high = np.where(larger, low, middle), np.where(larger, middle, high)
    return (low + high) / 2


def table(lattice):
    norm = cells.norm_law(lattice)
    words = word_cells()
    quantiles, mass = scale_law(norm)
    main = fit(lambda p, above: np.exp(quantiles.at(p, above)), words)
    law = parabolas(main, words)
    rest = remainder(norm, law)
    inradius = lattices.LATTICES[lattice].inradius
    ball = fit(lambda p, above: rest_quantile(rest, p, above) / inradius, words)
    return np.concatenate([main, ball], 1), round(rest.probability * 2**32), rest, law, mass


def define_flags():
    flags.DEFINE_string("output", None, "The .npz file to write.", required=True)


def main():
    found = {}
    for lattice in cell_scales.LATTICES:
        found[lattice], threshold, rest, law, mass = table(lattice)
        found[f"{lattice}_threshold"] = np.int64(threshold)
        q = rest.density * rest.probability
        print(
            lattice,
            "eps",
            rest.probability,
            "1-mass",
            1 - mass,
            "min q",
            q.min(),
            "S range",
            np.exp([0]),
            law.mean.min(),
            law.mean.max(),
        )
    np.savez_compressed(Path(flags.FLAGS.output), **found)


if __name__ == "__main__":
    cli.run(main, define_flags)
