"""The laws of aggregators, for all that are registered, and the round that gathers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from federated.test_rounds import CLIENTS, SIZE, alone, by_hand, federation, local_update, make, start
from federated.test_rounds import WEIGHTS as HAND_WEIGHTS

from cepam_jax.errors import ConfigError
from cepam_jax.federated import aggregation, gathering
from cepam_jax.federated.aggregation import AGGREGATORS, Aggregator, Facts, Public
from cepam_jax.federated.state import client_keys

pytestmark = pytest.mark.compiled_fast


def aggregate(rule, updates, counts, errors):
    """What a rule makes of updates f32[n, d], outside of any round."""
    n, d = updates.shape
    if rule.combine:
        facts = Facts(jnp.arange(n), jnp.asarray(counts, jnp.float32))
        state = rule.initialize(d) if rule.initialize else None
        return np.asarray(gathering.combined(rule, state, jnp.asarray(updates), facts)[0])
    if rule.weights:
        public = Public(jnp.asarray(counts), jnp.asarray(errors).mean(1), jnp.float32(0.1))
        weights = np.asarray(rule.weights(rule.initialize(d) if rule.initialize else None, public))[:, None]
        return (weights * updates).sum(0) / weights.sum()
    weights = np.stack([np.broadcast_to(rule.weigh(c, e), (2,)) for c, e in zip(counts, errors, strict=True)])
    across = np.repeat(weights, d // 2, axis=1)
    return (across * updates).sum(0) / across.sum(0)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_laws(name):
    rule, rng = AGGREGATORS[name], np.random.default_rng(0)
    counts, errors = rng.integers(1, 9, 5).astype(np.float32), rng.uniform(0.1, 1, (5, 2)).astype(np.float32)
    same = np.tile(rng.normal(size=8).astype(np.float32), (5, 1))
    np.testing.assert_allclose(aggregate(rule, same, counts, errors), same[0], rtol=1e-5)
    updates, order = rng.normal(size=(5, 8)).astype(np.float32), rng.permutation(5)
    there = aggregate(rule, updates, counts, errors)
    np.testing.assert_allclose(
        aggregate(rule, updates[order], counts[order], errors[order]), there, rtol=1e-4, atol=1e-6
    )
    if rule.coordinatewise and rule.mix is None:
        np.testing.assert_allclose(aggregate(rule, updates[:, 2:5], counts, errors), there[2:5], rtol=1e-6)
    if rule.public_weights:
        weights = rule.public_weights(counts.astype(int))
        expected = (weights[:, None] * updates).sum(0) / weights.sum()
        np.testing.assert_allclose(there, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("per_round", [CLIENTS, 4])
@pytest.mark.parametrize("per_chunk", [1, 3])
def test_a_round_with_a_median_is_the_median_of_what_was_decoded(per_chunk, per_round):
    mechanism, run, _ = make(aggregator=AGGREGATORS["median"], per_chunk=per_chunk, per_round=per_round)
    fed = federation(np.arange(1, CLIENTS + 1))
    state, report = jax.jit(run)(start(), fed)
    mechanism = alone(mechanism)
    decoded, scales = [], []
    for k in np.asarray(report.participants.client):
        knobs = jax.tree.map(lambda a, k=k: a[k], fed.knobs)
        key, keys = client_keys(fed, 0, k)
        update, _, scale = local_update(start().params, None, fed.rows[k], fed.counts[k], fed.steps[k], key)
        decoded.append(mechanism.decode(keys.shared, mechanism.encode(keys, update, knobs), knobs))
        scales.append(scale)
    assert len(decoded) == per_round
    expected = start().params["w"] + np.median(decoded, axis=0) * np.mean(scales)
    np.testing.assert_allclose(state.params["w"], expected, rtol=1e-4, atol=1e-4)


def test_a_coordinatewise_rule_sees_some_coordinates_at_a_time(monkeypatch):
    """To the same end, also where their number does not divide the update's."""
    _, whole, _ = make(aggregator=AGGREGATORS["median"])
    expected, _ = jax.jit(whole)(start(), federation())
    seen = []
    rule = AGGREGATORS["median"]

    def combine(state, updates, facts):
        seen.append(updates.shape)
        return rule.combine(state, updates, facts)

    for size in (7, SIZE - 1):
        monkeypatch.setattr(gathering, "COORDINATES_AT_A_TIME", size)
        _, run, _ = make(aggregator=rule._replace(combine=combine))
        state, _ = jax.jit(run)(start(), federation())
        np.testing.assert_array_equal(state.params["w"], expected.params["w"])
    assert set(seen) == {(CLIENTS, 7), (CLIENTS, SIZE - 1)}


def test_a_rule_with_a_state_carries_it_from_round_to_round():
    """Momentum of the aggregate, as a rule that gathers."""

    def combine(velocity, updates, facts):
        velocity = 0.5 * velocity + updates.mean(0)
        return velocity, velocity

    rule = Aggregator(combine=combine, initialize=jnp.zeros)
    mechanism, run, _ = make("identity", aggregator=rule, server=optax.sgd(1.0))
    state, fed, velocity = start()._replace(aggregator=jnp.zeros(SIZE)), federation(), 0.0
    for _ in range(3):
        before = state
        state, _ = jax.jit(run)(state, fed)
        mean, _, _ = by_hand(mechanism, fed, before, lambda examples, errors: 1.0)
        steps = np.mean([1 + 0.1 * float(s) for s in fed.steps])
        velocity = 0.5 * velocity + mean / steps
        np.testing.assert_allclose(state.aggregator, velocity, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(
            state.params["w"], before.params["w"] + velocity * steps, rtol=1e-3, atol=1e-4
        )


def test_an_invalid_update_reaches_no_gathering_rule():
    def poisoned(model_params, data, row, count, steps, key):
        update, loss, scale = local_update(model_params, data, row, count, steps, key)
        return jnp.where(row[0] == 4, jnp.nan, update), loss, scale

    from federated.test_rounds import as_local_update  # noqa: PLC0415

    _, run, _ = make(aggregator=AGGREGATORS["median"], local_update=as_local_update(poisoned))
    state, report = jax.jit(run)(start(), federation())
    assert int(state.invalid_client) == 4 and int(state.round) == 0 and not bool(report.ran)
    np.testing.assert_array_equal(state.params["w"], start().params["w"])


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (Aggregator(), "either `weigh`"),
        (AGGREGATORS["median"]._replace(weigh=lambda n, e: 1.0), "either `weigh`"),
        (AGGREGATORS["median"]._replace(initialize=lambda d: 0), "no state"),
        (AGGREGATORS["precision"]._replace(observe=None), "has `observe`"),
        (AGGREGATORS["precision"]._replace(initialize=None), "`weights` and a state"),
        (AGGREGATORS["mean"]._replace(weights=lambda state, public: public.examples), "`weigh` or `weights`"),
        (AGGREGATORS["mean"]._replace(initialize=lambda d: 0), "streams has no state"),
        (AGGREGATORS["mean"]._replace(coordinatewise=True), "coordinatewise aggregator has `combine`"),
        (AGGREGATORS["median"]._replace(per_tensor=True), "has `weigh`"),
        (AGGREGATORS["median"]._replace(public_weights=len), "weighted sum"),
        ("median", "must be a federated.Aggregator"),
    ],
)
def test_a_rule_outside_the_contract_is_refused(rule, text):
    with pytest.raises(ConfigError, match=text):
        aggregation.check(rule)


def test_every_streaming_rule_is_tested_by_hand():
    assert {name for name, rule in AGGREGATORS.items() if rule.weigh} == set(HAND_WEIGHTS)
