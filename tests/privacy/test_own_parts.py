"""Parts of one's own that would make a printed epsilon too small, held against attacks on what they do.

A lower bound is wrong with probability 1e-5 each.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from own_federation import NOISE, federation

from cepam_jax import mechanisms
from cepam_jax.federated import central
from cepam_jax.mechanisms import Keys, Knobs, Transform
from cepam_jax.privacy import accounting, audit
from cepam_jax.run import guarantees

pytestmark = pytest.mark.compiled_fast

SIGNIFICANCE, DELTA, TRIALS = 1e-5, 0.05, 20_000
KEEPS = {"forward": lambda keys, x, knobs: (x, None), "keeps": ("l2",)}


def proved(mechanism, sigma: float, clients: int = 4) -> float:
    """Epsilon that the mean of all decoded updates betrays of the first client: its update is 1, or 0."""
    knobs = Knobs(sigma=jnp.float32(sigma), clip=jnp.float32(1))

    def mean(seed, first):
        keys = jax.random.split(jax.random.key(seed), 2 * clients)

        def decoded(k, x):
            pair = Keys(keys[2 * k], keys[2 * k + 1])
            return mechanism.decode(pair.shared, mechanism.encode(pair, x[None], knobs), knobs)[0]

        updates = jnp.zeros(clients).at[0].set(first)
        return jnp.mean(jnp.stack([decoded(k, updates[k]) for k in range(clients)]))

    run = jax.jit(jax.vmap(mean, in_axes=(0, None)))
    seeds = jnp.arange(2 * TRIALS)
    scores = [np.asarray(run(s, jnp.float32(x)), np.float64) for s, x in ((seeds[::2], 1), (seeds[1::2], 0))]
    return audit.epsilon_lower_bound(*scores, DELTA, SIGNIFICANCE)


def printed(mechanism, sigma: float, **changes) -> float:
    """Largest epsilon against the released model of one planned round of four clients."""
    fed = federation(mechanism, sigma=sigma)
    facts = fed.facts()._replace(**changes)
    found = guarantees.federation_from(facts, fed._ledger_of(1))
    return float(accounting.report(found, DELTA)[0].epsilon.max())


def gate(y, threshold):
    """What is small is taken for noise, and removed."""
    return jnp.where(jnp.abs(y) > threshold, y, 0.0)


SILENCERS = {
    "an inverse that removes it": (
        Transform("gate", inverse=lambda shared, y, side, knobs, d: gate(y, 0.6), **KEEPS),
        lambda own: (own, mechanisms.add_noise("gaussian"), mechanisms.identity()),
    ),
    "an inverse around a quantizer": (
        Transform("gate", inverse=lambda shared, y, side, knobs, d: gate(y, 0.6), **KEEPS),
        lambda own: (own, mechanisms.lrsuq()),
    ),
    "a step after it": (
        Transform("gate", forward=lambda keys, x, knobs: (gate(x, 0.6), None), keeps=("l2",)),
        lambda own: (mechanisms.add_noise("gaussian"), own, mechanisms.identity()),
    ),
    "a step after it, in a chain of its own": (
        Transform("gate", forward=lambda keys, x, knobs: (gate(x, 0.6), None), keeps=("l2",)),
        lambda own: (mechanisms.add_noise("gaussian"), mechanisms.chain(own, mechanisms.identity())),
    ),
}


@pytest.mark.parametrize("name", SILENCERS)
def test_noise_that_an_own_transform_may_remove_is_not_counted_for_others(name):
    own, steps = SILENCERS[name]
    sigma = 0.25
    mechanism = mechanisms.chain(mechanisms.clip("l2"), *steps(own))
    assert not mechanism.about.summable
    attacked = proved(mechanism, sigma)
    # With the noise of all, as if the transform had stated that it leaves it where it is, it was too little.
    summed = printed(mechanism, sigma, about=mechanism.about._replace(summable=True))
    assert summed < attacked <= printed(mechanism, sigma)
    assert proved(mechanisms.chain(mechanisms.clip("l2"), mechanisms.lrsuq()), sigma) <= summed


def test_a_quantizer_whose_step_follows_from_noised_updates_does_not_leave_their_noise_in_the_sum():
    """Half of an error's law is not enough: its scale, which others see, is that of one client's noise."""
    steps = mechanisms.clip("l2"), mechanisms.add_noise("gaussian")
    rates = {rate: mechanisms.chain(*steps, mechanisms.sdq(rate=rate)) for rate in ("step", "bits")}
    assert rates["step"].about.summable and not rates["bits"].about.summable
    unstated = mechanisms.identity()
    unstated = unstated._replace(about=unstated.about._replace(leaves_noise=False))
    assert not mechanisms.chain(*steps, unstated).about.summable


@pytest.mark.parametrize("nested", [False, True])
def test_what_a_step_without_a_norm_sends_is_clipped_before_the_server_adds_noise(nested):
    """Otherwise one client moved the sum ten times as far as the printed epsilon counts on."""
    louder = Transform("louder", forward=lambda keys, x, knobs: (10 * x, None))
    after = (mechanisms.chain(louder, mechanisms.sdq()),) if nested else (louder, mechanisms.sdq())
    about = mechanisms.chain(mechanisms.clip("l2"), *after).about
    plain = mechanisms.chain(mechanisms.clip("l2"), mechanisms.sdq()).about
    knobs = Knobs(clip=jnp.float32(1))
    far = jnp.full(4, 5.0)
    assert plain.independent and not about.independent
    assert jnp.linalg.norm(central.bounded(about, far, knobs, drawn_alone=False)) < 1.001
    np.testing.assert_array_equal(central.bounded(plain, far, knobs, drawn_alone=False), far)


def test_transforms_of_this_project_leave_the_noise_in_the_sum():
    rotated = mechanisms.chain(mechanisms.clip("l2"), mechanisms.rotate(), mechanisms.lrsuq())
    after = mechanisms.chain(
        mechanisms.clip("l2"), mechanisms.add_noise("gaussian"), mechanisms.rotate(), mechanisms.sdq()
    )
    twice = mechanisms.chain(
        mechanisms.clip("l2"), *[mechanisms.add_noise("gaussian")] * 2, mechanisms.identity()
    )
    assert all(mechanism.about.summable for mechanism in (rotated, after, twice, NOISE))
    stated = Transform("minus", **KEEPS, about=mechanisms.About("", "none", summable=True))
    stated = stated._replace(inverse=lambda shared, y, side, knobs, d: -y)
    assert mechanisms.chain(mechanisms.clip("l2"), stated, mechanisms.lrsuq()).about.summable
