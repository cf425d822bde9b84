"""The 3x3 convolution with fewer products is flax's, values and gradients, and has fewer products."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cepam_jax.models import convolution, winograd

pytestmark = pytest.mark.slow

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def plain(kernel, x):
    x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=DIMENSIONS)
    return nn.max_pool(x, (2, 2), (2, 2))


def arrays(shape, features, seed=0):
    random = np.random.default_rng(seed)
    kernel = random.normal(size=(3, 3, shape[-1], features)).astype(np.float32)
    return jnp.asarray(kernel), jnp.asarray(random.normal(size=shape).astype(np.float32))


def value_and_pull(function):
    def both(kernel, x, change):
        found, pull = jax.vjp(function, kernel, x)
        return found, pull(change)

    return jax.jit(both)


@pytest.mark.parametrize(
    ("shape", "features"),
    [
        ((2, 8, 6, 16), 24),
        ((3, 5, 7, 17), 16),  # an odd last row and column are left out
        ((1, 4, 4, 16), 16),  # one window
    ],
)
def test_values_and_gradients_are_flax_s(shape, features):
    kernel, x = arrays(shape, features)
    expected_shape = jax.eval_shape(plain, kernel, x).shape
    change = np.random.default_rng(1).normal(size=expected_shape).astype(np.float32)
    found, expected = value_and_pull(winograd.convolve_and_pool), value_and_pull(plain)
    for ours, theirs in zip(
        jax.tree.leaves(found(kernel, x, change)),
        jax.tree.leaves(expected(kernel, x, change)),
        strict=True,
    ):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=3e-6 * float(jnp.abs(theirs).max()))


def test_equal_values_of_a_window_give_the_first_the_gradient():
    # Constant images: all outputs of a window are equal, to the bit.
    kernel, _ = arrays((1, 6, 6, 16), 16)
    x = jnp.full((2, 6, 6, 16), 0.7)
    change = np.random.default_rng(1).normal(size=(2, 2, 2, 16)).astype(np.float32)
    (_, ours), (_, theirs) = (
        value_and_pull(function)(kernel, x, change) for function in (winograd.convolve_and_pool, plain)
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6 * float(jnp.abs(b).max()))


def test_vmap_over_clients_is_a_loop():
    random = np.random.default_rng(2)
    kernels = random.normal(size=(3, 3, 3, 16, 16)).astype(np.float32)
    xs = random.normal(size=(3, 2, 6, 6, 16)).astype(np.float32)
    one = jax.jit(winograd.convolve_and_pool)
    together = jax.jit(jax.vmap(winograd.convolve_and_pool))(kernels, xs)
    for k in range(3):
        np.testing.assert_allclose(together[k], one(kernels[k], xs[k]), rtol=1e-5, atol=1e-4)


def test_an_image_that_is_not_a_number_spoils_itself_alone():
    kernel, x = arrays((2, 6, 6, 16), 16)
    found = winograd.convolve_and_pool(kernel, x.at[0, 3, 3, 0].set(jnp.nan))
    assert jnp.isnan(found[0]).any() and jnp.isfinite(found[1]).all()


def products(function, *arguments) -> int:
    """Multiplications of all matrix products of a function, from the program before it is compiled."""
    text = jax.jit(function).lower(*arguments).as_text()
    total = 0
    for line in text.splitlines():
        if "dot_general" not in line:
            continue
        left, _, result = ([int(n) for n in dims.split("x")[:-1]] for dims in _tensors(line))
        contracting = re.search(r"contracting_dims = \[(\d+)\]", line)
        assert contracting, line
        total += int(np.prod(result)) * left[int(contracting.group(1))]
    return total


def _tensors(line):
    return re.findall(r"tensor<([^>]+)>", line)[-3:]


@pytest.mark.parametrize("name", ["one", "vmap"])
def test_it_takes_four_ninths_of_the_products_forwards_and_backwards(name):
    kernel, x = arrays((2, 18, 18, 32), 64)
    function = convolution.convolve_and_pool  # which chooses it by itself
    change = jnp.ones((2, 8, 8, 64))
    direct = 2 * 16 * 16 * 9 * 32 * 64

    def both(kernel, x, change):
        return jax.vjp(function, kernel, x)[1](change)

    if name == "vmap":  # the axis of clients is a batch of the products
        text = str(jax.make_jaxpr(jax.vmap(both))(kernel[None], x[None], change[None]))
        assert text.count("dot_general") == 48 and "conv_general" not in text
        return
    assert products(function, kernel, x) * 9 == 4 * direct
    assert products(both, kernel, x, change) * 9 == 4 * 3 * direct


@pytest.mark.parametrize(
    ("shape", "suits"),
    [((3, 3, 32, 64), True), ((5, 5, 32, 64), False), ((3, 3, 3, 32), False), ((3, 3, 16, 8), False)],
)
def test_kernels_that_gain(shape, suits):
    assert winograd.suits(shape) is suits
