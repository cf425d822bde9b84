"""The server's check of pairs: its false alarm, what it leaves to liars, and rounds that use it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from federated.test_byzantine import liars, lying
from federated.test_rounds import CLIENTS, SIZE, federation, make, start
from mechanisms.programs import FAST

from cepam_jax import federated, mechanisms
from cepam_jax.errors import ConfigError
from cepam_jax.federated import admission, attacks, byzantine, gathering, pairs
from cepam_jax.federated.aggregation import AGGREGATORS, Facts, distances, guarded, robust
from cepam_jax.federated.lying import Seen
from cepam_jax.mechanisms import Keys, Knobs

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]

MECHANISM = mechanisms.chain(mechanisms.clip("l2"), mechanisms.lrsuq("gaussian"))


def decoded_of(keys, updates, knobs):
    """f32[n, d], every row through the mechanism with a key and knobs of its own."""

    def one(key, x, knobs):
        keys = Keys(*jax.random.split(key))
        return MECHANISM.decode(keys.shared, MECHANISM.encode(keys, x, knobs), knobs)

    return jax.vmap(one)(keys, updates, knobs)


decode_fast = jax.jit(decoded_of, compiler_options=FAST)


def noise_of(sigma, d):
    return d * jnp.square(sigma)


@pytest.mark.parametrize("length", [0.0, 1.5])
def test_pairs_keep_their_false_alarm(length):
    """8 equal honest updates, and updates that differ, with two sigmas; 4,000 rounds at a false alarm of .04.

    Of all honest messages at most so many are refused (5 standard errors of 32,000). For equal updates the
    bound is met: at least a quarter of it. The twin: noise that is a tenth smaller than stated.
    """
    d, n, alarm, rounds = 300, 8, 0.04, 4_000
    sigma = jnp.where(jnp.arange(n) % 2 == 0, 0.2, 0.4)
    part = pairs.least(d, n, alarm)
    updates = jnp.zeros((n, d)).at[jnp.arange(n), jnp.arange(n)].set(length)

    def refused(key, smaller):
        knobs = Knobs(sigma=smaller * sigma, clip=jnp.full(n, 2.0))
        decoded = decoded_of(jax.random.split(key, n), updates, knobs)
        left = pairs.kept(distances.gram(decoded), noise_of(sigma, d), None, part)
        return 1 - left.mean()

    keys = jax.random.split(jax.random.key(3), rounds)
    run = jax.jit(jax.vmap(refused, (0, None)), compiler_options=FAST)
    rate, twin = (float(np.mean(run(keys, by))) for by in (1.0, 0.9))
    most = alarm + 5 * np.sqrt(alarm / (rounds * n))
    assert rate <= most
    if not length:
        assert twin > most and rate >= alarm / 4


def test_no_more_honest_updates_go_than_lies():
    """Copies of one another, copies of honest updates, and one that is near to everybody."""
    d, n, sigma = 2_000, 12, 1.0
    part = pairs.least(d, n, 1e-6)
    honest = np.random.default_rng(0).normal(0, sigma, (n, d)).astype(np.float32)
    noise = jnp.full(n, d * sigma**2)

    def left(updates, taken=None):
        return np.asarray(pairs.kept(distances.gram(jnp.asarray(updates)), noise, taken, part))

    assert left(honest).all()
    same = honest.copy()
    same[8:] = same[8]
    np.testing.assert_array_equal(left(same), np.arange(n) < 8)  # four that are equal: two pairs
    same[11] = honest[11]
    np.testing.assert_array_equal(left(same).sum(), n - 2)  # of three one is left
    copies = honest.copy()
    copies[8:] = honest[:4]
    np.testing.assert_array_equal(left(copies), (np.arange(n) >= 4) & (np.arange(n) < 8))
    near = honest.copy()
    near[11] = honest[:11].sum(0) / np.sqrt(11)  # as long as the others, and near to all of them
    apart = np.square(near[:11] - near[11]).sum(1)
    assert (apart < part * 2 * d * sigma**2).all()
    assert left(near).sum() == n - 2 and not left(near)[11]
    # Who is not there is near to nobody.
    np.testing.assert_array_equal(left(same, np.arange(n) != 8)[9:], [False, False, True])


def test_long_updates_are_no_false_alarm_in_32_bits():
    """Honest updates 450 times as long as their noise: distances come from inner products that round.

    Of those that are 45 times as long, equal ones are still seen.
    """
    d, n = 500, 10
    drawn = np.random.default_rng(1).normal(0, 1, (n, d))
    part = pairs.least(d, n, 1e-6)
    for each, twice, left in ((450, False, n), (45, False, n), (45, True, n - 2)):
        updates = (np.full(d, float(each)) + drawn).astype(np.float32)
        updates[1] = updates[0] if twice else updates[1]
        products = distances.gram(jnp.asarray(updates))
        assert pairs.kept(products, jnp.full(n, float(d)), None, part).sum() == left


def test_least_is_the_quantile():
    """Of sums of squares of 100 differences, 200,000 draws: the false alarm lies below."""
    d, alarm, rng = 100, 1e-3, np.random.default_rng(2)
    part = pairs.least(d, 2, alarm)
    found = [
        np.square(rng.normal(size=(20_000, d)) - rng.normal(size=(20_000, d))).mean(1) for _ in range(10)
    ]
    below = (np.concatenate(found) < part * 2).mean()
    assert abs(below - alarm) <= 5 * np.sqrt(alarm / 200_000)
    # More clients and rarer false alarms allow nearer pairs; more coordinates say more.
    assert pairs.least(d, 20, alarm) < part < pairs.least(4 * d, 2, alarm) < 1


def seen_by(lies, cover, d, n, knobs, limits, aggregate=lambda sent: sent.mean(0)):
    """What liars know of n honest updates along the first coordinate."""
    x = jnp.zeros((n, d)).at[:, 0].set(5.0)
    decoded = decode_fast(jax.random.split(jax.random.key(0), n), x, knobs)
    return Seen(
        decoded, lies, jax.random.key(1), limits, admission.norm_of(MECHANISM.about), aggregate, cover
    )


@pytest.mark.parametrize("sigmas", [(0.3, 0.3), (0.3, 0.4)])
def test_liars_who_agree_on_noise_pass_and_are_bounded(sigmas):
    """Both checks let them pass, and their mean is no longer than the bound of the module's text.

    They come near to it; without their cover all are refused, and would be a third longer at least.
    """
    d, n, alarm, f = 4_000, 12, 1e-6, 6
    lies = jnp.arange(n) >= n - f
    knobs = Knobs(sigma=jnp.where(jnp.arange(n) % 2 == 0, *sigmas), clip=jnp.full(n, 2.0))
    limits = admission.limits(MECHANISM.about, knobs, d, alarm)
    noise = noise_of(knobs.sigma, d)
    part = pairs.least(d, n, alarm)
    cover = pairs.cover(jax.random.key(1), lies, noise, part, d)
    np.testing.assert_allclose(cover.sum(0), 0, atol=1e-3)
    assert not np.asarray(cover[: n - f]).any()

    def sent(cover):
        return lying("dither_abuse", 1.0, seen_by(lies, cover, d, n, knobs, limits))

    @functools.partial(jax.jit, compiler_options=FAST)
    def passed(updates):
        taken = jax.vmap(
            lambda one, *limit: admission.admitted(MECHANISM.about, one, admission.Limits(*limit))[1]
        )(updates, *limits)
        return pairs.kept(distances.gram(updates), noise, taken, part)

    covered, bare = sent(cover), sent(None)
    assert passed(covered).all()
    assert not passed(bare)[n - f :].any()
    share, most = noise[n - f :], np.asarray(limits.most)[n - f :]
    with_it, without = (float(jnp.linalg.norm(lie[n - f :].mean(0))) for lie in (covered, bare))
    # |sum v|^2 = f sum |v|^2 - sum of pairs' squared distances, with what both checks allow.
    bound = np.sqrt(f * float((most**2).sum()) - part * (f - 1) * float(share.sum())) / f
    assert 0.85 * bound < with_it < bound < 0.8 * without


def test_copies_evict_honest_participants_one_by_one():
    """f copies silence f honest updates and themselves; every second liar that copies, half as many."""
    d, n = 2_000, 12
    lies, knobs = jnp.arange(n) < 4, Knobs(sigma=jnp.full(n, 0.3), clip=jnp.full(n, 2.0))
    limits = admission.limits(MECHANISM.about, knobs, d, 1e-6)
    part, noise = pairs.least(d, n, 1e-6), noise_of(knobs.sigma, d)
    cover = pairs.cover(jax.random.key(1), lies, noise, part, d)
    seen = seen_by(lies, cover, d, n, knobs, limits)

    def left_of(attack):
        return np.asarray(pairs.kept(distances.gram(lying(attack, 0.1, seen)), noise, None, part))

    left = {
        name: left_of(attack)
        for name, attack in {
            "evict": "evict",
            "half": federated.Attack(attacks.evict_and_lie),
            "mimic": "mimic",
        }.items()
    }
    np.testing.assert_array_equal(left["evict"], np.arange(n) >= 8)
    assert not left["half"][[1, 3, 5, 7]].any() and left["half"][8:].any()
    # Four copies of one: of five that are equal one is left.
    assert left["mimic"][5:].all() and left["mimic"][:5].sum() == 1


@pytest.mark.parametrize("before", ["none", "mixing"])
@pytest.mark.parametrize(
    "name", ["median", "trimmed_mean", "multi_krum", "geometric_median", "centered_clipping"]
)
def test_rules_that_know_the_noise_bear_what_is_left_of_them(name, before):
    """However many of f = 5 lies silence an honest update each: what comes out is of honest updates."""
    n, d, f = 16, 400, 5
    rule = robust(name, tolerated=f, before=before, noise="known", radius=10.0)
    part = pairs.least(d, n, 1e-6)
    run = jax.jit(functools.partial(gathering.combined, rule, apart=part), compiler_options=FAST)
    for number in range(f + 1):
        rows = 1 + np.random.default_rng(number).normal(size=(n, d)).astype(np.float32)
        rows[:number] = rows[f : f + number]
        facts = Facts(jnp.arange(n), jnp.ones(n), noise=jnp.full(n, float(d)), key=jax.random.key(0))
        last = jnp.zeros(d) if rule.from_last else None
        found, _, left = run(last, jnp.asarray(rows), facts)
        assert left.sum() == n - 2 * number
        assert 0.2 < float(found.mean()) < 1.3, number


def test_rules_tolerate_no_more_lies_than_can_be_left():
    """Two pairs are gone, so a trimmed mean for three lies drops one value on each side of the others."""
    n, d = 12, 400
    rows = np.random.default_rng(3).normal(size=(n, d)).astype(np.float32)
    rows[1], rows[3] = rows[0], rows[2]
    facts = Facts(jnp.arange(n), jnp.ones(n), noise=jnp.full(n, float(d)))
    rule = robust("trimmed_mean", tolerated=3)
    found, _, left = gathering.combined(rule, None, jnp.asarray(rows), facts, apart=pairs.least(d, n, 1e-6))
    np.testing.assert_array_equal(left, np.arange(n) >= 4)
    np.testing.assert_allclose(found, np.sort(rows[4:], 0)[1:-1].mean(0), rtol=1e-5, atol=1e-6)


def told(rule, attack, name="noise_gaussian", **more):
    """(State, Report) of one round with noise of .2 in which clients 1 and 4 lie; attack None: nobody."""
    fed = federation()._replace(liars=liars(1, 4), strength=jnp.float32(1))
    fed = fed._replace(knobs=fed.knobs._replace(sigma=jnp.full(CLIENTS, 0.2)))
    rule = guarded(rule, True, True)
    given = {"attack": attack, "false_alarm": 1e-6, "pairs": True, **more}
    _, run, knobs = make(name, aggregator=rule, **given)
    fed = fed._replace(knobs=fed.knobs._replace(**knobs))
    state = start()._replace(aggregator=jnp.zeros(SIZE) if rule.from_last else None)
    return jax.jit(run, compiler_options=FAST)(state, fed)


def same(seen, strength):
    """Noise of an honest length, and the same from all liars."""
    return 0.2 * jax.random.normal(seen.key, seen.updates.shape[1:])


def gone(seen, strength):
    return jnp.full(seen.updates.shape[1:], jnp.nan)


def rule_for(name, tolerated):
    more = {"before": "mixing", "noise": "known"} if name == "centered_clipping" else {}
    return AGGREGATORS["mean"] if name == "mean" else robust(name, tolerated=tolerated, **more)


RULES = ("mean", "trimmed_mean", "centered_clipping", "multi_krum")


@pytest.mark.parametrize("name", RULES)
def test_a_round_leaves_out_liars_that_are_alike(name):
    """As if they had sent nothing finite, and one lie fewer were tolerated; unchecked, they are taken."""
    rule, channel = rule_for(name, 2), "lrsuq_gaussian_z1" if name == "mean" else "noise_gaussian"
    state, report = told(rule, federated.Attack(same), channel)
    absent, other = told(rule_for(name, 1), federated.Attack(gone), channel)
    honest = 1 - np.asarray(report.participants.lies)
    np.testing.assert_array_equal(report.participants.admitted, honest)
    np.testing.assert_array_equal(other.participants.admitted, honest)
    np.testing.assert_allclose(state.params["w"], absent.params["w"], rtol=1e-6)
    _, without = told(rule, federated.Attack(same), pairs=False)
    np.testing.assert_array_equal(without.participants.admitted, np.ones(CLIENTS))


@pytest.mark.parametrize("name", RULES)
def test_where_nobody_lies_a_check_of_pairs_changes_nothing(name):
    state, report = told(rule_for(name, 1), None)
    plain, _ = told(rule_for(name, 1), None, pairs=False, false_alarm=5e-7)
    np.testing.assert_array_equal(report.participants.admitted, np.ones(CLIENTS))
    np.testing.assert_allclose(state.params["w"], plain.params["w"], rtol=1e-6)


def test_whoever_is_late_is_not_refused():
    """Clients 1 and 4 send the same; where 4 is late, 1 is near to nobody, and 4 is late alone."""
    d, noise = 500, jnp.full(3, 500.0)
    rows = np.random.default_rng(0).normal(size=(3, d)).astype(np.float32)
    rows[2] = rows[1]
    part = pairs.least(d, 3, 1e-6)
    facts = Facts(jnp.arange(3), jnp.ones(3), noise=noise, taken=jnp.array([True, True, False]))
    rule = guarded(AGGREGATORS["mean"], True, True)
    aggregate, _, left = gathering.combined(rule, None, jnp.asarray(rows), facts, apart=part)
    np.testing.assert_array_equal(left, [True, True, False])
    np.testing.assert_allclose(aggregate, rows[:2].mean(0), rtol=1e-5, atol=1e-6)
    report = told(AGGREGATORS["mean"], None)[1].participants
    three = jax.tree.map(lambda a: a[:3], report)._replace(late=jnp.array([0.0, 0.0, 1.0]))
    np.testing.assert_array_equal(gathering._told(three, left, part).admitted, np.ones(3))
    np.testing.assert_array_equal(gathering._told(three._replace(late=None), left, part).admitted, [1, 1, 0])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"false_alarm": None}, "goes with the check of norms"),
        ({"name": "identity"}, "adds no noise"),
        ({"false_alarm": 1e-100}, "it would see next to nothing"),
    ],
)
def test_a_check_of_pairs_that_means_nothing_is_refused(change, text):
    with pytest.raises(ConfigError, match=text):
        told(AGGREGATORS["mean"], None, **change)


def test_a_check_of_pairs_with_a_rule_that_keeps_its_sets_is_refused():
    with pytest.raises(ConfigError, match="as many lies among those that are left"):
        told(robust("smallest_diameter", tolerated=1), None)


def test_a_check_of_pairs_of_laplace_noise_is_refused():
    mechanism = mechanisms.chain(mechanisms.clip("l1"), mechanisms.lrsuq("laplace"))
    with pytest.raises(ConfigError, match="is not Gaussian"):
        make(
            aggregator=guarded(AGGREGATORS["mean"], True, True),
            mechanism=mechanism,
            false_alarm=1e-6,
            pairs=True,
        )


def test_a_check_of_pairs_needs_updates_that_are_gathered():
    plan_rule = guarded(AGGREGATORS["mean"], False, True)
    with pytest.raises(ConfigError, match="sees no two updates together"):
        make(aggregator=plan_rule, false_alarm=1e-6, pairs=True)


def test_what_is_handed_over_in_python_is_checked():
    byzantine.checked(federated.Byzantine(false_alarm=1e-9, pairs=True), 5)
    with pytest.raises(ConfigError, match="unless norms are checked"):
        byzantine.checked(federated.Byzantine(pairs=True), 5)
    with pytest.raises(ConfigError, match="True or False"):
        byzantine.checked(federated.Byzantine(false_alarm=1e-9, pairs=1), 5)
