import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from cepam_jax import models
from cepam_jax.federated import local
from cepam_jax.federated.state import ClientArrays
from cepam_jax.run.config import defaults
from cepam_jax.tasks import Model, image_classification
from cepam_jax.tasks.images import normalized

pytestmark = pytest.mark.compiled_fast

MODULE = models.build("mlp", 10)
IMAGES = {
    "image": jax.random.randint(jax.random.key(1), (200, 8, 8, 1), 0, 256).astype(jnp.uint8),
    "label": jax.random.randint(jax.random.key(2), (200,), 0, 10),
}
CONSTANTS = {"mean": jnp.array([0.5]), "std": jnp.array([0.3])}
SPECIFICATION = (
    (("num_classes", 10),),
    (("image", "uint8", (8, 8, 1)), ("label", "int32", ())),
    (("mean", "float32", (1,)), ("std", "float32", (1,))),
)
TASK = image_classification(defaults(), SPECIFICATION)
PARAMS = jax.jit(TASK.initialize)(jax.random.key(0)).params


def update_of(training, row, count, steps, key):
    """(update, loss, weight) of a client with these rows."""
    arrays = ClientArrays(IMAGES, CONSTANTS, row[None], count[None], steps[None], None, None, None)
    return local.make_local_update(TASK, training).run(Model(PARAMS), arrays, 0, key, None, 0)[:3]


def settings(**changes):
    return local.LocalTraining(
        **({"steps": 4, "batch_size": 8, "learning_rate": 0.1, "momentum": 0.5} | changes)
    )


@pytest.mark.parametrize("update_kind", local.UPDATES)
@pytest.mark.parametrize("sampling", local.SAMPLINGS)
@pytest.mark.parametrize("count", [1, 50])
def test_a_padded_client_gives_the_same_update_to_the_bit(update_kind, sampling, count):
    training = settings(update_kind=update_kind, sampling=sampling)
    run = jax.jit(lambda *arguments: update_of(training, *arguments))
    row = jnp.arange(100, 100 + count)
    padded = jnp.concatenate([row, jnp.full(77, row[0])])
    alone, *_ = run(row, jnp.int32(count), jnp.int32(4), jax.random.key(3))
    among, *_ = run(padded, jnp.int32(count), jnp.int32(4), jax.random.key(3))
    np.testing.assert_array_equal(alone, among)
    other, *_ = run(padded + 1, jnp.int32(count), jnp.int32(4), jax.random.key(3))
    assert not np.array_equal(alone, other)


@pytest.mark.parametrize("sampling", local.SAMPLINGS)
def test_batches_stay_inside_the_client(sampling):
    for count in (1, 3, 31, 32, 33, 60):
        rows = local.choose_batches(
            jax.random.key(count), jnp.int32(count), 60, settings(sampling=sampling, steps=20)
        )
        assert rows.shape == (20, 8) and rows.min() >= 0 and rows.max() == count - 1


def test_shuffle_uses_every_example_once_before_any_twice():
    rows = local.choose_batches(jax.random.key(0), jnp.int32(16), 40, settings(sampling="shuffle"))
    np.testing.assert_array_equal(np.sort(rows.ravel()), np.repeat(np.arange(16), 2))
    np.testing.assert_array_equal(np.sort(rows[:2].ravel()), np.arange(16))


def reference(run_settings, row, key, steps):
    """Local training written out step by step, with the gradient from jax."""
    batch_key = jax.random.split(key)[0]
    rows = row[local.choose_batches(batch_key, jnp.int32(len(row)), len(row), run_settings)]

    def loss(params, batch):
        logits = MODULE.apply({"params": params}, normalized(IMAGES["image"][batch], CONSTANTS))
        return -jax.nn.log_softmax(logits)[jnp.arange(len(batch)), IMAGES["label"][batch]].mean()

    if run_settings.update_kind == "gradient":
        return -ravel_pytree(jax.grad(loss)(PARAMS, rows.reshape(-1)))[0]
    params, velocity = PARAMS, jax.tree.map(jnp.zeros_like, PARAMS)
    for batch in rows[:steps]:
        gradient = jax.grad(loss)(params, batch)
        gradient = jax.tree.map(lambda g, p, w: g + run_settings.proximal * (p - w), gradient, params, PARAMS)
        velocity = jax.tree.map(lambda v, g: run_settings.momentum * v + g, velocity, gradient)
        params = jax.tree.map(lambda p, v: p - run_settings.learning_rate * v, params, velocity)
    return ravel_pytree(params)[0] - ravel_pytree(PARAMS)[0]


@pytest.mark.parametrize(
    ("changes", "steps"),
    [({}, 4), ({"update_kind": "gradient"}, 4), ({}, 2), ({"proximal": 5.0}, 4), ({"momentum": 0.0}, 1)],
)
def test_local_training_is_sgd_with_momentum_or_one_gradient(changes, steps):
    """Also for a client with fewer steps, and with FedProx's term."""
    row, key = jnp.arange(20, 60), jax.random.key(5)
    found, _, weight = update_of(settings(**changes), row, jnp.int32(40), jnp.int32(steps), key)
    np.testing.assert_allclose(found, reference(settings(**changes), row, key, steps), rtol=1e-3, atol=1e-6)
    assert float(weight) == 1


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_fednova_divides_by_the_weight_of_the_steps(momentum):
    """|a|_1 counted out: every gradient enters the update once, and again through the momentum."""
    for steps in (1, 2, 4):
        velocity, total = 0.0, 0.0
        for _ in range(steps):
            velocity = momentum * velocity + 1
            total += velocity
        assert settings(momentum=momentum).weight(steps) == pytest.approx(total)
    row, key = jnp.arange(20, 60), jax.random.key(5)
    plain, divided = (
        update_of(settings(momentum=momentum, normalize=normalize), row, jnp.int32(40), jnp.int32(2), key)
        for normalize in (False, True)
    )
    ratio = settings(momentum=momentum).weight(2) / settings(momentum=momentum).weight(4)
    assert float(divided[2]) == pytest.approx(ratio, rel=1e-5)
    np.testing.assert_allclose(divided[0] * ratio, plain[0], rtol=1e-4, atol=1e-7)
