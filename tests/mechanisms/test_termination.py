"""An encoder ends whatever the update is, also where float32 has no room for a lattice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cepam_jax import mechanisms
from cepam_jax.errors import ConfigError
from cepam_jax.mechanisms import Keys, Knobs, lattices, rsuq

pytestmark = pytest.mark.compiled_fast

KEYS = Keys(jax.random.key(1), jax.random.key(2))
TARGETS = {"gaussian": ("Z2", "Z3", "A2", "D4", "E8"), "laplace": ("Z2", "A2", "D4")}
CASES = [(target, lattice) for target, names in TARGETS.items() for lattice in names]


@pytest.mark.parametrize(("target", "lattice"), CASES)
def test_some_proposal_is_accepted_at_any_size(target, lattice):
    """Of points in units of the lattice, from 1 to beyond float32. Chance that one finds none: 2e-6."""
    lat = lattices.LATTICES[lattice]
    random = np.random.default_rng(0)
    points = random.normal(size=(lat.dimension, 2000)) * 2.0 ** random.uniform(0, 130, 2000)
    points[:, :1000] = random.normal(size=(lat.dimension, 1000)) * 2.0 ** random.uniform(17, 28, 1000)
    with np.errstate(over="ignore"):
        points = [jnp.asarray(axis.astype(np.float32)) for axis in points]
    propose = rsuq.proposals(lat, target, KEYS.shared)
    ids = jnp.arange(2000, dtype=jnp.uint32)
    number = int(np.ceil(np.log(1e-9) / np.log1p(-lattices.acceptance(lat, target))))

    @jax.jit
    def accepted():
        some = lambda h, found: found | propose(h.astype(jnp.uint32), ids, points)[0]  # noqa: E731
        return jax.lax.fori_loop(0, number, some, jnp.zeros(2000, bool))

    assert accepted().all()


def test_a_block_that_was_rejected_forever():
    block = [jnp.float32([v]) for v in (10035814, 11195588, -8986733, -24020222)]
    propose = jax.jit(rsuq.proposals(lattices.LATTICES["D4"], "gaussian", KEYS.shared))
    assert any(bool(propose(jnp.uint32(h), jnp.zeros(1, jnp.uint32), block)[0][0]) for h in range(40))


@pytest.mark.slow
@pytest.mark.parametrize(("lattice", "size"), [("D4", 3e7), ("E8", 1e8)])
def test_a_diverging_update_is_encoded_as_invalid(lattice, size):
    mechanism = mechanisms.lrsuq("gaussian", lattice)
    x = size * jax.random.normal(jax.random.key(0), (4001,))
    message = jax.jit(mechanism.encode)(KEYS, x, Knobs(sigma=1.0))
    assert np.isnan(jax.jit(mechanism.decode)(KEYS.shared, message, Knobs(sigma=1.0))).all()


@pytest.mark.slow
def test_hardly_any_noise_at_all():
    """The smallest sigma that there may be; and one whose layers would have no width in float32."""
    mechanism = mechanisms.lrsuq("gaussian", "D4")
    knobs = Knobs(sigma=np.float32(1.001e-32))
    x = jnp.zeros(4000).at[:2000].set(1e-31)
    x_hat = jax.jit(mechanism.decode)(KEYS.shared, jax.jit(mechanism.encode)(KEYS, x, knobs), knobs)
    assert np.isfinite(x_hat).all() and 0.9 < np.std(np.asarray(x_hat - x) * 1e32) < 1.1
    assert (x_hat != x).mean() > 0.999
    with pytest.raises(ConfigError, match="knob sigma is .*; it must be a positive number between 1e-32"):
        mechanism.encode(KEYS, x, Knobs(sigma=np.finfo(np.float32).tiny))
