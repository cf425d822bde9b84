"""What protection from the server costs: CEPAM, split and noise + quantization at equal total noise.

  python -m experiments.figures.server --workdir=/tmp/server

Every mechanism hides an update of norm 1 with noise of standard deviation sigma against outsiders; the
share of its variance that is private counts against the server. Epsilons are of one release at
delta = 1e-5, client level, add/remove; bits are real bytes for Gaussian coordinates of deviation s.
"""

from collections.abc import Callable

import jax
import numpy as np
from absl import flags

from cepam_jax import mechanisms, wire
from cepam_jax.mechanisms import Keys, Knobs
from experiments import cli, output, timing
from experiments.audit import accountant_epsilon
from experiments.tables import markdown

DELTA = 1e-5
MECHANISMS = {
    "CEPAM Z1": mechanisms.lrsuq,
    "CEPAM E8": lambda: mechanisms.lrsuq(lattice="E8"),
    "split Z1, half private": mechanisms.split,
    "split Z1, 80 % private": lambda: mechanisms.split(share=0.8),
    "split E8, 80 % private": lambda: mechanisms.split("E8", 0.8),
    "noise + SDQ, step sigma": mechanisms.noise_then_sdq,
    "noise + SDQ, step 2 sigma": mechanisms.noise_then_sdq,
    "noise, float32": lambda: mechanisms.additive("gaussian"),
}


def measure(name: str, sigma: float, ratio: float, size: int) -> tuple[dict, Callable]:
    """One mechanism on coordinates of deviation ratio * sigma, and a call that codes and decodes them."""
    mechanism = MECHANISMS[name]()
    keys = Keys(jax.random.key(1), jax.random.key(2))
    knobs = Knobs(sigma=sigma, step=2 * sigma if "2 sigma" in name else sigma)
    x = ratio * sigma * jax.random.normal(jax.random.key(0), (size,))
    encode, decode = jax.jit(mechanism.encode), jax.jit(mechanism.decode)
    message = encode(keys, x, knobs)
    error = np.asarray(decode(keys.shared, message, knobs) - x, np.float64)
    row = {
        "mechanism": name,
        "law": mechanism.about.law,
        "deviation": float(error.std() / sigma),
        "bits": len(wire.pack(message, mechanism, keys.shared, knobs)) * 8 / size,
        "outsiders": accountant_epsilon(mechanism, knobs, "decoded_updates", DELTA),
        "server": accountant_epsilon(mechanism, knobs, "server", DELTA),
    }
    return row, lambda: decode(keys.shared, encode(keys, x, knobs), knobs)


def define_flags():
    output.define_workdir()
    flags.DEFINE_float("sigma", 1.0, "Standard deviation of the noise; updates have norm 1.")
    flags.DEFINE_list("ratios", ["0.1", "1"], "s / sigma.")
    flags.DEFINE_integer("size", 1_000_000, "Coordinates.")
    flags.DEFINE_integer("repeats", 5, "Timings; the median counts.")


def main():
    f = flags.FLAGS
    ratios, rows, calls = cli.numbers("ratios"), [], {}
    for name in MECHANISMS:
        found = [measure(name, f.sigma, ratio, f.size) for ratio in ratios]
        bits = {f"bits at {r:g}": row["bits"] for r, (row, _) in zip(ratios, found, strict=True)}
        rows.append(found[0][0] | bits)
        calls[name] = found[0][1]
    seconds = timing.interleaved(calls, f.repeats)
    for row in rows:
        row["speed"] = f.size / seconds[row["mechanism"]] / 1e6
    table = markdown(
        [
            "mechanism",
            "error",
            "deviation / sigma",
            *(f"bits at s/sigma={r:g}" for r in ratios),
            "M/s",
            "epsilon, outsiders",
            "epsilon, server",
        ],
        [
            [
                row["mechanism"],
                f"exactly {row['law']}" if row["law"] != "other" else "noise + uniform",
                f"{row['deviation']:.3f}",
                *(f"{row[f'bits at {r:g}']:.3f}" for r in ratios),
                f"{row['speed']:.0f}",
                f"{row['outsiders']:.3g}",
                f"{row['server']:.3g}",
            ]
            for row in rows
        ],
    )
    output.save(table, rows)


if __name__ == "__main__":
    cli.run(main, define_flags, smoke={"size": 2000, "repeats": 1})
