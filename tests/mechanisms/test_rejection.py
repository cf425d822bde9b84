import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cepam_jax.mechanisms import counter, rejection


@jax.jit
def propose(proposal, blocks, thresholds):
    word, value = counter.words((jnp.uint32(1), jnp.uint32(2)), proposal, blocks)
    return word < thresholds, value


def plain_loop(size, thresholds):
    index, values = np.zeros(size, np.uint32), np.zeros(size, np.uint32)
    open_ = np.ones(size, bool)
    proposal = 0
    while open_.any():
        accepted, value = map(np.asarray, propose(proposal, jnp.arange(size, dtype=jnp.uint32), thresholds))
        new = accepted & open_
        index[new], values[new] = proposal, value[new]
        open_ &= ~accepted
        proposal += 1
    return index, values


@pytest.mark.parametrize(
    "size", [0, 100, 8193, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 50_000))]
)
@pytest.mark.parametrize(
    "stated",  # 0.999 is far too optimistic: most blocks find no room and take the last loop
    [0.5, 0.999, 0.02],
)
def test_first_accepted_equals_a_plain_loop(size, stated):
    thresholds = jnp.full(size, 2**31, jnp.uint32)
    expected = plain_loop(size, thresholds)
    found = jax.jit(lambda b: rejection.first_accepted(propose, b, thresholds, stated))(
        jnp.arange(size, dtype=jnp.uint32)
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_tries_are_geometric():
    size, p = 200_000, 0.3
    thresholds = jnp.full(size, int(p * 2**32), jnp.uint32)
    ids = jnp.arange(size, dtype=jnp.uint32)
    index, _ = jax.jit(lambda ids: rejection.first_accepted(propose, ids, thresholds, p))(ids)
    mean, std = (1 - p) / p, np.sqrt(1 - p) / p
    assert abs(np.mean(index) - mean) < 5 * std / np.sqrt(size)  # false alarm 6e-7
