"""A small federation from Python: four clients with arrays of their own, and a network of one's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import cepam_jax as cepam
from cepam_jax import federated, mechanisms

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(60, 5)).astype(np.float32)
Y = (X[:, 0] + X[:, 1] > 0).astype(np.int32)
OWNERS = np.repeat([7, 3, 9, 5], [10, 20, 15, 15])
DATA = {"inputs": X, "labels": Y}


class Net(nn.Module):
    """A small network, with or without batch normalization, in any type."""

    normalized: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Dense(4, dtype=self.dtype)(x)
        if self.normalized:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        return nn.Dense(2, dtype=self.dtype)(nn.relu(x))


TASK = cepam.tasks.classification(Net(), example=X[0])
CLIENTS = cepam.clients(DATA, owners=OWNERS)
NOISE = mechanisms.chain(mechanisms.clip("l2"), mechanisms.additive("gaussian"))


def federation(mechanism=NOISE, task=TASK, clients=CLIENTS, **changes):
    """With sigma .5 and a clip of norm 1, where the mechanism has knobs."""
    bare = isinstance(mechanism, mechanisms.Mechanism) and not mechanism.about.knobs
    knobs = {} if bare else {"sigma": 0.5, "clip": 1.0}
    return cepam.Federation(task, clients, mechanism, **(knobs | changes))


def after(fed, rounds, state=None):
    """The state after so many more rounds."""
    state = fed.initialize() if state is None else state
    for _ in range(rounds):
        state, _ = fed.step(state)
    return state


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


RISING = federated.Control(
    knobs=lambda factor, knobs, number: knobs._replace(sigma=knobs.sigma / factor),
    initialize=lambda knobs: jnp.float32(1),
    advance=lambda factor: 1.7 * factor,
)


def bounded(norm, size=0.01, unit="client"):
    """A local update that states a bound of its own."""
    usual = federated.make_local_update(TASK, federated.LocalTraining(1, 8))
    return usual._replace(
        influence=federated.Influence(unit, norm, lambda counts: np.full(len(counts), size))
    )
