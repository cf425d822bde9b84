import jax
import numpy as np
import pytest
from scipy import stats

from cepam_jax.errors import ConfigError
from cepam_jax.mechanisms import latents

CASES = [(target, n) for target in latents.TARGETS for n in (1, 2, 3, 4, 8)]


def words():
    random = np.random.default_rng(0)
    uniform = random.integers(0, 2**32, 50_000, dtype=np.uint32)
    tail = (2.0 ** random.uniform(0, 31.9, 100_000)).astype(np.uint32)
    ends = np.array([0, 1, 2, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1], np.uint32)
    return np.concatenate([uniform, tail, ~tail, ends])


def exact(target, n, word):
    """F^-1 by scipy.stats, from whichever side is small."""
    law = stats.chi(n + 2) if target == "gaussian" else stats.gamma(n + 1)
    high = (word >> 31).astype(bool)
    near = np.maximum(np.where(high, ~word, word).astype(np.float64), 0.5) / 2**32
    return np.where(high, law.isf(near), law.ppf(near))


@pytest.mark.parametrize(("target", "n"), CASES)
def test_radius_matches_scipy(target, n):
    word = words()
    radius = jax.jit(lambda w: latents.radius(w, latents.radius_table(target, n)))(word)
    error = np.asarray(radius, np.float64) / exact(target, n, word) - 1
    assert np.abs(error).max() < 1e-6


def test_a_wrong_dimension_is_far_off():
    word = words()
    radius = latents.radius(word, latents.radius_table("gaussian", 2))
    assert np.abs(np.asarray(radius) / exact("gaussian", 3, word) - 1).max() > 0.1


@pytest.mark.parametrize(("target", "n"), CASES)
def test_radius_does_not_depend_on_fused_multiply_add(target, n):
    """The product of slope and position is exact, so any platform rounds once."""
    word = words()
    table = latents.radius_table(target, n)
    index, position = (np.asarray(part) for part in latents.cell(word))
    product = table.slope[index].astype(np.float64) * position
    assert (product == product.astype(np.float32)).all()
    fused = (table.middle[index].astype(np.float64) + product).astype(np.float32)
    np.testing.assert_array_equal(jax.jit(lambda w: latents.radius(w, table))(word), fused)
    np.testing.assert_array_equal(table.middle[index] + product.astype(np.float32), fused)


def test_unknown_target_is_named():
    with pytest.raises(ConfigError, match="target is 'cauchy'; it must be one of 'gaussian', 'laplace'"):
        latents.radius_table("cauchy", 1)
