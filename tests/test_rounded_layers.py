"""Local training in few bits: an example still speaks for itself, and gradients are right in the mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_tasks import PAIRS, start

from cepam_jax.errors import ConfigError
from cepam_jax.federated.local import batch_of
from cepam_jax.run import training
from cepam_jax.tasks import Task, few_bits, rounded_layers
from configs import digits


@pytest.mark.parametrize(("name", "data"), PAIRS)
def test_the_loss_in_few_bits_is_the_mean_over_examples(name, data):
    """And another one than that in floats, near it with many bits."""
    task, model, batch, constants = start(name, data)

    def loss(bits, batch):
        return jax.jit(few_bits(task, bits, bits).loss)(model, batch, constants, jax.random.key(1))[0]

    each = [loss(3, batch_of(batch, jnp.array([k]))) for k in range(12)]
    np.testing.assert_allclose(loss(3, batch), np.mean(each), rtol=1e-5)
    exact = jax.jit(task.loss)(model, batch, constants, jax.random.key(1))[0]
    assert loss(2, batch) != exact
    np.testing.assert_allclose(loss(14, batch), exact, rtol=2e-3)


def test_levels():
    x = jnp.array([[-1.0, -0.2, 0.0, 0.6, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0], [7.0, 1.2, -3.4, -7.0, 2.6]])
    expected = [[-1.0, 0.0, 0.0, 1.0, 1.0], [0.0] * 5, [7.0, 0.0, 0.0, -7.0, 0.0]]
    np.testing.assert_allclose(rounded_layers.nearest(x, 2), expected)
    np.testing.assert_allclose(rounded_layers.nearest(x, 4)[2], [7.0, 1.0, -3.0, -7.0, 3.0], rtol=1e-6)
    assert jax.grad(lambda x: (rounded_layers.nearest(x, 2) * x).sum())(x).shape == x.shape
    drawn = rounded_layers.at_random(x, 2, jax.random.key(0))
    assert set(np.unique(drawn)) <= {-7.0, -1.0, 0.0, 1.0, 7.0} and not drawn[1].any()


def gradients(task, parts, keys):
    """f32[keys, d]: of the same batch."""
    model, batch, constants = parts

    def one(key):
        found = jax.grad(lambda p: task.loss(model._replace(params=p), batch, constants, key)[0])(
            model.params
        )
        return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(found)])

    return np.asarray(jax.jit(jax.vmap(one))(keys), np.float64)


def worst(found, exact):
    """The largest deviation of a mean from what it should be, in its standard errors."""
    error = found.std(0) / np.sqrt(len(found))
    return np.abs((found.mean(0) - exact) / np.maximum(error, 1e-7)).max()


def test_rounded_gradients_are_right_in_the_mean(monkeypatch):
    """6 standard errors of 2,778 means: false alarms below 1e-5. Rounding to the nearest level fails."""
    task, model, batch, constants = start("image_classification", "digits")
    keys = jax.random.split(jax.random.key(3), 3000)
    exact = gradients(task, (model, batch, constants), keys[:1])[0]
    found = gradients(few_bits(task, 0, 3), (model, batch, constants), keys)
    assert found.std(0).max() > 0 and worst(found, exact) < 6
    monkeypatch.setattr(rounded_layers, "at_random", lambda x, bits, key: rounded_layers.nearest(x, bits))
    found = gradients(few_bits(task, 0, 3), (model, batch, constants), keys[:100])
    assert worst(found, exact) > 6


def config_of(**local):
    config = digits.get_config("cepam_gaussian")
    config.rounds = config.eval_every = 8
    config.local.update(local)
    return config


def test_a_run_in_few_bits_learns_and_its_privacy_is_as_it_was(tmp_path):
    """Another model than in floats, at the same epsilon; and a run that continues is the same to the bit."""
    floats = training.train(config_of(), tmp_path / "floats", progress=False)[-1]
    rounded = training.train(config_of(activation_bits=6, gradient_bits=6), tmp_path / "few", progress=False)[
        -1
    ]
    assert rounded["accuracy"] > 0.75 and rounded["loss"] != floats["loss"]
    assert rounded["epsilon"] == floats["epsilon"]
    half = config_of(activation_bits=6, gradient_bits=6)
    half.rounds = 4
    training.train(half, tmp_path / "half", progress=False)
    half.rounds = 8
    again = training.train(half, tmp_path / "half", progress=False)[-1]
    assert again["loss"] == rounded["loss"]


def test_what_cannot_be_rounded_is_refused(tmp_path):
    config = config_of(gradient_bits=1)
    with pytest.raises(ConfigError, match="config.local.gradient_bits is 1; it must be 0, or from 2 to 16"):
        training.train(config, tmp_path, progress=False)
    task = start("image_classification", "digits")[0]
    with pytest.raises(ConfigError, match="activations is 17"):
        few_bits(task, 17)

    def loss(model, batch, constants, key):
        return (model.params["w"] ** 2).sum(), None

    own = few_bits(Task(None, loss, None, None), 4)
    with pytest.raises(
        ConfigError, match="the model has none of: Conv, Conv, Dense, DenseGeneral|none of: Conv"
    ):
        own.loss(type("Model", (), {"params": {"w": jnp.ones(2)}}), None, None, jax.random.key(0))
