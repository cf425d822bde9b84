"""The size of what 32-bit words leave out of LRSUQ's law."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cepam_jax.mechanisms import cell_scales, latents, lattices
from cepam_jax.privacy import arithmetic
from experiments import rotation_deviation

pytestmark = pytest.mark.slow


def test_the_constants_are_those_of_the_table():
    stated = arithmetic.DEFECTS["gaussian", 1]
    found = arithmetic.measure("gaussian", 1, stated.end)
    assert found.bulk == pytest.approx(stated.bulk, rel=0.01)
    assert found.tail == pytest.approx(stated.tail, rel=0.01)


def test_every_law_that_lrsuq_offers_has_its_constants():
    for target in latents.TARGETS:
        assert {n for t, n in arithmetic.DEFECTS if t == target} == {1, 2, 3, 4, 8}


@pytest.mark.parametrize("lattice", ["A2", "D4"])
def test_the_constants_of_rotated_cells_are_those_of_the_table(lattice):
    n, table = lattices.LATTICES[lattice].dimension, cell_scales.scale_table(lattice)
    stated, found = arithmetic.DEFECTS["rotated", n], rotation_deviation.of_table(lattice, table).defect()
    assert found.bulk <= 1.01 * stated.bulk and found.tail <= 1.01 * stated.tail
    assert found.end == pytest.approx(stated.end, abs=0.01)
    _, end = rotation_deviation.moment_and_end(lattice, table)
    assert arithmetic.layers_end("rotated", n) == pytest.approx(end, abs=0.006)


def test_a_coarse_law_has_the_distance_that_integration_by_hand_gives():
    """Three radii in place of millions: the same integrals, computed from the densities on a fine grid."""
    radius, chance = np.array([2.5, 1.5, 0.7]), np.array([0.3, 0.4, 0.3])

    def radii(target, dimension):
        yield radius, chance

    e = np.linspace(-8, 8, 2_000_001)
    coarse = sum(c * (np.abs(e) <= r) / (2 * r) for r, c in zip(radius, chance, strict=True))
    fine = stats.norm.pdf(e)
    inside, step = np.abs(e) <= 1.8, e[1] - e[0]
    bulk = np.sum(((coarse - fine) ** 2 / fine)[inside]) * step
    beyond = 2 * stats.norm.sf(1.8)
    mass = np.sum(coarse[~inside]) * step
    tail = np.sum(np.abs(coarse - fine)[~inside]) * step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arithmetic, "_radii", radii)
        patch.setattr(arithmetic, "_POINTS", 4000)
        found = arithmetic.measure("gaussian", 1, 1.8)
    assert found.bulk == pytest.approx(bulk + (mass - beyond) ** 2 / beyond, rel=1e-3)
    assert found.tail == pytest.approx(tail, rel=1e-3)
    # And the bound of one block is above the total variation itself.
    total = 0.5 * (np.sum(np.abs(coarse - fine)) * step)
    assert total <= found.total_variation(1) <= 1


def test_the_bound_grows_with_the_blocks_and_ends_at_one():
    found = [arithmetic.total_variation("gaussian", 1, 10**k) for k in range(16)]
    assert all(a < b or b == 1 for a, b in itertools.pairwise(found))
    assert found[-1] == 1 and found[0] < 1e-6 and math.isfinite(sum(found))


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
def test_additive_noise_ends_where_it_is_said_to(law):
    """From the ends of the uniform numbers that `jax.random` makes noise of."""
    highest = np.float32(1 - 2.0**-23) * np.float32(2) - np.float32(1)  # of (-1, 1)
    tail = (1 - float(highest)) / 2
    end = stats.norm.isf(tail) if law == "gaussian" else -math.log(2 * tail)
    assert arithmetic.ADDITIVE_ENDS[law] <= end * 1.03
    draw = {"gaussian": jax.random.normal, "laplace": jax.random.laplace}[law]
    drawn = draw(jax.random.key(0), (2_000_000,))
    assert float(jnp.abs(drawn).max()) < 1.1 * arithmetic.ADDITIVE_ENDS[law]


def test_beyond_is_the_mass_outside():
    random = np.random.default_rng(0)
    e = random.normal(size=(400_000, 8))
    e[:, 0] += 2.5
    outside = np.mean((e**2).sum(1) > 4.0**2)
    assert arithmetic.beyond("gaussian", 8, 4.0, 2.5) == pytest.approx(outside, abs=5e-3)
    one = random.laplace(size=400_000) + 3
    assert arithmetic.beyond("laplace", 1, 5.0, 3.0) == pytest.approx(np.mean(one > 5), abs=4e-3)
    two = random.laplace(size=(400_000, 2))
    two[:, 0] += 3
    assert arithmetic.beyond("laplace", 2, 5.0, 3.0) >= np.mean(np.abs(two).sum(1) > 5)
