"""The error of LRSUQ against its target: histogram, quantiles and moments, for every lattice and law.

  python -m experiments.figures.error_law --workdir=/tmp/error_law

One update, one million coordinates that are far from Gaussian themselves (a spike at zero, a ramp, a few
large ones). p-values are of Kolmogorov-Smirnov tests: uniform on [0, 1] if the law is right, so among
ten of them one below .05 is nothing. A test that does not reject shows no law to be exact; what is shown
is a distance: the error's distribution function, for each kind of coordinate alone, lies within
`_MARGIN` of the target's (bounds by Dvoretzky, Kiefer, Wolfowitz and Massart).
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from matplotlib.figure import Figure
from scipy import stats

from cepam_jax import mechanisms
from cepam_jax.errors import require
from cepam_jax.mechanisms import Keys, Knobs
from experiments import cli, output
from experiments.output import Claim
from experiments.paired import FALSE_ALARMS, TOGETHER
from experiments.plots import STYLES
from experiments.tables import markdown

VARIANTS = (
    *(("gaussian", lattice) for lattice in ("Z1", "Z2", "Z3", "A2", "D4", "E8")),
    *(("laplace", lattice) for lattice in ("Z1", "Z2", "Z3", "D4")),
)
LAWS = {"gaussian": stats.norm(), "laplace": stats.laplace(scale=2**-0.5)}
SMOKE = {"size": 20_000}
_MARGIN = 0.01  # of a distribution function
_KINDS = 3  # of coordinates: zero, a ramp, large


def update(size: int):
    """f32[size] in units of the error's deviation: zeros, a ramp, and large values."""
    third = size // _KINDS
    ramp = jnp.linspace(-2, 2, third)
    large = 50 * jax.random.normal(jax.random.key(0), (size - 2 * third,))
    return jnp.concatenate([jnp.zeros(third), ramp, large]).astype(jnp.float32)


def errors(target: str, lattice: str, size: int):
    """f64[size], errors in units of their deviation."""
    mechanism = mechanisms.lrsuq(target, lattice)
    keys, knobs = Keys(jax.random.key(1), jax.random.key(2)), Knobs(sigma=1.0)
    x = update(size)
    message = jax.jit(mechanism.encode)(keys, x, knobs)
    return np.asarray(jax.jit(mechanism.decode)(keys.shared, message, knobs), np.float64) - np.asarray(x)


def measure(target: str, lattice: str, size: int) -> tuple[dict, np.ndarray]:
    """Test and moments; the errors."""
    e = errors(target, lattice, size)
    x = np.asarray(update(size), np.float64)
    law = LAWS[target]
    third = size // _KINDS
    kinds = [stats.kstest(part, law.cdf) for part in np.split(e, [third, 2 * third])]
    row = {
        "target": target,
        "lattice": lattice,
        "p_value": float(stats.kstest(e, law.cdf).pvalue),
        "distances": [float(kind.statistic) for kind in kinds],
        "p_values": [float(kind.pvalue) for kind in kinds],
        "mean": float(e.mean()),
        "variance": float(e.var()),
        "kurtosis": float(stats.kurtosis(e)),
        "expected_kurtosis": float(law.stats(moments="k")),
        "correlation": float(np.corrcoef(e, x)[0, 1]),
    }
    return row, e


def claim_of(rows: list[dict], size: int) -> Claim:
    """Refuted where an exact law is rejected; shown where every distance is shown to be below the margin."""
    tests = len(rows) * (1 + _KINDS)
    chances = [p for row in rows for p in (row["p_value"], *row["p_values"])]
    width = float(np.sqrt(np.log(2 * tests / FALSE_ALARMS) / (2 * (size // _KINDS))))
    highest = max(distance for row in rows for distance in row["distances"]) + width
    rejected = min(chances) < FALSE_ALARMS / tests
    verdict = "does not hold" if rejected else "holds" if highest < _MARGIN else "not decided"
    return Claim(
        "2501.12046",
        "the error is exactly Gaussian or Laplace and independent of the update",
        f"distribution functions at most {highest:.4f} from the target's, for zeros, a ramp and large "
        f"coordinates alone; smallest of {tests} p-values {min(chances):.4f}; largest correlation with the "
        f"update {max(abs(row['correlation']) for row in rows):.4f}; {size:,} coordinates",
        verdict,
        f"measurements show closeness, not exactness: within {_MARGIN:g} counts as holding, a p-value below "
        f"{FALSE_ALARMS:g} / {tests} as refuted; bounds {TOGETHER}; up to 32-bit numbers",
        "decoded updates: the server is trusted",
    )


def plot(found):
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    axes = figure.subplots(2, 2)
    for column, (target, law) in enumerate(LAWS.items()):
        histogram, quantiles = axes[:, column]
        grid = np.linspace(-6, 6, 400)
        histogram.plot(grid, law.pdf(grid), color="0.6", linewidth=4, label="target density")
        mine = [(row["lattice"], e) for row, e in found if row["target"] == target]
        for number, (lattice, e) in enumerate(mine):
            color, _, mark = STYLES[number]
            count, edges = np.histogram(e, np.linspace(-6, 6, 61))
            centers = (edges[1:] + edges[:-1]) / 2
            filled = count > 0
            density = count / len(e) / np.diff(edges)
            look = {
                "color": color,
                "marker": mark,
                "markersize": 3.5,
                "linestyle": "none",
                "fillstyle": "none",
            }
            histogram.plot(centers[filled], density[filled], label=lattice, **look)
            levels = np.concatenate([1 / np.geomspace(len(e) / 10, 20, 9), np.linspace(0.05, 0.95, 19)])
            levels = np.unique(np.concatenate([levels, 1 - levels]))
            quantiles.plot(law.ppf(levels), np.quantile(e, levels) - law.ppf(levels), label=lattice, **look)
        # What a sample of this size from the law itself would do, two standard errors either way.
        size = len(mine[0][1])
        points = law.ppf(levels)
        width = 2 * np.sqrt(levels * (1 - levels) / size) / law.pdf(points)
        quantiles.fill_between(points, -width, width, color="0.85", label="two standard errors")
        histogram.set(
            ylim=(0.1 / size, 1),
            yscale="log",
            xlabel="error / deviation",
            ylabel="density",
            title=f"{target} target",
        )
        quantiles.set(xlabel="quantile of the target", ylabel="quantile of the error, less that")
        quantiles.set_ylim(-6 * np.median(width), 6 * np.median(width))
        for panel in (histogram, quantiles):
            panel.grid(alpha=0.3)
        histogram.legend(fontsize=8)
    return figure


def define_flags():
    output.define_workdir()
    flags.DEFINE_integer("size", 1_000_000, "Coordinates.")


def main():
    size = flags.FLAGS.size
    require(size >= 1000, "--size", size, "at least 1000")
    found = [measure(target, lattice, size) for target, lattice in VARIANTS]
    rows = [row for row, _ in found]
    table = markdown(
        [
            "target",
            "lattice",
            "KS p-value",
            "mean",
            "variance",
            "excess kurtosis",
            "of the target",
            "correlation",
        ],
        [
            [
                row["target"],
                row["lattice"],
                f"{row['p_value']:.3f}",
                *(f"{row[name]:+.4f}" for name in ("mean",)),
                f"{row['variance']:.4f}",
                f"{row['kurtosis']:.3f}",
                f"{row['expected_kurtosis']:.0f}",
                f"{row['correlation']:+.4f}",
            ]
            for row in rows
        ],
    )
    output.save(table, rows, plot(found), [claim_of(rows, size)])


if __name__ == "__main__":
    cli.run(main, define_flags, SMOKE)
