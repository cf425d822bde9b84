"""The harmonics of a direction's density, against values by hand and by simulation."""

import numpy as np
import pytest

from cepam_jax.theory import directions

ONE = np.array([1.0])


@pytest.mark.parametrize(
    ("n", "degree", "expected"),
    # Atoms at 45 degrees: the mean of sqrt(2) cos(degree angle). Corners of a cube: there x^4 + y^4 + z^4
    # - 3/5 is -4/15, and its mean square on the sphere is 16/525.
    [(2, 4, 2**0.5), (2, 6, 0.0), (2, 12, 2**0.5), (3, 4, 4 / 15 / (16 / 525) ** 0.5)],
)
def test_random_signs(n, degree, expected):
    assert directions.deviations(ONE, ONE, n, degree)[degree] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_normal_components_have_a_uniform_direction(n):
    edges = np.linspace(0, 9, 4001)
    middle = (edges[1:] + edges[:-1]) / 2
    weights = np.exp(-(middle**2) / 2)
    found = directions.deviations(middle, weights / weights.sum(), n, 8)
    assert max(found.values()) < 1e-5  # on a grid: the same on a coarser one is ten times as much


def test_a_law_by_simulation():
    """The harmonic of degree 4, x_1^4 + ... + x_n^4 less its mean, of uniform components in 3 dimensions."""
    values, n, size = np.arange(1, 8) / 4.0, 3, 400_000
    q = np.random.default_rng(0).choice(np.concatenate([values, -values]), (size, n))
    powers = (q**4).sum(1) / np.square((q**2).sum(1)) - 3 / 5
    unit = (16 / 525) ** 0.5
    found = directions.deviations(values, np.full(7, 1 / 7), n, 4)
    assert found[4] == pytest.approx(abs(powers.mean()) / unit, abs=5 * powers.std() / unit / size**0.5)
    assert found[4] > 0.05 and found[2] < 1e-10


def test_partitions_and_moments():
    assert list(directions.partitions(4, 2)) == [(4,), (3, 1), (2, 2)]
    # E d_1^2 = 1/n, E d_1^4 = 3 / (n (n + 2)), E d_1^2 d_2^2 = 1 / (n (n + 2)).
    assert [float(directions.uniform_moment(a, 8)) for a in ((1,), (2,), (1, 1))] == [1 / 8, 3 / 80, 1 / 80]
