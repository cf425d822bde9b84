import functools

import jax
import jax.numpy as jnp
import pytest

from cepam_jax import models
from cepam_jax.errors import ConfigError

pytestmark = pytest.mark.compiled_fast

# Machine code as it comes is enough here, and is compiled in half the time.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.mark.parametrize(
    ("name", "shape", "parameters"),
    [
        ("linear", (28, 28, 1), 7850),
        ("mlp", (28, 28, 1), 25818),
        ("cnn2", (28, 28, 1), 6422),
        ("cnn3", (32, 32, 3), 366186),
    ],
)
def test_parameters_and_logits(name, shape, parameters):
    module = models.build(name, 10)
    params = jit(lambda key: models.initialize(module, key, shape))(jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters
    assert jit(module.apply)({"params": params}, jnp.ones((3, *shape))).shape == (3, 10)


def test_dropout_is_for_training_only():
    module = models.build("cnn3", 10)
    params = jit(lambda key: models.initialize(module, key, (32, 32, 3)))(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    apply = jit(module.apply, static_argnames="train")
    run = lambda train, key: apply(  # noqa: E731
        {"params": params}, images, train=train, rngs={"dropout": jax.random.key(key)}
    )
    assert (run(False, 1) == run(False, 2)).all()
    assert not (run(True, 1) == run(True, 2)).all()


def test_unknown_model_and_too_small_images():
    with pytest.raises(
        ConfigError,
        match="config.model is 'resnet'; it must be a model for images: 'cnn2', 'cnn3', 'cnn_tanh', 'linear'",
    ):
        models.build("resnet", 10)
    with pytest.raises(ConfigError, match="model needs larger images"):
        models.initialize(models.build("cnn2", 10), jax.random.key(0), (8, 8, 1))
    for size in (7, 2):
        with pytest.raises(ConfigError, match="1x1 pixels are left for a pooling"):
            models.initialize(models.build("cnn3", 10), jax.random.key(0), (size, size, 1))


def test_a_model_is_added_by_one_function():
    @models.register
    def tiny(num_classes):
        return models.Network(num_classes, dense=(3,))

    try:
        assert models.build("tiny", 4).num_classes == 4
    finally:
        del models.MODELS["tiny"]


def test_a_model_for_other_inputs_is_refused_by_name():
    with pytest.raises(
        ConfigError, match=r"config.model is 'cnn2'; it must be a model for tables: 'linear', 'm"
    ):
        models.build("cnn2", 1, "table")
    with pytest.raises(ConfigError, match="model is 'resnet'"):
        models.build("resnet", 1, "table")

    @models.register_for("table")
    def narrow(num_classes):
        return models.Network(num_classes, dense=(3,))

    try:
        assert models.build("narrow", 1, "table").num_classes == 1
        assert "narrow" in models.names_for("table") and "narrow" not in models.names_for("image")
        with pytest.raises(ConfigError, match="'narrow'; it must be a model for images"):
            models.build("narrow", 10)
    finally:
        del models.MODELS["narrow"], models.INPUTS["narrow"]
