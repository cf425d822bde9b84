import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cepam_jax import mechanisms
from cepam_jax.mechanisms import Knobs, transforms


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e3, 1e30])
def test_clip_bounds_the_norm_and_keeps_short_updates(norm, scale):
    order = int(norm[1])
    x = jax.random.normal(jax.random.key(0), (1000,)) * jnp.float32(scale)
    size = np.linalg.norm(np.asarray(x, np.float64), order)
    assert float(transforms.NORMS[norm](x)) == pytest.approx(size, rel=1e-5)
    apply = mechanisms.clip(norm).apply
    np.testing.assert_array_equal(apply(x, Knobs(clip=float(size) * 1.01)), x)
    clipped = np.asarray(apply(x, Knobs(clip=float(size) / 7)), np.float64)
    assert np.linalg.norm(clipped, order) == pytest.approx(size / 7, rel=1e-5)
    np.testing.assert_allclose(clipped * 7, x, rtol=1e-5)


def test_clip_does_not_hide_nan():
    x = jnp.array([1.0, np.nan, 2.0])
    assert np.isnan(mechanisms.clip("l2").apply(x, Knobs(clip=1.0))).any()


def test_clip_of_nothing():
    assert mechanisms.clip("l2").apply(jnp.zeros(0), Knobs(clip=1.0)).shape == (0,)
    np.testing.assert_array_equal(mechanisms.clip("l1").apply(jnp.zeros(3), Knobs(clip=1.0)), np.zeros(3))
