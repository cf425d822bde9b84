"""Products are counted as they are made, in loops and gradients, and CNN3 makes few of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cepam_jax import models
from experiments.benchmarks.products import alone, products, yardstick
from experiments.benchmarks.round import PlainNetwork, client_call

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]


def test_products_of_matrices_in_loops_and_of_convolutions():
    a, b = jnp.ones((3, 4)), jnp.ones((4, 5))
    assert products(jnp.matmul, a, b) == 60
    loop = jax.jit(lambda a: jax.lax.scan(lambda x, _: (x @ jnp.ones((4, 4)), None), a, length=7)[0])
    assert products(loop, a) == 7 * 48
    x, kernel = jnp.ones((2, 6, 7, 3)), jnp.ones((3, 3, 3, 8))

    def convolution(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    direct = 2 * 4 * 5 * 9 * 3 * 8
    assert products(convolution, x, kernel) == direct
    by_kernel = jax.grad(lambda kernel: convolution(x, kernel).sum())
    assert products(by_kernel, kernel) in (direct, 2 * direct)  # with or without the value


def test_products_alone_are_all_of_them_and_nothing_else():
    """Counted in the program that is timed, as often as the function makes them."""

    def function(a):
        def step(x, _):
            return jnp.tanh(x @ jnp.ones((4, 4), x.dtype)).astype(x.dtype), None

        return jax.lax.scan(step, a, length=7)[0] @ jnp.ones((4, 2))

    a = jnp.ones((3, 4))
    call = alone(function, a)
    assert products(call) == products(function, a) == 7 * 48 + 24
    assert len(call()) == 2 and np.isfinite(call()).all()
    assert alone(function, a.astype(jnp.int32))()[0].dtype == jnp.int32  # of integers
    text = str(jax.make_jaxpr(call)())
    assert text.count("dot_general") == 2 and "tanh" not in text


def test_the_yardstick_says_how_many_it_makes():
    call, number = yardstick()
    side = call().shape[0]
    assert number % side**3 == 0 and np.isfinite(call()).all()


def test_cnn3_makes_half_of_the_products_that_its_definition_has():
    # By the definition, forwards and twice backwards, the images' own gradient left out:
    layers = [(32, 3, 32, 2), (16, 32, 64, 3), (8, 64, 128, 3)]
    convolutions = sum(32 * side**2 * 9 * c * o * passes for side, c, o, passes in layers)
    dense = 3 * 32 * (2048 * 128 + 128 * 64 + 64 * 32 + 32 * 10)
    ours = models.build("cnn3", 10)
    made = client_call(ours, "cnn3", 2)[1]
    plain = client_call(PlainNetwork(ours), "cnn3", 2)[1]
    assert plain == 2 * (convolutions + dense)
    # Four ninths of the second and third convolution; tiles of the first hold products by zero.
    assert made < 0.56 * plain
