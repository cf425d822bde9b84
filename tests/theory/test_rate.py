import numpy as np
import pytest
from scipy import special

from cepam_jax.theory import rate


@pytest.mark.parametrize(("ratio", "bits"), [(0.03, 0.031), (0.3, 0.309), (1, 0.962), (3, 2.18), (10, 3.849)])
def test_the_layered_limit_is_the_published_one(ratio, bits):
    """Within 2 %: the published figures are real bytes of another coder."""
    assert rate.layered_limit(ratio) == pytest.approx(bits, rel=0.02)


def test_the_layered_limit_lies_above_the_channel_by_its_gap():
    assert rate.layered_limit(100.0) - rate.mutual_information(100.0) == pytest.approx(0.521, abs=2e-3)
    for ratio in (0.01, 1.0, 30.0):
        assert rate.layered_limit(ratio) > rate.mutual_information(ratio)
    assert rate.mutual_information(1.0) == pytest.approx(0.5)
    assert np.isfinite(rate.layered_limit(1e-3))


@pytest.mark.parametrize("ratio", [0.1, 1.0, 10.0])
def test_balls_of_one_dimension_are_layers(ratio):
    assert rate.ball_limit(ratio, 1, layers=2000) == pytest.approx(rate.layered_limit(ratio), rel=2e-3)


def test_balls_of_more_dimensions_come_nearer_to_the_limit():
    for ratio in (0.1, 3.0):
        found = [rate.ball_limit(ratio, n, layers=40) for n in (1, 2, 8, 24, 100)]
        assert found == sorted(found, reverse=True)
        assert found[-1] > rate.mutual_information(ratio)


def test_gap_at_high_resolution():
    """Of scalar LRSUQ it is known; of balls it is what `ball_limit` tends to."""
    log_chi = lambda k: 0.5 * (special.digamma(k / 2) + np.log(2))  # noqa: E731
    assert rate.high_resolution_gap(log_chi(3) + np.log(2), 1, 1) == pytest.approx(0.5208, abs=1e-4)
    volume = np.pi**4 / 24  # of the unit ball in 8 dimensions
    balls = rate.high_resolution_gap(log_chi(10), volume, 8)
    assert rate.ball_limit(100.0, 8, layers=400) - rate.mutual_information(100.0) == pytest.approx(
        balls, abs=1e-3
    )
