"""LRSUQ and rotated cells, lattice by lattice: theory beside measurement.

  python -m experiments.figures.lattices --workdir=/tmp/lattices

First table: acceptance probability, tries per block, the Kolmogorov-Smirnov p-value of the error against
its target, speed of encode and decode, for a Gaussian target. Second table: ideal bits per coordinate for
Gaussian inputs of standard deviation s (conditioned on the shared randomness, index included), the lower
limit I(x; x + z) = log2(1 + s^2/sigma^2) / 2, and what the gap tends to. Rows named R are of rotated cells.
"""

import math

import jax
import numpy as np
from absl import flags
from matplotlib.figure import Figure
from scipy import special, stats

from cepam_jax import mechanisms
from cepam_jax.mechanisms import Keys, Knobs, cell_scales, lattices
from cepam_jax.theory import rate
from experiments import cli, output, timing
from experiments.tables import markdown

NAMES = ("Z1", "Z2", "A2", "Z3", "D4", "E8", "R A2", "R D4", "R E8")
RATIOS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


def gap(lat):
    """Bits per coordinate above I at high resolution, with ideal coding, the index included.

    The message's entropy is h(x) - E[log2 volume of the scaled cell] / n plus the entropy of the
    geometric index less what the decoder learns; per coordinate this is I(Z; W)/n + H(index)/n in
    excess of I (2402.03030). With d = sigma sqrt(W) / inradius and W chi-squared with n + 2 degrees:
    h(Z) - E[log2 of the cell's volume]/n + H(index)/n.
    """
    n, p = lat.dimension, lattices.acceptance(lat, "gaussian")
    entropy = 0.5 * math.log2(2 * math.pi * math.e)
    log_radius = 0.5 * (special.digamma((n + 2) / 2) + math.log(2)) / math.log(2)
    cell = log_radius - math.log2(lat.inradius) + math.log2(lat.volume) / n
    index = 0.0 if p > 1 - 1e-9 else stats.geom(p).entropy() / math.log(2)
    return entropy - cell + index / n


def gap_of_rotated(lat):
    """The same for rotated cells: E ln of the scale is the mean over the package's table."""
    words = np.linspace(0, 2**32, 2**20, endpoint=False, dtype=np.float64).astype(np.uint32)
    scales, _ = cell_scales.scales(words, np.full_like(words, 2**32 - 1), cell_scales.scale_table(lat.name))
    mean_log = float(np.log(scales.astype(np.float64)).mean())
    return rate.high_resolution_gap(mean_log, lat.volume, lat.dimension)


def measure(name, size):
    """One lattice: a dictionary of what the tables show but for times, and the calls that are timed."""
    turned = name.startswith("R ")
    lat = lattices.LATTICES[name.removeprefix("R ")]
    if turned:
        mechanism = mechanisms.rotated(lat.name, coding="gaussian")
    else:
        mechanism = mechanisms.lrsuq("gaussian", name, coding="gaussian")
    encode, decode, bits = map(jax.jit, (mechanism.encode, mechanism.decode, mechanism.bits))
    keys, knobs = Keys(jax.random.key(1), jax.random.key(2)), Knobs(sigma=1.0)
    unit = jax.random.normal(jax.random.key(0), (size,))
    message = encode(keys, unit, knobs)
    error = np.asarray(decode(keys.shared, message, knobs) - unit, np.float64)
    rates = {}
    for ratio in RATIOS:
        sent = encode(keys, unit * ratio, knobs)
        rates[ratio] = float(bits(keys.shared, sent, knobs)) / size
    p = 1.0 if turned else lattices.acceptance(lat, "gaussian")
    row = {
        "lattice": name,
        "acceptance": p,
        "tries": 1 / p,
        "measured_tries": 1.0 if message.index is None else 1 + float(np.mean(np.asarray(message.index))),
        "p_value": float(stats.kstest(error, "norm").pvalue),
        "bits": rates,
        "gap": gap_of_rotated(lat) if turned else gap(lat),
    }
    calls = {
        (name, "encode"): lambda: encode(keys, unit, knobs),
        (name, "decode"): lambda: decode(keys.shared, message, knobs),
    }
    return row, calls


def plot(found):
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    colors = ("k", "tab:blue", "tab:cyan", "tab:red", "tab:green", "tab:orange")
    styles = dict(zip(NAMES[:6], zip("os^vD*", colors, strict=True), strict=True))
    for row in found:
        marker, color = styles[row["lattice"].removeprefix("R ")]
        line, label = (
            ("--", "rotated " + row["lattice"][2:]) if "R " in row["lattice"] else ("-", row["lattice"])
        )
        excess = [row["bits"][r] - 0.5 * math.log2(1 + r**2) for r in RATIOS]
        axes.plot(RATIOS, excess, marker=marker, color=color, linestyle=line, fillstyle="none", label=label)
    axes.set(xscale="log", xlabel="s / sigma", ylabel="bits per coordinate above I(x; x + z)")
    axes.grid(alpha=0.3)
    axes.legend(ncols=2)
    return figure


def define_flags():
    output.define_workdir()
    flags.DEFINE_integer("size", 1_000_000, "Coordinates.")
    flags.DEFINE_integer("repeats", 5, "Timings; the median counts.")


def main():
    size, found, calls = flags.FLAGS.size, [], {}
    for name in NAMES:
        row, mine = measure(name, size)
        found.append(row)
        calls |= mine
    seconds = timing.interleaved(calls, flags.FLAGS.repeats)
    for row in found:
        row |= {kind: size / seconds[row["lattice"], kind] / 1e6 for kind in ("encode", "decode")}
    first = markdown(
        ["lattice", "acceptance", "tries, expected", "measured", "KS p-value", "encode M/s", "decode M/s"],
        [
            [
                r["lattice"],
                *(f"{r[name]:.4f}" for name in ("acceptance", "tries", "measured_tries")),
                f"{r['p_value']:.2f}",
                *(f"{r[name]:.0f}" for name in ("encode", "decode")),
            ]
            for r in found
        ],
    )
    second = markdown(
        ["lattice", *(f"s/sigma={r:g}" for r in RATIOS), "gap at 10", "gap, ideal coding"],
        [["limit I", *(f"{0.5 * math.log2(1 + r**2):.4f}" for r in RATIOS), "0", "0"]]
        + [
            [
                row["lattice"],
                *(f"{row['bits'][r]:.4f}" for r in RATIOS),
                f"{row['bits'][10.0] - 0.5 * math.log2(101):.3f}",
                f"{row['gap']:.3f}",
            ]
            for row in found
        ],
    )
    output.save(f"{first}\n\n{second}", found, plot(found))


if __name__ == "__main__":
    cli.run(main, define_flags, smoke={"size": 20_000, "repeats": 1})
