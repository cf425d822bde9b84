"""What somebody gets wrong in the first hour from Python, and what is then said."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cepam_jax as cepam
from cepam_jax import mechanisms
from cepam_jax.errors import ConfigError

pytestmark = pytest.mark.compiled_fast

X = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int32)
DATA = {"inputs": X, "labels": Y}


def federation(task, **fields):
    return cepam.Federation(task, cepam.clients(DATA, number=4), mechanisms.identity(), **fields)


def test_metrics_that_are_means_over_the_batch_are_refused():
    """The last batch is filled with copies, so that a mean would count some examples more than once."""
    task = cepam.tasks.classification(nn.Dense(2), example=X[0])
    for mean in (lambda a: a.mean(), lambda a: a.mean(keepdims=True)):

        def evaluate(model, batch, constants, mean=mean):
            return jax.tree.map(mean, task.evaluate(model, batch, constants))

        made = federation(task._replace(evaluate=evaluate))
        with pytest.raises(ConfigError, match="evaluate gives '.*' of shape .*one value for each example"):
            made.evaluate(made.initialize(), DATA)


MODES = {"train": False, "training": False, "is_training": False, "deterministic": True}


def module_with(name):
    """A network with batch normalization and dropout that is told by this argument whether it trains."""

    def call(self, x, told):
        trains = told != MODES[name]
        x = nn.BatchNorm(use_running_average=not trains)(nn.Dense(8)(x))
        return nn.Dense(2)(nn.Dropout(0.9, deterministic=not trains)(x))

    scope = {"call": nn.compact(call)}
    exec(f"def __call__(self, x, {name}={MODES[name]}): return self.call(x, {name})", scope)
    return type("Told", (nn.Module,), {"call": scope["call"], "__call__": scope["__call__"]})()


@pytest.mark.parametrize("name", MODES)
def test_a_module_is_told_that_it_trains_by_the_usual_names(name):
    made = federation(cepam.tasks.classification(module_with(name), example=X[0]), steps=2)
    state = made.initialize()
    after, _ = made.step(state)
    before, now = (s.statistics["batch_stats"]["BatchNorm_0"]["mean"] for s in (state, after))
    assert not np.allclose(before, now)
    assert made.evaluate(after, DATA) == made.evaluate(after, DATA)  # no dropout there


def test_pretrained_statistics_are_taken_or_missed():
    module = module_with("train")
    fresh = module.init(jax.random.key(0), X[:1])
    given = jax.tree.map(lambda a: a + 5, fresh)
    made = federation(cepam.tasks.classification(cepam.tasks.network(module, X[0], pretrained=given)))
    jax.tree.map(
        np.testing.assert_array_equal, made.initialize().statistics, {"batch_stats": given["batch_stats"]}
    )
    with pytest.raises(ConfigError, match="collections 'params', 'batch_stats'"):
        cepam.tasks.network(module, X[0], pretrained=given["params"]).initialize(jax.random.key(0))


@pytest.mark.parametrize("optimizer", [optax.lbfgs(), optax.lookahead(optax.sgd(0.1), 2, 0.5)])
def test_an_optimizer_that_wants_more_than_gradients_is_refused(optimizer):
    with pytest.raises(ConfigError, match="optimizer cannot take a step with the model's gradients"):
        federation(cepam.tasks.classification(nn.Dense(2), example=X[0]), optimizer=optimizer)


@pytest.mark.parametrize("optimizer", [optax.adamw(0.1), optax.adafactor(0.1), optax.chain(optax.clip(1.0))])
def test_others_are_not(optimizer):
    federation(cepam.tasks.classification(nn.Dense(2), example=X[0]), optimizer=optimizer)


def test_what_a_network_is_made_of_is_said():
    with pytest.raises(ConfigError, match="example is None; it must be inputs of one example"):
        cepam.tasks.classification(nn.Dense(2), example=None)
    with pytest.raises(ConfigError, match=r"module is .*; it must be a flax.linen.Module"):
        cepam.tasks.network(lambda x: x, X[0])


@pytest.mark.parametrize("rank", [0, -1, 2.5, True])
def test_ranks_that_cannot_be(rank):
    task = cepam.tasks.classification(nn.Dense(2), example=X[0])
    with pytest.raises(ConfigError, match="rank is .*; it must be a whole number of at least 1"):
        cepam.tasks.adapted(task, rank)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("dirichlet", {"alpha": 0.3}), ("shards", {"shards_per_client": 2}), ("by_size", {})],
)
def test_labels_that_are_to_divide_the_clients_are_asked_for(kind, options):
    with pytest.raises(ConfigError, match=rf"clients\(partition='{kind}'\) needs labels="):
        cepam.clients(DATA, number=4, partition=kind, **options)


def test_shapes_of_jax_are_no_matter():
    made = federation(cepam.tasks.classification(nn.Dense(2), example=jnp.asarray(X[0])))
    assert set(made.evaluate(made.initialize(), DATA)) >= {"accuracy", "loss"}
