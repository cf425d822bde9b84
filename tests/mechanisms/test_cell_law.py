"""The law of rotated cells' symbols: its sums against enumeration, its probabilities against simulation."""

import itertools
import zlib

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from cepam_jax.errors import ConfigError
from cepam_jax.mechanisms import cell_bits, cell_law, exact, lattices

pytestmark = pytest.mark.slow

NAMES = list(cell_law.GRIDS)


def cells(name, count, seed=0):
    """Uniform points of the Voronoi cell, n arrays f64[count]."""
    lat, rng = lattices.LATTICES[name], np.random.default_rng(seed)
    zero = [np.zeros(count)] * lat.dimension
    point = lat.point(zero, [rng.uniform(-0.5, 0.5, count) for _ in range(lat.dimension)])
    return [p - q for p, q in zip(point, lat.point(lat.nearest(point), zero), strict=True)]


def vectors(name, reach):
    """All lattice vectors whose coordinates are at most `reach`, f64[n, count], 0 among them."""
    if name == "A2":
        integers = np.array(list(itertools.product(range(-9, 10), repeat=2))).T
        return np.stack([integers[0] + 0.5 * integers[1], np.sqrt(0.75) * integers[1]])
    n = lattices.LATTICES[name].dimension
    whole = np.array(list(itertools.product(range(-reach, reach + 1), repeat=n)), np.float64).T
    if name == "E8":
        whole = np.concatenate([whole, whole[:, (whole < reach).all(0)] + 0.5], 1)
    even = np.mod(np.floor(whole).sum(0), 2) == 0
    return whole[:, even]


@pytest.mark.parametrize("name,tau", [("A2", 0.05), ("A2", 0.4), ("A2", 1.0), ("D4", 0.05), ("D4", 0.5)])
def test_sums_are_those_of_an_enumeration(name, tau):
    _compare_sums(name, tau, vectors(name, 6))


@pytest.mark.parametrize("tau", [0.05, 0.2])
def test_sums_over_e8_are_those_of_an_enumeration(tau):
    _compare_sums("E8", tau, vectors("E8", 2), count=8)


def _compare_sums(name, tau, points, count=40):
    grid, e = cell_law.grid(name), np.stack(cells(name, count))
    v = cell_law.variance(grid, np.full(count, tau))
    farther = 0.5 * (points**2).sum(0)[:, None] + points.T @ e
    want = np.exp(-farther / v).sum(0) - 1
    found = cell_law.weight_of_others(grid, list(e), v)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_both_libraries_agree_and_the_host_is_the_same_everywhere(name):
    """A coder and its decoder need the same float64 to the last bit: the sum is over basic operations."""
    grid, checksum = cell_law.grid(name), 0
    for tau in (1e-6, 0.004, 0.1, 0.27, 1.0, 7.0):
        e, taus = cells(name, 500), np.full(500, tau)
        v = cell_law.variance(grid, taus)
        others = cell_law.weight_of_others(grid, e, v)
        stays, leaves = cell_law.stay(grid, cell_law.log_of_others(grid, e, v), v, taus)
        assert np.isfinite(others).all() and (leaves >= 0).all() and (stays >= 0).all()
        np.testing.assert_allclose(stays + leaves, 1, atol=1e-12)
        checksum = zlib.crc32(stays.tobytes() + others.tobytes(), checksum)
        e32, t32 = [jnp.asarray(a, jnp.float32) for a in e], jnp.asarray(taus, jnp.float32)
        v32 = cell_law.variance(grid, t32)
        others32 = cell_law.weight_of_others(grid, e32, v32)
        np.testing.assert_allclose(others32, others, rtol=2e-4, atol=1e-8)
        np.testing.assert_allclose(
            cell_law.stay(grid, cell_law.log_of_others(grid, e32, v32), v32, t32)[0], stays, atol=2e-5
        )
    assert checksum == CHECKSUMS[name]


CHECKSUMS = {"A2": 3965823494, "D4": 3716903297, "E8": 3624191232}


@pytest.mark.parametrize(
    "name,tau", [(name, tau) for name in NAMES for tau in (0.01, 0.1, 0.3)] + [("A2", 1.0), ("D4", 1.0)]
)
def test_code_is_as_long_as_the_law_allows(name, tau):
    """The loss against the symbols' exact law, found by counting, is below 2 %; a wrong tau loses more."""
    lat, grid, rng = lattices.LATTICES[name], cell_law.grid(name), np.random.default_rng(1)
    blocks, draws = 60, 4000 if tau < 0.3 else 40_000
    error = cells(name, blocks, seed=2)
    lost, wrong, entropies = 0.0, 0.0, 0.0
    for block in range(blocks):
        y = [tau * rng.standard_normal(draws) - a[block] for a in error]
        points, counts = np.unique(np.stack(lat.nearest(y)).astype(int).T, axis=0, return_counts=True)
        share = counts / draws
        entropy = -(share * np.log(share)).sum() + (len(counts) - 1) / (2 * draws)
        vector = lat.point(list(points.T.astype(float)), [np.zeros(1)] * lat.dimension)
        e = [np.full(len(share), a[block]) for a in error]
        entropies += entropy
        lost += -(share * log_probability(grid, e, vector, tau)).sum() - entropy
        wrong += -(share * log_probability(grid, e, vector, 1.6 * tau)).sum() - entropy
    assert -0.02 < lost / entropies < 0.02
    assert wrong / entropies > 0.03


def log_probability(grid, error, vector, tau):
    """ln P(a | e) on the host, f64[k], for a Gaussian block."""
    taus = np.full(len(error[0]), tau)
    v = cell_law.variance(grid, taus)
    log_others = cell_law.log_of_others(grid, error, v)
    stays, leaves = cell_law.stay(grid, log_others, v, taus)
    farther = sum(a * (0.5 * a + e) for a, e in zip(vector, error, strict=True))
    at_zero = sum(abs(a) for a in vector) == 0
    with np.errstate(divide="ignore"):
        return np.where(at_zero, np.log(stays), np.log(leaves) - log_others - farther / v)


@pytest.mark.parametrize("name", ["A2", "D4"])
def test_probabilities_of_all_points_add_up_to_one(name):
    points = vectors(name, 6)
    for e in np.stack(cells(name, 5)).T:
        error = [np.float32(np.full(points.shape[1], a)) for a in e]
        for family in cell_law.COMPONENTS:
            log = cell_bits.log_probability(
                name,
                family,
                [jnp.asarray(a) for a in error],
                [jnp.asarray(a, jnp.float32) for a in points],
                jnp.full(points.shape[1], 0.12),
            )
            # The law "spheres" has a part whose deviation is eight times the scale: some of it lies outside.
            assert np.exp(special.logsumexp(np.asarray(log, float))) == pytest.approx(1, abs=2e-3)


def test_exponential_and_logarithm_of_the_host():
    y = np.linspace(-600, 600, 10_001)
    np.testing.assert_allclose(exact.exp(y), np.exp(y), rtol=1e-10)
    np.testing.assert_allclose(exact.log(np.exp(y)), y, atol=1e-12, rtol=1e-13)


def test_unknown_lattice_is_refused():
    with pytest.raises(ConfigError, match="A2"):
        cell_law.grid("Z1")
