"""Limits to the length of messages: against code lengths of real messages, and direct evaluation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cepam_jax import mechanisms
from cepam_jax.errors import ConfigError
from cepam_jax.mechanisms import cell_cumulants, code_length, length_limits
from cepam_jax.mechanisms.length_limits import Sent

# In one process: most of them need limits that another has computed.
pytestmark = [pytest.mark.xdist_group("length limits"), pytest.mark.slow]
SEGMENTS = (32, 4000, 68)
D = sum(SEGMENTS)
MESSAGES = 400
# Beyond the limit is at most 1 % of messages; if it is, so many are with a chance of one in a million.
TOO_MANY = stats.binom.isf(1e-6, MESSAGES, 0.01)


def shaped(kind, rng):
    """An update f32[D] of norm 1."""
    if kind == "flat":
        x = rng.choice([-1.0, 1.0], D)
    elif kind == "gaussian":
        x = rng.normal(size=D)
    elif kind == "laplace":
        x = rng.laplace(size=D)
    elif kind == "sparse":  # a ninth of the coordinates: root mean square 3 times the mean
        x = np.concatenate([np.resize([1.0, *[0.0] * 8], n) for n in SEGMENTS])
    elif kind == "uneven":  # tensors of very different scale
        x = rng.laplace(size=D) * np.repeat([30.0, 1.0, 8.0], SEGMENTS)
    return (x / np.linalg.norm(x)).astype(np.float32)


@functools.cache
def _coder(family, target):
    mechanism = mechanisms.lrsuq(target, "Z1", SEGMENTS, family)

    def bits(word, x, sigma):
        keys = mechanisms.Keys(jax.random.fold_in(jax.random.key(7), word), jax.random.key(0))
        knobs = mechanisms.Knobs(sigma=sigma)
        return mechanism.bits(keys.shared, mechanism.encode(keys, x, knobs), knobs)

    return jax.jit(jax.vmap(bits, (0, None, None)))


def lengths(kind, family, target, ratio):
    x = shaped(kind, np.random.default_rng(3))
    return np.asarray(_coder(family, target)(jnp.arange(MESSAGES), x, np.float32(1 / ratio)))


def sent(family="mixture", target="gaussian", **changes):
    return Sent(family, target, D, 16 * len(SEGMENTS), **{"peak": 3.1, **changes})


@pytest.mark.parametrize("target", ["gaussian", "laplace"])
@pytest.mark.parametrize("family", ["mixture", "laplace"])
@pytest.mark.parametrize("ratio", [2.0, 20.0, 200.0, 3000.0])
def test_no_shape_exceeds_the_limit_in_more_than_one_per_cent(family, target, ratio):
    limit = length_limits.longest(sent(family, target), ratio)
    for kind in ("flat", "gaussian", "laplace", "sparse", "uneven"):
        assert np.sum(lengths(kind, family, target, ratio) > limit) <= TOO_MANY, kind


@pytest.mark.parametrize("ratio", [20.0, 200.0, 3000.0])
def test_the_worst_shape_comes_near_the_limit(ratio):
    limit = length_limits.longest(sent(), ratio)
    found = lengths("flat", "mixture", "gaussian", ratio)
    assert np.mean(found) > 0.8 * limit
    # The twin: a limit for an update three quarters as long is no limit.
    shorter = length_limits.longest(sent(), 0.75 * ratio)
    assert np.sum(found > shorter) > TOO_MANY


def test_a_peaked_update_exceeds_limits_that_are_not_for_it():
    one = np.zeros(D, np.float32)
    one[100] = 1.0  # all of the norm in one coordinate
    found = np.asarray(_coder("mixture", "gaussian")(jnp.arange(MESSAGES), one, np.float32(1 / 20)))
    assert np.mean(found > length_limits.longest(sent(), 20.0)) > 0.5
    assert np.mean(found > length_limits.longest(sent(peak=D**0.5), 20.0)) <= 0.01 + 3e-2


def test_an_l1_bound_is_a_limit_too():
    x = shaped("laplace", np.random.default_rng(4))
    x /= np.abs(x).sum()
    sigma = np.float32(1e-3)
    found = np.asarray(_coder("mixture", "laplace")(jnp.arange(MESSAGES), x, sigma))
    limit = length_limits.longest(sent(target="laplace", norm="l1", peak=2.0), 1e3)
    assert np.sum(found > limit) <= TOO_MANY
    assert np.mean(found) > 0.6 * limit


@pytest.mark.parametrize("family", length_limits.FAMILIES)
@pytest.mark.parametrize("width", [0.01, 0.7, 30.0])
def test_the_cost_of_cells_is_that_of_the_coder(family, width):
    centers = np.linspace(-20, 20, 81)
    found = cell_cumulants.nats(np.abs(centers) - width / 2, width, 1.1, family)
    arrays = (jnp.float32(centers), jnp.float32(width), jnp.float32(1.1))
    np.testing.assert_allclose(found, code_length.cell_nats(*arrays, family), rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("target", ["gaussian", "laplace"])
@pytest.mark.parametrize("sigma", [0.02, 1.0, 40.0])
def test_cumulants_are_those_of_drawn_layers_and_dithers(target, sigma):
    rng = np.random.default_rng(5)
    radius = stats.chi(3) if target == "gaussian" else stats.gamma(2)
    unit = 2.0 if target == "gaussian" else 2**0.5
    x, number = np.array([0.0, 0.5, 2.0, 10.0]), 400_000
    width = sigma * unit * radius.rvs(number, random_state=rng)
    found = cell_cumulants.cumulants(x, sigma, "mixture", target)
    for place, one in enumerate(x):
        q = np.abs(one + width * rng.uniform(-0.5, 0.5, number))
        nats = np.array([cell_cumulants.nats(q - width / 2, width, 1.0, "mixture")])
        for row in (0, 6, 8):
            drawn = np.exp(cell_cumulants.THETAS[row] * nats)
            # Five standard errors of the mean: one in 1.7 million for each of 72 comparisons.
            error = 5 * drawn.std() / number**0.5 + 1e-3 * abs(drawn.mean() - 1)
            assert abs(np.expm1(found[row, place]) - (drawn.mean() - 1)) < error


@pytest.fixture
def few_peaks(monkeypatch):
    """Four in place of ten, so that they can be computed finely; what other tests computed is kept."""
    monkeypatch.setattr(length_limits, "_PEAKS", 4)
    monkeypatch.setattr(length_limits, "_node", functools.cache(length_limits._node.__wrapped__))
    return length_limits._peaks(3.0)


@pytest.mark.parametrize("size", [0.0137, 0.31, 5.3])
def test_interpolation_and_rounding_stay_within_the_margin(size, few_peaks, monkeypatch):
    """Directly at this size: at both ends of the coder's rounding, and between them none is worse."""
    interpolated = length_limits.envelope(size, sent(peak=3.0))
    coarse = length_limits._powers
    fine = 1.0125 ** np.arange(-5, 5)
    monkeypatch.setattr(length_limits, "_powers", lambda *ends: np.outer(coarse(*ends), fine).ravel())
    rounding = cell_cumulants.ROUNDING

    def direct(mean):
        found = [
            length_limits.limits(size / peak / mean, mean, np.array([peak]), "mixture", "gaussian")[:, 0]
            for peak in few_peaks
        ]
        return np.max(found, axis=0)

    ends = np.maximum(direct(1 / rounding), direct(rounding))
    assert np.all(direct(1.0) < ends * (1 + length_limits.MARGIN / 4))
    assert np.all(interpolated > ends * (1 - length_limits.MARGIN / 2))
    assert np.all(interpolated < ends * 1.08)  # what is coarse errs on the safe side


def test_the_largest_ratio_just_keeps_to_the_bits():
    one = sent()
    ratio = length_limits.largest_ratio(one, 900.0, 2.0**15)
    assert length_limits.longest(one, ratio) <= 900 < length_limits.longest(one, 1.001 * ratio)
    assert length_limits.largest_ratio(one, 1e9, 100.0) == 100.0


def test_too_few_bits_are_refused_with_what_is_missing():
    with pytest.raises(ConfigError, match=r"40 bits are .* too few: 48 are sent beside the symbols"):
        length_limits.largest_ratio(sent(), 40.0, 2.0**15)
