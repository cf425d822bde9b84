"""The papers' accounting of one round, against an accountant and against what it claims to be."""

import math

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import pld_privacy_accountant

from cepam_jax.errors import ConfigError
from cepam_jax.privacy import within_client


def test_the_chance_of_being_drawn():
    """The authors' 1,666 examples and fifteen draws; and by simulation."""
    assert within_client.chance(1666, 15) == pytest.approx(0.00897, abs=1e-5)
    assert within_client.chance(1, 3) == 1
    draws = np.random.default_rng(0).integers(0, 20, (200_000, 7))
    seen = (draws == 0).any(1).mean()
    assert abs(seen - within_client.chance(20, 7)) < 4 * math.sqrt(0.25 / 200_000)


@pytest.mark.parametrize("multiplier", [0.5, 1.0, 5.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-2])
def test_gaussian_noise_against_an_accountant(multiplier, delta):
    accountant = pld_privacy_accountant.PLDAccountant()
    accountant.compose(dp_event.GaussianDpEvent(multiplier))
    found = within_client.gaussian_epsilon(delta, multiplier)
    assert found == pytest.approx(accountant.get_epsilon(delta), rel=1e-3, abs=1e-4)
    if found:
        assert within_client.gaussian_delta(found, multiplier) == pytest.approx(delta, rel=1e-6)


def test_a_round_against_an_accountant_of_sampled_releases():
    """One draw of n under replacement: the mixture's tight epsilon is the formula's."""
    accountant = pld_privacy_accountant.PLDAccountant()
    accountant.compose(dp_event.PoissonSampledDpEvent(0.1, dp_event.GaussianDpEvent(1.0)))
    found = within_client.round_epsilon(1e-3, 1.0, 0.1)
    assert found == pytest.approx(accountant.get_epsilon(1e-3), rel=0.02)


def test_there_and_back():
    for epsilon in (0.1, 1.0, 8.0):
        pair = within_client.amplified(epsilon, 1e-4, 0.03)
        assert within_client.before_sampling(*pair, 0.03) == pytest.approx((epsilon, 1e-4))
        assert pair[0] < epsilon


def test_a_delta_above_the_chance_says_nothing():
    """Whatever is sent: an example that is not drawn is not seen, and that alone gives (0, chance)."""
    chance = within_client.chance(1666, 15)
    for delta in (0.01, 0.015):
        assert within_client.says_nothing(delta, chance)
        assert within_client.before_sampling(1.0, delta, chance)[1] > 1
        assert within_client.round_epsilon(delta, 1e-6, chance) == 0
    assert not within_client.says_nothing(1e-5, chance)
    assert within_client.round_epsilon(1e-5, 1e-2, chance) > 100


def test_what_is_no_probability_is_refused():
    with pytest.raises(ConfigError, match="probability is 0; it must be above 0"):
        within_client.amplified(1.0, 1e-5, 0)
    with pytest.raises(ConfigError, match="multiplier is 0"):
        within_client.gaussian_delta(1.0, 0)
    with pytest.raises(ConfigError, match="examples is 0"):
        within_client.chance(0, 3)
