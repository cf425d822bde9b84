"""The error of an aggregate Gaussian, a million coordinates at a time, and of slightly wrong samplers.

False alarm: 1e-6 for each test of the law, so some 3e-5 for the file.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mechanisms.programs import FAST
from scipy import stats

from cepam_jax.errors import ConfigError
from cepam_jax.mechanisms import aggregate_gaussian, irwin_hall

pytestmark = pytest.mark.slow

SIZE = 1_000_000


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def errors(key, n, arrived, noise):
    """(error of the sum of `arrived` of n messages in steps f32[SIZE], the sum of the updates)."""
    turn = aggregate_gaussian.draw(key, n, SIZE)
    where = jnp.arange(SIZE, dtype=jnp.float32)

    def one(k, sums):
        own = jax.random.fold_in(key, k)
        dither = jax.random.uniform(own, (SIZE,), minval=-0.5, maxval=0.5)
        x = 3.0 * jnp.sin(where * 0.01 * (1 + k))
        sent = x
        if noise:
            sent = x + noise * jax.random.normal(jax.random.fold_in(own, 1), (SIZE,))
        return sums[0] + aggregate_gaussian.encode(turn, sent, dither) - dither, sums[1] + x

    zeros = jnp.zeros(SIZE)
    places, total = jax.lax.fori_loop(0, arrived, one, (zeros, zeros))
    return aggregate_gaussian.decode(turn, places) - total, total


def wrong(error, deviation):
    """What tells the errors from a Gaussian with that deviation; "" where nothing does."""
    e = np.asarray(error, np.float64) / deviation
    z = {
        "law": stats.norm.isf(stats.kstest(e, "norm").pvalue / 2),
        "mean": abs(e.mean()) * math.sqrt(SIZE),
        "variance": abs(np.mean(e**2) - 1) * math.sqrt(SIZE / 2),
        "tails": abs(np.mean(e**4) - 3) * math.sqrt(SIZE / 96),
        "neighbours": abs(np.mean(e[1:] * e[:-1])) * math.sqrt(SIZE),
    }
    return {name: value for name, value in z.items() if value > 4.9}


@pytest.mark.parametrize("n", [2, 3, 10, 100])
def test_the_error_of_a_sum_of_n_is_exactly_gaussian_and_of_fewer_it_is_not(n):
    error, total = errors(jax.random.key(n), n, n, 0.0)
    deviation = math.sqrt(n / 12)
    assert not wrong(error, deviation)
    large = np.abs(total) > np.median(np.abs(total))
    halves = [np.asarray(error)[large], np.asarray(error)[~large]]
    assert stats.ks_2samp(*halves).pvalue > 1e-6  # whatever the updates are
    assert wrong(errors(jax.random.key(n), n, n - 1, 0.0)[0], deviation)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_without_the_turn_a_sum_of_few_is_not_gaussian(n):
    plain = np.random.default_rng(n).uniform(-0.5, 0.5, (n, SIZE)).sum(0)
    assert wrong(plain, math.sqrt(n / 12))


def test_with_private_noise_it_is_gaussian_too():
    """Noise of 1.5 steps in each message, as the server's epsilon needs it: the variances add up."""
    error, _ = errors(jax.random.key(7), 10, 10, 1.5)
    assert not wrong(error, math.sqrt(10 * (1.5**2 + 1 / 12)))
    assert wrong(error, math.sqrt(10 * 1.5**2))  # and all of it counts


@pytest.mark.parametrize("n", [2, 3, 5, 13, 40, 300])
def test_parts_are_a_mixture_that_is_the_gaussian(n):
    parts = irwin_hall.parts(n)
    assert aggregate_gaussian.total_variation(n) < 1e-5
    assert np.all(np.diff(parts.upper.astype(np.int64)) >= 0) and parts.upper[-1] == 2**32 - 1
    assert np.all(parts.width[1:] > 0)
    x = np.linspace(-n / 2, n / 2, 20_001)
    h = irwin_hall.density(n, x)
    assert np.sum(h) * (x[1] - x[0]) == pytest.approx(1, abs=1e-4)
    assert np.sum(h * x**2) * (x[1] - x[0]) == pytest.approx(n / 12, rel=1e-3)
    assert parts.share > {2: 0.88, 3: 0.96, 5: 0.98, 13: 0.99, 40: 0.995, 300: 0.997}[n]
    # No part of the mixture is above the Gaussian: the plain one is the largest that is not.
    inside = np.abs(x) < 5 * math.sqrt(n / 12)
    plain = parts.share * irwin_hall.density(n, x / parts.scale) / parts.scale
    slack = irwin_hall.gaussian(n, x) - plain
    assert slack[inside].min() > -1e-6
    assert (irwin_hall.gaussian(n, x) - 1.001 * plain)[inside].min() < 0


def test_densities_by_sums_and_by_integrals_agree():
    x = np.linspace(-6, 6, 501)
    by_sum = irwin_hall.density(12, x)
    try:
        irwin_hall._BY_SUM = 11
        np.testing.assert_allclose(irwin_hall.density(12, x), by_sum, atol=1e-9)
    finally:
        irwin_hall._BY_SUM = 12


def test_rectangles_fill_what_is_below_the_steps():
    heights = np.random.default_rng(0).integers(0, 9, 200).astype(float)
    filled = np.zeros(200)
    for first, last, height in irwin_hall._rectangles(heights):
        filled[int(first) : int(last)] += height
    np.testing.assert_allclose(filled, heights)


def test_everybody_draws_the_same_and_one_alone_is_refused():
    draw = jax.jit(aggregate_gaussian.draw, static_argnums=(1, 2), compiler_options=FAST)
    first, again, other = (draw(jax.random.key(seed), 3, 500) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.scale, again.scale)
    assert (np.asarray(first.shift) != np.asarray(other.shift)).any()
    assert 0 < (np.asarray(first.shift) != 0).mean() < 0.1
    with pytest.raises(ConfigError, match="at least 2"):
        aggregate_gaussian.draw(jax.random.key(0), 1, 10)
