"""The rule for clips and the count that it reads: by hand, and whatever is released."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from federated.test_rounds import CLIENTS, SIZE, as_local_update, federation, make, start
from scipy import stats

from cepam_jax import federated, mechanisms
from cepam_jax.errors import ConfigError
from cepam_jax.federated import control, counting
from cepam_jax.federated.control import Control, Released
from cepam_jax.federated.state import Report
from cepam_jax.mechanisms import Knobs

pytestmark = pytest.mark.compiled_fast

START = Knobs(sigma=jnp.float32([0.5, 0.7]), clip=jnp.float32([1.0, 2.0]))
NORMS = np.float32([0.0, 0.5, 1.5, 1.9, 2.5, 9.0, 1.0])  # of the clients; the clip is 2


def released(within):
    return Released(jnp.int32(1), jnp.zeros(3), {}, jnp.float32(0), jnp.float32(within))


def report_of(norm):
    norm = jnp.asarray(norm, jnp.float32)
    zeros = jnp.zeros(norm.shape)
    fields = dict.fromkeys(Report._fields[:11], zeros) | {"client": jnp.arange(norm.size), "norm": norm}
    return Report(**fields)


def test_the_clip_moves_as_the_paper_says_and_gamma_stays():
    rule = control.quantile_clip(1.0, quantile=0.7, rate=0.3)
    state, clip = rule.initialize(START), np.array([1.0, 2.0])
    for within in (0.2, 1.3, -0.4, 0.7):
        state = rule.observe(state, released(within))
        clip = clip * np.exp(-0.3 * (within - 0.7))
        knobs = rule.knobs(state, START, jnp.int32(0))
        np.testing.assert_allclose(knobs.clip, clip, rtol=1e-5)
        # Never a larger gamma, not even in the last bit.
        gamma = np.asarray(knobs.clip, np.float64) / np.asarray(knobs.sigma, np.float64)
        at_start = np.asarray(START.clip, np.float64) / np.asarray(START.sigma, np.float64)
        assert (gamma <= at_start).all() and np.allclose(gamma, at_start, rtol=2e-6)


@pytest.mark.parametrize("within", [1e30, -1e30, np.inf, -np.inf, np.nan])
def test_no_release_leads_to_a_clip_that_is_no_positive_number(within):
    """A count that is no number fails the round: the state is not finite."""
    rule = control.quantile_clip(1.0)
    state = rule.observe(rule.initialize(START), released(within))
    clip = np.asarray(rule.knobs(state, START, jnp.int32(0)).clip)
    assert np.isnan(clip).all() if np.isnan(within) else (np.isfinite(clip) & (clip > 0)).all()


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
def test_the_clip_finds_the_quantile(quantile):
    """Norms of a log-normal law, 100 participants; the paper's noise of a twentieth of them, and its rate."""
    rule = control.quantile_clip(5.0, quantile)
    knobs = Knobs(sigma=jnp.ones(100), clip=jnp.full(100, 0.01))

    def one_round(state, key):
        clip = rule.knobs(state, knobs, jnp.int32(0)).clip
        norms = jnp.exp(jax.random.normal(jax.random.fold_in(key, 1), (100,)))
        within = counting.share_within(report_of(norms), knobs._replace(clip=clip), 5.0, key)
        return rule.observe(state, released(within)), clip[0]

    keys = jax.random.split(jax.random.key(3), 400)
    _, clips = jax.lax.scan(one_round, rule.initialize(knobs), keys)
    # The clip's logarithm wanders by a few hundredths around the normal law's quantile.
    assert np.log(np.asarray(clips[200:])).mean() == pytest.approx(stats.norm.ppf(quantile), abs=0.05)


def test_votes_by_hand():
    """Within, beyond, on the edge; zero is neither, and so is what is no number; liars are always beyond."""
    found = counting.votes(report_of([*NORMS, np.nan, 2.0]), jnp.float32(2.0))
    np.testing.assert_array_equal(found, [0, 0.5, 0.5, 0.5, -0.5, -0.5, 0.5, 0, 0.5])
    lied = counting.votes(report_of(NORMS), jnp.float32(2.0), jnp.arange(CLIENTS) < 2)
    np.testing.assert_array_equal(lied, [-0.5, -0.5, 0.5, 0.5, -0.5, -0.5, 0.5])


def test_the_noise_has_the_law_it_is_counted_with():
    """Kolmogorov-Smirnov, 1e-4 false alarms; a twin of another deviation fails."""
    keys = jax.random.split(jax.random.key(0), 20_000)
    knobs = Knobs(clip=jnp.full(CLIENTS, 2.0))

    def drawn(noise):
        share = jax.vmap(lambda key: counting.share_within(report_of(NORMS), knobs, noise, key))(keys)
        return (np.asarray(share, np.float64) - 0.5) * CLIENTS - 1.0  # the votes' sum is 1

    jitter = np.random.default_rng(0).uniform(-0.5, 0.5, len(keys)) / 64  # spreads what the grid rounds
    assert stats.kstest(drawn(1.0) + jitter, "norm").pvalue > 1e-4
    assert stats.kstest(drawn(1.1) + jitter, "norm").pvalue < 1e-4
    # What is published lies on the grid alone, whatever the votes: no low bits tell them.
    np.testing.assert_allclose(drawn(1.0) * 64, np.round(drawn(1.0) * 64), atol=2e-3)


def of_norm(params, data, row, count, steps, key):
    """An update as long as the client's norm."""
    direction = jax.random.normal(key, params["w"].shape)
    norm = jnp.asarray(NORMS)[row[0]]
    return direction / jnp.linalg.norm(direction) * norm, jnp.float32(0), jnp.float32(1)


@pytest.mark.parametrize(("per_round", "per_chunk"), [(CLIENTS, 1), (3, 2)])
def test_a_round_counts_its_participants_and_sends_a_bit_more(per_round, per_chunk):
    """With next to no noise the clip goes where the votes of those who took part say."""
    rule = control.quantile_clip(1e-3, quantile=0.5, rate=0.2)
    _, run, _ = make(
        "identity",
        control=rule,
        local_update=as_local_update(of_norm),
        per_round=per_round,
        per_chunk=per_chunk,
    )
    fed, run = federation(), jax.jit(run)
    after, report = run(start()._replace(control=rule.initialize(fed.knobs)), fed)
    clients = np.asarray(report.participants.client)
    votes = np.where(NORMS == 0, 0, np.where(NORMS <= 2, 0.5, -0.5))[clients]
    assert float(after.control) == pytest.approx(-0.2 * votes.sum() / per_round, abs=1e-3)
    np.testing.assert_array_equal(report.participants.bits, 32 * SIZE + 1)
    _, second = run(after, fed)
    np.testing.assert_allclose(second.knobs.clip, 2.0 * np.exp(float(after.control)), rtol=1e-5)
    sent = np.asarray(second.participants.clipped_norm)
    limits = np.minimum(NORMS[second.participants.client], second.knobs.clip[0])
    np.testing.assert_allclose(sent, limits, rtol=1e-4)


def test_liars_in_a_round_say_that_they_were_beyond():
    rule = control.quantile_clip(1e-3, rate=0.2)
    _, run, _ = make("identity", control=rule, local_update=as_local_update(of_norm))
    lies = jnp.arange(CLIENTS) < 3  # with norms 0, .5 and 1.5
    after, _ = jax.jit(run)(
        start()._replace(control=rule.initialize(federation().knobs)), federation()._replace(liars=lies)
    )
    assert float(after.control) == pytest.approx(0.2 * (5 - 2) / 2 / CLIENTS, abs=1e-3)


def blind(noise=1.0):
    return control.quantile_clip(1.0)._replace(count_noise=noise)


@pytest.mark.parametrize("noise", [0.0, -1.0, 1e-4, np.inf, np.nan, True, "1"])
def test_a_count_without_noise_is_refused_before_anything_is_compiled(noise):
    with pytest.raises(ConfigError, match="count_noise"):
        make(control=blind(noise))


def test_a_mechanism_that_clips_nothing_is_refused():
    for changes in ({"mechanism": mechanisms.make("lrsuq_gaussian_z1")}, {"quantize": "weights"}):
        with pytest.raises(ConfigError, match="counts the updates within their clips"):
            make(control=control.quantile_clip(1.0), **changes)


@pytest.mark.parametrize("arguments", [{"noise": 0}, {"noise": 1, "quantile": 0}, {"noise": 1, "rate": -1}])
def test_numbers_out_of_range_are_errors(arguments):
    with pytest.raises(ConfigError):
        federated.quantile_clip(**arguments)


def test_other_rules_are_given_no_count():
    rule = Control(
        control.unchanged,
        initialize=lambda knobs: jnp.float32(0),
        observe=lambda state, released: jnp.isnan(released.within).astype(jnp.float32),
    )
    _, run, _ = make("identity", control=rule)
    after, report = jax.jit(run)(start()._replace(control=jnp.float32(0)), federation())
    assert float(after.control) == 1
    np.testing.assert_array_equal(report.participants.bits, 32 * SIZE)
