"""What the coder of rotated cells loses against the exact law of their symbols.

  python -m experiments.figures.cell_coder --workdir=/tmp/cell_coder

First table: Gaussian inputs. The code length of a block is compared with the entropy of its lattice point
given scale and dither, which is found by drawing many inputs for each of some blocks and counting the points
(with the correction of Miller and Madow for the finite number of draws). Their difference is the loss; the
limit is the mean code length less the loss, which scatters far less than an entropy that is estimated alone.
Beside it: the loss in the first decision (does the block move?), what the law "mixture", made for updates,
costs more than the Gaussian law, and the bytes of a message over its ideal length.

Second table: updates of training (as in figures/updates.py), against the best law in hindsight: for every
tensor the mixture of spherical Gaussians, on a grid of half octaves, that codes its blocks shortest. Nobody
could know it beforehand, and it costs nothing here. The laws are compared by the ideal length of the symbols
alone; the last column is of the message that is sent, with header and scales.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import flags
from scipy import special

from cepam_jax import mechanisms, wire
from cepam_jax.mechanisms import (
    Keys,
    Knobs,
    cell_bits,
    cell_law,
    cell_scales,
    code_length,
    counter,
    lattices,
    scale_code,
)
from cepam_jax.mechanisms.rotated import DITHERS, SCALES
from experiments import cli, output
from experiments.real_updates import SETTINGS, updates
from experiments.tables import markdown

RATIOS = (0.01, 0.03, 0.1, 0.3, 1.0)
GRID = 2.0 ** np.arange(-12, 6, 0.5)  # deviations of the law in hindsight, in units of the tensor's scale
_LN_2 = math.log(2)


def cells(lat, count: int, rng) -> list[np.ndarray]:
    """Uniform points of the Voronoi cell: n arrays f64[count]."""
    zero = [np.zeros(count)] * lat.dimension
    point = lat.point(zero, [rng.uniform(-0.5, 0.5, count) for _ in range(lat.dimension)])
    return [p - q for p, q in zip(point, lat.point(lat.nearest(point), zero), strict=True)]


def scales(lat, count: int, rng) -> np.ndarray:
    """Scales of the lattice in units of sigma, f64[count]."""
    words = rng.integers(0, 2**32, (2, count), dtype=np.uint32)
    return cell_scales.scales(*words, cell_scales.scale_table(lat.name))[0].astype(np.float64)


def nats(lat, error, vector, tau) -> np.ndarray:
    """Code length f64[k] of lattice vectors under the law of Gaussian blocks of deviation tau [k]."""
    f32 = lambda axes: [jnp.asarray(a, jnp.float32) for a in axes]  # noqa: E731
    return -np.asarray(
        cell_bits.log_probability(lat.name, "gaussian", f32(error), f32(vector), jnp.float32(tau)), np.float64
    )


def losses(lat, ratio: float, blocks: int, draws: int, rng) -> np.ndarray:
    """Loss f64[2, blocks] in nats: of the whole code, and of the decision whether the block moves."""
    error, tau = cells(lat, blocks, rng), ratio / scales(lat, blocks, rng)
    owner, share, points, entropy = [], [], [], []
    for block in range(blocks):
        y = [tau[block] * rng.standard_normal(draws) - axis[block] for axis in error]
        found, counts = np.unique(np.stack(lat.nearest(y)).astype(np.int32).T, axis=0, return_counts=True)
        owner.append(np.full(len(counts), block))
        share.append(counts / draws)
        points.append(found)
        entropy.append(-(share[-1] * np.log(share[-1])).sum() + (len(counts) - 1) / (2 * draws))
    owner, share, points = np.concatenate(owner), np.concatenate(share), np.concatenate(points).T
    vector = lat.point(list(points.astype(np.float64)), [np.zeros(1)] * lat.dimension)
    length = np.bincount(owner, share * nats(lat, [e[owner] for e in error], vector, tau[owner]), blocks)
    stays = np.bincount(owner, share * ~points.any(0), blocks)
    grid = cell_law.grid(lat.name)
    v = cell_law.variance(grid, tau)
    predicted = cell_law.stay(grid, cell_law.log_of_others(grid, error, v), v, tau)
    first = sum(special.rel_entr(p, q) for p, q in zip((stays, 1 - stays), predicted, strict=True))
    return np.array([length - np.array(entropy), first])


def gaussian_row(name: str, ratio: float, size: int, blocks: int, draws: int) -> dict:
    """One lattice and ratio of the first table."""
    lat, rng = lattices.LATTICES[name], np.random.default_rng(0)
    n = lat.dimension
    mechanism = mechanisms.rotated(name, coding="gaussian")
    keys, knobs = Keys(jax.random.key(1), jax.random.key(2)), Knobs(sigma=1.0)
    x = ratio * jax.random.normal(jax.random.key(0), (size,))
    message = jax.jit(mechanism.encode)(keys, x, knobs)
    ideal = float(jax.jit(mechanism.bits)(keys.shared, message, knobs))
    mixed = mechanisms.rotated(name, coding="mixture")
    wide = float(jax.jit(mixed.bits)(keys.shared, jax.jit(mixed.encode)(keys, x, knobs), knobs))
    loss, first = losses(lat, ratio, blocks, draws, rng) / _LN_2 / n
    # The code length of fresh blocks: more of them than one message has.
    error, tau = cells(lat, size // n, rng), ratio / scales(lat, size // n, rng)
    y = [tau * rng.standard_normal(size // n) for _ in error]
    integers = lat.nearest([a - e for a, e in zip(y, error, strict=True)])
    length = nats(lat, error, lat.point(integers, [np.zeros(1)] * n), tau) / _LN_2 / n
    error_of = lambda values: float(values.std() / math.sqrt(len(values)))  # noqa: E731
    limit = float(length.mean() - loss.mean())
    return {
        "lattice": name,
        "ratio": ratio,
        "limit": limit,
        "limit_error": math.hypot(error_of(length), error_of(loss)),
        "code": float(length.mean()),
        "loss": float(loss.mean()) / limit,
        "loss_error": error_of(loss) / limit,
        "first": float(first.mean()) / limit,
        "mixture": wide / ideal - 1,
        "bytes": 8 * len(wire.pack(message, mechanism, keys.shared, knobs)) / ideal - 1,
    }


def in_hindsight(lengths: np.ndarray) -> float:
    """Least nats in which a mixture codes blocks, given f64[laws, blocks], their lengths under each law."""
    least = lengths.min(0)
    likelihood = np.exp(least - lengths)
    weights = np.full(len(lengths), 1 / len(lengths))
    for _ in range(200):  # expectation maximization
        share = weights[:, None] * likelihood
        weights = (share / share.sum(0)).mean(1)
    return float((least - np.log(weights @ likelihood)).sum())


def update_row(x, segments, gamma: float, lattice: str) -> dict:
    """Bits per coordinate of one update: by coding, with the best law in hindsight, and in real bytes."""
    x = x * jnp.minimum(1, 1 / jnp.linalg.norm(x))
    lat, knobs = lattices.LATTICES[lattice], Knobs(sigma=1 / gamma)
    keys, d = Keys(jax.random.key(1), jax.random.key(2)), x.shape[0]
    found = {}
    for coding in ("gaussian", "mixture"):
        mechanism = mechanisms.rotated(lattice, segments=segments, coding=coding)
        message = jax.jit(mechanism.encode)(keys, x, knobs)
        ideal = float(jax.jit(mechanism.bits)(keys.shared, message, knobs))
        found[coding] = (ideal - float(scale_code.bits(message.side["scale"], None, segments, 1))) / d
        found["bytes"] = 8 * len(wire.pack(message, mechanism, keys.shared, knobs)) / d
    return found | {"hindsight": hindsight(message, segments, lat, keys, knobs) / d}


def hindsight(message, segments, lat, keys, knobs) -> float:
    """Bits of a message's symbols with the best law of every tensor's blocks."""
    count = message.index.shape[0]
    words = counter.words(counter.stream(keys.shared, SCALES), 0, jnp.arange(count, dtype=jnp.uint32))
    width = cell_scales.scales(*words, cell_scales.scale_table(lat.name))[0] * knobs.sigma
    stream = counter.stream(keys.shared, DITHERS)
    error, vector, _ = cell_bits.displacements(lat, stream, message)
    scale = code_length.scale_per_coordinate(message.side["scale"], segments)[:: lat.dimension]
    lengths = np.stack([nats(lat, error, vector, g * scale / width) for g in GRID])
    tensor = np.searchsorted(np.cumsum(segments), np.arange(count) * lat.dimension, side="right")
    return sum(in_hindsight(lengths[:, tensor == i]) for i in set(tensor)) / _LN_2


def define_flags():
    output.define_workdir()
    flags.DEFINE_list("lattices", ["A2", "D4", "E8"], "Lattices of the first table.")
    flags.DEFINE_integer("size", 1_000_000, "Coordinates.")
    flags.DEFINE_integer("blocks", 300, "Blocks whose entropy is measured.")
    flags.DEFINE_integer("draws", 20_000, "Inputs drawn for each of them.")
    flags.DEFINE_list("settings", ["mnist mlp", "mnist cnn2"], "Data and model of the second table.")
    flags.DEFINE_list("gammas", ["100", "30", "10"], "Clip norm over sigma, in the second table.")
    flags.DEFINE_string("data_dir", "", "As config.data.dir.")
    flags.DEFINE_string("lattice", "E8", "Lattice of the second table.")
    flags.DEFINE_list("ratios", [str(r) for r in RATIOS], "Values of s / sigma, at most 1: see `losses`.")


def main():
    given = flags.FLAGS
    cli.choices("lattices", cell_law.GRIDS)
    cli.choices("settings", SETTINGS)
    ratios, gammas = cli.numbers("ratios"), cli.numbers("gammas")
    work = [(name, ratio) for name in given.lattices for ratio in ratios]
    rows = [
        gaussian_row(name, ratio, given.size, given.blocks, given.draws)
        for name, ratio in tqdm.tqdm(work, unit="row", dynamic_ncols=True)
    ]
    of_updates = []
    for setting in given.settings:
        for taken in updates(setting, given.data_dir):
            for gamma in gammas:
                row = update_row(taken.updates[0], taken.segments, gamma, given.lattice)
                of_updates.append({"setting": setting, "round": taken.round, "gamma": gamma} | row)
    first = markdown(
        [
            "lattice",
            "s / sigma",
            "limit, bits per coordinate",
            "code",
            "loss",
            "first decision",
            "mixture",
            "bytes",
        ],
        [
            [
                *(row["lattice"], f"{row['ratio']:g}", f"{row['limit']:.5f} +- {row['limit_error']:.5f}"),
                f"{row['code']:.5f}",
                f"{100 * row['loss']:.2f} % +- {100 * row['loss_error']:.2f}",
                *(f"{100 * row[name]:+.2f} %" for name in ("first", "mixture", "bytes")),
            ]
            for row in rows
        ],
    )
    second = markdown(
        [
            "updates",
            "after round",
            "gamma",
            "best in hindsight",
            "mixture",
            "gaussian",
            "mixture over best",
            "bytes",
        ],
        [
            [
                *(row["setting"], row["round"], f"{row['gamma']:g}"),
                *(f"{row[name]:.4f}" for name in ("hindsight", "mixture", "gaussian")),
                f"{100 * (row['mixture'] / row['hindsight'] - 1):+.1f} %",
                f"{row['bytes']:.4f}",
            ]
            for row in of_updates
        ],
    )
    output.save(f"{first}\n\n{second}", rows + of_updates)


if __name__ == "__main__":
    small = {"size": 8000, "blocks": 3, "draws": 300, "settings": ["digits mlp"], "gammas": ["30"]}
    cli.run(main, define_flags, smoke=small | {"lattices": ["A2"], "ratios": ["0.1"]})
