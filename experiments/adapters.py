"""What a server loses that averages the two factors of adapters, and not their products.

  python -m experiments.adapters --workdir=/tmp/adapters

Clients train low-rank adapters, W + c A B, and each sends its A and B through the mechanism. The server's
mean of the A times its mean of the B is not the mean of the products: they differ by c times the clients'
covariance of A and B. But where A and B arrive with noise, so does this covariance: the product of two
noises has a mean square of rank * sigma^4 for each of the n clients' products, rank * sigma^4 / n after
their mean, and only rank * sigma^4 / n^2 in the product of the means.

The table has the Frobenius norms over all adapted matrices, divided by the norm of the change that the round
makes of the mean product without noise: of what the means of the factors miss of it without noise, and of the
error of either way with noise. The rounds are those of FedAvg without noise, all clients taking part.
"""

import jax
import jax.numpy as jnp
import tqdm
from absl import flags
from jax.flatten_util import ravel_pytree

from cepam_jax import settings
from cepam_jax.data import sources
from cepam_jax.federated.state import client_keys
from cepam_jax.mechanisms import Knobs, sigma_of_gamma
from cepam_jax.run import build, finished
from cepam_jax.tasks import Model
from cepam_jax.tasks.trainable import product
from configs import shakespeare
from experiments import cli, output
from experiments.tables import markdown


def config_of(rank: int, init: str):
    """Adapters of a rank on the small text, one chunk of all speakers."""
    config = shakespeare.get_config("cepam_gaussian")
    config.adapter.rank, config.adapter.alpha, config.clients_per_round = rank, 2.0 * rank, 0
    config.local.learning_rate, config.init = 3e-3, init
    settings.validate(config)
    return config


def start(config, task) -> Model:
    """The model before the first round."""
    key = jax.random.key(config.seeds.model)
    if not config.init:
        return task.initialize(key)
    return task.begin(jax.tree.map(jnp.asarray, finished.load(config.init, "config.init").model), key)


def rounds(config, task, data, number: int):
    """Yields by round what is trained f32[d], the clients' updates of it f32[clients, d], and parts.

    These are a function from f32[d] to the tree of adapters, the mechanism and the ClientArrays.
    """
    arrays = build.client_arrays(config, build.split_of(config, data))
    arrays = arrays._replace(examples=data.train, constants=data.constants)
    arrays = jax.tree.map(jnp.asarray, arrays)
    model = start(config, task)
    flat, unravel = ravel_pytree(model.params)
    shapes = jax.eval_shape(lambda: model)
    plan = build.plan_of(config, task, shapes, None, jax.default_backend())
    run = jax.jit(plan.local_update.run)
    for current in range(number):
        found = []
        for client in range(config.num_clients):
            key, _ = client_keys(arrays, current, client)
            now = Model(unravel(flat), model.statistics, model.frozen)
            found.append(run(now, arrays, client, key, None, current).update)
        found = jnp.stack(found)
        yield flat, found, unravel, plan.mechanism, arrays
        flat = flat + found.mean(0)


def decoded(mechanism, updates, arrays, current: int, knobs: Knobs):
    """f32[clients, d], as the server has them."""

    def one(client, x):
        _, keys = client_keys(arrays, current, client)
        return mechanism.decode(keys.shared, mechanism.encode(keys, x, knobs), knobs)

    return jax.jit(lambda updates: jax.lax.map(lambda a: one(*a), (jnp.arange(len(updates)), updates)))(
        updates
    )


def products(flat, updates, unravel, factor: float):
    """(products of the factors' means, means of the products, products before), f32[e] of all matrices."""

    def of(vector):
        return jnp.concatenate([product(a, factor).reshape(-1) for a in unravel(vector).values()])

    each = jax.jit(lambda updates: jax.lax.map(lambda x: of(flat + x), updates).mean(0))
    return of(flat + updates.mean(0)), each(updates), of(flat)


def measure(config, gammas: list[float], number: int, progress: bool) -> list[dict]:
    """A row for each round and gamma."""
    data = sources.load_examples(config.data.name, config.data.dir, sources.options_of(config))
    task = build.task_of(config, data.specification)
    factor, rows = config.adapter.alpha / config.adapter.rank, []
    bar = tqdm.tqdm(rounds(config, task, data, number), total=number, disable=not progress)
    for current, (flat, updates, unravel, mechanism, arrays) in enumerate(bar):
        for gamma in gammas:
            sigma = sigma_of_gamma("gaussian", gamma, config.mechanism.clip_norm)
            knobs = Knobs(sigma=jnp.float32(sigma), clip=jnp.float32(config.mechanism.clip_norm))
            clipped = jax.vmap(mechanism.reference, (0, None))(updates, knobs)
            factors, wanted, before = products(flat, clipped, unravel, factor)
            noisy = decoded(mechanism, updates, arrays, current, knobs)
            by_factors, by_products, _ = products(flat, noisy, unravel, factor)
            scale = float(jnp.linalg.norm(wanted - before))
            rows.append(
                {
                    "round": current + 1,
                    "gamma": gamma,
                    "change": scale,
                    "missed": float(jnp.linalg.norm(factors - wanted)) / scale,
                    "factors": float(jnp.linalg.norm(by_factors - wanted)) / scale,
                    "products": float(jnp.linalg.norm(by_products - wanted)) / scale,
                }
            )
    return rows


def define_flags():
    output.define_workdir()
    flags.DEFINE_list("gammas", ["1000", "100", "30"], "Clip norm over sigma.")
    flags.DEFINE_integer("rank", 8, "Of the adapters.", lower_bound=1)
    flags.DEFINE_integer("rounds", 3, "Rounds.", lower_bound=1)
    flags.DEFINE_string("init", "", "Work directory of a run to begin with; by default an untrained model.")
    flags.DEFINE_bool("progress", True, "Show a progress bar.")


def main():
    f = flags.FLAGS
    config = config_of(f.rank, f.init)
    rows = measure(config, cli.numbers("gammas"), f.rounds, f.progress)
    header = [
        "round",
        "gamma",
        "norm of the change",
        "missed by the means of the factors",
        "with noise: means of the factors",
        "with noise: mean of the products",
    ]
    cells = [[f"{v:g}" if n == "gamma" else f"{v:.3g}" for n, v in row.items()] for row in rows]
    head = (
        f"Adapters of rank {f.rank}, {config.num_clients} speakers; errors over the norm of the change.\n\n"
    )
    output.save(head + markdown(header, cells), rows)


if __name__ == "__main__":
    cli.run(main, define_flags, {"rounds": 1, "gammas": ["100"], "rank": 2})
