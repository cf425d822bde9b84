"""The sorting network against NumPy's sort."""

import jax
import numpy as np
import pytest

from cepam_jax.federated.aggregation.network import in_order

pytestmark = pytest.mark.compiled_fast

ODD = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-40, 3.0, -7.0, 3e38]


def columns(n):
    """f32[n, 400]: half are drawn from few values, so that there are ties, NaN and infinities."""
    rng = np.random.default_rng(n)
    drawn = [rng.normal(size=(n, 200)), rng.choice(ODD, size=(n, 200))]
    return np.concatenate(drawn, 1).astype(np.float32)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 16, 33])
def test_columns_come_in_order_and_their_companions_with_them(n):
    values = columns(n)
    np.testing.assert_array_equal(jax.jit(in_order)(values), np.sort(values, 0))
    rows = np.broadcast_to(np.arange(n, dtype=np.float32)[:, None], values.shape)
    ordered, moved = jax.jit(in_order)(values, rows)
    np.testing.assert_array_equal(ordered, np.sort(values, 0))
    np.testing.assert_array_equal(np.sort(moved, 0), rows)
    np.testing.assert_array_equal(np.take_along_axis(values, np.asarray(moved, int), 0), ordered)
    taken = np.arange(n) % 3 != 1
    ordered = np.asarray(in_order(values, taken=taken))
    np.testing.assert_array_equal(ordered[: taken.sum()], np.sort(values[taken], 0))
    assert np.isnan(ordered[taken.sum() :]).all()
