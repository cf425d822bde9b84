"""The rounds that the benchmarks time: W1 is `mlp`, W2 `cnn2`, 30 clients, 15 local steps of batch 32.

Random images of MNIST's (CIFAR-10's for cnn3) shape, momentum .5: the work does not depend on what the images
show.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from cepam_jax import mechanisms, models
from cepam_jax.federated import rounds
from cepam_jax.federated.aggregation import AGGREGATORS
from cepam_jax.federated.local import Images, LocalTraining, make_local_update
from experiments import cli

SHAPES = {
    "mlp": (28, 28, 1),
    "cnn2": (28, 28, 1),
    "cnn3": (32, 32, 3),
    "dense1M": (28, 28, 1),
    "dense25M": (28, 28, 1),
}
_DENSE = {"dense1M": (1024, 256), "dense25M": (4096, 4096, 1024)}  # ResNet-18 has 11 million parameters
_EXAMPLES = 2000  # clients may share them, as only the shapes matter
_OWN = 480  # examples of one client: as many as it trains on in a round

MECHANISMS = {
    "fedavg": lambda segments: mechanisms.identity(),
    "cepam Z1": lambda segments: mechanisms.chain(mechanisms.clip("l2"), mechanisms.lrsuq(segments=segments)),
    "cepam E8": lambda segments: mechanisms.chain(
        mechanisms.clip("l2"), mechanisms.lrsuq(lattice="E8", segments=segments)
    ),
}


def build(model: str):
    """The flax module of a workload."""
    if model in _DENSE:
        return models.Network(10, dense=_DENSE[model])
    return models.build(model, 10)


def images(model: str) -> Images:
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (_EXAMPLES, *SHAPES[model]), dtype=np.uint8)
    labels = random.integers(0, 10, _EXAMPLES)
    return Images(jnp.asarray(pictures), jnp.asarray(labels), jnp.float32(0.5), jnp.float32(0.25))


def settings(steps: int) -> LocalTraining:
    return LocalTraining(steps=steps, batch_size=32, learning_rate=0.01, momentum=0.5)


def one_round(model: str, mechanism, clients: int, steps: int, per_chunk: int):
    """One round: (function, its arguments, coordinates of an update)."""
    module = build(model)
    params = models.initialize(module, jax.random.key(0), SHAPES[model])
    segments = tuple(leaf.size for leaf in jax.tree.leaves(params))
    server = optax.sgd(1.0)
    plan = rounds.Plan(
        make_local_update(module, settings(steps)),
        mechanism(segments),
        AGGREGATORS["mean"],
        server,
        segments,
        clients,
        per_chunk,
    )
    state = rounds.State(params, server.init(params), jnp.int32(0), jnp.int32(-1), None)
    federation = rounds.Federation(
        images(model),
        jnp.tile(jnp.arange(_OWN, dtype=jnp.int32), (clients, 1)),
        jnp.full(clients, _OWN, jnp.int32),
        jnp.full(clients, steps, jnp.int32),
        mechanisms.Knobs(sigma=jnp.full(clients, 0.01), clip=jnp.ones(clients)),
        jax.random.key(1),
        jax.random.key(2),
    )
    return rounds.make_round(plan), (state, federation), sum(segments)


def round_call(model: str, mechanism, clients: int, steps: int, per_chunk: int):
    """One compiled round as a call without arguments."""
    function, arguments, _ = one_round(model, mechanism, clients, steps, per_chunk)
    run = jax.jit(function)
    return lambda: run(*arguments)


def define_flags(mechanism: str) -> None:
    """Flags of a program that looks at one workload; `mechanism` is the default."""
    flags.DEFINE_string("model", "mlp", f"One of {', '.join(SHAPES)}.")
    flags.DEFINE_string("mechanism", mechanism, f"One of {', '.join(MECHANISMS)}.")
    flags.DEFINE_integer("clients", 30, "Clients of a round.")
    flags.DEFINE_integer("steps", 15, "Local steps.")
    flags.DEFINE_integer("per_chunk", 0, "Clients under one vmap; 0: one on a CPU, all elsewhere.")


def of_flags():
    """`one_round` as the flags say, and how many clients are under one vmap."""
    f = flags.FLAGS
    cli.choice("model", SHAPES)
    cli.choice("mechanism", MECHANISMS)
    per_chunk = f.per_chunk or (1 if jax.default_backend() == "cpu" else f.clients)
    return *one_round(f.model, MECHANISMS[f.mechanism], f.clients, f.steps, per_chunk), per_chunk
