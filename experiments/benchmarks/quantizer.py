"""Speed of the quantizers next to adding Gaussian noise, in one run.

  python -m experiments.benchmarks.quantizer

Every round times each function once, in turn, so that a slow moment of the machine hits all of
them alike; the table shows medians. The yardstick is `x + jax.random.normal(key, x.shape)`, what
the Gaussian mechanism without compression costs. "apart" is encode plus decode, each compiled
alone, as on a client and a server; "fused" is both in one compiled function, as in a simulated
round, where XLA draws the shared randomness once. For one core on Linux: `taskset -c 0 python -m ...`.

Two ceilings stand beside the figures: how fast this device copies memory, and how fast it makes random words
by the mechanisms' own generator (Threefry). "memory" and "words" are the parts of these that the fused round
trip reaches, if it reads its input and writes its output (8 bytes a coordinate) and draws each word once.
"""

import json
import platform
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

from cepam_jax import mechanisms
from cepam_jax.errors import ConfigError, require_choice
from cepam_jax.mechanisms import counter, lattices
from experiments import cli
from experiments.timing import interleaved


def functions(name, x, knobs, keys):
    """Encode, decode and both of one mechanism as calls without arguments."""
    mechanism = mechanisms.make(name)
    encode, decode = jax.jit(mechanism.encode), jax.jit(mechanism.decode)
    both = jax.jit(lambda k, v, s: mechanism.decode(k.shared, mechanism.encode(k, v, s), s))
    message = encode(keys, x, knobs)
    return {
        (name, "encode"): lambda: encode(keys, x, knobs),
        (name, "decode"): lambda: decode(keys.shared, message, knobs),
        (name, "fused"): lambda: both(keys, x, knobs),
    }


def words_per_coordinate(mechanism) -> float:
    """Random words that one coordinate takes on average: of its block's layer, and of all its proposals."""
    code = mechanism.code
    if code.kind != "lattice":
        return 0.0
    n = lattices.lattice(code.lattice).dimension
    if n == 1:
        return 2.0  # a call gives two: the layer and the dither
    pairs = (n + 1) // 2
    accepted = 1.0
    if code.layer not in ("cell", "rotated"):
        accepted = lattices.acceptance(lattices.lattice(code.lattice), code.layer)
    turns = 2 * -(-n // 4) if code.mixed else 0  # half a word for each axis
    return (2 * (code.streams[0] is not None) + turns + 2 * pairs / accepted) / n


def ceilings(size):
    """Copying an array, and making as many random words as it has elements, as calls without arguments."""
    x = jnp.ones(size, jnp.float32)
    stream = counter.stream(jax.random.key(0), 1)
    copy = jax.jit(lambda x: x + 1)

    @jax.jit
    def words():
        a, b = counter.words(stream, 0, jnp.arange(size // 2, dtype=jnp.uint32))
        return a ^ b  # one array is written, both words are made

    return {("copy", "fused"): lambda: copy(x), ("words", "fused"): words}


def measure(size, repeats, names):
    """{(mechanism, step): median seconds} for updates of `size` coordinates."""
    keys = mechanisms.Keys(jax.random.key(1), jax.random.key(2))
    knobs = mechanisms.Knobs(sigma=0.01, step=0.01, bits=4.0, levels=16.0, fraction=0.25)
    x = 0.005 * jax.random.normal(jax.random.key(0), (size,))
    yardstick = jax.jit(lambda key, v: v + 0.01 * jax.random.normal(key, v.shape))
    calls = {("x + normal", "fused"): lambda: yardstick(keys.private, x), **ceilings(size)}
    for name in names:
        calls |= functions(name, x, knobs, keys)
    return interleaved(calls, repeats)


def define_flags():
    flags.DEFINE_list("sizes", ["100000", "1000000", "10000000"], "Coordinates.")
    flags.DEFINE_list(
        "mechanisms",
        [
            name
            for name in mechanisms.REGISTRY
            if mechanisms.make(name).about.name.startswith(("lrsuq", "rotated-"))
        ],
        "Names of the registry.",
    )
    flags.DEFINE_integer("repeats", 9, "Rounds; the median counts.")
    flags.DEFINE_string("output", "", "Also write the figures to this JSON file.")


def main():
    try:
        sizes = [int(size) for size in flags.FLAGS.sizes]
    except ValueError as error:
        raise ConfigError(f"--sizes is {flags.FLAGS.sizes}; it must be integers: {error}") from error
    for name in flags.FLAGS.mechanisms:
        require_choice("--mechanisms", name, mechanisms.REGISTRY)
    device = jax.devices()[0]
    repeats = flags.FLAGS.repeats
    print(f"{device.device_kind} ({platform.machine()}), jax {jax.__version__}, {repeats} repeats")
    print("million coordinates a second; /yard: time over the time of x + normal")
    print(
        f"{'':20} {'size':>10} {'encode':>8} {'decode':>8} {'fused':>8} {'apart/yard':>12} {'fused/yard':>12}"
        f" {'memory':>8} {'words':>8}"
    )
    records = []
    for size in sizes:
        times = measure(size, repeats, flags.FLAGS.mechanisms)
        yardstick = times["x + normal", "fused"]
        bandwidth, word_rate = 8 * size / times["copy", "fused"], size / times["words", "fused"]
        print(
            f"{size} coordinates: this device copies {bandwidth / 1e9:.1f} GB/s and makes "
            f"{32e-9 * word_rate:.1f} Gbit/s of random words"
        )
        for name in ["x + normal", *flags.FLAGS.mechanisms]:
            own = {step: t for (n, step), t in times.items() if n == name}
            speed = {step: size / t / 1e6 for step, t in own.items()}
            ratio = {"fused": own["fused"] / yardstick}
            if "encode" in own:
                ratio["apart"] = (own["encode"] + own["decode"]) / yardstick
            cells = [f"{speed[s]:8.1f}" if s in speed else " " * 8 for s in ("encode", "decode", "fused")]
            cells += [f"{ratio[s]:12.2f}" if s in ratio else " " * 12 for s in ("apart", "fused")]
            words = words_per_coordinate(mechanisms.make(name)) if name in mechanisms.REGISTRY else 0.0
            reached = {
                "memory": 8 * size / own["fused"] / bandwidth,
                "words": words * size / own["fused"] / word_rate,
            }
            cells += [f"{reached['memory']:8.0%}", f"{reached['words']:8.0%}" if words else " " * 8]
            print(f"{name:20} {size:10} {' '.join(cells)}", flush=True)
            records.append(
                {
                    "name": name,
                    "size": size,
                    "million_per_second": speed,
                    "ratio": ratio,
                    "bytes_per_second": 8 * size / own["fused"],
                    "random_bits_per_second": 32 * words * size / own["fused"],
                    "of_ceiling": reached,
                    "ceilings": {"bytes_per_second": bandwidth, "random_bits_per_second": 32 * word_rate},
                }
            )
    if flags.FLAGS.output:
        Path(flags.FLAGS.output).write_text(
            json.dumps({"device": device.device_kind, "jax": jax.__version__, "records": records}, indent=2)
        )


if __name__ == "__main__":
    cli.run(main, define_flags)
