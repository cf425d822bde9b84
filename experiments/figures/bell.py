"""Are updates bell-shaped? The law of the coordinates of each tensor, by kind of tensor, data and round.

  python -m experiments.figures.bell --workdir=/tmp/bell

The rule of clipped quantization (2405.13365) supposes that what is sent is bell-shaped, Gaussian or Laplace.
Here updates are taken along runs of FedAvg, and each tensor is scaled to its own mean and deviation. Of the
first clients: the distance of its distribution function from a Gaussian's and from Laplace's of the same mean
and deviation, the excess kurtosis (0 and 3), how many coordinates lie past four deviations (6e-5 and .0035),
and how many are exactly zero. Distances describe these updates and test nothing; k independent draws of a law
are farther than 1.36 / sqrt(k) from it once in twenty times (Dvoretzky, Kiefer, Wolfowitz and Massart).
"""

import jax
import numpy as np
from absl import flags
from matplotlib.figure import Figure
from scipy import stats

from experiments import cli, output
from experiments.figures.tensors import kind_of
from experiments.output import NO_PRIVACY, Claim
from experiments.plots import style
from experiments.real_updates import SETTINGS, Taken, updates
from experiments.tables import markdown

SMOKE = {"settings": ["hospitals"], "clients": 2}
CLIENTS = 6
LEAST = 200  # coordinates below which a law cannot be told
NEAR = 0.05  # distance of two distribution functions that counts as the same shape
LAWS = {"Gaussian": stats.norm, "Laplace": stats.laplace}


def distance(values: np.ndarray, law) -> float:
    """Largest difference of the distribution functions of values and of a law of their mean and deviation."""
    scale = values.std() / law.std()
    return float(stats.kstest(values, law(values.mean(), scale).cdf).statistic)


def shape_of(values: np.ndarray) -> dict:
    """What one tensor's coordinates f64[k] look like; NaN where all are the same."""
    found = {"zeros": float((values == 0).mean())}
    if values.std() == 0:
        return found | dict.fromkeys([*LAWS, "kurtosis", "beyond four"], float("nan"))
    found |= {name: distance(values, law) for name, law in LAWS.items()}
    scaled = (values - values.mean()) / values.std()
    return found | {"kurtosis": float(stats.kurtosis(values)), "beyond four": float((abs(scaled) > 4).mean())}


def measure(setting: str, taken: Taken) -> list[dict]:
    """A row for each tensor with enough coordinates: means over clients."""
    rows, start = [], 0
    for name, shape, size in zip(taken.names, taken.shapes, taken.segments, strict=True):
        own = np.asarray(taken.updates[: flags.FLAGS.clients, start : start + size], np.float64)
        start += size
        if size < LEAST:
            continue
        found = [shape_of(values) for values in own]
        row = {
            "updates": setting,
            "round": taken.round,
            "tensor": name,
            "kind": kind_of(name, shape, taken.last_kernel),
        }
        row |= {"coordinates": size}
        # A client that leaves a tensor alone says nothing about its law.
        told = [shape for shape in found if np.isfinite(shape["Gaussian"])]
        for key in found[0]:
            values = [shape[key] for shape in (found if key == "zeros" else told)]
            row[key] = float(np.mean(values)) if values else float("nan")
        rows.append(row)
    return rows


def nearest(row: dict) -> str:
    """The law that a tensor's is near to, or "neither"."""
    name = min(LAWS, key=lambda law: row[law])
    return name if row[name] < NEAR else "neither"


def claims_of(rows: list[dict]) -> list[Claim]:
    """One claim for each kind of updates."""
    found = []
    for setting in dict.fromkeys(row["updates"] for row in rows):
        mine = [row for row in rows if row["updates"] == setting and np.isfinite(row["Gaussian"])]
        if not mine:
            continue
        counts = {name: sum(nearest(row) == name for row in mine) for name in [*LAWS, "neither"]}
        said = ", ".join(f"{count} {name}" for name, count in counts.items())
        worst = max(mine, key=lambda row: min(row[law] for law in LAWS))
        found.append(
            Claim(
                "left open by 2405.13365",
                f"{setting}: updates are bell-shaped: every tensor near a Gaussian or Laplace's law",
                f"of {len(mine)} tensors and rounds: {said}; farthest: {worst['tensor']} after round "
                f"{worst['round']}, {min(worst[law] for law in LAWS):.2f}",
                "not tested",  # it describes one run
                f"near: distribution functions less than {NEAR:g} apart in the mean over "
                f"{flags.FLAGS.clients} clients; tensors of {LEAST} coordinates and more; "
                "a description of one run, no test",
                NO_PRIVACY,
            )
        )
    return found


def plot(curves: dict[str, np.ndarray]) -> Figure:
    """Densities of scaled coordinates, on a logarithmic axis, beside both laws."""
    columns = min(3, len(curves))
    lines = -(-len(curves) // columns)
    figure = Figure(figsize=(3.8 * columns, 3.1 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    edges = np.linspace(-8, 8, 81)
    middle = (edges[1:] + edges[:-1]) / 2
    for axes, (name, values) in zip(panels, curves.items(), strict=False):
        density, _ = np.histogram(values, edges, density=True)
        bare = {"marker": ""}
        axes.step(middle, np.maximum(density, 1e-6), where="mid", label="updates", **style(0) | bare)
        axes.plot(middle, stats.norm.pdf(middle), label="Gaussian", **style(1) | bare)
        axes.plot(middle, stats.laplace(scale=np.sqrt(0.5)).pdf(middle), label="Laplace", **style(2) | bare)
        axes.set(yscale="log", ylim=(1e-5, 5), title=name, xlabel="deviations from the mean")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("density")
    panels[0].legend(fontsize=8)
    for axes in panels[len(curves) :]:
        axes.set_axis_off()
    return figure


def largest_tensor(taken: Taken) -> np.ndarray:
    """Scaled coordinates of the largest tensor of all clients together."""
    place = int(np.argmax(taken.segments))
    start = sum(taken.segments[:place])
    own = np.asarray(taken.updates[: flags.FLAGS.clients, start : start + taken.segments[place]], np.float64)
    own = own[own.std(1) > 0]
    return ((own - own.mean(1, keepdims=True)) / own.std(1, keepdims=True)).ravel()


def define_flags():
    output.define_workdir()
    flags.DEFINE_list(
        "settings",
        ["hospitals", "digits mlp", "mnist mlp", "mnist cnn2", "shakespeare", "motifs"],
        "Updates.",
    )
    flags.DEFINE_integer("clients", CLIENTS, "Clients whose updates are looked at.")
    flags.DEFINE_string("data_dir", "", "As config.data.dir.")


def main():
    f = flags.FLAGS
    cli.choices("settings", SETTINGS)
    rows, curves = [], {}
    for setting in f.settings:
        for taken in updates(setting, f.data_dir):
            rows += measure(setting, taken)
            curves[f"{setting}, round {taken.round}"] = largest_tensor(taken)
        jax.clear_caches()
    last = {name.split(", ")[0]: name for name in curves}
    table = markdown(
        ["updates", "round", "tensor", "kind", "coordinates", "zeros", *LAWS, "kurtosis", "beyond 4", "near"],
        [
            [
                *(row[key] for key in ("updates", "round", "tensor", "kind", "coordinates")),
                f"{row['zeros']:.0%}",
                *(f"{row[law]:.3f}" for law in LAWS),
                f"{row['kurtosis']:.1f}",
                f"{row['beyond four']:.4f}",
                nearest(row),
            ]
            for row in rows
        ],
    )
    output.save(table, rows, plot({name: curves[name] for name in last.values()}), claims_of(rows))


if __name__ == "__main__":
    cli.run(main, define_flags, SMOKE)
