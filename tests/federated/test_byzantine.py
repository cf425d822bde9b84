"""Robust rules and attacks against ByzFL's results, their laws, lies in a round, and the server's check."""

import dataclasses
import functools
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from federated.test_rounds import CLIENTS, SIZE, as_local_update, federation, local_update, make, start
from mechanisms.programs import FAST

from cepam_jax import federated, mechanisms
from cepam_jax.errors import ConfigError
from cepam_jax.federated import admission, attacks, byzantine, gathering, local
from cepam_jax.federated.aggregation import (
    AGGREGATORS,
    RULES,
    Facts,
    distances,
    guarded,
    robust,
)
from cepam_jax.federated.aggregation.robust import BEFORE, NOISE
from cepam_jax.federated.local import LocalTraining, make_local_update
from cepam_jax.federated.lying import ATTACKS, Seen, lied
from cepam_jax.federated.state import client_keys
from cepam_jax.mechanisms import Keys, Knobs
from cepam_jax.run import provenance
from cepam_jax.tasks import Model, Network, classification

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]

TABLE = json.loads((Path(__file__).parent / "byzfl.json").read_text())

# Of the table's names: the rule and its options here.
SAME = {
    **{name: (name, {}) for name in ("median", "trimmed_mean", "krum", "multi_krum", "smallest_diameter")},
    "geometric_median": ("geometric_median", {}),
    "geometric_median_long": ("geometric_median", {"smoothing": 0.01, "iterations": 20}),
    "centered_clipping": ("centered_clipping", {"radius": 100.0, "iterations": 1}),
    "centered_clipping_tight": ("centered_clipping", {"radius": 0.7, "iterations": 3}),
}


def combine(rule, updates, noise=None, key=None):
    """f32[d], the aggregate of updates [n, d] outside of any round."""
    updates = jnp.asarray(updates, jnp.float32)
    n, d = updates.shape
    facts = Facts(jnp.arange(n), jnp.ones(n), noise=noise, key=jax.random.key(0) if key is None else key)
    state = rule.initialize(d) if rule.initialize else None
    return np.asarray(combining(rule)(state, updates, facts))


@functools.lru_cache(maxsize=8)
def combining(rule):
    """The rule as one program: outside of one, each of its loops is compiled at every call."""
    return jax.jit(lambda *given: gathering.combined(rule, *given)[0], compiler_options=FAST)


def lying(name, strength, seen):
    """What liars of an attack, or of one by its name, send: by one program."""
    attack, static = ATTACKS[name] if isinstance(name, str) else name, (seen.norm, seen.aggregate)

    def run(strength, cover, *arrays):
        return lied(attack, Seen(*arrays, *static, cover), strength)

    return jax.jit(run, compiler_options=FAST)(jnp.float32(strength), seen.cover, *seen[:4])


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("case", TABLE["rules"])
def test_rules_equal_those_of_byzfl(case, name):
    found = TABLE["rules"][case]
    updates, (rule, options) = np.array(found["updates"]), SAME[name]
    here = combine(robust(rule, tolerated=found["f"], **options), updates)
    # Distances come from a Gram matrix in float32; far away updates have norms of thousands.
    tolerance = 2e-3 if case == "far" and "median" in name else 2e-4
    np.testing.assert_allclose(here, found["results"][name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", TABLE["rules"])
def test_mixing_equals_that_of_byzfl(case):
    found = TABLE["rules"][case]
    updates = jnp.asarray(found["updates"], jnp.float32)
    mixing = distances.nearest_mixing(distances.squared_distances(distances.gram(updates)), found["f"])
    np.testing.assert_allclose(mixing @ updates, found["results"]["mixing"], rtol=1e-4, atol=1e-4)


def test_the_table_has_every_rule():
    assert {rule for rule, _ in SAME.values()} == set(RULES)


@pytest.mark.parametrize("name", TABLE["attacks"]["results"])
def test_attacks_equal_those_of_byzfl(name):
    found = TABLE["attacks"]
    honest = np.array(found["honest"], np.float32)
    liars, (attack, *rule) = found["liars"], name.split(" ")
    updates = np.concatenate([honest, np.full((liars, honest.shape[1]), 7.0, np.float32)])
    chosen = robust(*rule, tolerated=liars, before="mixing") if rule else AGGREGATORS["mean"]
    seen = Seen(
        jnp.asarray(updates),
        jnp.arange(len(updates)) >= len(honest),
        jax.random.key(0),
        admission.Limits(jnp.zeros(len(updates)), jnp.full(len(updates), jnp.inf)),
        jnp.linalg.norm,
        functools.partial(combine_traced, chosen),
    )
    sent = lying(attack, ATTACKS[attack].strength, seen)
    np.testing.assert_array_equal(sent[: len(honest)], honest)
    for row in sent[len(honest) :]:
        np.testing.assert_allclose(row, found["results"][name], rtol=1e-3, atol=1e-4)


def combine_traced(rule, updates):
    facts = Facts(jnp.arange(len(updates)), jnp.ones(len(updates)), key=jax.random.key(0))
    return gathering.combined(rule, None, updates, facts)[0]


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("name", RULES)
def test_a_few_liars_however_far_move_no_rule_far(name, before):
    """The twin is the mean, which goes with them."""
    random = np.random.default_rng(5)
    honest, f = random.normal(1, 0.5, (13, 40)), 2
    rule = robust(name, tolerated=f, before=before, iterations=20, smoothing=0.01, radius=5.0)
    mean = honest.mean(0)
    for lie in (1e3, -1e6, 2.5e18, 1e25, np.inf, np.nan):
        sent = np.concatenate([honest, np.full((f, 40), lie)])
        moved = np.linalg.norm(combine(rule, sent) - mean)
        assert moved < 0.8 * np.linalg.norm(mean), (lie, moved)  # zeros would be at 1
    away = combine(guarded(AGGREGATORS["mean"], True), np.concatenate([honest, np.full((f, 40), 1e3)]))
    assert np.linalg.norm(away - mean) > 100


@pytest.mark.parametrize("name", RULES)
def test_equal_noise_that_is_known_changes_no_rule(name):
    """But for centered clipping, whose radius is then that of the updates without noise."""
    updates = np.random.default_rng(2).normal(size=(11, 30))
    options = {"tolerated": 3, "radius": 0.5}
    noise = jnp.full(11, 0.25)
    known = combine(robust(name, noise="known", **options), updates, noise)
    if name == "centered_clipping":
        options["radius"] = np.sqrt(0.5**2 + 0.25)
    np.testing.assert_allclose(known, combine(robust(name, **options), updates, noise), rtol=1e-4, atol=1e-5)


def test_distances_without_noise_are_unbiased_also_after_mixing():
    """2,000 draws; a mean of each entry is within 5 of its standard errors. The twin keeps the noise."""
    random = np.random.default_rng(3)
    n, d, draws = 6, 20, 2000
    x, sigma = random.normal(size=(n, d)), np.geomspace(0.1, 2, n)
    mixing = jnp.asarray(random.dirichlet(np.ones(n), 4), jnp.float32)
    sent = x + sigma[:, None] * random.normal(size=(draws, n, d))

    def estimate(updates, noise):
        products = distances.without_noise(distances.gram(updates), noise)
        return distances.squared_distances(mixing @ products @ mixing.T)

    found = jax.vmap(estimate, (0, None))(jnp.asarray(sent, jnp.float32), jnp.asarray(d * sigma**2))
    biased = jax.vmap(estimate, (0, None))(jnp.asarray(sent, jnp.float32), jnp.zeros(n))
    true = distances.squared_distances(mixing @ distances.gram(jnp.asarray(x, jnp.float32)) @ mixing.T)
    error = np.std(found, axis=0) / np.sqrt(draws) + 1e-9
    assert (np.abs(found.mean(0) - true) <= 5 * error).all()
    assert (np.abs(biased.mean(0) - true) > 5 * error)[~np.eye(4, dtype=bool)].all()


def test_known_noise_brings_a_mean_nearer():
    """Three noisy clients of fifteen: preferring the others lowers the error of every rule that averages."""
    random = np.random.default_rng(4)
    sigma = np.array([3.0] * 3 + [0.1] * 12)
    noise = jnp.asarray(50 * sigma**2)
    errors = {}
    for name in ("trimmed_mean", "geometric_median", "multi_krum"):
        for kind in NOISE:
            rule, found = robust(name, tolerated=2, noise=kind, iterations=8), []
            for _ in range(20):
                x = 1 + 0.1 * random.normal(size=(15, 50))
                found.append(
                    np.square(
                        combine(rule, x + sigma[:, None] * random.normal(size=x.shape), noise) - 1
                    ).sum()
                )
            errors[name, kind] = np.mean(found)
        assert errors[name, "known"] < errors[name, "ignored"], errors


def test_a_weighted_median_is_a_median_of_copies():
    random = np.random.default_rng(6)
    median = jax.jit(federated.aggregation.coordinates.coordinate_median, compiler_options=FAST)
    for _ in range(20):
        updates, copies = random.normal(size=(5, 3)), random.integers(1, 5, 5)
        whole = np.median(np.repeat(updates, copies, axis=0), axis=0)
        here = median(jnp.asarray(updates), jnp.asarray(copies, jnp.float32))
        np.testing.assert_allclose(here, whole, rtol=1e-6)


@pytest.mark.parametrize("before", ["none", "mixing"])
@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("name", RULES)
def test_what_is_refused_is_as_if_it_were_not_there(name, noise, before):
    """Three rows of eleven, with anything in them; the twin takes their zeros."""
    updates = 1 + np.random.default_rng(9).normal(size=(11, 30))
    taken, sigma = np.ones(11, bool), np.geomspace(0.5, 2, 11)
    taken[[0, 4, 7]] = False
    updates[~taken] = 0
    rule = robust(name, tolerated=2, noise=noise, before=before, radius=3.0)

    def found(rows, deviations, chosen):
        facts = Facts(
            jnp.arange(len(rows)), jnp.ones(len(rows)), jnp.asarray(30 * deviations**2), taken=chosen
        )
        state = rule.initialize(30) if rule.initialize else None
        return np.asarray(combining(rule)(state, jnp.asarray(rows, jnp.float32), facts))

    without = found(updates[taken], sigma[taken], None)
    np.testing.assert_allclose(found(updates, sigma, jnp.asarray(taken)), without, rtol=1e-3, atol=1e-4)
    if name == "trimmed_mean":
        assert not np.allclose(found(updates, sigma, None), without, rtol=1e-3, atol=1e-4)


def test_buckets_hold_everybody_once():
    buckets = jax.jit(distances.buckets, static_argnums=(1, 2), compiler_options=FAST)
    for n, size in itertools.product((7, 8), (1, 2, 3)):
        mixing = buckets(jax.random.key(n), n, size)
        assert mixing.shape == (-(-n // size), n)
        np.testing.assert_allclose(mixing.sum(1), 1, rtol=1e-6)
        assert ((mixing > 0).sum(0) == 1).all()
    assert (buckets(jax.random.key(0), 8, 2) != buckets(jax.random.key(1), 8, 2)).any()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tolerated": -1}, "tolerated"),
        ({"before": "after"}, "before"),
        ({"noise": "guessed"}, "noise"),
        ({"radius": 0.0}, "radius"),
        ({"iterations": 1.5}, "iterations"),
        ({"bucket": True}, "bucket"),
        ({"patience": 1}, "option of a robust rule"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, text):
    with pytest.raises(ConfigError, match=text):
        robust("krum", **options)


@pytest.mark.parametrize(
    ("name", "options", "least"),
    [
        ("median", {"tolerated": 3}, 7),
        ("krum", {"tolerated": 3}, 9),
        ("trimmed_mean", {"tolerated": 3, "before": "bucketing", "bucket": 2}, 13),
        ("multi_krum", {"tolerated": 2, "before": "mixing"}, 7),
    ],
)
def test_more_lies_than_a_rule_bears_are_refused(name, options, least):
    rule = robust(name, **options)
    assert rule.least == least
    make("identity", aggregator=rule, per_round=least) if least <= CLIENTS else None
    with pytest.raises(ConfigError, match=f"at least {least} updates"):
        make("identity", aggregator=rule, per_round=min(CLIENTS, least - 1))


# ---- rounds


def liars(*numbers):
    return jnp.isin(jnp.arange(CLIENTS), jnp.asarray(numbers))


def one_round(attack, aggregator, fed=None, name="lrsuq_gaussian_z1", **plan):
    fed = (fed or federation())._replace(liars=liars(1, 4), strength=jnp.float32(attack.strength))
    _, run, more = make(name, attack=attack, aggregator=guarded(aggregator, True), **plan)
    fed = fed._replace(knobs=fed.knobs._replace(**more))
    state = start()._replace(aggregator=jnp.zeros(SIZE) if aggregator.from_last else None)
    return jax.jit(run, compiler_options=FAST)(state, fed)


def test_a_round_aggregates_what_liars_send():
    """By hand: five honest updates with mean m, and twice -3 m, in a mean over seven."""
    mechanism, _, _ = make()
    through = jax.jit(
        lambda keys, x, knobs: mechanism.decode(keys.shared, mechanism.encode(keys, x, knobs), knobs),
        compiler_options=FAST,
    )
    fed, decoded, scales = federation(), [], []
    for k in range(CLIENTS):
        knobs = jax.tree.map(lambda a, k=k: a[k], fed.knobs)
        key, keys = client_keys(fed, 0, k)
        update, _, scale = local_update(start().params, None, fed.rows[k], fed.counts[k], fed.steps[k], key)
        decoded.append(through(keys, update, knobs))
        scales.append(scale)
    honest = np.mean([x for k, x in enumerate(decoded) if k not in (1, 4)], axis=0)
    state, report = one_round(attacks.Attack(attacks.sign_flip, 3.0), AGGREGATORS["mean"], per_chunk=3)
    np.testing.assert_array_equal(report.participants.lies, [0, 1, 0, 0, 1, 0, 0])
    assert report.participants.admitted is None
    expected = start().params["w"] + (5 * honest - 2 * 3 * honest) / 7 * np.mean(scales)
    np.testing.assert_allclose(state.params["w"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        *(("mean", name) for name, attack in ATTACKS.items() if attack.craft),
        ("centered_clipping", "dither_abuse"),
        ("trimmed_mean", "optimal_little"),
    ],
)
def test_every_attack_runs_and_the_check_refuses_what_is_too_large(rule, name):
    attack = ATTACKS[name]
    aggregator = robust(rule, tolerated=2) if rule in RULES else AGGREGATORS[rule]
    fed = federation()
    fed = fed._replace(knobs=fed.knobs._replace(sigma=jnp.full(CLIENTS, 0.1)))
    # Through the quantizer once: what liars and the check do to decoded updates, whoever decoded them.
    channel = (
        "lrsuq_gaussian_z1" if (rule, name) == ("centered_clipping", "dither_abuse") else "noise_gaussian"
    )
    state, report = one_round(attack, aggregator, fed, channel, false_alarm=1e-9)
    told = report.participants
    assert bool(report.ran) and np.isfinite(state.params["w"]).all()
    refused = 1 - np.asarray(told.admitted)
    assert not refused[np.asarray(told.lies) == 0].any()
    if name in ("clip_abuse", "not_finite"):
        assert refused[np.asarray(told.lies) == 1].all()
    if name in ("dither_abuse", "mimic"):
        assert not refused.any()


def test_honest_updates_that_are_refused_stay_refused_under_an_attack(monkeypatch):
    """With limits so narrow that some are, the same as without liars; they are not let in as zeros."""
    real = admission.limits

    def narrow(*arguments):
        least, most = real(*arguments)
        return admission.Limits(least, least + 0.5 * (most - least))

    monkeypatch.setattr(admission, "limits", narrow)
    fed = federation()
    fed = fed._replace(
        knobs=fed.knobs._replace(sigma=jnp.full(CLIENTS, 1.0), clip=jnp.linspace(0.1, 9, CLIENTS))
    )
    _, run, _ = make(aggregator=guarded(AGGREGATORS["mean"], False, True), false_alarm=0.01)
    _, plain = jax.jit(run, compiler_options=FAST)(start(), fed)
    _, report = one_round(ATTACKS["mimic"], AGGREGATORS["mean"], fed, false_alarm=0.01)
    honest = ~np.asarray(liars(1, 4))
    expected = np.asarray(plain.participants.admitted)[honest]
    assert 0 < expected.sum() < len(expected), expected
    np.testing.assert_array_equal(np.asarray(report.participants.admitted)[honest], expected)


def test_a_client_whose_training_diverged_sends_noise_alone_under_a_check():
    """So the round goes on, and nobody sees by what was refused whose training diverged."""

    def poisoned(model_params, data, row, count, steps, key):
        update, loss, scale = local_update(model_params, data, row, count, steps, key)
        return jnp.where(row[0] == 4, jnp.nan, update), loss, scale

    rule = guarded(AGGREGATORS["mean"], False, True)
    _, run, _ = make(aggregator=rule, local_update=as_local_update(poisoned), false_alarm=1e-9)
    state, report = jax.jit(run, compiler_options=FAST)(start(), federation())
    assert bool(report.ran) and np.isfinite(state.params["w"]).all()
    np.testing.assert_array_equal(report.participants.admitted, np.ones(CLIENTS))


def test_nan_of_a_liar_ends_no_round_with_a_check_and_fails_it_without():
    attack = ATTACKS["not_finite"]
    _, report = one_round(attack, AGGREGATORS["mean"], name="noise_gaussian")
    assert not bool(report.ran)
    _, report = one_round(attack, AGGREGATORS["mean"], name="noise_gaussian", false_alarm=1e-6)
    assert bool(report.ran)


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
@pytest.mark.parametrize("length", [0.0, 5.0])
def test_norms_keep_their_false_alarm_on_both_sides(law, length):
    """Of the shortest and the longest update, 20,000 messages each, at a false alarm of .02.

    At most so many are refused (5 standard errors: .005). The twins: limits drawn in to where a twentieth of
    the messages lies on each side refuse more.
    """
    norm = "l2" if law == "gaussian" else "l1"
    mechanism = mechanisms.chain(mechanisms.clip(norm), mechanisms.lrsuq(law))
    knobs, d, alarm = Knobs(sigma=0.3, clip=2.0), 400, 0.02
    limits = admission.limits(mechanism.about, knobs, d, alarm)
    x = jnp.zeros(d).at[0].set(length)

    def norm_of(key):
        keys = Keys(*jax.random.split(key))
        decoded = mechanism.decode(keys.shared, mechanism.encode(keys, x, knobs), knobs)
        return admission.norm(mechanism.about, decoded)

    norms = np.asarray(
        jax.jit(jax.vmap(norm_of), compiler_options=FAST)(jax.random.split(jax.random.key(0), 20_000))
    )
    most = alarm + 5 * np.sqrt(alarm / 20_000)
    assert ((norms < limits.least) | (norms > limits.most)).mean() <= most
    inside = np.quantile(norms, [0.05, 0.95])
    assert limits.least < inside[0] and inside[1] < limits.most
    assert ((norms < inside[0]) | (norms > inside[1])).mean() > most
    # They mean something: no wider than the clip and ten deviations of the norm allow.
    assert limits.most - limits.least < 2 * 2.0 + 10 * norms.std()
    assert not admission.admitted(mechanism.about, jnp.zeros(d), limits)[1], "a lie without noise"


@pytest.mark.parametrize(
    ("mechanism", "text"),
    [
        (mechanisms.lrsuq("gaussian"), "does not clip"),
        (
            mechanisms.chain(mechanisms.add_noise("gaussian"), mechanisms.clip("l2"), mechanisms.identity()),
            "clips no update before the noise comes in",
        ),
        (
            mechanisms.chain(
                mechanisms.clip("l2"),
                mechanisms.add_noise("gaussian"),
                mechanisms.clip("l2"),
                mechanisms.identity(),
            ),
            "no law of its whole error",
        ),
        (
            mechanisms.chain(
                mechanisms.clip("l1"), mechanisms.add_noise("laplace"), mechanisms.lrsuq("laplace")
            ),
            "no law of its whole error",
        ),
        (mechanisms.chain(mechanisms.clip("l2"), mechanisms.clipped()), "no law of its whole error"),
        (mechanisms.chain(mechanisms.clip("l2"), mechanisms.lrsuq("laplace")), "clip the L1 norm"),
        (
            mechanisms.chain(mechanisms.clip("l1"), mechanisms.rotate(), mechanisms.lrsuq("laplace")),
            "do not rotate",
        ),
    ],
)
def test_a_check_without_a_limit_is_refused(mechanism, text):
    with pytest.raises(ConfigError, match=text):
        admission.check(mechanism.about)


@functools.cache
def honest_messages(law):
    """(A mechanism with noise of a law, the limits of its decoded updates, eight of them)."""
    mechanism = mechanisms.chain(mechanisms.clip("l2" if law == "gaussian" else "l1"), mechanisms.lrsuq(law))
    knobs, d, n = Knobs(sigma=0.3, clip=2.0), 400, 8
    limits = admission.limits(mechanism.about, knobs, d, 1e-6)
    x = jnp.zeros((n, d)).at[:, 0].set(5.0)

    def decoded(key, one):
        keys = Keys(*jax.random.split(key))
        return mechanism.decode(keys.shared, mechanism.encode(keys, one, knobs), knobs)

    run = jax.jit(jax.vmap(decoded), compiler_options=FAST)
    return mechanism, limits, run(jax.random.split(jax.random.key(0), n), x)


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
@pytest.mark.parametrize("name", ["sign_flip", "mimic", "dither_abuse", "little_is_enough"])
def test_liars_pass_the_check_with_noise_of_their_own(name, law):
    mechanism, limits, decoded = honest_messages(law)
    n = len(decoded)
    seen = Seen(
        decoded,
        jnp.arange(n) >= 5,
        jax.random.key(1),
        admission.Limits(*(jnp.full(n, limit) for limit in limits)),
        admission.norm_of(mechanism.about),
        lambda sent: sent.mean(0),
    )
    sent = lying(name, ATTACKS[name].strength, seen)
    taken = jax.vmap(lambda one: admission.admitted(mechanism.about, one, limits)[1])(sent)
    # 1.5 deviations more in each coordinate are too much noise.
    np.testing.assert_array_equal(taken, [name != "little_is_enough" or k < 5 for k in range(n)])


@pytest.mark.parametrize("rule", ["mean", "median", "trimmed_mean", "multi_krum", "krum"])
def test_a_directed_search_finds_lies_that_are_taken(rule):
    """Those of the search by distance are refused: what is left is far from the honest mean by its noise."""
    random = np.random.default_rng(11)
    n, f, d = 30, 9, 400
    updates = jnp.asarray(random.normal(size=(n, d)) + 0.2, jnp.float32)
    lies = jnp.arange(n) >= n - f
    most = np.float32(1.1 * np.sqrt(1.04 * d))
    limits = admission.Limits(jnp.zeros(n), jnp.full(n, most))

    def taken(sent):
        return jnp.linalg.norm(sent, axis=1) <= most

    def aggregate(sent):
        kept = taken(sent)
        sent = jnp.where(kept[:, None], sent, 0.0)
        if rule == "mean":
            return sent.sum(0) / kept.sum()
        facts = Facts(jnp.arange(n), jnp.ones(n), key=jax.random.key(0), taken=kept)
        return gathering.combined(robust(rule, tolerated=f), None, sent, facts)[0]

    seen = Seen(updates, lies, jax.random.key(0), limits, jnp.linalg.norm, aggregate)
    mean, way = attacks.honest_mean(seen), attacks._way(seen, attacks.little_is_enough)

    def carried(updates):
        return jnp.vdot(aggregate(updates) - mean, way)

    @functools.partial(jax.jit, compiler_options=FAST)
    def by_strength(strengths):
        return jax.lax.map(lambda x: carried(lied(ATTACKS["little_is_enough"], seen, x)), strengths)

    directed, optimal = (lying(name, 1.0, seen) for name in ("directed_little", "optimal_little"))
    assert taken(directed)[n - f :].all() and not taken(optimal)[n - f :].any()
    grid = by_strength(jnp.asarray([0.125, *np.geomspace(0.05, 30, 150)], jnp.float32))
    found, nearest = jax.jit(jax.vmap(carried), compiler_options=FAST)(jnp.stack([directed, optimal]))
    assert found > 0.9 * grid[1:].max() > 2 * grid[0]
    assert found > 5 * nearest


def test_an_aggregate_that_is_no_number_is_not_what_a_search_chooses():
    updates = jnp.asarray(np.random.default_rng(12).normal(size=(6, 20)) + 1, jnp.float32)
    limits = admission.Limits(jnp.zeros(6), jnp.full(6, jnp.inf))

    def aggregate(sent):
        return jnp.where(jnp.abs(sent).max() > 8, jnp.nan, sent.mean(0))

    seen = Seen(updates, jnp.arange(6) >= 4, jax.random.key(0), limits, jnp.linalg.norm, aggregate)
    for name in ("directed_little", "directed_inner_product"):
        assert np.isfinite(aggregate(lying(name, 1.0, seen))).all()


def test_a_liar_that_knows_the_dither_chooses_what_is_decoded():
    """Dither abuse with real messages: for any target integers exist that decode to it, up to half a cell."""
    mechanism, knobs = mechanisms.lrsuq("gaussian"), Knobs(sigma=0.05)
    keys = Keys(jax.random.key(1), jax.random.key(2))
    target = jnp.linspace(-3, 3, 500)
    encode = jax.jit(mechanism.encode, compiler_options=FAST)
    message = encode(keys, jnp.zeros(500), knobs)

    @functools.partial(jax.jit, compiler_options=FAST)
    def decoded(symbols):
        return mechanism.decode(keys.shared, dataclasses.replace(message, symbols=symbols), knobs)

    zero = jnp.zeros_like(message.symbols)
    origin, step = decoded(zero), decoded(zero + 1) - decoded(zero)
    forged = decoded(jnp.round((target - origin) / step).astype(jnp.int32))
    assert (np.abs(forged - target) <= 0.51 * np.abs(step)).all()
    sent = encode(keys, target, knobs)
    honest = jax.jit(mechanism.decode, compiler_options=FAST)(keys.shared, sent, knobs)
    # Honest encoding adds the noise that hides it: over all accepted proposals the error is Gaussian.
    assert np.std(honest - target) > 0.04


def test_a_rule_over_parts_of_the_coordinates_is_the_same(monkeypatch):
    """Inner products are added up over parts; for devices see tests/run/test_devices.py."""
    updates = np.random.default_rng(8).normal(size=(9, 101))
    for name in ("krum", "trimmed_mean", "centered_clipping"):
        rule = robust(name, tolerated=2, before="mixing", noise="known")
        noise = jnp.linspace(1, 2, 9)
        whole = combine(rule, updates, noise)
        monkeypatch.setattr(gathering, "COORDINATES_AT_A_TIME", 17)
        combining.cache_clear()
        np.testing.assert_allclose(combine(rule, updates, noise), whole, rtol=1e-4, atol=1e-5)
        monkeypatch.undo()
        combining.cache_clear()


def test_a_rule_by_errors_is_refused_among_liars():
    with pytest.raises(ConfigError, match="weighs by errors"):
        guarded(AGGREGATORS["inverse_error"], True)
    with pytest.raises(ConfigError, match="weighs by errors"):
        guarded(AGGREGATORS["precision"], False)
    rule = guarded(AGGREGATORS["examples"], False)
    assert rule.streams and rule.public_weights is None and rule.post_processing
    fork = AGGREGATORS["median"]._replace(leaves_out=False)
    assert guarded(fork, True) is fork
    with pytest.raises(ConfigError, match="leaves_out"):
        guarded(fork, True, True)


def test_a_rule_that_uses_the_law_of_the_error_asks_for_one():
    for name in ("identity", "clipped_stochastic"):
        with pytest.raises(ConfigError, match="noise=known"):
            make(name, aggregator=robust("krum", tolerated=1, noise="known"))


def test_names_in_ledgers_are_the_same_in_every_process():
    assert provenance._name_of(robust("median")) == "median"
    for rule in (
        robust("krum", tolerated=2),
        guarded(AGGREGATORS["mean"], True),
        robust("median", tolerated=1),
    ):
        assert " at 0x" not in provenance._name_of(rule)
    first, second = (provenance._name_of(robust("krum", tolerated=f)) for f in (1, 2))
    assert first != second


def test_momentum_at_the_workers_is_their_running_mean():
    """Two rounds of a client by hand; it starts from zeros."""
    task = classification(Network(initialize, apply))
    arrays = federation()._replace(
        examples={"inputs": jnp.ones((CLIENTS, 3)), "labels": jnp.arange(CLIENTS) % 2}, constants={}
    )
    plain, slow = (make_local_update(task, LocalTraining(2, 1, worker_momentum=beta)) for beta in (0.0, 0.75))
    model, state = initialize(jax.random.key(0)), slow.initialize(CLIENTS, initialize(jax.random.key(0)))
    assert state.shape == (CLIENTS, 6) and plain.initialize is None
    sent = state[2]
    for number in range(2):
        key = jax.random.key(number)
        x = plain.run(model, arrays, 2, key, None, number)
        m = slow.run(model, arrays, 2, key, sent, number)
        np.testing.assert_allclose(m.update, 0.75 * sent + 0.25 * x.update, rtol=1e-6)
        np.testing.assert_array_equal(m.update, m.state)
        sent = m.state
    for field in ("normalize", "example_clip"):
        with pytest.raises(ConfigError, match="worker_momentum"):
            local.check(LocalTraining(2, 1, worker_momentum=0.5, **{field: 1}))


def initialize(key):
    return Model({"w": 0.1 * jax.random.normal(key, (3, 2))})


def apply(model, inputs, key):
    return inputs @ model.params["w"], None


def test_liars_learn_from_false_labels():
    task = classification(Network(initialize, apply), num_classes=2)
    arrays = federation()._replace(
        examples={"inputs": jnp.ones((CLIENTS, 3)), "labels": jnp.arange(CLIENTS) % 2},
        constants={},
        liars=liars(2),
    )
    turned = arrays._replace(examples=task.turned(arrays.examples))
    np.testing.assert_array_equal(turned.examples["labels"], 1 - np.arange(CLIENTS) % 2)
    honest = make_local_update(task, LocalTraining(2, 1))
    lying = byzantine.with_false_labels(honest, task, ATTACKS["label_flip"])
    model, key = initialize(jax.random.key(0)), jax.random.key(1)
    for client in (1, 2):
        there = lying.run(model, arrays, client, key, None, 0)
        mine = honest.run(model, turned if client == 2 else arrays, client, key, None, 0)
        np.testing.assert_array_equal(there.update, mine.update)
    other = honest.run(model, arrays, 2, key, None, 0)
    assert not np.allclose(lying.run(model, arrays, 2, key, None, 0).update, other.update)
