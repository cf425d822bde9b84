import numpy as np
import pytest

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
