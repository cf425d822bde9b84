"""The fast convolution and pooling are flax's, values and gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cepam_jax.models import convolution


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize(("kernel", "shape"), [(3, (2, 7, 8, 3)), (5, (3, 9, 6, 1)), (1, (1, 4, 4, 2))])
def test_convolution_is_flax_s(padding, kernel, shape):
    x = jax.random.normal(jax.random.key(0), shape)
    ours, theirs = convolution.Conv(4, kernel, padding), nn.Conv(4, (kernel, kernel), padding=padding)
    params = theirs.init(jax.random.key(1), x)
    own = ours.init(jax.random.key(1), x.transpose(3, 0, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, params, own)

    def loss(apply, params, x):
        y = apply(params, x)
        return jnp.sum(jnp.sin(y) * jnp.arange(y.size).reshape(y.shape) / y.size)

    def apply_ours(params, x):
        return ours.apply(params, x.transpose(3, 0, 1, 2)).transpose(1, 2, 3, 0)

    np.testing.assert_allclose(apply_ours(params, x), theirs.apply(params, x), atol=1e-5)
    found = jax.grad(lambda p, x: loss(apply_ours, p, x), (0, 1))(params, x)
    expected = jax.grad(lambda p, x: loss(theirs.apply, p, x), (0, 1))(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, expected)


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (2, 2)])
def test_pooling_is_flax_s_even_with_ties(size):
    # Few distinct values: most windows have ties, where the first largest takes the gradient.
    x = jax.random.randint(jax.random.key(0), (2, *size, 3), 0, 3).astype(jnp.float32)
    change = jax.random.normal(jax.random.key(1), (2, size[0] // 2, size[1] // 2, 3))

    def ours(x):
        return convolution.max_pool(x.transpose(3, 0, 1, 2)).transpose(1, 2, 3, 0)

    found, pull = jax.vjp(ours, x)
    expected, pull_expected = jax.vjp(lambda x: nn.max_pool(x, (2, 2), (2, 2)), x)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(pull(change)[0], pull_expected(change)[0])


def test_vmap_over_clients_is_a_loop():
    kernels = jax.random.normal(jax.random.key(0), (3, 3, 3, 2, 4))
    xs = jax.random.normal(jax.random.key(1), (3, 2, 5, 6, 7))
    together = jax.vmap(convolution.convolve)(kernels, xs)
    for k in range(3):
        np.testing.assert_allclose(together[k], convolution.convolve(kernels[k], xs[k]), rtol=1e-5, atol=1e-5)
