"""Real updates as real bytes: which law fits, and what general compressors make of the same symbols.

  python -m experiments.figures.updates --workdir=/tmp/updates

Trains FedAvg, takes updates of a few clients after some rounds, clips them to norm 1 and sends them
through scalar LRSUQ at several gammas. Bits per coordinate: real bytes of `wire.pack` with each family of
coding laws and one scale per tensor, and with a law for each tensor that the encoder chooses ("chosen", the
default), the ideal code length of the latter, the symbols through zstandard, and real bytes when the scale
comes from the round's mean update instead of the client's own.

The last columns are what a client would send if the server, which CEPAM trusts with the shared randomness,
added the noise: SDQ at a step of sigma and 2 sigma, real bytes (figures/rate.py says which noise it adds).
"""

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
import zstandard
from absl import flags

from cepam_jax import mechanisms, wire
from cepam_jax.federated.rounds import public_scales
from cepam_jax.mechanisms import Keys, Knobs, code_length
from experiments import cli, output
from experiments.figures.rate import SERVER_NOISE
from experiments.real_updates import SETTINGS, updates
from experiments.tables import markdown

CODINGS = {family: family for family in code_length.FAMILIES} | {"chosen": "auto"}
SENDERS = 3  # clients whose updates are packed


def measure(found, segments, gamma: float) -> dict:
    """Mean bits per coordinate over the first clients, by name of the code."""
    knobs = Knobs(sigma=1 / gamma)
    norms = jnp.linalg.norm(found, axis=1, keepdims=True)
    found = found * jnp.minimum(1, 1 / norms)
    sums = {}
    for k in range(SENDERS):
        keys = Keys(jax.random.fold_in(jax.random.key(2), k), jax.random.key(3))
        cells = _cells(found[k], found.mean(0), segments, knobs, keys, len(found))
        for name, bits in cells.items():
            sums[name] = sums.get(name, 0.0) + bits / SENDERS / found.shape[1]
    return sums


def _cells(x, mean, segments, knobs, keys, clients):
    cells = {}
    for family, coding in CODINGS.items():
        mechanism = mechanisms.lrsuq(segments=segments, coding=coding)
        message = mechanism.encode(keys, x, knobs)
        cells[family] = 8.0 * len(wire.pack(message, mechanism, keys.shared, knobs))
        cells[f"{family}, ideal"] = float(mechanism.bits(keys.shared, message, knobs))
    small = np.clip(np.asarray(message.symbols), -128, 127).astype(np.int8).tobytes()
    cells["zstandard"] = 8.0 * len(zstandard.compress(small, 19))
    for name, step in SERVER_NOISE.items():
        server, coarse = mechanisms.sdq(segments=segments), Knobs(step=step * knobs.sigma)
        message = server.encode(keys, x, coarse)
        cells[name] = 8.0 * len(wire.pack(message, server, keys.shared, coarse))
    public = mechanisms.lrsuq(segments=segments, scales="public")
    noise = knobs.sigma / np.sqrt(clients) * jax.random.normal(keys.private, mean.shape)
    sigmas = jnp.full(clients, knobs.sigma)
    scale = public_scales(mean + noise, segments, sigmas, public.code.family, clients)
    knobs = knobs._replace(scale=scale)
    message = public.encode(keys, x, knobs)
    cells["public scale"] = 8.0 * len(wire.pack(message, public, keys.shared, knobs))
    return cells


def define_flags():
    output.define_workdir()
    flags.DEFINE_list("settings", ["mnist mlp", "mnist cnn2", "cifar10 cnn3"], "Data and model.")
    flags.DEFINE_list("gammas", ["100", "30", "10"], "Clip norm over sigma.")
    flags.DEFINE_string("data_dir", "", "As config.data.dir.")


def main():
    gammas = cli.numbers("gammas")
    cli.choices("settings", SETTINGS)
    rows = []
    for setting in tqdm.tqdm(flags.FLAGS.settings, unit="setting", dynamic_ncols=True):
        for taken in updates(setting, flags.FLAGS.data_dir):
            for gamma in gammas:
                rows.append({"setting": setting, "round": taken.round, "gamma": gamma})
                rows[-1] |= measure(taken.updates, taken.segments, gamma)
    names = [*CODINGS, "chosen, ideal", "public scale", "zstandard", *SERVER_NOISE]
    table = markdown(
        ["updates", "after round", "gamma", *names, "bytes over ideal"],
        [
            [
                *(row["setting"], row["round"], f"{row['gamma']:g}"),
                *(f"{row[name]:.4f}" for name in names),
                f"{100 * (row['chosen'] / row['chosen, ideal'] - 1):+.1f} %",
            ]
            for row in rows
        ],
    )
    output.save(table, rows)


if __name__ == "__main__":
    cli.run(main, define_flags, smoke={"settings": ["digits mlp"], "gammas": ["30"]})
