"""Local training in few bits: an example still speaks for itself, and gradients are right in the mean."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_tasks import PAIRS, start

from cepam_jax.errors import ConfigError
from cepam_jax.federated.local import batch_of
from cepam_jax.run import training
from cepam_jax.tasks import Model, Task, few_bits, network, rounded_layers
from configs import digits

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]


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
    expected = np.array([[-1.0, 0.0, 0.0, 1.0, 1.0], [0.0] * 5, [7.0, 0.0, 0.0, -7.0, 0.0]])
    rounded = rounded_layers.nearest(x, 2)
    np.testing.assert_allclose(rounded, expected)
    np.testing.assert_allclose(rounded_layers.nearest(x, 4)[2], [7.0, 1.0, -3.0, -7.0, 3.0], rtol=1e-6)
    # Vectors have levels of their own, whatever stands before them; images share them.
    np.testing.assert_allclose(rounded_layers.nearest(x[2], 2), expected[2])
    np.testing.assert_allclose(rounded_layers.nearest(x, 2, axes=2)[0], 0)
    # The derivative is taken as if nothing had been rounded.
    found = jax.grad(lambda x: (rounded_layers.nearest(x, 2) * x).sum())(x)
    np.testing.assert_allclose(found, expected + np.asarray(x))
    drawn = rounded_layers.at_random(x, 2, 1, jax.random.key(0))
    assert set(np.unique(drawn)) <= {-7.0, -1.0, 0.0, 1.0, 7.0} and not drawn[1].any()
    whole = jnp.array([[3, 5]])
    assert rounded_layers.nearest(whole, 2) is whole


@pytest.mark.parametrize("bits", [2, 8, 16])
def test_no_level_is_beyond_the_largest_and_nothing_tiny_becomes_nan(bits):
    largest = 2 ** (bits - 1) - 1
    for scale in (1e-38, 1e-36, 1e-34, 1e-3, 1.0, 1e30):
        x = scale * jnp.concatenate([jnp.ones((200, 3)), jnp.array([[-1.0, 0.3, 0.1]])])
        for found in (
            jax.jit(rounded_layers.nearest, static_argnums=1)(x, bits),
            jax.jit(rounded_layers.at_random, static_argnums=(1, 2))(x, bits, 1, jax.random.key(4)),
        ):
            assert np.isfinite(found).all() and np.abs(found).max() <= scale * (1 + 1e-6)
            if scale > 1e-10:
                np.testing.assert_allclose(
                    found / scale * largest, np.round(found / scale * largest), atol=0.01
                )
    bad = jnp.array([[1.0, jnp.nan]])
    assert np.isnan(rounded_layers.nearest(bad, bits)).any()
    assert np.isnan(rounded_layers.at_random(bad, bits, 1, jax.random.key(0))).any()


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
    monkeypatch.setattr(
        rounded_layers, "at_random", lambda x, bits, axes, key: rounded_layers.nearest(x, bits, axes)
    )
    found = gradients(few_bits(task, 0, 3), (model, batch, constants), keys[:100])
    assert worst(found, exact) > 6


class Extended(nn.Dense):
    """A layer that calls the one that it extends."""

    def __call__(self, inputs):
        return 2 * super().__call__(inputs)


class Recurrent(nn.Module):
    """Eight steps of a cell whose layers are dense ones."""

    @nn.compact
    def __call__(self, x):
        return Extended(1)(inputs=nn.RNN(nn.SimpleCell(3))(x)[:, -1])


def of_module(module, shape):
    """(task, model, batch): a mean of squares of what a module says of two examples of a shape."""
    net = network(module, np.zeros(shape, np.float32))

    def loss(model, batch, constants, key):
        outputs, _ = net.apply(model, batch["x"], key)
        return (outputs**2).mean(), None

    batch = {"x": jax.random.normal(jax.random.key(5), (2, *shape))}
    return Task(net.initialize, loss, None, None), net.initialize(jax.random.key(6)), batch


def test_steps_of_a_scan_are_rounded_apart(monkeypatch):
    """A layer in a scan is traced once: with the same noise in all steps the mean would be wrong."""
    task, model, batch = of_module(Recurrent(), (8, 2))
    keys = jax.random.split(jax.random.key(3), 20_000)
    exact = gradients(task, (model, batch, None), keys[:1])[0]
    assert worst(gradients(few_bits(task, 0, 2), (model, batch, None), keys), exact) < 6
    monkeypatch.setattr(jax.random, "fold_in", lambda key, data: key)
    assert worst(gradients(few_bits(task, 0, 2), (model, batch, None), keys), exact) > 6


def test_a_layer_that_calls_the_one_it_extends_is_rounded_once():
    task, model, batch = of_module(Extended(1), (3,))
    met = rounded_layers._Rounding(4, 4, jax.random.key(0))
    with nn.intercept_methods(met):
        task.loss(model, batch, None, jax.random.key(1))
    assert met.layers == 1


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


def test_examples_are_clipped_as_they_were_and_other_models_train(tmp_path):
    """Gradients of single examples keep to their clip; convolutions train, and adapters."""
    for changes in (
        {"local.update_kind": "gradient", "local.sampling": "shuffle", "local.example_clip": 0.1,
         "mechanism.clip": "none", "server.learning_rate": 1.0},
        {"model": "cnn3", "num_clients": 2, "local.learning_rate": 0.01},
        {"adapter.rank": 2, "local.learning_rate": 0.01},
    ):  # fmt: skip
        config = config_of(activation_bits=4, gradient_bits=4)
        config.rounds = config.eval_every = 2
        config.update_from_flattened_dict(changes)
        line = training.train(config, tmp_path / str(len(changes)) / config.model, progress=False)[-1]
        assert np.isfinite(line["loss"])
        if "local.example_clip" in changes:
            assert line["update_norm"] <= 0.1 * (1 + 1e-5)


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
    with pytest.raises(ConfigError, match="gradient_bits.* the model has none of: Conv, Dense, DenseGeneral"):
        own.loss(Model({"w": jnp.ones(2)}), None, None, jax.random.key(0))
