"""The audit of sums: bounds below and near the accountant's, and faults that it finds.

A lower bound is wrong with probability 1e-6.
"""

import numpy as np
import pytest

from cepam_jax.errors import ConfigError
from experiments import sum_audit

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]

TRIALS = 20_000
SETTINGS = {
    "the server": ("secure_sum", 4, 0.5, 0),
    "the server and three colluders": ("secure_sum", 10, 0.3, 3),
    "who sees the model": ("clipped", 4, 0.5, 0),
    "who sees the model, dithered": ("sdq", 4, 0.5, 0),
}


def audited(name, noise=1.0):
    config = sum_audit.config_of(*SETTINGS[name])
    return sum_audit.audited(config, TRIALS, noise=noise, significance=1e-6)


@pytest.mark.parametrize("name", ["the server and three colluders", *list(SETTINGS)[2:]])
def test_the_bound_stays_below_the_accountant_and_is_near(name):
    found = audited(name)
    assert 0.4 * found["claimed"] < found["proved"] <= found["claimed"]


@pytest.mark.parametrize("name", ["the server", "who sees the model"])
def test_noise_of_half_the_size_is_exposed(name):
    found = audited(name, noise=0.5)
    assert found["proved"] > found["claimed"]


def test_colluders_know_more_than_the_server():
    """Their own noise is no longer in what is scored: 7 noises are left of 10."""
    deviations = []
    for colluders in (0, 3):
        config = sum_audit.config_of("secure_sum", 10, 0.3, colluders)
        scores, _ = sum_audit.scores(config, 4000)
        deviations.append(np.std(scores))
        # Private noise and rounding; five deviations of a standard deviation.
        expected = 0.3 * np.sqrt((10 - colluders) * (1 + 1 / 27))
        assert abs(deviations[-1] / expected - 1) < 5 / np.sqrt(2 * 4000)
    assert deviations[1] < 0.9 * deviations[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("secure_sum", 4, 0.5, 4), "colluders"),
        (("sdq", 4, 0.5, 1), "colluders is 1"),
        (("lrsuq", 4, 0.5), "adds noise of its own"),
        (("identity", 4, 0.5), None),
    ],
)
def test_what_cannot_be_audited_is_named(arguments, message):
    if message is None:
        assert sum_audit.claimed(sum_audit.config_of(*arguments)) > 0
        return
    with pytest.raises(ConfigError, match=message):
        sum_audit.config_of(*arguments)
