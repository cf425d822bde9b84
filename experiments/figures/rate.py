"""Real bytes against the limit: bits per coordinate for Gaussian inputs of standard deviation s.

  python -m experiments.figures.rate --workdir=/tmp/rate

Bytes are those that `wire.pack` returns, header and all; rows named R are of rotated cells, the others of
LRSUQ. Beside them: the limit I(x; x + z) of any scheme, the limit H(M | W, V) of scalar LRSUQ, the limit of a
quantizer whose cells would be balls of 8 or 24 dimensions (rotated cells of E8 or the Leech lattice
come near it; it tends to I as the dimension grows), and what one pays without conditioning on the shared
randomness: the entropy of the symbols alone, Elias-gamma codes, zlib and zstandard on the symbols as
int8.

A server that is trusted with the shared randomness could as well add the noise. Then clients send SDQ
(2006.03262), and against whoever sees the released model epsilon is that of CEPAM, if the server adds
Gaussian noise of the same variance, sigma^2 / K to the mean of K updates. The quantizer's uniform error
comes on top and is counted as protecting nobody: a twelfth of the variance at a step of sigma, a third at
2 sigma. SDQ at these steps is what CEPAM's bits compare with under a trusted server.
"""

import zlib

import jax
import numpy as np
import tqdm
import zstandard
from absl import flags
from matplotlib.figure import Figure

from cepam_jax import mechanisms, wire
from cepam_jax.mechanisms import Keys, Knobs
from cepam_jax.theory import rate
from experiments import cli, output
from experiments.tables import markdown

LATTICES = ("Z1", "Z3", "D4", "E8")
ROTATED = {"R A2": "A2", "R D4": "D4", "R E8": "E8"}  # rotated cells
BALLS = {"balls of 8": 8, "balls of 24": 24}
LIMITS = ("limit I", "limit of Z1")
SERVER_NOISE = {"SDQ, step 2 sigma": 2.0, "SDQ, step sigma": 1.0}  # the server adds the noise
UNCONDITIONAL = ("entropy", "Elias-gamma", "zlib", "zstandard")


def unconditional(symbols) -> dict:
    """Bits per symbol of coders that do not know the shared randomness."""
    symbols = np.asarray(symbols, np.int64)
    counts = np.unique(symbols, return_counts=True)[1] / symbols.size
    zigzag = np.where(symbols > 0, 2 * symbols, 1 - 2 * symbols)  # 0, 1, -1, 2, ... as 1, 2, 3, 4, ...
    data = np.clip(symbols, -128, 127).astype(np.int8).tobytes()
    return {
        "entropy": float(-np.sum(counts * np.log2(counts))),
        "Elias-gamma": float(np.mean(2 * np.floor(np.log2(zigzag)) + 1)),
        "zlib": len(zlib.compress(data, 9)) * 8 / symbols.size,
        "zstandard": len(zstandard.compress(data, 19)) * 8 / symbols.size,
    }


def server_noise(keys: Keys, x) -> dict:
    """Bits per coordinate of Gaussian x, in units of sigma, through SDQ, by name."""
    mechanism, found = mechanisms.sdq(coding="gaussian"), {}
    encode = jax.jit(mechanism.encode)
    for name, step in SERVER_NOISE.items():
        knobs = Knobs(step=step)
        data = wire.pack(encode(keys, x, knobs), mechanism, keys.shared, knobs)
        found[name] = len(data) * 8 / x.shape[0]
    return found


def measure(ratio: float, size: int, seeds: int) -> dict:
    """Bits per coordinate at one ratio s / sigma, by name."""
    keys, knobs = Keys(jax.random.key(1), jax.random.key(2)), Knobs(sigma=1.0)
    x = ratio * jax.random.normal(jax.random.key(0), (size,))
    found = {
        "ratio": ratio,
        "limit I": rate.mutual_information(ratio),
        "limit of Z1": rate.layered_limit(ratio),
        **{name: rate.ball_limit(ratio, dimension) for name, dimension in BALLS.items()},
    }
    tried = {name: mechanisms.lrsuq("gaussian", name, coding="gaussian") for name in LATTICES}
    tried |= {name: mechanisms.rotated(lattice, coding="gaussian") for name, lattice in ROTATED.items()}
    for name, mechanism in tried.items():
        message = jax.jit(mechanism.encode)(keys, x, knobs)
        found[name] = len(wire.pack(message, mechanism, keys.shared, knobs)) * 8 / size
        if name == "Z1":
            found |= unconditional(message.symbols)
    found |= server_noise(keys, x)
    mechanism = mechanisms.lrsuq("gaussian", "Z1", coding="gaussian")
    encode, of_seeds = jax.jit(mechanism.encode), []
    for seed in range(seeds):  # at small ratios one message of 1e6 coordinates scatters by 2 %
        keys = Keys(jax.random.fold_in(jax.random.key(1), seed), jax.random.key(2))
        x = ratio * jax.random.normal(jax.random.fold_in(jax.random.key(0), seed), (size,))
        of_seeds.append(len(wire.pack(encode(keys, x, knobs), mechanism, keys.shared, knobs)) * 8 / size)
    found["Z1"] = float(np.mean(of_seeds))
    return found | {"float32": 32.0}


def plot(rows):
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    styles = {
        "float32": ("0.6", "-", ""),
        "Elias-gamma": ("tab:purple", ":", "v"),
        "zlib": ("tab:brown", ":", "<"),
        "zstandard": ("tab:pink", ":", ">"),
        "entropy": ("tab:red", "--", "s"),
        "Z1": ("k", "-", "o"),
        "Z3": ("tab:green", "-", "^"),
        "D4": ("tab:blue", "-", "D"),
        "E8": ("tab:orange", "-", "*"),
        "R D4": ("tab:blue", "--", "D"),
        "R E8": ("tab:orange", "--", "*"),
        "balls of 8": ("tab:orange", ":", ""),
        "balls of 24": ("0.5", ":", ""),
        "SDQ, step sigma": ("tab:cyan", (0, (3, 1, 1, 1)), "P"),
        "SDQ, step 2 sigma": ("tab:cyan", (0, (1, 1)), "x"),
        "limit of Z1": ("k", "--", ""),
        "limit I": ("0.3", "-.", ""),
    }
    ratios = [row["ratio"] for row in rows]
    for name, (color, line, marker) in styles.items():
        label = f"{name}, real bytes" if name in LATTICES else name
        if name in ROTATED:
            label = f"rotated {ROTATED[name]}, real bytes"
        label = f"limit of {name} dimensions" if name in BALLS else label
        label += "; the server adds noise" if name in SERVER_NOISE else ""
        axes.loglog(
            ratios, [row[name] for row in rows], linestyle=line, color=color, marker=marker, ms=4, label=label
        )
    axes.set(xlabel="s / sigma", ylabel="bits per coordinate", ylim=(1e-3, 50))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)
    return figure


def define_flags():
    output.define_workdir()
    flags.DEFINE_integer("size", 1_000_000, "Coordinates.")
    flags.DEFINE_integer("seeds", 4, "Messages over which Z1 is averaged.")
    flags.DEFINE_list("ratios", ["0.01", "0.03", "0.1", "0.3", "1", "3", "10", "30"], "Values of s / sigma.")


def main():
    ratios = cli.numbers("ratios")
    rows = [
        measure(r, flags.FLAGS.size, flags.FLAGS.seeds)
        for r in tqdm.tqdm(ratios, unit="ratio", dynamic_ncols=True)
    ]
    names = [*LIMITS, *BALLS, *LATTICES, *ROTATED, *SERVER_NOISE, *UNCONDITIONAL, "float32"]
    table = markdown(
        ["s / sigma", *names, "Z1 over its limit", "Z1 over I"],
        [
            [
                f"{r['ratio']:g}",
                *(f"{r[n]:.4f}" for n in names),
                f"{100 * (r['Z1'] / r[LIMITS[1]] - 1):+.2f} %",
                f"{r['Z1'] / r[LIMITS[0]]:.3g} times",
            ]
            for r in rows
        ],
    )
    output.save(table, rows, plot(rows))


if __name__ == "__main__":
    cli.run(main, define_flags, smoke={"size": 2000, "seeds": 1, "ratios": ["1"]})
