"""Events, epsilons and calibration against closed forms and published values."""

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld
from scipy import optimize, stats

from cepam_jax import privacy
from cepam_jax.errors import ConfigError
from cepam_jax.privacy import Federation, ObservedDraws, Phase, accounting, calibrate, releases
from cepam_jax.privacy.accounting import rounded_up
from cepam_jax.privacy.events import ADVERSARIES

DELTA = 1e-5


def federation(sigma, clients=10, rounds=1, law="gaussian", norm="l2", **changes):
    sigma = np.broadcast_to(np.asarray(sigma, float), (clients,))
    fields = {
        "outsiders": law,
        "server": None,
        "norm": norm,
        "clip": np.ones(clients),
        "phases": (Phase(rounds, sigma, 0 * sigma),),
        "weights": np.ones(clients),
        "aggregation": "weighted_sum",
        "summable": True,
        "hidden": True,
        "fresh": True,
    }
    return Federation(**(fields | changes))


def epsilons(fed, adversary, delta=DELTA):
    return np.array([privacy.guaranteed(g, delta) for g in ADVERSARIES[adversary](fed)])


def gaussian_delta(epsilon, z):
    """Closed form of the Gaussian mechanism (1805.06530, theorem 8)."""
    return stats.norm.cdf(0.5 / z - epsilon * z) - math.exp(epsilon) * stats.norm.cdf(-0.5 / z - epsilon * z)


@pytest.mark.parametrize(("sigma", "rounds"), [(1.0, 1), (4.0, 80), (30.0, 1000)])
def test_full_participation_is_one_gaussian_mechanism(sigma, rounds):
    found = epsilons(federation(sigma, rounds=rounds), "decoded_updates")[0]
    assert gaussian_delta(found, sigma / math.sqrt(rounds)) == pytest.approx(DELTA, rel=1e-3)


def test_the_released_model_has_the_noise_of_all():
    """Heterogeneous: z_k = sqrt(sum w^2 sigma^2) / (w_k C_k), each client its own epsilon."""
    sigma, clip, weights = np.array([1.0, 2.0, 4.0]), np.array([1.0, 0.5, 2.0]), np.array([1.0, 3.0, 2.0])
    fed = federation(sigma, 3, clip=clip, weights=weights)
    total = math.sqrt(1 + 36 + 64)
    for k, epsilon in enumerate(epsilons(fed, "released_model")):
        z = total / (weights[k] * clip[k])
        assert gaussian_delta(epsilon, z) == pytest.approx(DELTA, rel=1e-3)
    assert (epsilons(fed, "released_model") < epsilons(fed, "decoded_updates")).all()


def test_replace_is_twice_as_far():
    one = epsilons(federation(2.0, relation="replace"), "released_model")
    two = epsilons(federation(1.0), "released_model")
    np.testing.assert_allclose(one, two)


def test_laplace_is_pure_and_counts_on_its_own_noise():
    fed = federation(math.sqrt(2) * 10.0, law="laplace", norm="l1", rounds=3)  # b = 10
    for adversary in ("released_model", "decoded_updates", "colluding_clients"):
        found = epsilons(fed, adversary, 1e-12)
        assert found == pytest.approx(0.3, rel=1e-3)  # pure composition: 3 / 10


def test_subsampled_gaussian_meets_the_published_value():
    """DP-SGD tutorials on MNIST: batch 250 of 60,000, z = 1.3, 15 epochs, delta 1e-5: 1.18 by RDP.

    Our rounds have no Poisson sampling with central noise; this holds the library that accounts for ours.
    """
    step = dp_accounting.PoissonSampledDpEvent(250 / 60_000, dp_accounting.GaussianDpEvent(1.3))
    event = dp_accounting.SelfComposedDpEvent(step, 15 * 60_000 // 250)
    by_rdp = dp_accounting.rdp.RdpAccountant().compose(event).get_epsilon(DELTA)
    assert 0.8 < by_rdp <= 1.19  # the tutorials converted RDP to epsilon less tightly
    assert 0.7 * by_rdp < privacy.epsilon(event, DELTA) < by_rdp


def test_hidden_draws_amplify_only_against_the_released_model():
    some = federation(3.0, 1000, 20, sampling="fixed", per_round=10, relation="replace")
    by_draws = releases.ObservedDraws("gaussian", 0.01, ((20, math.sqrt(10) * 3.0),), 2.0)
    assert epsilons(some, "released_model")[0] < 0.9 * privacy.epsilon(by_draws, DELTA)
    guarantee = ADVERSARIES["decoded_updates"](some)[0]
    assert not any("Sampled" in repr(release) for release in guarantee.releases)


@pytest.mark.parametrize(
    "changes",
    [
        {"unit": "example"},
        {"weights": np.r_[2.0, np.ones(999)]},
        {"clip": np.r_[2.0, np.ones(999)]},
        {"phases": (Phase(20, np.r_[1.0, np.full(999, 3.0)], np.zeros(1000)),)},
        {"aggregation": "function"},
        {"fresh": False},
        {"hidden": False},
        {"summable": False},
        {"independent_coordinates": False},
    ],
)
def test_clients_that_can_be_told_apart_are_not_amplified(changes):
    """The theorem on hidden draws replaces a drawn client by any other: 1808.00087, theorem 27."""
    alike = federation(3.0, 1000, 20, sampling="fixed", per_round=10)
    assert "WithoutReplacement" in repr(ADVERSARIES["released_model"](alike)[0].releases)
    for guarantee in ADVERSARIES["released_model"](alike._replace(**changes)):
        assert "WithoutReplacement" not in repr(guarantee.releases)


def test_one_weak_client_among_many_has_what_its_draws_leave():
    """One client at gamma 5 among 999 at .5, 5 a round, 80 rounds, replace: .290 in the first release."""
    sigma = np.r_[0.2, np.full(999, 2.0)]
    fed = federation(sigma, 1000, 80, sampling="fixed", per_round=5, relation="replace")
    found = epsilons(fed, "released_model")[0]
    # A lower bound that needs no accountant: an attack on the draws that the others' updates betray.
    mu = 2 * math.sqrt(1) / math.sqrt(0.2**2 + 4 * 2.0**2)
    n = np.arange(81)
    chance = stats.binom.pmf(n, 80, 0.005)
    delta = sum(
        p * gaussian_delta(2.71, 1 / (math.sqrt(k) * mu)) for k, p in zip(n[1:], chance[1:], strict=True)
    )
    assert delta > DELTA  # so epsilon = 2.71 is not enough
    assert 2.71 <= found < 2.72


def test_absent_clients_add_no_noise():
    """Poisson, one of 100 expected, z = 1, one round: .199 in the first release, at least 2.8 in truth."""
    fed = federation(1.0, 100, 1, sampling="poisson", per_round=1)
    found = epsilons(fed, "released_model")[0]
    # The client alone (nobody else drawn) against nobody at all: its own noise, with that chance.
    alone = 0.01 * 0.99**99
    assert alone * gaussian_delta(2.80, 1.0) > DELTA
    assert 0.01 * gaussian_delta(found, 1.0) == pytest.approx(DELTA, rel=1e-3)


def test_the_quietest_others_are_counted_without_the_client_itself():
    sigma = np.array([1.0, 2.0, 3.0, 4.0])
    fed = federation(sigma, 4, 1, sampling="fixed", per_round=2)
    for k, others in enumerate((2.0, 1.0, 1.0, 1.0)):
        draws = ADVERSARIES["released_model"](fed)[k].releases[1]
        assert draws.multipliers[0][1] == pytest.approx(math.hypot(sigma[k], others))


def observed(z, rounds, chance, epsilon):
    """delta of seen draws, summed by hand."""
    n = np.arange(1, rounds + 1)
    deltas = [gaussian_delta(epsilon, z / math.sqrt(k)) for k in n]
    return float(np.sum(stats.binom.pmf(n, rounds, chance) * deltas))


@pytest.mark.parametrize(("z", "rounds", "chance"), [(1.0, 80, 0.01), (5.0, 200, 0.3), (0.2, 10, 0.5)])
def test_seen_draws_are_a_binomial_mixture(z, rounds, chance):
    found = privacy.epsilon(ObservedDraws("gaussian", chance, ((rounds, z),), 1.0), DELTA)
    assert observed(z, rounds, chance, found) == pytest.approx(DELTA, rel=1e-4)
    assert found < privacy.epsilon(dp_accounting.GaussianDpEvent(z / math.sqrt(rounds)), DELTA)
    certain = privacy.epsilon(ObservedDraws("gaussian", 1.0, ((rounds, z),), 1.0), DELTA)
    assert gaussian_delta(certain, z / math.sqrt(rounds)) == pytest.approx(DELTA, rel=1e-3)


def test_unlike_rounds_are_rounded_up_and_only_a_little():
    """The grid of unlike rounds against the same rounds as one phase, and against a simulation of draws."""
    one = privacy.epsilon(ObservedDraws("gaussian", 0.2, ((60, 2.0),), 1.0), DELTA)
    cut = privacy.epsilon(ObservedDraws("gaussian", 0.2, ((20, 2.0), (25, 2.0), (15, 2.0)), 1.0), DELTA)
    assert one <= cut <= 1.005 * one
    unlike = ObservedDraws("gaussian", 0.3, tuple((1, 1.0 + 0.1 * t) for t in range(20)), 2.0)
    found = privacy.epsilon(unlike, 1e-2)
    drawn = np.random.default_rng(0).random((400_000, 20)) < 0.3
    mu = np.sqrt((drawn * [4 / z**2 for _, z in unlike.multipliers]).sum(1))
    delta = releases.gaussian_delta(found, mu)
    assert delta.mean() == pytest.approx(1e-2, rel=0.02)  # five standard errors
    assert 5 * delta.std() / math.sqrt(len(mu)) < 0.02 * 1e-2


def test_seen_draws_of_laplace_noise():
    draws = ObservedDraws("laplace", 0.1, ((50, 2.0), (50, 1.0)), 1.0)
    found = privacy.epsilon(draws, DELTA)
    everything = privacy.epsilon(releases.composed("laplace", draws.multipliers, 1.0), DELTA)
    rounds, tail = releases.fewer_rounds(draws, DELTA / 2)
    assert found < 0.8 * everything and tail <= DELTA / 2
    assert sum(count for count, _ in rounds) == stats.binom.isf(DELTA / 2, 100, 0.1)
    assert rounds[0] == (min(50, sum(c for c, _ in rounds)), 1.0)  # the least noise is counted first
    assert privacy.epsilon(ObservedDraws("laplace", 1e-9, ((5, 1.0),), 1.0), DELTA) == 0.0


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
@pytest.mark.parametrize("sampling", ["all", "fixed", "poisson"])
def test_changing_noise_under_every_sampling(law, sampling):
    """A composed event was no key of a cache for all but one of these."""
    phases = tuple(Phase(1, np.full(10, s), np.zeros(10)) for s in (1.0, 1.5, 2.0))
    fed = federation(1.0, law=law, norm="l1", sampling=sampling, per_round=3)._replace(phases=phases)
    rows = privacy.report(fed, DELTA)
    assert all(np.isfinite(row.epsilon).all() for row in rows[:3])
    louder = fed._replace(phases=tuple(p._replace(outsiders=2 * p.outsiders) for p in phases))
    assert (privacy.report(louder, DELTA)[0].epsilon < rows[0].epsilon).all()


def test_what_states_nothing_has_no_guarantee():
    silent = federation(1.0)._replace(aggregation="unstated")
    for adversary in ("released_model", "colluding_clients", "decoded_updates"):
        assert np.isinf(epsilons(silent, adversary)).all()
    phase = Phase(1, np.ones(1), np.zeros(1))
    plain = Federation("gaussian", None, "l2", np.ones(1), (phase,), np.ones(1))
    assert not (plain.summable or plain.hidden or plain.fresh)
    assert np.isinf(epsilons(plain, "decoded_updates")).all()
    refused = federation(1.0, server="gaussian", refused=("the reason",))
    assert all("no guarantee (the reason)" in row.text() for row in privacy.report(refused, DELTA))


def test_a_function_of_decoded_updates_leaves_a_client_its_own_noise():
    """A coordinate-wise median of 30 clients: 2.34 printed by the first release, where 17.9 is valid."""
    fed = federation(1.0, 30, aggregation="function")
    np.testing.assert_allclose(epsilons(fed, "released_model"), epsilons(fed, "decoded_updates"))
    summed = federation(1.0, 30)
    assert (epsilons(fed, "released_model") > 3 * epsilons(summed, "released_model")).all()


def test_noise_that_comes_back_counts_once():
    """Error feedback: the others' memories hold minus their earlier noise, which telescopes over rounds."""
    remembering = federation(0.1, 200, 40, relation="replace", fresh=False)
    own = privacy.epsilon(dp_accounting.GaussianDpEvent(0.1 / 2 / math.sqrt(40)), DELTA)
    np.testing.assert_allclose(epsilons(remembering, "released_model"), own)
    # Without an update a client still sends its memory, clipped: 2 C apart, whatever the relation.
    absent = remembering._replace(relation="add_remove")
    np.testing.assert_allclose(epsilons(absent, "released_model"), own)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"sampling": "poisson", "per_round": 20}, "per_round is 20; it must be above 0 and at most 10"),
        ({"sampling": "fixed"}, "per_round is 0; it must be above 0"),
        ({"sampling": "fixed", "per_round": 11}, "per_round is 11"),
        ({"relation": "replace_one"}, "relation is 'replace_one'"),
        ({"outsiders": "Gaussian"}, "outsiders is 'Gaussian'"),
        ({"norm": "linf"}, "norm is 'linf'"),
        ({"unit": "Example"}, "unit is 'Example'"),
        ({"aggregation": "sum"}, "aggregation is 'sum'"),
        ({"phases": (Phase(-4, np.ones(10), np.zeros(10)),)}, "rounds of a phase is -4"),
        ({"phases": ()}, "phases is .*; it must be at least one"),
        ({"phases": (Phase(1, np.full(10, np.nan), np.zeros(10)),)}, "finite and not negative"),
        ({"weights": np.zeros(10)}, "weights is .*; it must be finite and positive"),
        ({"weights": np.ones(9)}, "shape of weights is .9,."),
        ({"clip": -np.ones(10)}, "clip is .*; it must be finite and positive"),
    ],
)
@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_what_is_no_federation_is_refused(adversary, changes, text):
    """Each of these printed an epsilon, of something else than was asked."""
    fed = federation(1.0, server="gaussian")._replace(**changes)
    with pytest.raises(ConfigError, match=text):
        ADVERSARIES[adversary](fed)


def test_many_kinds_of_rounds_are_rounded_up():
    """Hidden draws under a schedule: sixty kinds of rounds counted as six, each with its least noise."""
    phases = tuple(Phase(1, np.full(200, 2.0 + 0.02 * t), np.zeros(200)) for t in range(60))
    fed = federation(1.0, 200, sampling="fixed", per_round=10, relation="replace")._replace(phases=phases)
    release = ADVERSARIES["released_model"](fed)[0].releases[-1]
    assert len(release.events) == 6 and sum(part.count for part in release.events) == 60
    loudest, quietest = (federation(s, 200, 60, sampling="fixed", per_round=10) for s in (3.2, 2.0))
    least, most = (ADVERSARIES["released_model"](f)[0].releases[-1] for f in (loudest, quietest))
    assert privacy.epsilon(least, DELTA) < privacy.epsilon(release, DELTA) < privacy.epsilon(most, DELTA)


def test_the_report_says_what_the_least_bound_counts_on():
    hidden = federation(3.0, 1000, 20, sampling="fixed", per_round=10, relation="replace")
    text = privacy.text(hidden, DELTA)
    assert "counts on the noise of all participants, and on nobody knowing who was drawn" in text
    assert "decoded_updates: epsilon = " in text and "and on the rounds without the client" in text
    assert "replace: a client's update, or any other in its place" in text


def test_some_clients_without_a_guarantee_are_counted():
    sigma = np.r_[0.0, np.ones(4)]
    row = privacy.report(federation(sigma, 5), DELTA)[2]
    assert row.text() == "decoded_updates: no guarantee for 1 of 5 clients (the noise is zero)"


@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_no_guarantee_is_infinity_and_says_why(adversary):
    cases = {
        "no noise hides the update": federation(1.0, law=None),
        "not clipped": federation(1.0, norm=None, server="gaussian"),
        "needs an L1 clip": federation(1.0, law="laplace", server="laplace"),
    }
    for text, fed in cases.items():
        guarantee = ADVERSARIES[adversary](fed)[0]
        assert math.isinf(privacy.guaranteed(guarantee, DELTA)) and text in guarantee.reason
    assert np.isinf(epsilons(federation(1.0), "server")).all()  # CEPAM against the server


def test_private_noise_counts_against_the_server():
    fed = federation(1.0, server="gaussian")
    fed = fed._replace(phases=(Phase(1, np.ones(10), np.full(10, 0.5)),))
    assert gaussian_delta(epsilons(fed, "server")[0], 0.5) == pytest.approx(DELTA, rel=1e-3)
    silent = fed._replace(phases=(Phase(1, np.ones(10), np.zeros(10)),))
    assert np.isinf(epsilons(silent, "server")).all()


def test_phases_add_up():
    two = federation(1.0)._replace(
        phases=(Phase(3, np.full(10, 2.0), np.zeros(10)), Phase(5, np.full(10, 4.0), np.zeros(10)))
    )
    z = (3 / 4 + 5 / 16) ** -0.5
    assert gaussian_delta(epsilons(two, "decoded_updates")[0], z) == pytest.approx(DELTA, rel=1e-3)


def test_calibration_and_its_inverses():
    def of_gamma(gamma, rounds=80):
        return federation(1 / gamma, 30, rounds)

    gamma = privacy.gamma_for(of_gamma, "released_model", 8.0, DELTA)
    found = epsilons(of_gamma(gamma), "released_model").max()
    assert 7.99 < found <= 8.0
    lasts = privacy.affordable_rounds(lambda n: of_gamma(gamma, n), "released_model", 8.0, DELTA, 200)
    assert lasts == 80
    closed = optimize.brentq(lambda z: gaussian_delta(8.0, z) - DELTA, 0.1, 10)
    assert 1 / gamma == pytest.approx(closed * math.sqrt(80 / 30), rel=1e-4)
    assert privacy.affordable_rounds(lambda n: of_gamma(99.0, n), "released_model", 1.0, DELTA, 9) == 0
    with pytest.raises(ConfigError, match="no gamma gives an epsilon against server: no noise"):
        privacy.gamma_for(of_gamma, "server", 8.0, DELTA)


def test_every_client_gets_the_noise_of_its_own_epsilon():
    targets = np.array([1.0, 8.0, 1.0, 50.0])
    sigmas = privacy.sigmas_for(targets, [1, 1, 2, 1], 20, DELTA)
    fed = federation(sigmas, 4, 20, clip=np.array([1.0, 1, 2, 1]))
    np.testing.assert_allclose(epsilons(fed, "decoded_updates"), targets, rtol=1e-3)
    assert sigmas[2] == pytest.approx(2 * sigmas[0])
    laplace = privacy.sigmas_for([2.0], [1.0], 4, 1e-12, "laplace")
    assert laplace[0] == pytest.approx(math.sqrt(2) * 2.0, rel=1e-2)  # b = 4 rounds / epsilon 2


def test_expected_bits_follow_the_rate():
    assert privacy.expected_bits(1000.0, 1_000_000) == pytest.approx(0.965, rel=0.01)
    assert privacy.expected_bits(10.0, 1_000_000) < 0.02


def test_the_report_names_adversary_unit_delta_and_relation():
    text = privacy.text(federation(1.0, 30, 80, not_covered=("message lengths",)), DELTA)
    assert "released_model: epsilon = " in text and "client level, add/remove" in text
    assert "delta = 1e-05" in text and "server: no guarantee (no noise hides" in text
    assert "a client's update, or zero in its place" in text
    assert "not covered: message lengths" in text
    # Under Poisson sampling who is not drawn sends nothing. Noise that the server fills up is there without
    # the client, too; a client's own is not, and hides it only from a world where it comes with zeros.
    poisson = {"sampling": "poisson", "per_round": 3}
    drawn = privacy.text(federation(1.0, 30, 80, **poisson, filled=5), DELTA)
    never, zero = (
        f"add/remove of {who}: a client{what} in its place"
        for who, what in (
            ("released_model, colluding_clients", ", or none"),
            ("decoded_updates", "'s update, or zero"),
        )
    )
    assert never in drawn and zero in drawn
    alone = privacy.text(federation(1.0, 30, 80, **poisson), DELTA)
    assert "add/remove: a client's update, or zero in its place" in alone and "never takes part" not in alone
    weak = privacy.text(federation(0.01, 30, 80), DELTA)
    assert "no protection" in weak and "no protection" not in privacy.text(federation(9.0), DELTA)
    mixed = privacy.text(federation(np.linspace(1, 2, 5), 5), DELTA)
    assert "over clients" in mixed


def test_a_printed_epsilon_is_not_below_the_one_that_was_found():
    for value in (2.0004, 1.99999, 20, 20.0000001, 1.23449e-5, 98765.4, 9.9999, 1e6, 3.0):
        shown = rounded_up(value)
        assert value * (1 - 1e-8) <= float(shown) <= 1.00101 * value
        assert len(shown.replace(".", "").lstrip("0").split("e")[0]) <= 4
    assert rounded_up(2.0004) == "2.001" and rounded_up(3.0) == "3"


def drawn(chance, *rounds):
    """The event of so many rounds of each noise multiplier in which every client takes part by itself."""
    return releases.poisson_sampled(chance, rounds, 0.0).event


@pytest.mark.parametrize(
    ("chance", "rounds"),
    [
        (0.3, ((3, 0.6),)),
        (0.01, ((100, 1.0), (50, 0.8))),
        (0.01, ((1000, 5.0),)),
        (0.01, ((10_000, 20.0),)),
        (1.0, ((3, 1.0),)),
    ],
)
def test_the_grid_of_losses_adds_next_to_nothing(chance, rounds):
    """Against grids that are as fine as the library's own, or finer; with much noise that one is coarse."""
    event = drawn(chance, *rounds)
    relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    fine = pld.PLDAccountant(relation, 4e-6 if rounds[0][1] > 1 else 1e-4).compose(event).get_epsilon(DELTA)
    assert accounting.epsilon(event, DELTA) == pytest.approx(fine, rel=1e-4)
    if rounds == ((10_000, 20.0),):
        assert pld.PLDAccountant(relation).compose(event).get_epsilon(DELTA) > 1.002 * fine


def one_round(epsilon, chance, z):
    """delta of one round with Poisson sampling: from the likelihood ratio, in closed form."""
    worst = 0.0
    for sign in (1, -1):  # the client comes and is not there in the other world, or the other way round
        ratio = (math.exp(sign * epsilon) - 1 + chance) / chance
        if ratio > 0:
            at = z * z * math.log(ratio) + 0.5
            without, with_ = (stats.norm.cdf(-sign * (at - mean) / z) for mean in (0, 1))
            mixed = (1 - chance) * without + chance * with_
            pair = (mixed, without) if sign == 1 else (without, mixed)
            worst = max(worst, pair[0] - math.exp(epsilon) * pair[1])
    return worst


def test_the_epsilon_of_one_round_is_that_of_its_closed_form_and_never_less():
    """On grids of all steps, from the finest to the coarsest."""
    random = np.random.default_rng(0)
    for _ in range(40):
        chance, z = 10 ** random.uniform(-3, -0.01), 10 ** random.uniform(math.log10(0.5), 1.5)
        delta = 10 ** random.uniform(-6, -3) * chance
        exact = optimize.brentq(lambda e, q=chance, z=z, d=delta: one_round(e, q, z) - d, 0, 60, xtol=1e-14)
        found = accounting.epsilon(drawn(chance, (1, z)), delta)
        assert exact * (1 - 1e-9) <= found <= exact * 1.002, (chance, z, delta)


@pytest.mark.parametrize(
    ("z", "rounds"), [(300.0, 1_000_000), (400.0, 160_000), (20.0, 100), (90.0, 160_000)]
)
@pytest.mark.parametrize("delta", [1e-5, 1e-8, 1e-10, 1e-12, 1e-13])
def test_a_tiny_delta_is_not_lost_in_the_rounding_of_many_rounds(z, rounds, delta):
    """Every client in every round is a Gaussian mechanism, whose epsilon has a formula."""
    found = accounting.epsilon(drawn(1.0, (rounds, z)), delta)
    exact = dp_accounting.get_epsilon_gaussian(z / math.sqrt(rounds), delta)
    assert exact <= found <= exact * (1.002 if rounds * 2.0**-48 < delta / 20 else 1.08)


def test_epsilon_grows_with_rounds_also_where_little_delta_is_left():
    found = [
        accounting.epsilon(drawn(0.01, (rounds, 1.0)), 1e-12) for rounds in (200, 270, 280, 281, 282, 400)
    ]
    assert found == sorted(found) and found[-1] < 1.3 * found[0]


def test_a_found_gamma_keeps_its_target_also_where_rounding_moves_epsilon():
    def federation_of(gamma):
        return federation(1 / gamma, clients=1000, rounds=100_000, sampling="poisson", per_round=10)

    gamma = privacy.gamma_for(federation_of, "released_model", 2.0, 1e-9)
    assert 1.99 < calibrate.largest_epsilon(federation_of(gamma), "released_model", 1e-9) <= 2.0
