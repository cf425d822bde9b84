import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cepam_jax.mechanisms import code_length, exact, laws, wide_math


def test_what_exponentials_leave_is_right_near_zero_and_far_out():
    random = np.random.default_rng(0)
    t = np.concatenate([[0.0], 10 ** random.uniform(-30, 2, 200_000)]).astype(np.float32)
    wide = t.astype(np.float64)
    fall, rest = map(np.asarray, jax.jit(wide_math.fall)(t))
    assert np.all(np.abs(fall + np.expm1(-wide)) <= -3e-7 * np.expm1(-wide))
    error = np.abs(rest - np.exp(-wide)) / np.maximum(np.exp(-wide), 2.0**-126)
    assert np.all(error[wide < 86] <= 3e-7 + 1e-7 * wide[wide < 86])
    assert np.all(rest[wide >= 88] == 2.0**-126)
    with pytest.raises(AssertionError):  # a plain difference is not as good
        np.testing.assert_allclose(1 - np.exp(-t[t > 0]), -np.expm1(-wide[t > 0]), rtol=3e-7)
    assert [float(part) for part in wide_math.fall(jnp.float32(4e30))] == [1.0, 2.0**-126]


def test_logarithms_are_right_around_one_and_at_both_ends():
    random = np.random.default_rng(1)
    ends = np.array([np.finfo(np.float32).tiny, np.finfo(np.float32).max, 1.0])
    x = np.concatenate([10 ** random.uniform(-37, 38, 100_000), random.uniform(0.4, 2.5, 100_000), ends])
    x = x.astype(np.float32)
    found, log = np.asarray(jax.jit(wide_math.log)(x)), np.log(x.astype(np.float64))
    assert np.all(np.abs(found - log) <= np.maximum(1e-7, 2e-7 * np.abs(log)))
    assert found[-1] == 0


def test_squares_give_the_narrow_component_of_every_law():
    """Laws are mixtures whose components are 4 or 16 times as wide as each other, or have one component."""
    for share, narrow, wide in laws.PARTS:
        assert share == 1 or wide / narrow in (4, 16)


@pytest.mark.parametrize("law", laws.LAWS)
def test_the_device_and_the_host_agree_on_cells(law):
    random = np.random.default_rng(2)
    center, width = 20 * random.normal(size=3000), 10 ** random.uniform(-3, 2, 3000)
    parts = laws.PARTS[laws.LAWS.index(law)]
    found = laws.cell_nats(*map(jnp.float32, (center, width)), jnp.float32(0.7), tuple(map(float, parts)))
    same = laws.cell_nats(*map(jnp.float32, (center, width)), jnp.float32(0.7), tuple(jnp.asarray(parts)))
    np.testing.assert_allclose(found, same, rtol=1e-5, atol=1e-5)
    rounded = [values.astype(np.float32).astype(float) for values in (center, width)]
    expected = laws.cell_nats_on_host(*rounded, float(np.float32(0.7)), parts.astype(float))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_both_have_derivatives_and_take_any_float():
    t = jnp.array([0.01, 0.7, 12.0])
    for own, known in ((lambda x: wide_math.fall(x)[0], lambda x: -jnp.expm1(-x)), (wide_math.log, jnp.log)):
        np.testing.assert_allclose(jax.vmap(jax.grad(own))(t), jax.vmap(jax.grad(known))(t), rtol=1e-3)
    with jax.enable_x64(True):
        wide = jnp.asarray(np.array([0.3, 2.0]))
        assert wide.dtype == jnp.float64
        nats = code_length.cell_nats(wide, 1.0, jnp.float32(1), "laplace")
        np.testing.assert_allclose(nats, [1.00525, 2.65173], rtol=1e-4)


@pytest.mark.parametrize("law", laws.LAWS)
def test_cells_at_the_ends_of_what_scales_may_be(law):
    """And where the scale is none, which a segment of zeros under huge noise comes near to."""
    parts = tuple(map(float, laws.PARTS[laws.LAWS.index(law)]))
    for scale in (2.0**-110, 2.0**110):
        near, wide = np.array([0.3, 8.0, 60.0]) * scale, np.float64(scale)
        found = laws.cell_nats(*map(jnp.float32, (near, wide, scale)), parts)
        np.testing.assert_allclose(found, laws.cell_nats_on_host(near, wide, scale, parts), rtol=1e-4)
    for width in (0.0, 1.0):
        found = laws.cell(jnp.float32(1e-38), jnp.float32(width), jnp.float32(0.0), parts)
        assert not np.isnan(np.asarray(found)).any()


@pytest.mark.parametrize("family", code_length.FAMILIES)
def test_masses_of_cells_are_those_of_their_lengths(family):
    random = np.random.default_rng(3)
    center, width = map(jnp.float32, (random.normal(size=500), 10 ** random.uniform(-2, 1, 500)))
    mass = code_length.cell_mass(center, width, jnp.float32(1.3), family)
    nats = code_length.cell_nats(center, width, jnp.float32(1.3), family)
    np.testing.assert_allclose(mass, np.exp(-np.asarray(nats)), rtol=2e-5)
    assert family in exact.COMPONENTS
