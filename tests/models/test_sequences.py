"""Models of characters: sizes, causality, dropout, and what they are initialized to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cepam_jax import models
from cepam_jax.errors import ConfigError
from cepam_jax.models import sequences
from cepam_jax.models.transformer import Transformer

pytestmark = pytest.mark.compiled_fast

SIZES = {
    "transformer_tiny": 108_352,
    "transformer_small": 809_856,
    "transformer_base": 4_772_096,
    "transformer_large": 10_697_088,
    "lstm": 813_897,
}
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.lru_cache
def small(name):
    """(module, parameters, jitted (parameters, characters) -> logits)."""
    module = sequences.build(name, 7, 12)
    params = jit(module.init)(jax.random.key(0), jnp.zeros((1, 12), jnp.int32))["params"]
    # Away from the beginning, where a Transformer's attention is nearly even.
    noise = jax.random.key(1)
    params = jax.tree.map(lambda a: a + 0.3 * jax.random.normal(noise, a.shape), params)
    return module, params, jit(lambda params, x: module.apply({"params": params}, x))


def test_every_model_is_counted():
    assert set(SIZES) == set(sequences.SEQUENCES)


@pytest.mark.parametrize(("name", "parameters"), SIZES.items())
def test_parameters(name, parameters):
    module = sequences.build(name, 65, 64)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 64), jnp.int32))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    if name != "lstm":  # embedding, positions, 12 w^2 + 13 w in each block, the last norm
        w, layers = module.width, module.layers
        assert parameters == (65 + 64) * w + layers * (12 * w**2 + 13 * w) + 2 * w


@pytest.mark.parametrize("name", ["transformer_tiny", "lstm"])
def test_a_later_character_never_changes_an_earlier_logit(name):
    _, params, logits = small(name)
    x = jax.random.randint(jax.random.key(2), (1, 12), 0, 7)
    before = logits(params, x)
    for place in (3, 7, 11):
        after = logits(params, x.at[0, place].set((x[0, place] + 1) % 7))
        np.testing.assert_array_equal(before[:, :place], after[:, :place])
        assert (before[:, place:] != after[:, place:]).any(axis=(0, 2)).all()


def test_a_module_that_looks_ahead_is_noticed():
    """The twin: the same test on logits of the sequence turned round."""
    _, params, logits = small("transformer_tiny")
    x = jax.random.randint(jax.random.key(2), (1, 12), 0, 7)
    before, after = (logits(params, y[:, ::-1])[:, ::-1] for y in (x, x.at[0, 7].set((x[0, 7] + 1) % 7)))
    assert (before[:, :7] != after[:, :7]).any()


def test_places_count():
    """A Transformer knows where a character stands, by its positions."""
    _, params, logits = small("transformer_tiny")
    found = logits(params, jnp.zeros((1, 12), jnp.int32))[0]
    assert (jnp.abs(found[1:] - found[:-1]).max(1) > 1e-3).all()


@pytest.mark.parametrize("name", ["transformer_tiny", "lstm"])
def test_dropout_is_for_training_only(name):
    module = sequences.build(name, 7, 12, 0.5)
    _, params, _ = small(name)
    x = jax.random.randint(jax.random.key(2), (2, 12), 0, 7)
    run = jit(
        lambda key, train: module.apply({"params": params}, x, train=train, rngs={"dropout": key}),
        static_argnums=1,
    )
    one, two = jax.random.split(jax.random.key(3))
    assert (run(one, False) == run(two, False)).all() and (run(one, True) != run(two, True)).any()


def test_parameters_stay_float32_where_it_computes_in_bfloat16():
    x = jax.random.randint(jax.random.key(2), (2, 12), 0, 7)
    exact, rough = (Transformer(7, 12, 1, 16, 2, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    params = jit(rough.init)(jax.random.key(0), x)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    a, b = (jit(module.apply)({"params": params}, x) for module in (exact, rough))
    assert b.dtype == jnp.float32 and (a != b).any()
    np.testing.assert_allclose(a, b, atol=0.02)


def test_it_begins_with_an_even_guess():
    module = sequences.build("transformer_tiny", 65, 64)
    x = jax.random.randint(jax.random.key(2), (2, 64), 0, 65)
    params = jit(module.init)(jax.random.key(0), x)["params"]
    chances = jax.nn.log_softmax(jit(module.apply)({"params": params}, x))
    assert abs(float(-chances.mean()) - np.log(65)) < 0.05


def test_models_of_other_kinds_are_refused_by_name():
    with pytest.raises(ConfigError, match="model of sequences is 'mlp'; it must be one of 'lstm', 'transf"):
        sequences.build("mlp", 65, 64)
    module, params, _ = small("transformer_tiny")
    with pytest.raises(ConfigError, match="characters of a window is 13; it must be at most the context, 12"):
        module.apply({"params": params}, jnp.zeros((1, 13), jnp.int32))
    with pytest.raises(
        ConfigError, match="config.model is 'lstm'; it must be a model for images: 'cnn2', 'cnn3'"
    ):
        models.build("lstm", 10)
    assert models.parts_of("lstm") == (None, sequences.lstm)
    assert set(models.NAMES) == {*models.MODELS, *sequences.SEQUENCES}
