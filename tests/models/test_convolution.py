"""The fast convolution and pooling are flax's, values and gradients."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cepam_jax.models import convolution

pytestmark = pytest.mark.slow

SHAPES = [
    (3, (2, 7, 8, 3)),
    (5, (3, 9, 6, 1)),
    (1, (1, 4, 4, 2)),
    (5, (1, 13, 28, 1)),  # several tiles
    (2, (2, 5, 5, 2)),
    (3, (1, 3, 5, 2)),  # one output row without padding: nothing to pool there
]


class Theirs(nn.Module):
    kernel: int
    padding: str
    pool: bool

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (self.kernel, self.kernel), padding=self.padding)(x)
        return nn.max_pool(x, (2, 2), (2, 2)) if self.pool else x


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize(("kernel", "shape"), SHAPES)
def test_convolution_is_flax_s(padding, kernel, shape, pool):
    if pool and padding == "VALID" and shape[1] == kernel:
        pytest.skip("no window to pool")
    x = jax.random.normal(jax.random.key(0), shape)
    ours, theirs = convolution.Conv(4, kernel, padding, pool), Theirs(kernel, padding, pool)
    expected_shapes = jax.eval_shape(theirs.init, jax.random.key(1), x)["params"]["Conv_0"]
    shapes = jax.eval_shape(ours.init, jax.random.key(1), x)["params"]
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, expected_shapes)
    random = np.random.default_rng(1)
    params = jax.tree.map(lambda s: 0.3 * random.normal(size=s.shape).astype(np.float32), shapes)

    def loss(apply, params, x):
        y = apply(params, x)
        return jnp.sum(jnp.sin(y) * jnp.arange(y.size).reshape(y.shape) / y.size)

    apply_ours = lambda p, x: ours.apply({"params": p}, x)  # noqa: E731
    apply_theirs = lambda p, x: theirs.apply({"params": {"Conv_0": p}}, x)  # noqa: E731

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles faster
    def both(params, x):
        values = [apply(params, x) for apply in (apply_ours, apply_theirs)]
        gradients = [
            jax.grad(lambda p, x, apply=apply: loss(apply, p, x), (0, 1))(params, x)
            for apply in (apply_ours, apply_theirs)
        ]
        return values, gradients

    values, gradients = both(params, x)
    np.testing.assert_allclose(*values, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *gradients)


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (2, 2)])
def test_pooling_is_flax_s_even_with_ties(size):
    # Few distinct values: most windows have ties, where the first largest takes the gradient.
    x = jax.random.randint(jax.random.key(0), (2, *size, 3), 0, 3).astype(jnp.float32)
    change = jax.random.normal(jax.random.key(1), (2, size[0] // 2, size[1] // 2, 3))
    one = jnp.eye(3)[None, None]  # the convolution that does nothing

    @jax.jit
    def both(x, change):
        found, pull = jax.vjp(lambda x: convolution.convolve_and_pool(one, x), x)
        expected, pull_expected = jax.vjp(lambda x: nn.max_pool(x, (2, 2), (2, 2)), x)
        return (found, expected), (pull(change)[0], pull_expected(change)[0])

    for pair in both(x, change):
        np.testing.assert_array_equal(*pair)


@pytest.mark.parametrize("apply", [convolution.convolve, convolution.convolve_and_pool])
def test_vmap_over_clients_is_a_loop(apply):
    kernels = jax.random.normal(jax.random.key(0), (3, 3, 3, 2, 4))
    xs = jax.random.normal(jax.random.key(1), (3, 5, 6, 7, 2))
    together, one = jax.jit(jax.vmap(apply))(kernels, xs), jax.jit(apply)
    for k in range(3):
        np.testing.assert_allclose(together[k], one(kernels[k], xs[k]), rtol=1e-5, atol=1e-5)
