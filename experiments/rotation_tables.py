"""Makes the tables from which the scales of rotated lattice cells are drawn, and says how good they are.

  python -m experiments.rotation_tables --output=cepam_jax/mechanisms/cell_scales.npz

The exact deconvolution (`cepam_jax.theory.deconvolution`) is a function of log S that is positive but for a
tiny oscillation far out. A smooth share of it, with less than a hundred-thousandth of the mass, is left to
balls, so that the rest ends where it is well positive, and the rest is written into a table of parabolas.
From then on only the table's own numbers count: the law of S * T is computed from them, the probability of a
ball is chosen so that this law nowhere exceeds the Gaussian's, and what is missing is the law of the balls'
radius, the second half of the table. `experiments.rotation_deviation` computes what the words draw from both
halves in the end.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tqdm
from absl import flags
from scipy import interpolate, optimize, special

from cepam_jax.mechanisms import cell_scales, lattices
from cepam_jax.theory import cells, deconvolution, scale_mixtures
from experiments import cli, rotation_deviation, rotation_words
from experiments.tables import markdown

_TAIL = 3e-7  # where the law of S ends, this mass of the deconvolution is left on either side
_STEEP = 30.0  # the share left to balls grows towards large scales as S to this power
_GRID = 1 / 512  # in log S
_NOISE = 1e-14  # of integrals of the deconvolution
_BINS = 3000  # of the radii, over the range of S * T
_MARGIN = 1.05  # probability of a ball over the least one


class Quantiles(NamedTuple):
    """A law on an interval: mass below a point and mass above it, each precise where it is small."""

    below: Callable
    above: Callable
    left: float
    right: float

    def at(self, probability: np.ndarray, from_above: bool) -> np.ndarray:
        """The point that has this share of the mass beyond it, f64[...]."""
        mass = self.above if from_above else self.below
        low, high = (np.full(probability.shape, end) for end in (self.left, self.right))
        wanted = probability * self.below(self.right)
        for _ in range(54):
            middle = (low + high) / 2
            rightward = (mass(middle) > wanted) == from_above
            low, high = np.where(rightward, middle, low), np.where(rightward, high, middle)
        return (low + high) / 2


def scale_law(norm: cells.NormLaw) -> Quantiles:
    """The law of log S, of total mass less than one.

    The deconvolution g(z) is multiplied by 1 - e^{k (z - high)} - e^{-l (z - low)} between this factor's
    zeros. What is left to balls is g times two exponentials: a law as smooth as the Gaussian's own radius,
    with other degrees of freedom. A cut would leave a law with valleys, which a table follows badly.
    """
    grid = np.arange(-10.0, 4.0, _GRID)
    density = deconvolution.signed_density(norm, grid)
    mass = interpolate.make_interp_spline(grid, density, 5).antiderivative()(grid)
    low, high = (float(np.interp(m, mass - mass[0], grid)) for m in (_TAIL, 1 - _TAIL))

    def kept(z):
        return 1 - np.exp(_STEEP * (z - high)) - np.exp(-(norm.dimension + 4) * (z - low))

    left, right = (float(optimize.brentq(kept, end, (low + high) / 2)) for end in (low - 1, high + 1))
    used = (grid > left - 10 * _GRID) & (grid < right + 10 * _GRID)
    grid, density = grid[used], (density * kept(grid))[used]
    below = interpolate.make_interp_spline(grid, density, 5).antiderivative()
    above = interpolate.make_interp_spline(-grid[::-1], density[::-1], 5).antiderivative()
    return Quantiles(lambda z: below(z) - below(left), lambda z: above(-z) - above(-right), left, right)


class Remainder(NamedTuple):
    """The law of the balls' radius.

    Attributes:
      threshold: probability of a ball times 2^32.
      below: its distribution function, f64[k] at log radii `log`.
      above: one minus it, precise where it is small.
      margin: least of what is left over what the Gaussian has, over the bins.
    """

    threshold: int
    log: np.ndarray
    below: np.ndarray
    above: np.ndarray
    margin: float

    def quantile(self, probability: np.ndarray, from_above: bool) -> np.ndarray:
        """The radius that has this probability beyond it, f64[...]."""
        mass, log = (self.above[::-1], self.log[::-1]) if from_above else (self.below, self.log)
        known = (mass > 0) & (mass < 0.9)  # no probability asked for is above a half
        found = interpolate.PchipInterpolator(np.log(mass[known]), log[known])
        return np.exp(found(np.log(probability)))


def remainder(norm: cells.NormLaw, scales: scale_mixtures.Parabolas) -> Remainder:
    """What the law of S * T lacks. It is counted in bins: inside one, the mean alone need be right."""
    half = (norm.dimension + 2) / 2
    ends = scales.ends()
    inner = np.linspace(
        np.log(ends.min()) + np.log(norm.edges[0]) / 2, np.log(ends.max()) + np.log(norm.edges[-1]) / 2, _BINS
    )
    outside = 600
    low = (
        np.log(special.gammaincinv(half, np.exp(-30) * special.gammainc(half, np.exp(2 * inner[0]) / 2)) * 2)
        / 2
    )
    high = (
        np.log(
            special.gammainccinv(half, np.exp(-30) * special.gammaincc(half, np.exp(2 * inner[-1]) / 2)) * 2
        )
        / 2
    )
    log = np.concatenate(
        [np.linspace(low, inner[0], outside)[:-1], inner, np.linspace(inner[-1], high, outside)[1:]]
    )
    have = [np.zeros(len(log)), np.zeros(len(log))]
    own = slice(outside - 1, outside - 1 + _BINS)
    have[0][own], have[1][own] = scale_mixtures.cdf(norm, scales, np.exp(inner))
    have[0][own.stop :], have[1][: own.start] = 1.0, 1.0
    want = [f(half, np.exp(2 * log) / 2) for f in (special.gammainc, special.gammaincc)]
    small = want[0][1:] < 0.5
    drawn, gaussian = (np.where(small, np.diff(f[0]), -np.diff(f[1])) for f in (have, want))
    excess = float(np.max(drawn / gaussian)) - 1
    threshold = int(np.ceil(2.0**32 * _MARGIN * excess / (1 + excess)))
    share = threshold / 2**32
    below, above = ((w - (1 - share) * h) / share for w, h in zip(want, have, strict=True))
    # Where the table draws nothing, what is missing is the Gaussian's whole tail.
    below[own.stop :], above[: own.start] = 1 - above[own.stop :], 1 - below[: own.start]
    margin = float(np.min(1 - (1 - share) * drawn / gaussian))
    return Remainder(threshold, log, below, above, margin)


def table(lattice: str) -> tuple[cell_scales.ScaleTable, float]:
    """The table of one lattice, and the least margin of the Gaussian's radii over those drawn from cells."""
    norm, inradius = cells.norm_law(lattice), lattices.LATTICES[lattice].inradius
    quantiles = scale_law(norm)
    scales = rotation_words.fit(lambda p, above: np.exp(quantiles.at(p, above)))
    rest = remainder(norm, rotation_words.law(scales))
    balls = rotation_words.fit(lambda p, above: rest.quantile(p, above) / inradius)
    return cell_scales.ScaleTable(*np.concatenate([scales, balls], 1), rest.threshold), rest.margin


def define_flags():
    flags.DEFINE_list("lattices", list(cell_scales.LATTICES), "Lattices to make tables for.")
    flags.DEFINE_string("output", None, "The .npz file to write; without it, the figures are printed alone.")
    flags.DEFINE_float("epsilon", 1.0, "Of the guarantee whose delta grows.")


def main():
    cli.choices("lattices", cell_scales.LATTICES)
    made = {
        lattice: table(lattice)
        for lattice in tqdm.tqdm(flags.FLAGS.lattices, unit="lattice", dynamic_ncols=True)
    }
    if flags.FLAGS.output:
        found = {lattice: np.stack(scales[:3]) for lattice, (scales, _) in made.items()}
        for lattice, (scales, _) in made.items():
            found[f"{lattice}_threshold"] = np.int64(scales.threshold)
        np.savez_compressed(Path(flags.FLAGS.output), **found)
    deviations = {
        lattice: rotation_deviation.of_table(lattice, scales) for lattice, (scales, _) in made.items()
    }
    print(markdown(["", *made], _laws(made)))
    print()
    print(markdown(["", *made], _distances(deviations)))
    print()
    header = ["coordinates", "lattice", "blocks", "blocks * TV", "TV of all, bound", "added to delta"]
    print(markdown(header, _joint(deviations)))


def _columns(facts: list[dict[str, str]]) -> list[list[str]]:
    """One row for each fact, with a column for each lattice."""
    return [[name, *(column[name] for column in facts)] for name in facts[0]]


def _laws(made: dict) -> list[list[str]]:
    """What the laws and tables are like."""
    facts = []
    for lattice, (scales, margin) in made.items():
        norm = cells.norm_law(lattice)
        radii, weights = cells.quadrature(norm)
        mean, least, most = weights @ np.log(radii), *np.sqrt(norm.edges[[0, -1]])
        spread = np.sqrt(weights @ (np.log(radii) - mean) ** 2)
        grid = np.arange(-10.0, 4.0, _GRID)
        negative = -float(np.minimum(deconvolution.signed_density(norm, grid), 0).sum()) * _GRID
        law = rotation_words.law(np.stack(scales[:3])[:, : len(scales.middle) // 2])
        zero = deconvolution.first_zero(norm)
        moment, end = rotation_deviation.moment_and_end(lattice, scales)
        facts.append(
            {
                "T from, to": f"{least:.4f}, {most:.4f}",
                "mean and deviation of log T": f"{mean:.5f}, {spread:.5f}",
                "mean of T^2 / (n + 2)": f"{weights @ radii**2 / (norm.dimension + 2):.10f}",
                "a zero of E T^s": f"{zero.real:.3f} + {zero.imag:.3f} i",
                "negative mass of the exact solution": f"{negative:.0e}"
                if negative > _NOISE
                else f"below {_NOISE:.0e}",
                "S from, to, in the table": f"{law.ends().min():.4f}, {law.ends().max():.4f}",
                "mean of S, of S^2": f"{law.moment(1):.5f}, {law.moment(2):.5f}",
                "probability of a ball": f"{scales.threshold / 2**32:.3e}",
                "least share of the Gaussian's radii left to balls": f"{margin:.1e}",
                "second moment of the error, minus 1": f"{moment - 1:.0e}",
                "largest norm of the error of a block": f"{end:.2f}",
            }
        )
    return _columns(facts)


def _distances(deviations: dict) -> list[list[str]]:
    """How far the error of one block is from Gaussian."""
    facts = []
    for deviation in deviations.values():
        defect = deviation.defect()
        facts.append(
            {
                "TV of a block, at most": f"{deviation.total_variation():.1e}",
                "of it, by words and rounding": f"{deviation.grain.total_variation():.1e}",
                "end of the bulk": f"{defect.end:.2f}",
                "bulk": f"{defect.bulk:.2e}",
                "tail": f"{defect.tail:.2e}",
            }
        )
    return _columns(facts)


def _joint(deviations: dict) -> list[list[str]]:
    """What whole updates add to delta."""
    rows = []
    for d in (10**5, 10**6, 10**7):
        for lattice, deviation in deviations.items():
            count = -(-d // deviation.dimension)
            joint = deviation.defect().total_variation(count)
            sizes = (count * deviation.total_variation(), joint, (1 + np.exp(flags.FLAGS.epsilon)) * joint)
            rows.append([f"{d:.0e}", lattice, str(count), *(f"{size:.1e}" for size in sizes)])
    return rows


if __name__ == "__main__":
    cli.run(main, define_flags)
