"""Integrals over tables of parabolas, against a scale that is drawn point by point."""

import numpy as np
import pytest

from cepam_jax.theory import cells, scale_mixtures

pytestmark = pytest.mark.slow

# A rising and a falling cell, which overlap.
LAW = scale_mixtures.Parabolas(*np.array([[0.4, 0.6], [1.0, 1.3], [0.05, -0.07], [0.003, 0.005]]))
RADII = np.array([0.3, 0.52, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.32])
COUNT = 100_000


def points():
    """The middles of equal intervals of u, with their probabilities."""
    u = (np.arange(COUNT) + 0.5) / COUNT * 2 - 1
    return LAW.at(u[:, None]).ravel(), np.tile(LAW.probability / COUNT, COUNT)


@pytest.mark.parametrize("lattice", cells.CELLS)
def test_the_law_of_the_product(lattice):
    norm = cells.norm_law(lattice)
    scale, chance = points()
    expected = [chance @ cells.cdf(norm, r / scale) for r in RADII]
    lower, upper = scale_mixtures.cdf(norm, LAW, RADII)
    np.testing.assert_allclose(lower, expected, atol=1e-9)
    np.testing.assert_allclose(lower + upper, 1, atol=1e-13)


@pytest.mark.parametrize("lattice", cells.CELLS)
def test_the_error_has_a_density(lattice):
    """It is the one of single scales, its integral is 1, and its slope is what balls of the product have."""
    norm, n = cells.norm_law(lattice), cells.norm_law(lattice).dimension
    density = scale_mixtures.error_density(norm, LAW, RADII)
    of_points = scale_mixtures.error_density_of_points(norm, *points(), RADII)
    np.testing.assert_allclose(density, of_points, rtol=1e-7, atol=1e-12)
    grid = np.linspace(0, 1.4, 4001)
    shells = n * scale_mixtures.ball_volume(n) * grid ** (n - 1)
    total = np.trapezoid(scale_mixtures.error_density(norm, LAW, grid) * shells, grid)
    assert total == pytest.approx(1, abs=1e-5)
    step = 1e-4
    fall, product = (
        (f(norm, LAW, RADII + step) - f(norm, LAW, RADII - step)) / (2 * step)
        for f in (scale_mixtures.error_density, lambda *given: scale_mixtures.cdf(*given)[0])
    )
    expected = -product / (scale_mixtures.ball_volume(n) * RADII**n)
    np.testing.assert_allclose(fall, expected, atol=2e-4 * np.abs(expected).max())


def test_balls():
    """Two balls of the plane."""
    density = scale_mixtures.balls_density(
        2, np.array([2.0, 1.0]), np.array([0.25, 0.75]), np.array([0.5, 1.5, 2.5])
    )
    np.testing.assert_allclose(density * np.pi, [0.75 + 0.25 / 4, 0.25 / 4, 0])


def test_moments():
    scale, chance = points()
    for power in (1, 2, -3):
        assert LAW.moment(power) == pytest.approx(chance @ scale**power, rel=1e-9)
