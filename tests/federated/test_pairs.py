"""The server's check of pairs: its false alarm, what it leaves to liars, and rounds that use it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from federated.test_byzantine import liars
from federated.test_rounds import CLIENTS, SIZE, federation, make, start

from cepam_jax import federated, mechanisms
from cepam_jax.errors import ConfigError
from cepam_jax.federated import ATTACKS, admission, byzantine, gathering, pairs
from cepam_jax.federated.aggregation import AGGREGATORS, Facts, distances, guarded, robust
from cepam_jax.federated.attacks import Seen, lied
from cepam_jax.mechanisms import Keys, Knobs

LAWS = ("gaussian", "laplace")


def mechanism_of(law):
    return mechanisms.chain(mechanisms.clip("l2" if law == "gaussian" else "l1"), mechanisms.lrsuq(law))


def decoded_of(mechanism, keys, updates, knobs):
    """f32[n, d], every row through the mechanism with a key and knobs of its own."""

    def one(key, x, knobs):
        keys = Keys(*jax.random.split(key))
        return mechanism.decode(keys.shared, mechanism.encode(keys, x, knobs), knobs)

    return jax.vmap(one)(keys, updates, knobs)


def noise_of(sigma, d):
    return d * jnp.square(sigma)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("length", [0.0, 1.5])
def test_pairs_keep_their_false_alarm(law, length):
    """8 equal honest updates, and updates that differ, with two sigmas; 4,000 rounds at a false alarm of .04.

    Of all honest messages at most so many are refused (5 standard errors of 32,000). For equal updates and
    Gaussian noise the bound is met: at least a quarter of it. The twin: noise that is a tenth smaller than
    stated is refused more often (for Laplace noise, whose bound is wider, a third smaller).
    """
    mechanism, d, n, alarm, rounds = mechanism_of(law), 300, 8, 0.04, 4_000
    sigma = jnp.where(jnp.arange(n) % 2 == 0, 0.2, 0.4)
    part = pairs.least(mechanism.about, d, n, alarm)
    updates = jnp.zeros((n, d)).at[jnp.arange(n), jnp.arange(n)].set(length)

    def refused(key, smaller):
        knobs = Knobs(sigma=smaller * sigma, clip=jnp.full(n, 2.0))
        decoded = decoded_of(mechanism, jax.random.split(key, n), updates, knobs)
        left = pairs.kept(distances.gram(decoded), noise_of(sigma, d), None, part)
        return 1 - left.mean()

    keys = jax.random.split(jax.random.key(3), rounds)
    rate, twin = (
        float(np.mean(jax.jit(jax.vmap(lambda key, by=by: refused(key, by)))(keys)))
        for by in (1.0, 0.9 if law == "gaussian" else 0.67)
    )
    most = alarm + 5 * np.sqrt(alarm / (rounds * n))
    assert rate <= most
    if not length:
        assert twin > most
        if law == "gaussian":
            assert rate >= alarm / 4


def test_no_more_honest_updates_go_than_lies():
    """Copies of one another, copies of honest updates, and one that is near to everybody."""
    d, n, sigma = 2_000, 12, 1.0
    part = pairs.least(mechanism_of("gaussian").about, d, n, 1e-6)
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


def test_a_known_length_of_update_is_no_false_alarm_in_32_bits():
    """Updates ten thousand times as long as their noise: distances come from inner products that round."""
    d, n = 500, 10
    drawn = np.random.default_rng(1).normal(0, 1, (n, d))
    updates = (np.full(d, 1e4) + drawn).astype(np.float32)
    part = pairs.least(mechanism_of("gaussian").about, d, n, 1e-6)
    assert np.asarray(
        pairs.kept(distances.gram(jnp.asarray(updates)), jnp.full(n, float(d)), None, part)
    ).all()


@pytest.mark.parametrize("law", LAWS)
def test_least_is_a_quantile_or_a_bound_of_one(law):
    """Of sums of squares of 100 differences, 200,000 draws: no more than the false alarm lie below."""
    d, alarm = 100, 1e-3
    rng = np.random.default_rng(2)
    draw = rng.normal if law == "gaussian" else rng.laplace
    part = pairs.least(mechanism_of(law).about, d, 2, alarm)
    found = np.concatenate(
        [np.square(draw(size=(20_000, d)) - draw(size=(20_000, d))).mean(1) for _ in range(10)]
    )
    below = (found < part * 2 * (1 if law == "gaussian" else 2)).mean()
    assert below <= alarm + 5 * np.sqrt(alarm / len(found))
    assert 0 < part < 1
    if law == "gaussian":
        assert below >= alarm / 2
    # More clients and rarer false alarms come nearer; more coordinates say more; few say nothing.
    about = mechanism_of(law).about
    assert pairs.least(about, d, 20, alarm) < part < pairs.least(about, 4 * d, 2, alarm)
    assert pairs.least(about, 1, 2, 1e-9) < 1e-6


@pytest.mark.parametrize("law", LAWS)
def test_liars_who_agree_on_noise_pass_and_are_bounded(law):
    """Both checks let them pass, and their mean is no longer than the bound of the module's text.

    Without the check of pairs the same attack's mean is longer than the bound: what the check is for.
    """
    mechanism, d, n, alarm = mechanism_of(law), 4_000, 12, 1e-6
    lies, clip = jnp.arange(n) >= 6, 2.0
    knobs = Knobs(sigma=jnp.where(jnp.arange(n) % 2 == 0, 0.3, 0.4), clip=jnp.full(n, clip))
    limits = admission.limits(mechanism.about, knobs, d, alarm)
    noise = noise_of(knobs.sigma, d)
    part = pairs.least(mechanism.about, d, n, alarm)
    x = jnp.zeros((n, d)).at[:, 0].set(5.0)
    decoded = decoded_of(mechanism, jax.random.split(jax.random.key(0), n), x, knobs)
    cover = pairs.cover(jax.random.key(1), lies, noise, part, d)
    np.testing.assert_allclose(cover.sum(0), 0, atol=1e-3)
    assert not np.asarray(cover[:6]).any()

    def norm(one):
        return admission.norm(mechanism.about, one)

    def sent(cover):
        seen = Seen(decoded, lies, jax.random.key(1), limits, norm, lambda sent: sent.mean(0), cover)
        return lied(ATTACKS["dither_abuse"], seen, jnp.float32(1.0))

    def passed(updates):
        taken = jax.vmap(
            lambda one, *limit: admission.admitted(mechanism.about, one, admission.Limits(*limit))[1]
        )(updates, *limits)
        return np.asarray(pairs.kept(distances.gram(updates), noise, taken, part))

    assert passed(sent(cover)).all()
    assert not passed(sent(None))[6:].any()
    f, share, most = 6, noise[6:], np.asarray(limits.most)[6:]
    lengths = [float(jnp.linalg.norm(sent(covered)[6:].mean(0))) for covered in (cover, None)]
    if law == "gaussian":
        # |sum v|^2 = f sum |v|^2 - sum of pairs' squared distances, with what both checks allow.
        apart = part * (f - 1) * float(share.sum())
        bound = np.sqrt(f * float((most**2).sum()) - apart) / f
        assert 0.9 * bound < lengths[0] < bound < 0.75 * lengths[1]


def told(rule, attack, name="lrsuq_gaussian_z1", **more):
    """(State, Report) of one round with noise of .2 in which clients 1 and 4 lie; attack None: nobody."""
    fed = federation()._replace(liars=liars(1, 4), strength=jnp.float32(1))
    fed = fed._replace(knobs=fed.knobs._replace(sigma=jnp.full(CLIENTS, 0.2)))
    rule = guarded(rule, True, True)
    given = {"attack": attack, "false_alarm": 1e-6, "pairs": True, **more}
    _, run, knobs = make(name, aggregator=rule, **given)
    fed = fed._replace(knobs=fed.knobs._replace(**knobs))
    state = start()._replace(aggregator=jnp.zeros(SIZE) if rule.from_last else None)
    return jax.jit(run)(state, fed)


def same(seen, strength):
    """Noise of an honest length, and the same from all liars: they do without what would cover them."""
    sent = 0.2 * jax.random.normal(seen.key, seen.updates.shape[1:])
    return sent if seen.cover is None else sent - seen.cover


def gone(seen, strength):
    return jnp.full(seen.updates.shape[1:], jnp.nan)


RULES = {
    "mean": AGGREGATORS["mean"],
    "trimmed_mean": robust("trimmed_mean", tolerated=1),
    "centered_clipping": robust("centered_clipping", tolerated=1, before="mixing", noise="known"),
    "multi_krum": robust("multi_krum", tolerated=1),
}


@pytest.mark.parametrize("name", RULES)
def test_a_round_leaves_out_liars_that_are_alike(name):
    """As if they had sent nothing that is finite; without the check of pairs they are taken."""
    rule = RULES[name]
    state, report = told(rule, federated.Attack(same))
    absent, other = told(rule, federated.Attack(gone))
    honest = 1 - np.asarray(report.participants.lies)
    np.testing.assert_array_equal(report.participants.admitted, honest)
    np.testing.assert_array_equal(other.participants.admitted, honest)
    np.testing.assert_array_equal(state.params["w"], absent.params["w"])
    _, without = told(rule, federated.Attack(same), pairs=False)
    np.testing.assert_array_equal(without.participants.admitted, np.ones(CLIENTS))


@pytest.mark.parametrize("name", RULES)
def test_where_nobody_lies_a_check_of_pairs_changes_nothing(name):
    state, report = told(RULES[name], None)
    plain, _ = told(RULES[name], None, pairs=False, false_alarm=5e-7)
    np.testing.assert_array_equal(report.participants.admitted, np.ones(CLIENTS))
    np.testing.assert_allclose(state.params["w"], plain.params["w"], rtol=1e-6)


def test_whoever_is_late_is_not_refused():
    """Clients 1 and 4 send the same; where 4 is late, 1 is near to nobody, and 4 is late alone."""
    d, noise = 500, jnp.full(3, 500.0)
    rows = np.random.default_rng(0).normal(size=(3, d)).astype(np.float32)
    rows[2] = rows[1]
    part = pairs.least(mechanism_of("gaussian").about, d, 3, 1e-6)
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
    ],
)
def test_a_check_of_pairs_that_means_nothing_is_refused(change, text):
    with pytest.raises(ConfigError, match=text):
        told(AGGREGATORS["mean"], None, **change)


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
