"""What a chain states of its error, held against errors, where steps meet that do not go well together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mechanisms.programs import FAST
from scipy import stats

from cepam_jax import mechanisms
from cepam_jax.errors import ConfigError
from cepam_jax.federated import admission
from cepam_jax.mechanisms import Keys, Knobs, chain
from cepam_jax.mechanisms.noise import add_noise

pytestmark = pytest.mark.slow

ROTATE, MASK = mechanisms.rotate(), mechanisms.random_mask()
CLIPS = {norm: mechanisms.clip(norm) for norm in ("l1", "l2")}
KNOBS = Knobs(sigma=np.float32(0.5), clip=np.float32(1), step=np.float32(0.3), fraction=np.float32(0.1))


def errors(mechanism, x, knobs=KNOBS, runs=400):
    """f64[runs, d], decoded less the reference."""

    def one(number):
        keys = Keys(jax.random.key(number), jax.random.key(number + runs))
        return mechanism.decode(keys.shared, mechanism.encode(keys, x, knobs), knobs)

    found = jax.jit(jax.vmap(one), compiler_options=FAST)(jnp.arange(runs, dtype=jnp.uint32))
    return np.asarray(found, np.float64) - np.asarray(mechanism.reference(x, knobs), np.float64)


@pytest.mark.parametrize(
    ("steps", "law"),
    [
        ((ROTATE, mechanisms.lrsuq("laplace")), "other"),
        ((ROTATE, mechanisms.sdq()), "other"),
        ((ROTATE, add_noise("laplace"), mechanisms.identity()), "other"),
        ((ROTATE, mechanisms.lrsuq("gaussian")), "gaussian"),
        ((add_noise("laplace"), ROTATE, mechanisms.identity()), "laplace"),
        ((CLIPS["l2"], ROTATE, mechanisms.lrsuq("gaussian")), "gaussian"),
        ((ROTATE, CLIPS["l2"], mechanisms.lrsuq("gaussian")), "gaussian"),
        ((ROTATE, mechanisms.identity()), "none"),
        ((CLIPS["l1"], mechanisms.lrsuq("laplace")), "laplace"),
    ],
)
def test_an_error_that_is_mixed_keeps_its_law_only_if_it_is_gaussian(steps, law):
    """A rotation that is undone makes the error nearly Gaussian; it was said to be what it had been."""
    mechanism = chain(*steps)
    assert mechanism.about.law == law
    deviation = {"laplace": stats.laplace(0, 0.5 / np.sqrt(2)), "gaussian": stats.norm(0, 0.5)}
    if law in deviation:
        found = errors(mechanism, jax.random.normal(jax.random.key(0), (256,)) / 20)
        assert stats.kstest(found.ravel()[::7], deviation[law].cdf).pvalue > 1e-6


def test_honest_updates_of_a_mixed_law_are_not_judged_by_the_norms_of_another():
    mixed = chain(ROTATE, CLIPS["l1"], mechanisms.lrsuq("laplace"))
    with pytest.raises(ConfigError, match="states no law of its whole error"):
        admission.check(mixed.about)
    admission.check(chain(CLIPS["l1"], mechanisms.lrsuq("laplace")).about)


@pytest.mark.parametrize(
    "steps",
    [
        (ROTATE, CLIPS["l1"], mechanisms.identity()),
        (MASK, CLIPS["l2"], mechanisms.identity()),
        (add_noise("gaussian"), CLIPS["l2"], mechanisms.identity()),
        (ROTATE, mechanisms.clip("l2", (128, 128)), mechanisms.identity()),
        (ROTATE, chain(CLIPS["l1"], mechanisms.lrsuq())),
    ],
)
def test_a_clip_of_something_else_than_the_update_states_neither_law_nor_mean(steps):
    mechanism = chain(*steps)
    about = mechanism.about
    assert (about.law, about.unbiased, mechanism.variance) == ("other", False, None)
    x = jnp.zeros(256).at[0].set(10.0)
    assert np.abs(errors(mechanism, x).mean(0)).max() > 0.05  # it has no mean of zero indeed


def test_a_whole_clip_in_l2_commutes_with_a_rotation():
    mechanism = chain(ROTATE, CLIPS["l2"], mechanisms.identity())
    assert mechanism.about.unbiased and mechanism.about.law == "none"
    assert np.abs(errors(mechanism, 10 * jax.random.normal(jax.random.key(0), (256,)))).max() < 1e-5


@pytest.mark.parametrize(
    ("steps", "known"),
    [
        ((add_noise("gaussian"), MASK, mechanisms.identity()), False),
        ((add_noise("gaussian"), mechanisms.k_level()), False),
        ((add_noise("gaussian"), mechanisms.sdq(rate="bits")), False),
        ((MASK, mechanisms.sdq(rate="bits")), False),
        ((MASK, mechanisms.k_level()), False),
        ((add_noise("gaussian"), mechanisms.sdq()), True),
        ((MASK, mechanisms.sdq()), True),
        ((MASK, add_noise("gaussian"), mechanisms.sdq()), True),
        ((CLIPS["l2"], add_noise("laplace"), mechanisms.identity()), True),
    ],
)
def test_a_variance_is_stated_where_what_follows_errs_alike_whatever_enters(steps, known):
    mechanism, x = chain(*steps), 0.3 * jax.random.normal(jax.random.key(1), (64,))
    assert (mechanism.variance is not None) == known
    if known:
        stated = np.broadcast_to(mechanism.variance(x, KNOBS), 64)
        squares = np.square(errors(mechanism, x, runs=3000)).mean(1)
        assert abs(squares.mean() - stated.mean()) < 6 * squares.std() / np.sqrt(3000)


def test_noise_before_a_secure_sum_is_refused():
    """Its modulus does not know of it: one coordinate in 17,000 wrapped around where one in a million may."""
    with pytest.raises(
        ConfigError, match="gaussian-noise cannot stand before .*the modulus goes by its noise"
    ):
        chain(CLIPS["l2"], add_noise("gaussian"), mechanisms.secure_sum())


@jax.jit
def masked(keys, x, knobs):
    """What arrives of x behind a mask, without any other error."""
    sent = chain(MASK, mechanisms.identity())
    return sent.decode(keys.shared, sent.encode(keys, x, knobs), knobs)


@pytest.mark.parametrize("fraction", [1e-6, 3e-8, 1e-3])
def test_a_mask_of_a_small_fraction_is_unbiased(fraction):
    """It sent whole multiples of 2^-24 and divided by the fraction."""
    knobs = Knobs(fraction=np.float32(fraction))
    inverse = MASK.inverse(jax.random.key(0), jnp.full(1, jnp.inf), None, knobs, 1)
    assert not np.isfinite(np.asarray(inverse)).any()
    x, total = jnp.ones(1 << 22), 0.0
    for number in range(4):
        keys = Keys(jax.random.key(number), jax.random.key(99))
        total += float(masked(keys, x, knobs).sum())
    chance = np.ceil(fraction * 2**24) / 2**24
    expected, deviation = 4 * x.size, np.sqrt(4 * x.size * (1 - chance) / chance)
    assert abs(total - expected) < 5 * deviation


def test_what_lies_on_a_level_stays_there_however_many_levels_there_are():
    """3 % of such coordinates moved up, because position + uniform was rounded."""
    positions = jnp.arange(2.0**19, 2.0**19 + 4096)
    found = mechanisms.stochastic.stochastic_round(positions, jax.random.key(0))
    np.testing.assert_array_equal(found, positions)
    halves = np.asarray(
        mechanisms.stochastic.stochastic_round(positions + 0.25, jax.random.key(1)) - positions
    )
    assert set(np.unique(halves)) == {0, 1}
    assert stats.binomtest(int(halves.sum()), len(halves), 0.25).pvalue > 1e-6


@pytest.mark.parametrize(("percent", "d"), [(9, 300), (7, 100), (50, 7), (100, 13), (28, 25)])
def test_top_k_sends_the_fraction_and_not_one_more(percent, d):
    kept = mechanisms.transforms._support(jnp.arange(1.0, d + 1), Knobs(fraction=np.float32(percent / 100)))
    assert int(kept.sum()) == -(-percent * d // 100)


@pytest.mark.parametrize(
    ("d", "k"), [(10**6, 1), (10**7, 100), (1000, 500), (50, 49), (8, 2), (8, 8), (8, 0)]
)
def test_the_support_s_bits_are_those_of_the_binomial(d, k):
    """A difference of ln d! in f32 was off by 6 % for one coordinate of a million."""
    above, below = np.log2(np.arange(d - k + 1, d + 1)), np.log2(np.arange(1, k + 1))
    exact = above.sum() - below.sum() if k < d else 0.0
    found = float(mechanisms.transforms._support_bits(jnp.arange(d) < k, Knobs(), d))
    assert found == pytest.approx(exact, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("size", [1e30, 1e37, 3e38])
def test_a_huge_update_is_clipped_and_does_not_vanish(norm, size):
    """Its norm, or the factor, was beyond f32, and the clipped update a valid zero."""
    x = jnp.full(100, np.float32(size)).at[0].set(-np.float32(size))
    found = np.asarray(CLIPS[norm].reference(x, Knobs(clip=np.float32(1))), np.float64)
    assert np.linalg.norm(found, int(norm[1])) == pytest.approx(1, rel=1e-5)
    assert found[0] == -found[1] < 0
    large = np.asarray(CLIPS[norm].reference(x / 1e3, Knobs(clip=np.float32(size))))
    np.testing.assert_array_equal(large, x / 1e3)
