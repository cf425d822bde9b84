"""The rounds that the benchmarks time: W1 is `mlp`, W2 `cnn2`, 30 clients, 15 local steps of batch 32.

Random images of MNIST's or CIFAR-10's shape, or random characters and tokens for the Transformers, momentum
.5 unless said otherwise: the work does not depend on what they show.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from ml_collections import ConfigDict

from cepam_jax import mechanisms, models, tasks
from cepam_jax.federated import (
    AGGREGATORS,
    Aggregator,
    ClientArrays,
    LocalTraining,
    Plan,
    initial_state,
    make_local_update,
    make_round,
    robust,
)
from cepam_jax.federated.aggregation import RULES
from cepam_jax.federated.plan import CLIENTS
from cepam_jax.models.convolution import Conv
from cepam_jax.models.dropout import Dropout
from cepam_jax.models.transformer import Transformer
from cepam_jax.run import devices
from cepam_jax.tasks.classification import cross_entropy
from cepam_jax.tasks.images import normalized
from experiments import cli

SHAPES = {
    "mlp": (28, 28, 1),
    "cnn2": (28, 28, 1),
    "cnn3": (32, 32, 3),
    "dense1M": (28, 28, 1),
    "dense25M": (28, 28, 1),
    "pfl_cifar10": (32, 32, 3),
    "blazefl_cifar10": (32, 32, 3),
}
TRANSFORMER = "transformer"  # models.sequences.transformer_tiny
_CONTEXT, _VOCABULARY = 64, 65
LARGE = "transformer124M"  # the size of the smallest GPT-2, on windows of 64 tokens
_TOKENS = 50257
_DENSE = {"dense1M": (1024, 256), "dense25M": (4096, 4096, 1024)}  # ResNet-18 has 11 million parameters
EXAMPLES = 2000  # clients may share them, as only the shapes matter
_OWN = 480  # examples of one client: as many as it trains on in a round

MECHANISMS = {
    "fedavg": lambda segments: mechanisms.identity(),
    "cepam Z1": lambda segments: mechanisms.chain(mechanisms.clip("l2"), mechanisms.lrsuq(segments=segments)),
    "cepam Z2": lambda segments: mechanisms.chain(
        mechanisms.clip("l2"), mechanisms.lrsuq(lattice="Z2", segments=segments)
    ),
    "cepam D4": lambda segments: mechanisms.chain(
        mechanisms.clip("l2"), mechanisms.lrsuq(lattice="D4", segments=segments)
    ),
    "cepam E8": lambda segments: mechanisms.chain(
        mechanisms.clip("l2"), mechanisms.lrsuq(lattice="E8", segments=segments)
    ),
    "cepam rotated E8": lambda segments: mechanisms.chain(
        mechanisms.clip("l2"), mechanisms.rotated("E8", segments=segments)
    ),
}


class PflNetwork(nn.Module):
    """That of pfl-research's benchmark on CIFAR-10 (Granqvist and others: pfl-research, arXiv 2404.06430)."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(Conv(32, 3, "VALID")(x))
        x = Dropout(0.25, not train, nn.relu)(Conv(64, 3, "VALID", pool=True)(x))
        x = Dropout(0.5, not train, nn.relu)(nn.Dense(128)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(x)


def build(model: str):
    """The flax module of a workload with images."""
    if model == "pfl_cifar10":
        return PflNetwork()
    if model == "blazefl_cifar10":  # the network of PyTorch's tutorial on CIFAR-10
        return models.Network(10, channels=(6, 16), dense=(120, 84), kernel=5, padding="VALID")
    if model in _DENSE:
        return models.Network(10, dense=_DENSE[model])
    return models.build(model, 10)


def examples_of(model: str):
    """Random examples of a workload, and the constants that their pixels are normalized by."""
    random = np.random.default_rng(0)
    if model == LARGE:
        tokens = random.integers(0, _TOKENS, (EXAMPLES, _CONTEXT + 1), dtype=np.int32)
        return {"tokens": jnp.asarray(tokens)}, {}
    if model == TRANSFORMER:
        windows = random.integers(0, _VOCABULARY, (EXAMPLES, _CONTEXT + 1), dtype=np.uint8)
        lengths = jnp.full(EXAMPLES, _CONTEXT + 1, jnp.int32)
        return {"characters": jnp.asarray(windows), "length": lengths}, {}
    pictures = random.integers(0, 256, (EXAMPLES, *SHAPES[model]), dtype=np.uint8)
    labels = random.integers(0, 10, EXAMPLES)
    examples = {"image": jnp.asarray(pictures), "label": jnp.asarray(labels)}
    return examples, {"mean": jnp.float32(0.5), "std": jnp.float32(0.25)}


def task_of(module, model: str) -> tasks.Task:
    """Classification of a workload's images by a flax module."""

    def prepare(pictures, constants, key):
        return normalized(pictures, constants)

    net = tasks.network(module, np.zeros(SHAPES[model], np.float32))
    return tasks.classification(net, inputs="image", labels="label", prepare=prepare)


def characters() -> tasks.Task:
    """The next of random characters, by the smallest Transformer."""
    arrays = (("characters", "uint8", (_CONTEXT + 1,)), ("length", "int32", ()))
    specification = ((("context", _CONTEXT), ("vocabulary", _VOCABULARY)), arrays, ())
    config = ConfigDict({"model": "transformer_tiny", "local": {"dropout": 0.0}})
    return tasks.TASKS.get_or_raise("next_character")(config, specification)


def next_token() -> tasks.Task:
    """The next of random tokens, by a Transformer of 124 million parameters."""
    net = tasks.network(
        Transformer(_TOKENS, 1024, layers=12, width=768, heads=12), np.zeros(_CONTEXT, np.int32)
    )

    def loss(model, batch, constants, key):
        logits, statistics = net.apply(model, batch["tokens"][:, :-1], key)
        return jnp.mean(cross_entropy(logits, batch["tokens"][:, 1:])), statistics

    def evaluate(model, batch, constants):
        raise NotImplementedError  # rounds are timed, and nobody asks what random tokens teach

    return tasks.Task(net.initialize, loss, evaluate, lambda sums, number: sums)


def named_task(model: str) -> tasks.Task:
    """The task of a workload."""
    if model == LARGE:
        return next_token()
    return characters() if model == TRANSFORMER else task_of(build(model), model)


def arrays_of(model: str, clients: int, steps: int, own: int) -> ClientArrays:
    """A federation in which client k has `own` examples from number k own on, around all that there are."""
    examples, constants = examples_of(model)
    rows = (np.arange(clients)[:, None] * own + np.arange(own)) % EXAMPLES
    return ClientArrays(
        examples=examples,
        constants=constants,
        rows=jnp.asarray(rows, jnp.int32),
        counts=jnp.full(clients, own, jnp.int32),
        steps=jnp.full(clients, steps, jnp.int32),
        knobs=mechanisms.Knobs(sigma=jnp.full(clients, 0.01), clip=jnp.ones(clients)),
        training_key=jax.random.key(1),
        shared_key=jax.random.key(2),
    )


def settings(steps: int, batch: int = 32, momentum: float = 0.5) -> LocalTraining:
    return LocalTraining(steps=steps, batch_size=batch, learning_rate=0.01, momentum=momentum)


def rule_of(name: str, clients: int) -> Aggregator:
    """The mean, or a robust rule that bears a tenth of the clients."""
    return robust(name, tolerated=clients // 10) if name in RULES else AGGREGATORS.get_or_raise(name)


def one_round(
    model: str,
    mechanism,
    clients: int,
    steps: int,
    per_chunk: int,
    aggregator: str = "mean",
    device_count: int = 1,
    counts: bool = True,
    population: int = 0,
    own: int = _OWN,
    batch: int = 32,
    momentum: float = 0.5,
):
    """One round: (function, its arguments, coordinates of an update).

    Args:
      model, mechanism, clients, steps, per_chunk: what is trained, by so many clients and steps, how.
      aggregator: the server's rule.
      device_count: devices.
      counts: whether the lengths of messages are counted.
      population: clients of which those of the round are drawn; 0: they are all.
      own: examples of a client.
      batch: examples of a step.
      momentum: of the local steps.
    """
    mesh = devices.Layout(CLIENTS, device_count).mesh
    task = named_task(model)
    start = task.initialize(jax.random.key(0))
    segments = tuple(leaf.size for leaf in jax.tree.leaves(start.params))
    plan = Plan(
        make_local_update(task, settings(steps, batch, momentum)),
        mechanism(segments),
        rule_of(aggregator, clients),
        optax.sgd(1.0),
        segments,
        clients,
        per_chunk,
        mesh=mesh,
        counts=counts,
    )
    everybody = max(clients, population)
    arrays = arrays_of(model, everybody, steps, own)
    state = initial_state(plan, start, arrays.knobs, everybody, remembers=False, clip_bound=jnp.float32(1))
    arguments = (state, arrays) if mesh is None else devices.put((state, arrays), mesh)
    return make_round(plan), arguments, sum(segments)


def round_call(*what, **options):
    """One compiled round as a call without arguments; the arguments are those of `one_round`."""
    function, arguments, _ = one_round(*what, **options)
    run = jax.jit(function)
    return lambda: run(*arguments)


def define_flags(mechanism: str) -> None:
    """Flags of a program that looks at one workload; `mechanism` is the default."""
    flags.DEFINE_string("model", "mlp", f"One of {', '.join([*SHAPES, TRANSFORMER, LARGE])}.")
    flags.DEFINE_string("mechanism", mechanism, f"One of {', '.join(MECHANISMS)}.")
    flags.DEFINE_integer("clients", 30, "Clients of a round.")
    flags.DEFINE_integer("steps", 15, "Local steps.")
    flags.DEFINE_integer("per_chunk", 0, "Clients under one vmap; 0: one on a CPU, all elsewhere.")
    flags.DEFINE_string("aggregator", "mean", "The server's rule; a robust one bears a tenth of the clients.")
    flags.DEFINE_integer("devices", 1, "Devices over which the clients are spread.")
    flags.DEFINE_integer("population", 0, "Clients of which those of a round are drawn; 0: they are all.")
    flags.DEFINE_integer("own", _OWN, "Examples of a client.", lower_bound=1)
    flags.DEFINE_integer("batch", 32, "Examples of a local step.", lower_bound=1)
    flags.DEFINE_float("momentum", 0.5, "Of the local steps.", lower_bound=0.0)


def of_flags():
    """`one_round` as the flags say, and how many clients are under one vmap."""
    f = flags.FLAGS
    cli.choice("model", [*SHAPES, TRANSFORMER, LARGE])
    cli.choice("mechanism", MECHANISMS)
    cli.choice("aggregator", ("mean", *RULES))
    per_chunk = f.per_chunk or (1 if jax.default_backend() == "cpu" else f.clients)
    chosen = (f.model, MECHANISMS[f.mechanism], f.clients, f.steps, per_chunk)
    more = {"population": f.population, "own": f.own, "batch": f.batch, "momentum": f.momentum}
    return *one_round(*chosen, f.aggregator, devices.count(f.devices), **more), per_chunk
