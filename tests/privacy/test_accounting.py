"""Events, epsilons and calibration against closed forms and published values."""

import math

import dp_accounting
import numpy as np
import pytest
from scipy import optimize, stats

from cepam_jax import privacy
from cepam_jax.errors import ConfigError
from cepam_jax.privacy import Federation, Phase
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
    }
    return Federation(**(fields | changes))


def epsilons(fed, adversary, delta=DELTA):
    return np.array([privacy.epsilon(g.event, delta) for g in ADVERSARIES[adversary](fed)])


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
    """DP-SGD tutorials on MNIST: batch 250 of 60,000, z = 1.3, 15 epochs, delta 1e-5: 1.18 by RDP."""
    fed = federation(1.3, 60_000, 15 * 60_000 // 250, sampling="poisson", per_round=250)
    guarantee = ADVERSARIES["released_model"](fed)[0]
    by_rdp = dp_accounting.rdp.RdpAccountant().compose(guarantee.event).get_epsilon(DELTA)
    assert 0.8 < by_rdp <= 1.19  # the tutorials converted RDP to epsilon less tightly
    assert 0.7 * by_rdp < privacy.epsilon(guarantee.event, DELTA) < by_rdp


def test_sampling_amplifies_only_against_the_released_model():
    all_clients = federation(3.0, 100, 20)
    some = federation(3.0, 100, 20, sampling="fixed", per_round=10)
    guarantees = privacy.ADVERSARIES["released_model"](some)
    assert guarantees[0].relation == "replace"
    np.testing.assert_allclose(epsilons(some, "decoded_updates"), epsilons(all_clients, "decoded_updates"))
    noise = math.sqrt(10) * 3.0
    unsampled = dp_accounting.get_epsilon_gaussian(noise / 2 / math.sqrt(20), DELTA)
    assert epsilons(some, "released_model")[0] < unsampled


@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_no_guarantee_is_infinity_and_says_why(adversary):
    cases = {
        "no noise hides the update": federation(1.0, law=None),
        "not clipped": federation(1.0, norm=None, server="gaussian"),
        "needs an L1 clip": federation(1.0, law="laplace", server="laplace"),
    }
    for text, fed in cases.items():
        guarantee = ADVERSARIES[adversary](fed)[0]
        assert math.isinf(privacy.epsilon(guarantee.event, DELTA)) and text in guarantee.reason
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
    assert "not covered: message lengths" in text
    weak = privacy.text(federation(0.01, 30, 80), DELTA)
    assert "no protection" in weak and "no protection" not in privacy.text(federation(9.0), DELTA)
    mixed = privacy.text(federation(np.linspace(1, 2, 5), 5), DELTA)
    assert "over clients" in mixed
