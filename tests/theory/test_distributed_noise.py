"""Accounting of the distributed discrete Gaussian and of Skellam noise, against what must hold."""

import math

import dp_accounting
import numpy as np
import pytest

from cepam_jax.theory import distributed_noise as noise


@pytest.mark.parametrize("method", noise.METHODS)
def test_large_integers_are_as_private_as_gaussian_noise(method):
    """With fine integers epsilon is that of a Gaussian, by Rényi accounting a little more; never less."""
    for n, z in ((10, 0.5), (100, 2.0)):
        delta2 = 1e5
        found = noise.epsilon(method, delta2, z * delta2 / math.sqrt(n), n, 100, 1e-5)
        exact = dp_accounting.get_epsilon_gaussian(z, 1e-5)
        assert exact < found < 1.2 * exact


@pytest.mark.parametrize("method", noise.METHODS)
def test_coarse_integers_cost_privacy(method):
    """At the same noise beside the sensitivity."""
    coarse, fine = (noise.epsilon(method, x, x / 10, 100, 10_000, 1e-5) for x in (4.0, 4e4))
    assert coarse > 1.01 * fine


def test_rounding_moves_an_update_no_farther_than_stated():
    random = np.random.default_rng(0)
    x = random.normal(size=(2000, 64))
    x *= 3.0 / np.linalg.norm(x, axis=1, keepdims=True)
    rounded = np.floor(x + random.uniform(size=x.shape))
    norms = np.linalg.norm(rounded, axis=1)
    assert np.mean(norms > noise.sensitivity(3.0, 1.0, 64)) < math.exp(-0.5)
    assert norms.max() <= 3.0 + 8.0


@pytest.mark.parametrize("method", noise.METHODS)
def test_the_choice_meets_its_epsilon_and_its_error_and_is_the_coarsest(method):
    n, d, target = 100, 4000, 3.0
    most = 3.0  # Gaussian noise of variance 2 would do
    found = noise.choose(method, target, 1.0, n, d, most, 2048, 1e-6, 1e-5)
    delta2 = noise.sensitivity(1.0, found.granularity, d)
    assert noise.epsilon(method, delta2, found.deviation, n, d, 1e-5) <= target * (1 + 1e-6)
    assert found.error <= most and 6 < found.bits < 20
    finer = noise.choose(method, target, 1.0, n, d, 0.9 * most, 2048, 1e-6, 1e-5)
    assert finer.granularity <= found.granularity and finer.bits >= found.bits
    with pytest.raises(ValueError, match="no granularity"):
        noise.choose(method, target, 1.0, n, d, 0.1 * most, 2048, 1e-6, 1e-5)


@pytest.mark.parametrize("method", noise.METHODS)
def test_rounds_add_up(method):
    """With fine integers T rounds are one with sqrt(T) times the move, and never less than Gaussian noise."""
    n, z, delta2, rounds = 10, 8.0, 1e5, 40
    deviation = z * delta2 / math.sqrt(n)
    found = noise.epsilon(method, delta2, deviation, n, 100, 1e-5, rounds)
    once = noise.epsilon(method, delta2, deviation / math.sqrt(rounds), n, 100, 1e-5)
    assert found == pytest.approx(once, rel=1e-4)
    exact = dp_accounting.get_epsilon_gaussian(z / math.sqrt(rounds), 1e-5)
    assert exact < found < 1.2 * exact
    assert found > 1.5 * noise.epsilon(method, delta2, deviation, n, 100, 1e-5, rounds // 4)
    # What one round allows with an error of 3, twenty allow with one of 60: the same integers, more noise.
    one, many = (noise.choose(method, 3.0, 1.0, 100, 4000, 3.0 * t, 2048, 1e-6, 1e-5, t) for t in (1, 20))
    delta2 = noise.sensitivity(1.0, many.granularity, 4000)
    assert noise.epsilon(method, delta2, many.deviation, 100, 4000, 1e-5, 20) <= 3.0 * (1 + 1e-6)
    assert many.granularity == pytest.approx(one.granularity, rel=0.05)
    assert many.deviation == pytest.approx(math.sqrt(20) * one.deviation, rel=0.05)
