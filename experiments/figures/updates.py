"""Real updates as real bytes: which law fits, and what general compressors make of the same symbols.

  python -m experiments.figures.updates --workdir=/tmp/updates

Trains FedAvg, takes updates of a few clients after some rounds, clips them to norm 1 and sends them
through scalar LRSUQ at several gammas. Bits per coordinate: real bytes of `wire.pack` with each family of
coding laws and one scale per tensor, the ideal code length of the best family, the symbols through
zstandard, and real bytes when the scale comes from the round's mean update instead of the client's own.

The last columns are what a client would send if the server, which CEPAM trusts with the shared randomness,
added the noise: SDQ at a step of sigma and 2 sigma, real bytes (figures/rate.py says which noise it adds).
"""

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
import zstandard
from absl import flags
from jax.flatten_util import ravel_pytree

from cepam_jax import mechanisms, tasks, wire
from cepam_jax.data import sources
from cepam_jax.federated import make_local_update
from cepam_jax.federated.rounds import public_scales
from cepam_jax.mechanisms import Keys, Knobs, code_length
from cepam_jax.run import build
from configs import cifar10, digits, mnist
from experiments import cli, output
from experiments.figures.rate import SERVER_NOISE
from experiments.tables import markdown

# Data and model: the configuration's module, the model, clients that train, rounds after which updates
# are taken.
SETTINGS = {
    "digits mlp": (digits, "mlp", 10, (0, 5, 30)),
    "mnist mlp": (mnist, "mlp", 10, (0, 5, 30)),
    "mnist cnn2": (mnist, "cnn2", 10, (0, 5, 15)),
    "cifar10 cnn3": (cifar10, "cnn3", 6, (0, 3)),
}
SENDERS = 3  # clients whose updates are packed


def updates(setting: str, data_dir: str):
    """Yields (round, f32[clients, d] updates, segments) along a run of FedAvg."""
    module_of_config, model, clients, taken = SETTINGS[setting]
    config = module_of_config.get_config("fedavg")
    config.model, config.num_clients, config.data.dir = model, clients, data_dir
    data = sources.load_examples(config.data.name, config.data.dir, sources.options_of(config))
    arrays = build.client_arrays(config, build.split_of(config, data))
    arrays = arrays._replace(examples=data.train, constants=data.constants)
    arrays = jax.tree.map(jnp.asarray, arrays)
    task = tasks.TASKS[config.task](config, data.specification)
    params = task.initialize(jax.random.key(0)).params
    segments = tuple(leaf.size for leaf in jax.tree.leaves(params))
    local_update = jax.jit(make_local_update(task, build.training_of(config)).run)
    flat, unravel = ravel_pytree(params)
    for number in range(max(taken) + 1):
        found = []
        for k in range(clients):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), number), k)
            found.append(local_update(tasks.Model(unravel(flat)), arrays, k, key, None, number).update)
        found = jnp.stack(found)
        if number in taken:
            yield number, found, segments
        flat = flat + found.mean(0)


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
    for family in code_length.FAMILIES:
        mechanism = mechanisms.lrsuq(segments=segments, coding=family)
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
        for number, found, segments in updates(setting, flags.FLAGS.data_dir):
            for gamma in gammas:
                rows.append({"setting": setting, "round": number, "gamma": gamma})
                rows[-1] |= measure(found, segments, gamma)
    families = list(code_length.FAMILIES)
    names = [*families, "mixture, ideal", "public scale", "zstandard", *SERVER_NOISE]
    table = markdown(
        ["updates", "after round", "gamma", *names, "bytes over ideal"],
        [
            [
                *(row["setting"], row["round"], f"{row['gamma']:g}"),
                *(f"{row[name]:.4f}" for name in names),
                f"{100 * (row['mixture'] / row['mixture, ideal'] - 1):+.1f} %",
            ]
            for row in rows
        ],
    )
    output.save(table, rows)


if __name__ == "__main__":
    cli.run(main, define_flags, smoke={"settings": ["digits mlp"], "gammas": ["30"]})
