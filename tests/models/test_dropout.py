"""Dropout draws what flax's draws, passes on the same gradients, and draws once."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cepam_jax import models
from cepam_jax.models import dropout
from cepam_jax.models.apart import apart

pytestmark = pytest.mark.compiled_fast


class Theirs(nn.Module):
    rate: float
    activation: object

    @nn.compact
    def __call__(self, x):
        x = x if self.activation is None else self.activation(x)
        return nn.Dropout(self.rate, deterministic=False, name="Dropout_0")(x)


class Ours(nn.Module):
    rate: float
    activation: object

    @nn.compact
    def __call__(self, x):
        return dropout.Dropout(self.rate, False, self.activation)(x)


def applied(module, x, change, key):
    found, pull = jax.vjp(lambda x: module.apply({}, x, rngs={"dropout": key}), x)
    return found, pull(change)[0]


@pytest.mark.parametrize("activation", [None, nn.relu, nn.tanh])
@pytest.mark.parametrize(
    ("shape", "rate"),
    [
        ((2, 3, 5, 7), 0.2),
        ((9, 5000), 0.5),  # several parts, and the last one is filled up
        ((1,), 0.9),
        ((2, 40_000), 0.35),  # rows longer than a part
    ],
)
def test_it_is_flax_s(shape, rate, activation):
    random = np.random.default_rng(0)
    x, change = (jnp.asarray(random.normal(size=shape).astype(np.float32)) for _ in range(2))
    key = jax.random.key(3)
    ours = applied(Ours(rate, activation), x, change, key)
    theirs = applied(Theirs(rate, activation), x, change, key)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a == 0, b == 0)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_value_that_is_no_number_stays_visible():
    x = jnp.full(1000, jnp.nan)
    found = dropout.dropped(x, jax.random.key(0), 0.5, nn.relu)
    rectified, _ = applied(Ours(0.5, nn.relu), x, x, jax.random.key(0))
    for values in (found, rectified):
        assert 400 < int(jnp.isnan(values).sum()) < 600


def test_clients_under_vmap_draw_their_own():
    keys, x = jax.random.split(jax.random.key(1), 3), jnp.ones((3, 50))
    together = jax.vmap(lambda x, key: dropout.dropped(x, key, 0.5))(x, keys)
    for k in range(3):
        np.testing.assert_array_equal(together[k], dropout.dropped(x[k], keys[k], 0.5))
    assert (together[0] != together[1]).any()


def test_another_kind_of_key_is_left_to_jax():
    key, x = jax.random.key(1, impl="rbg"), jnp.ones(1000)
    expected = jnp.where(jax.random.bernoulli(key, 0.5, x.shape), 2.0, 0.0)
    np.testing.assert_array_equal(dropout.dropped(x, key, 0.5), expected)


def exclusive_ors(function, *arguments) -> int:
    """How often the compiled program holds what every round of Threefry ends with."""
    return jax.jit(function).lower(*arguments).compile().as_text().count(" xor(")


def test_the_gradient_behind_a_relu_draws_no_mask_again():
    # Twenty rounds, the key schedule and the two words together: in one loop, not in one for each use.
    x, key = jnp.ones((64, 32)), jax.random.key(0)

    def forwards(x, key):
        return jnp.pad(Ours(0.2, nn.relu).apply({}, x, rngs={"dropout": key}), 1)

    def both(x, key):
        y, pull = jax.vjp(lambda x: forwards(x, key), x)
        return pull(jnp.sin(y))

    alone = exclusive_ors(forwards, x, key)
    assert 20 <= alone <= exclusive_ors(both, x, key) <= alone + 1


def test_the_network_drops_as_flax_would():
    net = models.Network(3, channels=(4,), dense=(5,), dropout=0.4)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32))
    params = net.init(jax.random.key(0), x)["params"]
    plain = {"params": params, "rngs": {"dropout": jax.random.key(7)}}
    found = net.apply({"params": params}, x, train=True, rngs=plain["rngs"])

    with nn.intercept_methods(_as_flax):
        expected = net.apply({"params": params}, x, train=True, rngs=plain["rngs"])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert float(jnp.abs(found - net.apply({"params": params}, x)).max()) > 1e-3


def _as_flax(call, arguments, options, context):
    module = context.module
    if not isinstance(module, dropout.Dropout) or context.method_name != "__call__":
        return call(*arguments, **options)
    (x,) = arguments
    x = module.activation(x)
    if module.deterministic:
        return x
    kept = jax.random.bernoulli(module.make_rng("dropout"), 1 - module.rate, x.shape)
    return jnp.where(kept, x / (1 - module.rate), 0.0)


@pytest.mark.parametrize("rows", [5, 6])
def test_apart_is_the_function_itself(rows):
    x = jnp.arange(rows * 3.0).reshape(rows, 3)
    found = jax.jit(lambda x: apart(lambda t: (t["a"] + 1, t["b"].sum(1)), {"a": x, "b": 2 * x}))(x)
    np.testing.assert_array_equal(found[0], x + 1)
    np.testing.assert_array_equal(found[1], (2 * x).sum(1))


def test_what_is_apart_is_not_computed_again_by_those_who_use_it():
    def times(function) -> int:
        def used_twice(x):
            y = function(x)
            return jnp.pad(y, 1), jnp.pad(y, 2) * 2

        return jax.jit(used_twice).lower(jnp.ones((64, 64))).compile().as_text().count(" maximum(")

    plain, alone = times(_cheap), times(lambda x: apart(_cheap, x))
    # Where XLA no longer computes it in both, `apart` has lost its use.
    assert (plain, alone) == (2, 1)


def _cheap(x):
    return jnp.maximum(x, 0.5)
