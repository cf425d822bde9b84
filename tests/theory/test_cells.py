"""The law of T against geometry that knows nothing of alcoves, and what follows from it."""

import math

import numpy as np
import pytest
from scipy import stats

from cepam_jax.errors import ConfigError
from cepam_jax.mechanisms.lattices import LATTICES
from cepam_jax.theory import cells, deconvolution

# Of each Kolmogorov-Smirnov test; the seeds are fixed.
FALSE_ALARM = 1e-4


def norms(lattice, count=400_000, seed=0):
    """|U| of uniform points of the Voronoi cell: points of the fundamental box minus their nearest points."""
    lat = LATTICES[lattice]
    random, zero = np.random.default_rng(seed), [0.0] * lat.dimension
    points = lat.point(
        [np.zeros(count)] * lat.dimension, list(random.uniform(-0.5, 0.5, (lat.dimension, count)))
    )
    nearest = lat.point(lat.nearest(points), zero)
    return np.linalg.norm(np.stack(points) - np.stack(nearest), axis=0)


def law_of_norms(lattice, law_of_t):
    """Distribution function of |U| = T * (uniform)^(1/n), from T's, as an interpolation on a fine grid."""
    n = LATTICES[lattice].dimension
    t = np.linspace(0, 1.01, 20_001)
    chance = np.diff(law_of_t(t))
    middle = (t[1:] + t[:-1]) / 2
    x = np.linspace(0, 1.01, 1001)
    return lambda r: np.interp(r, x, np.minimum(1, x[:, None] / middle) ** n @ chance)


@pytest.mark.parametrize("lattice", cells.CELLS)
def test_the_law_is_that_of_points_reduced_to_their_nearest(lattice):
    law = cells.norm_law(lattice)
    found = norms(lattice)
    assert stats.kstest(found, law_of_norms(lattice, lambda t: cells.cdf(law, t))).pvalue > FALSE_ALARM
    # Twins: the mean in place of the law, and a law that is 1 % too wide.
    radii, weights = cells.quadrature(law)
    mean = radii @ weights
    assert stats.kstest(found, law_of_norms(lattice, lambda t: 1.0 * (t >= mean))).pvalue < FALSE_ALARM**2
    wider = law_of_norms(lattice, lambda t: cells.cdf(law, t / 1.01))
    assert stats.kstest(found, wider).pvalue < FALSE_ALARM**2


@pytest.mark.parametrize("lattice", cells.CELLS)
def test_the_law_has_the_cells_second_moment_and_radii(lattice):
    lat, law = LATTICES[lattice], cells.norm_law(lattice)
    radii, weights = cells.quadrature(law)
    assert weights.sum() == pytest.approx(1, abs=1e-13)
    # The tabulated second moment of D4 has ten digits.
    assert weights @ radii**2 / (lat.dimension + 2) == pytest.approx(lat.second_moment, abs=1e-10)
    assert math.sqrt(law.edges[0]) == pytest.approx(lat.inradius)
    assert math.sqrt(law.edges[-1]) == pytest.approx({"A2": 3**-0.5, "D4": 1, "E8": 1}[lattice])
    np.testing.assert_array_equal(cells.cdf(law, np.array([0.0, lat.inradius - 1e-9, 1.0001])), [0, 0, 1])


@pytest.mark.parametrize(("lattice", "order"), [("A2", 6), ("D4", 192), ("E8", 696_729_600)])
def test_the_weyl_groups_images_of_the_alcove_fill_the_cell(lattice, order):
    vertices = cells.alcove(lattice)
    alcove = abs(np.linalg.det(vertices)) / math.factorial(len(vertices))
    assert order * alcove == pytest.approx(LATTICES[lattice].volume, rel=1e-12)


def test_the_law_of_the_hexagon_is_the_closed_form():
    """T = sqrt(1/4 + w^2) with w uniform on half an edge."""
    radii = np.linspace(0.501, 1 / math.sqrt(3), 99)
    expected = np.sqrt(radii**2 - 0.25) * 2 * math.sqrt(3)
    np.testing.assert_allclose(cells.cdf(cells.norm_law("A2"), radii), expected, atol=1e-12)


@pytest.mark.parametrize("lattice", cells.CELLS)
def test_the_deconvolution_solves_the_equation(lattice):
    """E S^k E T^k = E chi^k for the signed solution, with S cut to 1e-4 <= S <= 60."""
    law = cells.norm_law(lattice)
    z = np.arange(-9.2, 4.1, 1 / 512)
    solution = deconvolution.signed_density(law, z) / 512
    for power in range(-1, 4):
        moment = np.exp(power * z) @ solution * cells.mellin(law, np.array(power)).real
        assert moment == pytest.approx(deconvolution.gaussian_mellin(law.dimension, power).real, rel=1e-8)


@pytest.mark.parametrize("lattice", cells.CELLS)
def test_no_law_of_s_solves_it_exactly(lattice):
    """A zero of E T^s where E chi^s has neither zero nor pole, found again by a contour around it."""
    law = cells.norm_law(lattice)
    zero = deconvolution.first_zero(law)
    assert zero.real > -(law.dimension + 2)
    circle = zero + 0.5 * np.exp(2j * np.pi * np.arange(400) / 400)
    # E T^s over its largest possible size, and far above what f64 rounds off.
    values = cells.mellin(law, circle) * law.edges[-1] ** (-circle / 2)
    turns = np.angle(np.roll(values, -1) / values).sum() / (2 * np.pi)
    assert turns == pytest.approx(1, abs=1e-9)
    assert np.abs(values).min() > 1e-9


def test_other_lattices_are_named():
    with pytest.raises(ConfigError, match="lattice is 'Z2'; it must be one of 'A2', 'D4', 'E8'"):
        cells.norm_law("Z2")
