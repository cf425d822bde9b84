"""Means weighed by precision: the weights, the round, the estimate, the settings."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from federated.test_rounds import CLIENTS, SIZE, by_hand, federation, make, start

import cepam_jax
from cepam_jax.errors import ConfigError
from cepam_jax.federated.aggregation import AGGREGATORS, Public, Published, of_config, precise, precision
from cepam_jax.run.config import validate
from configs import digits

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]


def weights_of(tau, deviations):
    deviations = jnp.asarray(deviations, jnp.float32)
    public = Public(jnp.ones(len(deviations)), deviations, jnp.float32(1.0))
    return np.asarray(precision(tau).weights(None, public))


def variance(weights, tau, deviations):
    """Of a weighted mean, per coordinate."""
    share = np.asarray(weights, np.float64) / np.sum(weights, dtype=np.float64)
    return float(np.sum(share**2 * (tau**2 + np.asarray(deviations, np.float64) ** 2)))


@pytest.mark.parametrize("seed", range(4))
def test_no_mean_has_less_variance(seed):
    """Neither the plain mean nor that of any subset, for a known spread; the weights are the formula's."""
    random = np.random.default_rng(seed)
    deviations, tau = 10 ** random.uniform(-3, 1, 6), 10 ** random.uniform(-3, 1)
    weights = weights_of(tau, deviations)
    formula = 1 / (tau**2 + deviations**2)
    np.testing.assert_allclose(weights / weights.sum(), formula / formula.sum(), rtol=1e-5)
    assert np.sum(weights / weights.sum()) == pytest.approx(1, abs=1e-6)
    best = variance(weights, tau, deviations)
    for size in range(1, 7):
        for subset in itertools.combinations(range(6), size):
            others = np.isin(np.arange(6), subset)
            assert best <= variance(others, tau, deviations) * (1 + 1e-6)
    assert best < variance(weights ** np.float32(0.9), tau, deviations)  # a slightly wrong rule is worse


@pytest.mark.parametrize("tau", [1e-6, 0.1, 1e3])
def test_equal_noises_are_weighed_by_ones_to_the_bit(tau):
    for deviation in (0.0, 1e-6, 0.3, 1e4):
        np.testing.assert_array_equal(weights_of(tau, np.full(9, deviation)), np.ones(9))


def test_endless_noise_has_no_weight_and_no_noise_has_all():
    np.testing.assert_array_equal(weights_of(0.1, [0.1, np.inf, 1e30]), [1, 0, 0])
    both = precise.relative_weights(jnp.float32(0), jnp.float32([0, 1, 0, 1e-30]))
    np.testing.assert_array_equal(both, [1, 0, 1, 0])
    np.testing.assert_array_equal(precise.relative_weights(jnp.float32(0), jnp.zeros(3)), np.ones(3))
    tiny = precise.relative_weights(jnp.float32(0), jnp.float32([1e-28, 2e-28]))  # squares beyond 32 bits
    np.testing.assert_allclose(tiny, [1, 0.25], rtol=1e-6)


@pytest.mark.parametrize("tau", [0.0, 0.05])
@pytest.mark.parametrize("name", ["lrsuq_gaussian_z1", "identity"])
def test_equal_noises_give_the_mean_to_the_bit(name, tau):
    fed = federation()
    fed = fed._replace(knobs=fed.knobs._replace(sigma=jnp.full(CLIENTS, 0.2)))
    found = []
    for rule in (AGGREGATORS["mean"], precision(tau)):
        _, run, _ = make(name, aggregator=rule)
        state = started(rule)
        for _ in range(3):
            state, _ = jax.jit(run)(state, fed)
        found.append(np.asarray(state.params["w"]))
    np.testing.assert_array_equal(*found)


def started(rule):
    return start()._replace(aggregator=rule.initialize(SIZE) if rule.initialize else None)


@pytest.mark.parametrize("tau", [0.0, 0.05])
def test_a_round_is_what_its_pseudocode_says(tau):
    """Sigmas of `federation` go from .001 to 1."""
    rule, fed = precision(tau), federation(np.arange(1, CLIENTS + 1))
    mechanism, run, _ = make(aggregator=rule)
    state, report = jax.jit(run)(started(rule), fed)
    used = tau or 2.0 / np.sqrt(SIZE)  # at the start all that the clip of 2 allows
    expected = 1 / (used**2 + np.asarray(fed.knobs.sigma, np.float64) ** 2)
    np.testing.assert_allclose(report.weights / report.weights.sum(), expected / expected.sum(), rtol=1e-5)
    np.testing.assert_array_equal(report.participants.weight, report.weights)
    given = iter(expected)
    mean, _, _ = by_hand(mechanism, fed, start(), lambda examples, errors: next(given))
    np.testing.assert_allclose(state.params["w"], start().params["w"] + mean, rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("per_round", [CLIENTS, 4])
def test_chunks_give_the_same(per_round):
    states = []
    for per_chunk in (1, 3, 7):
        rule = precision()
        _, run, _ = make(aggregator=rule, per_chunk=per_chunk, per_round=per_round)
        state = started(rule)
        for _ in range(3):
            state, _ = jax.jit(run)(state, federation())
        states.append((np.asarray(state.params["w"]), np.asarray(state.aggregator)))
    for params, learned in states[1:]:
        np.testing.assert_allclose(params, states[0][0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(learned, states[0][1], rtol=1e-5)


def estimates(tau, mean, noise, d=4000, clients=20, rounds=60, filled=1.0):
    """The estimate in each round, where every update is `filled` times as long as its clip."""
    random = np.random.default_rng(5)
    limit = (mean**2 + tau**2) / filled**2
    rule, deviations = precision(), np.geomspace(noise, 10 * noise, clients)
    state, found = rule.initialize(d), []
    direction = np.sign(random.normal(size=d))
    for _ in range(rounds):
        public = Public(np.ones(clients), np.float32(deviations), np.float32(limit))
        weights = np.asarray(rule.weights(state, public))
        updates = mean * direction + tau * random.normal(size=(clients, d))
        updates += deviations[:, None] * random.normal(size=(clients, d))
        aggregate = (weights[:, None] * updates).sum(0) / weights.sum()
        published = Published(np.float32(aggregate), weights, public.deviation, public.limit)
        state = rule.observe(state, published)
        found.append(float(precise.spread(state, public.limit)))
    return np.array(found), np.sqrt(limit)


@pytest.mark.parametrize("noise", [0.01, 0.3])
@pytest.mark.parametrize(("tau", "mean"), [(1.0, 0.0), (0.6, 0.8), (0.1, 1.0)])
def test_the_estimate_goes_from_the_limit_towards_the_spread(tau, mean, noise):
    """Exact where updates fill the clip but for the pseudo-round's part, some 1 in 11 of what is left."""
    found, limit = estimates(tau, mean, noise)
    assert found[0] <= limit * (1 + 1e-6)
    settled = np.sqrt(tau**2 + (limit**2 - tau**2) / 10.5)
    assert found[-20:].mean() == pytest.approx(settled, rel=0.1)
    assert found[-20:].mean() >= 0.97 * tau


def test_the_estimate_errs_towards_plain_means():
    """Updates half as long as the clip: never below the truth, never above the limit."""
    found, limit = estimates(0.6, 0.8, 0.01, filled=0.5)
    assert found.min() >= 0.6 and found.max() <= limit * (1 + 1e-6)


def test_noise_that_hides_the_aggregate_leaves_the_estimate_at_its_start():
    """Of ten coordinates under a noise of 100 nothing can be learned, and nothing is."""
    found, limit = estimates(0.6, 0.8, 100.0, d=10)
    np.testing.assert_allclose(found, limit, rtol=0.02)


def config_of(**fields):
    config = digits.get_config("cepam_gaussian")
    config.update_from_flattened_dict({"aggregator": "precision", **fields})
    return config


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"precision.tau": -1.0}, "config.precision.tau is -1.0"),
        ({"precision.tau": float("nan")}, "config.precision.tau is nan"),
        ({"precision.tau": 0.1, "aggregator": "mean"}, "0 unless config.aggregator is 'precision'"),
        ({"mechanism.clip": "none"}, "positive where config.aggregator is 'precision'"),
    ],
)
def test_bad_settings_get_one_message(fields, text):
    with pytest.raises(ConfigError, match=text):
        validate(config_of(**fields))


def test_settings_reach_the_rule():
    for fields in ({}, {"precision.tau": 0.1, "mechanism.clip": "none"}):
        validate(config_of(**fields))
    assert of_config(config_of()).needs_clip
    known = of_config(config_of(**{"precision.tau": 0.25}))
    public = Public(jnp.ones(2), jnp.float32([0.0, 0.25]), jnp.float32(1))
    np.testing.assert_allclose(known.weights(None, public), [1, 0.5], rtol=1e-6)


def in_python(aggregator, mechanism=None, **more):
    random = np.random.default_rng(0)
    examples = {
        "x": random.normal(size=(60, 4)).astype(np.float32),
        "y": random.normal(size=60).astype(np.float32),
    }

    def losses(model, batch):
        return jnp.square(batch["x"] @ model.params["w"] - batch["y"])

    task = cepam_jax.tasks.Task(
        initialize=lambda key: cepam_jax.tasks.Model({"w": jnp.zeros(4)}),
        loss=lambda model, batch, constants, key: (losses(model, batch).mean(), None),
        evaluate=lambda model, batch, constants: {"loss": losses(model, batch)},
        summarize=lambda sums, count: {"loss": sums["loss"] / count},
        headline="loss",
        higher_is_better=False,
        formats={"loss": ".3f"},
    )
    clients = cepam_jax.clients(examples, owners=np.repeat(np.arange(6), 10))
    mechanisms = cepam_jax.mechanisms
    mechanism = mechanism or mechanisms.chain(mechanisms.clip("l2"), mechanisms.lrsuq("gaussian"))
    return cepam_jax.Federation(task, clients, mechanism, aggregator=aggregator, **more)


def test_from_python_as_by_name_and_with_a_spread():
    sigma = np.array([0.1, 0.1, 0.1, 0.1, 3.0, 3.0])
    weights = []
    for rule in ("precision", precision(), precision(0.2)):
        fed = in_python(rule, sigma=sigma, clip=1.0, server=optax.sgd(1.0))
        state, report = fed.step(fed.initialize())
        state, report = fed.step(state)
        weights.append(np.asarray(report.weights))
        np.testing.assert_array_equal(np.asarray(fed.ledger.entries[-1].weights), weights[-1])
    np.testing.assert_array_equal(weights[0], weights[1])
    np.testing.assert_allclose(weights[2][-1], (0.04 + 0.01) / (0.04 + 9), rtol=1e-5)


def test_an_estimate_without_a_clip_is_refused_in_python():
    unclipped = cepam_jax.mechanisms.lrsuq("gaussian")
    with pytest.raises(ConfigError, match="does not clip updates, and the aggregator estimates"):
        in_python("precision", unclipped, sigma=0.1)
    in_python(precision(0.1), unclipped, sigma=0.1)
    with pytest.raises(ConfigError, match="tau of precision is -1"):
        precision(-1.0)
